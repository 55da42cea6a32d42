"""Terms of a distillation over vectors, against brute force."""

import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, batch_for, batch_of, build, buildable, gradients
from lessons import (
    UNEQUAL,
    VECTORS,
    WITHOUT,
    distil,
    teacher_of,
    value_of,
)
from torch import Tensor

from robustbench_rec.batch import Batch
from robustbench_rec.distills._experts import Experts
from robustbench_rec.distills._vectors import Entities
from robustbench_rec.distills.contrastive import Contrastive, alike, infonce
from robustbench_rec.distills.crd import Contrast, besides, nce
from robustbench_rec.distills.topology import Topology, apart
from robustbench_rec.errors import RrecError
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.objective import start_epoch
from robustbench_rec.shifted import Shifted
from robustbench_rec.teacher import Taught


def vectors_of(student: RecModel, teacher: Taught, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Users, then items, of a batch, each once, beside their rows in the tables of both models."""
    found = []
    for kind, index in (("user", batch.users), ("item", batch.items)):
        assert index is not None
        who = torch.tensor(sorted(set(index.flatten().tolist())))
        one, two = (model.get_parameter(f"{kind}.weight").detach()[who] for model in (student, teacher.at.model))
        found.append((who, one, two))
    return found


class TestVectors:
    def test_ftd_is_the_brute_force(self) -> None:
        s, t = torch.randn(6, 3), torch.randn(6, 5)
        total = [
            (F.cosine_similarity(s[i], s[j], 0) - F.cosine_similarity(t[i], t[j], 0)) ** 2
            for i, j in product(range(6), repeat=2)
        ]
        torch.testing.assert_close(apart(s, s, t, t), torch.stack(total).mean())

    def test_ftd_does_not_see_a_rotation_or_a_scale(self) -> None:
        t = torch.randn(7, 4)
        turned = 3 * t @ torch.linalg.qr(torch.randn(4, 4)).Q
        assert apart(turned, turned, t, t).item() == pytest.approx(0, abs=1e-10)

    def test_htd_is_the_brute_force_inside_groups_and_with_the_groups(self) -> None:
        term = distil("topology", groups=3, assignment=0.7).terms[0]
        assert isinstance(term, Topology)
        assert term.experts is not None
        s, t = (torch.randn(9, term.sizes["user"][side]) for side in (0, 1))
        term.generator = torch.Generator().manual_seed(5)
        shares = term.experts.choose(t, term.config.temperature, torch.Generator().manual_seed(5))
        groups = [int(each.argmax()) for each in shares]
        assert len(set(groups)) > 1

        def far(i: Tensor, j: Tensor, k: Tensor, m: Tensor) -> float:
            return float(F.cosine_similarity(i, j, 0) - F.cosine_similarity(k, m, 0)) ** 2

        inside = [far(s[i], s[j], t[i], t[j]) for i, j in product(range(9), repeat=2) if groups[i] == groups[j]]
        means = [[each[[g == group for g in groups]].mean(0) for group in sorted(set(groups))] for each in (s, t)]
        beside = [far(s[i], one, t[i], two) for i in range(9) for one, two in zip(*means, strict=True)]
        rebuilt = (t - term.experts(s, shares)).square().sum(1).mean().item()
        expected = np.mean(inside) + np.mean(beside) + 0.7 * rebuilt
        found = term.compare([Entities("user", torch.arange(9), s, t)])
        assert found.item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("masked", [False, True])
    def test_infonce_is_the_brute_force_and_symmetric(self, masked: bool) -> None:
        """Conformance 9."""
        one, two = torch.randn(5, 3), torch.randn(5, 3)
        mask = alike(torch.randn(5, 2), 0.3 if masked else 1.0)
        assert bool(mask.any()) == masked
        total = []
        for a, b in ((one, two), (two, one)):
            for i in range(5):
                e = [math.exp(F.cosine_similarity(a[i], b[j], 0).item() / 0.2) for j in range(5)]
                total.append(-math.log(e[i] / sum(e[j] for j in range(5) if not mask[i, j])))
        found = infonce(one, two, 0.2, mask)
        assert found.item() == pytest.approx(sum(total) / 10, rel=1e-4)
        torch.testing.assert_close(found, infonce(two, one, 0.2, mask.T))

    def test_contrastive_is_the_loop_over_users_and_items_without_those_that_are_alike(self) -> None:
        student, teacher, batch = build("mf"), teacher_of(dim=4), batch_of()
        built = distil("contrastive", teacher=teacher, student=student, temperature=0.3, threshold=0.4)
        term = built.terms[0]
        assert isinstance(term, Contrastive)
        expected, alike_pairs = 0.0, 0
        for kind, (_, s, t) in zip(("user", "item"), vectors_of(student, teacher, batch), strict=True):
            centred = t - teacher.at.model.get_parameter(f"{kind}.weight").mean(0)
            one, two, n = term.student[kind](s), term.teacher[kind](t), len(s)
            for (a, b), i in product(((one, two), (two, one)), range(n)):
                others = [
                    j for j in range(n) if j != i and F.cosine_similarity(centred[i], centred[j], 0).item() <= 0.4
                ]
                alike_pairs += n - 1 - len(others)
                e = [math.exp(F.cosine_similarity(a[i], b[j], 0).item() / 0.3) for j in (i, *others)]
                expected -= math.log(e[0] / sum(e)) / (2 * n)
        assert alike_pairs > 20
        assert value_of(built, student, batch).item() == pytest.approx(expected, rel=1e-4)

    def test_twins_are_no_negatives(self) -> None:
        vectors = torch.tensor([[1.0, 0.0], [0.99, 0.05], [0.0, 1.0]])
        assert alike(vectors, 0.8).tolist() == [[False, True, False], [True, False, False], [False, False, False]]

    def test_alike_is_about_the_mean_of_all_users_or_items(self) -> None:
        """A teacher whose vectors have a large part in common, as those of Gaussian models, still tells them apart."""
        teacher = teacher_of("mf")
        value = value_of(distil("contrastive", teacher=teacher), build("mf"), batch_of())
        with torch.no_grad():
            teacher.at.model.get_parameter("item.weight").add_(50.0)
            teacher.at.model.get_parameter("user.weight").add_(50.0)
        term = distil("contrastive", teacher=teacher).terms[0]
        assert isinstance(term, Contrastive)
        items = term.taught["item"]
        assert bool(alike(items, 0.8).sum() == DATA.n_items * (DATA.n_items - 1))
        assert not bool(alike(items - term.centres["item"], 0.8).any())
        assert value_of(distil("contrastive", teacher=teacher), build("mf"), batch_of()) > 0.5 * value

    def test_a_mask_that_leaves_few_negatives_is_told_once(self, caplog: pytest.LogCaptureFixture) -> None:
        teacher = teacher_of("mf")
        with torch.no_grad():
            teacher.at.model.get_parameter("item.weight")[1:] = 1.0
        built = distil("contrastive", teacher=teacher)
        start_epoch(built, 1, torch.Generator().manual_seed(1))
        assert caplog.text.count("of pairs of items, 90 % are alike to the teacher and no contrast") == 1

    def test_the_noise_contrast_of_crd_is_the_brute_force(self) -> None:
        e, n = torch.rand(4, 6), 50
        noise = 5 / n
        total = [
            -math.log(row[0] / (row[0] + noise + 1e-7)) - sum(math.log(noise / (x + noise + 1e-7)) for x in row[1:])
            for row in e.tolist()
        ]
        assert nce(e.log(), n).item() == pytest.approx(sum(total) / 4, rel=1e-5)

    def test_crd_at_a_low_temperature_is_what_double_precision_says(self) -> None:
        """exp(1 / τ) is beyond single precision, and so is what a step has beside the Z of the first."""
        single, double = Contrast(3, 3, 9, 4), Contrast(3, 3, 9, 4).double()
        double.load_state_dict(single.state_dict())
        index, (student, teacher) = torch.arange(6), torch.randn(2, 6, 3)
        others = besides(index, 9, 7, torch.Generator().manual_seed(0))
        for sign in (1, -1):
            found = []
            for contrast, dtype in ((single, torch.float32), (double, torch.float64)):
                each = Entities("user", index, (sign * student).to(dtype).requires_grad_(), teacher.to(dtype))
                found.append(contrast(each, others, 0.005, 0.5))
                found[-1].backward()
                assert each.student.grad is not None
                assert each.student.grad.isfinite().all()
            assert found[0].item() == pytest.approx(found[1].item(), rel=1e-3)

    def test_the_negatives_of_crd_are_all_others_alike_and_never_oneself(self) -> None:
        index = torch.tensor([0, 2, 4])
        drawn = besides(index, 5, 6000, torch.Generator().manual_seed(0))
        for own, row in zip(index.tolist(), drawn, strict=True):
            counts = torch.bincount(row, minlength=5).tolist()
            assert counts.pop(own) == 0
            assert len(counts) == 4
            assert all(abs(each - 1500) < 150 for each in counts)

    def test_crd_is_the_loop_over_instances_of_each_net_against_what_is_remembered_of_the_other(self) -> None:
        """Two steps: the second has the Z of the first, and memories that kept 0.8 of what they were."""
        student, teacher, generator = build("mf", dim=8), teacher_of(), torch.Generator().manual_seed(0)
        built = distil("crd", teacher=teacher, student=student, temperature=0.4, momentum=0.8)
        contrasts = [each for each in built.modules() if isinstance(each, Contrast)]
        memories = [[each.get_buffer(side).clone() for side in ("student", "teacher")] for each in contrasts]
        scales: dict[tuple[int, int], float] = {}
        for batch in (batch_of(), batch_of(seed=1)):
            expected = 0.0
            for kind, (who, *raw) in enumerate(vectors_of(student, teacher, batch)):
                n, memory, heads = (DATA.n_users, DATA.n_items)[kind], memories[kind], contrasts[kind].heads
                instances = torch.cat([who[:, None], besides(who, n, 7, generator)], 1).tolist()
                nets = [F.normalize(head(each), dim=1).detach() for head, each in zip(heads, raw, strict=True)]
                for net, other in ((0, 1), (1, 0)):
                    e = [
                        [math.exp(vector @ memory[other][each] / 0.4) for each in row]
                        for vector, row in zip(nets[net], instances, strict=True)
                    ]
                    z = scales.setdefault((kind, net), n * float(np.mean(e)))
                    for own, *others in e:
                        logs = [math.log((7 / n) / (each / z + 7 / n)) for each in others]
                        expected -= (math.log((own / z) / (own / z + 7 / n)) + sum(logs)) / len(who)
                for kept, vectors in zip(memory, nets, strict=True):
                    kept[who] = F.normalize(0.8 * kept[who] + 0.2 * vectors, dim=1)
            assert value_of(built, student, batch).item() == pytest.approx(expected, rel=1e-4)
        for contrast, memory in zip(contrasts, memories, strict=True):
            torch.testing.assert_close([contrast.get_buffer("student"), contrast.get_buffer("teacher")], memory)

    def test_crd_is_the_sum_of_both_anchors_and_remembers(self) -> None:
        built = distil("crd", student=build("mf"))
        before = {key: each.clone() for key, each in built.state_dict().items()}
        value_of(built, build("mf"), batch_of())
        after = built.state_dict()
        changed = {key.rpartition(".")[2] for key in after if not torch.equal(before[key], after[key])}
        assert changed == {"student", "teacher", "log_scales"}

    def test_crd_treats_both_nets_alike(self) -> None:
        """Conformance 9: with the nets exchanged, memories and heads with them, the value is the same."""
        torch.manual_seed(3)
        there, back = Contrast(3, 3, 9, 4), Contrast(3, 3, 9, 4)
        state = there.state_dict()
        swap = {"heads.0": "heads.1", "heads.1": "heads.0", "student": "teacher", "teacher": "student"}
        back.load_state_dict(
            {
                next((k.replace(a, b) for a, b in swap.items() if k.startswith(a)), k): v.clone()
                for k, v in state.items()
            }
        )
        s, t, others = torch.randn(5, 3), torch.randn(5, 3), torch.randint(9, (5, 4))
        one, two = Entities("user", torch.arange(5), s, t), Entities("user", torch.arange(5), t, s)
        torch.testing.assert_close(there(one, others, 0.1, 0.5), back(two, others, 0.1, 0.5))

    @pytest.mark.parametrize("epoch", [0, 3, 4])
    def test_de_is_the_loop_over_users_items_and_experts_that_cool_from_epoch_to_epoch(self, epoch: int) -> None:
        """From 2 in the first of five epochs to 0.2 in the last, by one factor each time."""
        student, teacher, batch = build("mf", dim=8), teacher_of(), batch_of()
        built = distil("de", teacher=teacher, student=student, epoch=epoch, epochs=5, hot=2.0, cold=0.2)
        temperature, generator = 2.0 * 0.1 ** (epoch / 4), torch.Generator().manual_seed(epoch)
        experts, expected = [each for each in built.modules() if isinstance(each, Experts)], 0.0
        for each, (who, s, t) in zip(experts, vectors_of(student, teacher, batch), strict=True):
            drawn = torch.rand(len(who), 2, generator=generator)
            for row in range(len(who)):
                logits = each.gate(t[row]).log_softmax(0) - (-drawn[row].log()).log()
                shares = [math.exp(logit / temperature) for logit in logits.tolist()]
                left = t[row]
                for m, share in enumerate(shares):
                    hidden = F.relu(s[row] @ each.first[m] + each.first_bias[m, 0])
                    left = left - share / sum(shares) * (hidden @ each.last[m] + each.last_bias[m, 0])
                expected += left.square().sum().item() / len(who)
        assert value_of(built, student, batch).item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("name", VECTORS)
    def test_of_many_users_and_items_of_a_batch_so_many_are_compared_others_each_time(self, name: str) -> None:
        student, teacher, batch = build("mf"), teacher_of(), batch_of()
        kinds = zip(("user", "item"), vectors_of(student, teacher, batch), strict=True)
        named = {f"{kind}.weight": set(who.tolist()) for kind, (who, _, _) in kinds}
        for most in (4, 512):
            built, seen = distil(name, teacher=teacher, student=student, most=most), {key: set[int]() for key in named}
            for _ in range(3):
                found = gradients(student, value_of(built, student, batch))
                for key, each in named.items():
                    compared = set(found[key].any(1).nonzero().squeeze(1).tolist())
                    assert len(compared) == min(most, len(each))
                    assert compared <= each
                    seen[key] |= compared
            assert all(len(each) > 4 for each in seen.values())

    def test_experts_are_chosen_by_the_teachers_vector_one_each_when_cold(self) -> None:
        built = distil("de", epoch=9)
        experts, vectors = built.terms[0].experts["user"], torch.randn(6, 64)  # type: ignore[attr-defined]
        sizes = built.terms[0].sizes["user"]  # type: ignore[attr-defined]
        shares = experts.choose(torch.randn(6, sizes[1]), 1e-10, torch.Generator().manual_seed(0))
        assert torch.equal(shares.max(1).values, torch.ones(6))
        assert experts(vectors[:, : sizes[0]], shares).shape == (6, sizes[1])

    @pytest.mark.parametrize("name", VECTORS)
    def test_a_model_without_vectors_is_refused_in_one_line(self, name: str) -> None:
        for teacher, student in (("pop", "mf"), ("mf", "llm_prompt")):
            if not buildable(student):
                continue
            with pytest.raises(RrecError, match="has no vectors of users and items") as caught:
                distil(name, teacher=teacher_of(teacher), student=build(student))
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", [name for name in models if buildable(name)])
    def test_vectors_are_of_each_user_and_item_by_itself(self, name: str) -> None:
        model = build(name).eval()
        teacher = Taught.of(model, DATA)
        users, items = torch.arange(DATA.n_users), torch.arange(DATA.n_items)
        if name in WITHOUT:
            with pytest.raises(RrecError, match=f"'{name}' has no vectors of users and items; distil its scores"):
                teacher.users(users)
            return
        all_users, all_items = teacher.users(users), teacher.items(items)
        torch.testing.assert_close(teacher.users(users[[3, 1]]), all_users[[3, 1]])
        torch.testing.assert_close(teacher.items(items[[5, 2]]), all_items[[5, 2]])
        assert (all_users.shape[1] == all_items.shape[1]) != (name in UNEQUAL)

    @pytest.mark.parametrize("name", ["mf", "lightgcn", "sasrec"])
    def test_vectors_move_with_the_point(self, name: str) -> None:
        model, batch = build(name).eval(), batch_for(build(name))
        delta = {"item.weight": torch.ones_like(model.get_parameter("item.weight"))}
        at = Shifted(model)
        assert not torch.equal(at.item_states(torch.arange(3)), at.shift(delta).item_states(torch.arange(3)))
        assert at.shift(delta).user_states(batch).isfinite().all()
