"""Distillation: the objective, its terms against brute force, teachers, and which families teach which."""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, Fixed, batch_for, batch_of, build, buildable, compose, configured, gradients, make_data
from torch import Tensor

from robustbench_rec import composing, distillation
from robustbench_rec.batch import Batch
from robustbench_rec.data import Data, Interactions
from robustbench_rec.defenses import defenses
from robustbench_rec.distillation import Distillation, Lesson
from robustbench_rec.distills import distilled, distills
from robustbench_rec.distills._lists import OverLists, by_rank
from robustbench_rec.distills._vectors import Entities
from robustbench_rec.distills.contrastive import Contrastive, alike, infonce
from robustbench_rec.distills.crd import besides, nce
from robustbench_rec.distills.rrd import plackett_luce
from robustbench_rec.distills.topology import Topology, apart
from robustbench_rec.errors import RrecError
from robustbench_rec.hardware import autocast
from robustbench_rec.losses import loss
from robustbench_rec.metrics.agreement import kendall, overlap
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.objective import Objective, Plain, innermost, start_epoch, told
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks import distill as task
from robustbench_rec.teacher import Average, Ensemble, Matrix, Taught, Teacher, cached

BPR = Plain(loss("bpr"))
LISTS = ("boundary", "cd", "listwise", "pointwise", "rrd")
VECTORS = ("contrastive", "crd", "de", "topology")
FEW: dict[str, dict[str, Any]] = {
    "listwise": {"top": 6, "uniform": 4},
    "pointwise": {"top": 6, "uniform": 4},
    "boundary": {"k": 3, "size": 5},
    "cd": {"count": 4, "top": 8},
    "rrd": {"interesting": 4, "uninteresting": 3, "top": 8},
    "de": {"experts": 2},
    "crd": {"negatives": 7, "dim": 6},
    "contrastive": {"dim": 6},
}
WITHOUT = ("ease", "itemknn", "llm_prompt", "pop")
UNEQUAL = ("lstm_text",)
"""Whose vectors of users have another size than those of items."""
STUDENTS = (
    "mf",
    "biased_mf",
    "neumf",
    "lightgcn",
    "kgat",
    "kgcn",
    "deepcf_mlp",
    "gru4rec",
    "sasrec",
    "text_tower",
    "lstm_text",
    "deepfm",
)
TEACHERS = ("pop", "ease", "mf", "lightgcn", "structure_aware_kgat", "comirec", "stosa", "multi_intent_gaussian")


PERTURBED = ("mf", "lightgcn", "sasrec", "lstm_text", "deepfm", "biased_mf")


def teacher_of(name: str = "mf", data: Data = DATA, *, seed: int = 9, **changes: Any) -> Taught:
    return Taught.of(build(name, data, seed=seed, **changes), data)


def fixed(scores: Tensor, data: Data = DATA) -> Taught:
    return Taught.of(Fixed(scores), data)


def distil(
    name: str = "listwise",
    inner: Objective = BPR,
    teacher: Teacher | None = None,
    student: RecModel | None = None,
    *,
    data: Data = DATA,
    epoch: int = 0,
    epochs: int = 10,
    task: float = 1.0,
    seen: bool = False,
    **changes: Any,
) -> Distillation:
    pupil, alone = student or build("mf", data), innermost(inner).loss
    lesson = Lesson(teacher or teacher_of(data=data), pupil, data, epochs, alone, seen)
    settings = configured("distill", name, **(FEW.get(name, {}) | changes))
    built = distilled(settings, inner, lesson, task=task)
    start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
    return built


def value_of(built: Distillation, student: RecModel, batch: Batch) -> Tensor:
    """The one term, without its weight."""
    found: Tensor = built.terms[0](Shifted(student), batch)
    return found


def lists_of(built: Distillation) -> OverLists:
    term = built.terms[0]
    assert isinstance(term, OverLists)
    return term


def heavy(count: int) -> Data:
    """DATA with a first user who has the first items of the catalogue."""
    kept = (DATA.train.users != 0).nonzero().squeeze(1)
    others = {name: each[kept] for name, each in vars(DATA.train).items() if each is not None}
    first = torch.arange(count)
    own = {"users": torch.zeros_like(first), "items": first, "values": torch.ones(count)}
    train = Interactions(**{name: torch.cat([own[name].to(others[name].dtype), others[name]]) for name in own})
    return replace(DATA, train=train)


def listed(built: Distillation, user: int) -> Tensor:
    """The items of a user that count."""
    term = lists_of(built)
    return term.lists[user] if term.there is None else term.lists[user][term.there[user]]


class TestObjective:
    @pytest.mark.parametrize("name", list(distills))
    @pytest.mark.parametrize("student", ["mf", "kgat"])
    def test_no_weight_is_the_inner_objective_bit_for_bit(self, name: str, student: str) -> None:
        data = make_data(n_items=80)
        model, batch = build(student, data).eval(), batch_of(data)
        built = distil(name, teacher=teacher_of(data=data), student=model, data=data, weight=0.0)
        plain, found = BPR(Shifted(model), batch), built(Shifted(model), batch)
        assert torch.equal(plain, found)
        one, two = gradients(model, plain), gradients(model, found)
        assert all(torch.equal(one[key], two[key]) for key in one)

    def test_it_is_the_sum_of_the_weighted_terms_and_tells_each(self) -> None:
        student, batch, teacher = build("mf"), batch_of(), teacher_of()
        second = configured("distill", "pointwise", **FEW["pointwise"], weight=0.2)
        both = distil(teacher=teacher, student=student, weight=0.3, inner=BPR, task=0.7)
        chained = distilled(
            configured("distill", "listwise", **FEW["listwise"], weight=0.3) | {"inner": second},
            BPR,
            both.lesson,
            task=0.7,
        )
        start_epoch(chained, 0, torch.Generator().manual_seed(0))
        found = chained(Shifted(student), batch)
        values = [BPR(Shifted(student), batch), *(each(Shifted(student), batch) for each in chained.terms)]
        parts = [weight * each.item() for weight, each in zip((0.7, 0.3, 0.2), values, strict=True)]
        assert found.item() == pytest.approx(sum(parts), rel=1e-5)
        assert told(chained) == pytest.approx(
            dict(zip(("term/task", "term/listwise", "term/pointwise"), parts, strict=True)), rel=1e-5
        )
        assert chained.formula == "L = 0.7 · task + 0.3 · listwise + 0.2 · pointwise + penalty"
        assert distil(student=build("sasrec")).formula == "L = task + 2 · listwise"

    def test_terms_of_one_name_are_told_apart(self) -> None:
        first = configured("distill", "listwise", **FEW["listwise"])
        built = distilled(first | {"inner": first}, BPR, Lesson(teacher_of(), build("mf"), DATA, 5, BPR.loss))
        assert list(built.told()) == ["term/task", "term/listwise", "term/listwise2"]

    @pytest.mark.parametrize(
        ("changes", "shares"),
        [
            ({}, [1, 1, 1, 1, 1]),
            ({"warmup": 0.8}, [0.25, 0.5, 0.75, 1, 1]),
            ({"schedule": "linear"}, [1, 0.8, 0.6, 0.4, 0.2]),
            ({"schedule": "cosine"}, [(1 + math.cos(math.pi * each / 5)) / 2 for each in range(5)]),
        ],
        ids=str,
    )
    def test_a_schedule_changes_the_weight_step_by_step(self, changes: dict[str, Any], shares: list[float]) -> None:
        """Five steps: as many epochs of one batch, or one epoch of them."""
        student, batch = build("mf"), batch_of()
        for epochs, batches in ((5, 1), (1, 5)):
            built = distil(student=student, epochs=epochs, weight=2.0, task=0.0, **changes)
            whole = value_of(built, student, batch).item()
            found = []
            for epoch in range(epochs):
                start_epoch(built, epoch, torch.Generator().manual_seed(0), batches=batches)
                values = [built(Shifted(student), batch).item() for _ in range(batches)]
                assert told(built)["term/listwise"] == pytest.approx(sum(values) / batches)
                found += [each / whole for each in values]
            assert found == pytest.approx([2 * each for each in shares])

    def test_a_warm_up_rises_within_an_epoch_and_goes_on_in_the_next(self) -> None:
        term = distil("robust", epochs=5, weight=0.5, warmup=0.3).terms[0]
        term.batches = 10
        rising = [term.factor(step) for step in range(50)]
        assert rising[:15] == pytest.approx([0.5 * (step + 1) / 15 for step in range(15)])
        assert set(rising[15:]) == {0.5}

    def test_without_a_task_only_the_teacher_is_followed(self) -> None:
        student, batch, teacher = build("mf"), batch_of(), teacher_of()
        built = distil(teacher=teacher, student=student, weight=1.0, task=0.0)
        torch.testing.assert_close(built(Shifted(student), batch), value_of(built, student, batch))

    @pytest.mark.parametrize("student", ["mf", "kgat"])
    def test_a_defence_inside_is_the_defence_plus_the_term(self, student: str) -> None:
        model, batch, teacher = build(student).eval(), batch_of(), teacher_of()
        inner = defenses.build(configured("defense", "apr"), BPR, model)
        found = gradients(model, distil("listwise", inner, teacher, model, weight=0.4)(Shifted(model), batch))
        hard = gradients(model, inner(Shifted(model), batch))
        soft = gradients(model, distil("listwise", BPR, teacher, model, weight=1.0, task=0)(Shifted(model), batch))
        for key in found:
            torch.testing.assert_close(found[key], hard[key] + 0.4 * soft[key], rtol=1e-4, atol=1e-7)

    def test_the_inner_defence_hears_that_an_epoch_begins(self) -> None:
        model = build("mf")
        distil(inner=defenses.build(configured("defense", "rawp"), BPR, model))(Shifted(model), batch_of())

    def test_the_teacher_learns_nothing(self) -> None:
        teacher = teacher_of()
        distil(teacher=teacher)(Shifted(build("mf")), batch_of()).backward()
        assert all(each.grad is None for each in teacher.at.model.parameters())

    @pytest.mark.parametrize("name", [each for each in distills if each != "adapter_norm"])
    def test_a_step_in_reduced_precision_is_finite(self, name: str) -> None:
        student = build("sasrec")
        built = distil(name, inner=Plain(loss("softmax")), teacher=teacher_of("kgat"), student=student)
        with autocast("bf16", torch.device("cpu")):
            value = built(Shifted(student.train()), batch_for(student))
        assert all(each.isfinite().all() for each in gradients(student, value).values())

    @pytest.mark.parametrize(
        ("student", "name", "changes"),
        [
            ("mf", "smart", {"eps": 0.3, "weight": 3.0}),
            ("sasrec", "smart", {"norm": "l2"}),
            *((student, "vat", {"weight": 30.0}) for student in PERTURBED),
            ("mf", "gaussian", {"noisy": 0.3}),
            ("sasrec", "gaussian", {}),
            ("sasrec", "rdrop", {}),
        ],
        ids=str,
    )
    def test_a_robust_term_is_what_the_defence_adds(self, student: str, name: str, changes: dict[str, Any]) -> None:
        model = build(student).train()
        plain, by, batch = Plain(loss(model.loss)), configured("defense", name, **changes), batch_for(model)
        defence = defenses.build(by, plain, model)
        term = distil("robust", plain, student=model, by=by, weight=0.5, warmup=0.0)
        found, values = [], []
        for objective in (plain, defence, term):
            start_epoch(objective, 0, torch.Generator().manual_seed(5))
            torch.manual_seed(3)
            values.append(objective(Shifted(model), batch))
            found.append(gradients(model, values[-1]))
        if name == "rdrop":  # whose two passes are not those of the task
            assert values[2] > values[0]
        else:
            torch.testing.assert_close(values[2] - values[0], 0.5 * (values[1] - values[0]), rtol=1e-3, atol=1e-6)
            for key, each in found[0].items():
                half = each + 0.5 * (found[1][key] - each)
                torch.testing.assert_close(found[2][key], half, rtol=1e-3, atol=1e-6)
        assert told(term)["term/robust"] == pytest.approx((values[2] - values[0]).item(), abs=1e-5)

    @pytest.mark.parametrize("student", [each for each in ("sasrec", "lstm_text", "llm_prompt") if buildable(each)])
    def test_the_robust_term_of_neftune_is_the_noisy_loss(self, student: str) -> None:
        model = build(student).eval()
        plain, by = Plain(loss(model.loss)), configured("defense", "neftune")
        term = distil("robust", plain, student=model, by=by, weight=1.0, warmup=0.0, task=0.0)
        noisy = defenses.build(by, plain, model)
        for objective in (term, noisy):
            start_epoch(objective, 0, torch.Generator().manual_seed(5))
        one, two = (each(Shifted(model), batch_for(model)) for each in (term, noisy))
        assert torch.equal(one, two)

    def test_the_robust_term_has_a_warm_up_as_any_other(self) -> None:
        built = distil("robust", weight=1.0, warmup=0.5, epochs=10)
        shares = []
        for epoch in range(7):
            start_epoch(built, epoch, torch.Generator().manual_seed(0))
            shares.append(built.terms[0].factor(epoch))
        assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])

    @pytest.mark.parametrize("name", ["apr", "rawp", "none"])
    def test_a_defence_that_adds_nothing_is_no_robust_term(self, name: str) -> None:
        with pytest.raises(RrecError, match=rf"by={name}: .* \(gaussian, neftune, rdrop, smart, vat do\)"):
            distil("robust", by=configured("defense", name))

    @pytest.mark.parametrize("name", [each for each in distills if each not in ("distance", "adapter_norm")])
    def test_it_is_learnt(self, name: str) -> None:
        data = make_data(n_users=30, n_items=40)
        student, teacher = build("mf", data, dim=8), teacher_of("lightgcn", data)
        with torch.no_grad():
            for each in teacher.at.model.parameters():
                each.mul_(5)
        built = distil(name, teacher=teacher, student=student, data=data, task=0.0, weight=1.0)
        weights = [*student.parameters(), *(each for each in built.parameters() if each.requires_grad)]
        optimizer, values = torch.optim.Adam(weights, lr=0.03), []
        for epoch in range(60):
            start_epoch(built, 1, torch.Generator().manual_seed(epoch))
            optimizer.zero_grad()
            value = built(Shifted(student), batch_of(data, size=100, seed=epoch))
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert sum(values[-5:]) < 0.97 * sum(values[:5])

    @pytest.mark.parametrize(
        "changes",
        [
            {"weight": -0.1},
            {"weight": float("nan")},
            {"temperature": 0.0},
            {"top": -1},
            {"uniform": -1},
            {"top": 1, "uniform": 0},
            {"warmup": 1.5},
            {"schedule": "step"},
            {"task": -1.0},
            {"task": 0.0, "weight": 0.0},
        ],
        ids=str,
    )
    def test_settings_that_make_no_sense_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(RrecError, match=r"distill|task_weight") as caught:
            distil(**changes)
        assert "\n" not in str(caught.value)


class TestLists:
    def test_listwise_is_the_naive_loop_over_the_users_of_the_batch(self) -> None:
        student, teacher, batch = build("mf"), teacher_of(), batch_of()
        for standardise in (True, False):
            built = distil(teacher=teacher, temperature=1.7, standardise=standardise)
            total = []
            for user in sorted(set(batch.users.tolist())):
                items = listed(built, user)[None]
                both = []
                for model in (student, teacher.at.model):
                    s = Shifted(model)(Batch.unlabelled(torch.tensor([user]), items)).scores[0]
                    both.append(((s - s.mean()) / s.std() if standardise else s) / 1.7)
                q, p = (each.log_softmax(0) for each in both)
                total.append((p.exp() * (p - q)).sum())
            expected = 1.7**2 * torch.stack(total).mean()
            torch.testing.assert_close(value_of(built, student, batch), expected, rtol=1e-4, atol=1e-6)

    def test_pointwise_is_the_divergence_of_coins(self) -> None:
        student, teacher, batch = build("mf"), teacher_of(), batch_of()
        built = distil("pointwise", teacher=teacher, temperature=1.5, standardise=False)
        found = []
        for user in torch.unique(batch.users).tolist():
            asked = Batch.unlabelled(torch.tensor([user]), listed(built, user)[None])
            p, q = (
                torch.distributions.Bernoulli(logits=Shifted(m)(asked).scores / 1.5)
                for m in (teacher.at.model, student)
            )
            found.append(torch.distributions.kl_divergence(p, q)[0])
        expected = 1.5**2 * torch.cat(found).mean()
        torch.testing.assert_close(value_of(built, student, batch), expected, rtol=1e-4, atol=1e-6)

    def test_ratings_are_apart_by_the_square_of_their_difference(self) -> None:
        student, batch, own = build("biased_mf"), batch_of(), Plain(loss("mse"))
        teacher = teacher_of("biased_mf")
        with torch.no_grad():
            teacher.at.model.get_parameter("user_bias").add_(2.0)
        built = distil("pointwise", own, teacher, student, temperature=1.5)
        found = []
        for user in torch.unique(batch.users).tolist():
            asked = Batch.unlabelled(torch.tensor([user]), listed(built, user)[None])
            found.append((Shifted(teacher.at.model)(asked).scores - Shifted(student)(asked).scores)[0].square())
        torch.testing.assert_close(value_of(built, student, batch), torch.cat(found).mean())
        assert value_of(built, student, batch).item() == pytest.approx(4, rel=0.01)

    def test_a_student_of_ratings_learns_nothing_of_the_scale_of_other_scores(self) -> None:
        student, own, scores = build("biased_mf"), Plain(loss("mse")), 500 * torch.rand(DATA.n_users, DATA.n_items)
        one, two = (distil("pointwise", own, fixed(each), student) for each in (scores, scores / 100 - 7))
        values = [value_of(each, student, batch_of()) for each in (one, two)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("standardise", [False, True])
    def test_cd_is_the_cross_entropy_with_soft_labels(self, standardise: bool) -> None:
        student, teacher, batch = build("mf"), teacher_of(), batch_of()
        built = distil("cd", teacher=teacher, temperature=1.5, standardise=standardise)
        total = []
        for user in torch.unique(batch.users).tolist():
            asked = Batch.unlabelled(torch.tensor([user]), listed(built, user)[None])
            s, t = (Shifted(each)(asked).scores[0] for each in (student, teacher.at.model))
            if standardise:
                s, t = ((each - each.mean()) / each.std() for each in (s, t))
            p, q = s.sigmoid(), (t / 1.5).sigmoid()
            total.append(-(q * p.log() + (1 - q) * (1 - p).log()))
        torch.testing.assert_close(value_of(built, student, batch), torch.cat(total).mean(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("teacher", "student", "own", "raw"),
        [
            ("deepfm", "mf", "bpr", True),
            ("kgcn", "mf", "bce", True),
            ("deepfm", "biased_mf", "mse", False),
            ("pop", "mf", "bpr", False),
            ("stosa", "mf", "bpr", False),
        ],
    )
    def test_labels_of_cd_are_raw_where_scores_are_logits(
        self, teacher: str, student: str, own: str, raw: bool
    ) -> None:
        pupil, inner, batch = build(student), Plain(loss(own)), batch_of()
        found, plain = (
            value_of(distil("cd", inner, teacher_of(teacher), pupil, **each), pupil, batch)
            for each in ({}, {"standardise": not raw})
        )
        assert torch.equal(found, plain)

    @pytest.mark.parametrize("name", ["listwise", "pointwise", "boundary"])
    def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn(self, name: str) -> None:
        student, batch = build("mf", seed=9), batch_of()
        value = value_of(distil(name), student, batch)
        assert value.item() == pytest.approx(0, abs=1e-6)
        assert max(each.abs().max().item() for each in gradients(student, value).values()) < 1e-5

    @pytest.mark.parametrize("name", ["listwise", "boundary", "pointwise", "cd"])
    def test_standardised_lists_do_not_care_for_the_scale_of_a_teacher(self, name: str) -> None:
        student, batch = build("mf"), batch_of()
        scores = torch.randn(DATA.n_users, DATA.n_items)
        one, two = (value_of(distil(name, teacher=fixed(each)), student, batch) for each in (scores, 5 * scores + 3))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("name", ["listwise", "pointwise", "boundary", "cd", "rrd"])
    def test_scores_of_a_thousand_are_survived(self, name: str) -> None:
        scores = 1e3 * torch.randn(DATA.n_users, DATA.n_items).sign()
        student = Fixed(-scores)
        value = value_of(distil(name, teacher=fixed(scores), student=student), student, batch_of())
        assert value.isfinite()
        assert all(each.isfinite().all() for each in gradients(student, value).values())

    def test_they_begin_with_the_teachers_best_items_that_are_no_training_items(self) -> None:
        teacher = teacher_of()
        built = lists_of(distil(teacher=teacher))
        scores = teacher.scores(torch.arange(DATA.n_users), None).clone()
        scores[DATA.train.users, DATA.train.items] = -torch.inf
        assert torch.equal(built.lists[:, :6], scores.topk(6, 1).indices)
        assert built.lists.shape == (DATA.n_users, 10)

    @pytest.mark.parametrize("name", LISTS)
    def test_training_items_are_candidates_where_they_are_recommended_again(self, name: str) -> None:
        hidden = Interactions(torch.tensor([0, 3]), torch.tensor([4, 7]), torch.ones(2))
        data, teacher = replace(DATA, hidden=hidden), teacher_of()
        few = {"boundary": {"k": 6, "size": 20, "delta": 9.0}, "cd": {"count": 8}, "rrd": {"sampled": False}}
        changes = {"top": 8, "uniform": 60} if name in ("listwise", "pointwise") else few[name]
        built = distil(name, teacher=teacher, data=data, seen=True, **changes)
        scores = teacher.scores(torch.arange(DATA.n_users), None).clone()
        scores[hidden.users, hidden.items] = -torch.inf
        for user in range(DATA.n_users):
            own = set(listed(built, user).tolist())
            gone = set(hidden.items[hidden.users == user].tolist())
            assert not own & gone
            if name in ("boundary", "listwise", "pointwise"):
                assert len(own) > 0.8 * DATA.n_items
            if name != "boundary":
                first = 4 if name == "rrd" else 8
                best = scores[user].topk(first).indices
                assert torch.equal(lists_of(built).lists[user, :first], best)

    @pytest.mark.parametrize("top", [0, 6])
    def test_the_rest_are_other_items_each_once_and_no_training_items(self, top: int) -> None:
        built = lists_of(distil(top=top, uniform=30))
        assert built.there is not None
        for user in range(DATA.n_users):
            known = set(DATA.train.items[DATA.train.users == user].tolist())
            for place, item in enumerate(built.lists[user].tolist()):
                counts = item not in known
                assert bool(built.there[user, place]) == counts
                known.add(item)
        drawn = built.there[:, top:].sum(1)
        assert bool((drawn > 0.6 * (DATA.n_items - 5 - top)).all())

    def test_the_rest_is_drawn_anew_every_epoch_and_the_best_stay(self) -> None:
        built, lists = distil(), []
        for epoch in (0, 1, 0):
            start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
            lists.append(lists_of(built).lists)
        assert torch.equal(lists[0], lists[2])
        assert torch.equal(lists[0][:, :6], lists[1][:, :6])
        assert not torch.equal(lists[0], lists[1])

    def test_portions_do_not_change_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        teacher, whole = teacher_of(), lists_of(distil())
        monkeypatch.setattr(distillation, "CELLS", DATA.n_items * 5)
        parts = lists_of(distil(teacher=teacher))
        assert torch.equal(whole.lists, parts.lists)
        torch.testing.assert_close(whole.taught, parts.taught)

    def test_the_boundary_is_what_the_teacher_scores_like_its_kth_item(self) -> None:
        teacher = teacher_of()
        term = lists_of(distil("boundary", teacher=teacher, k=4, delta=0.6, size=15))
        there = term.there
        assert there is not None
        for user in range(DATA.n_users):
            scores = teacher.scores(torch.tensor([user]), None)[0]
            seen = set(DATA.train.items[DATA.train.users == user].tolist())
            own = {item: scores[item].item() for item in range(DATA.n_items) if item not in seen}
            bar, spread = sorted(own.values())[-4], np.std(list(own.values()))
            expected = {item for item, score in own.items() if abs(score - bar) <= 0.6 * spread}
            assert set(term.lists[user][there[user]].tolist()) == expected

    def test_ranks_are_drawn_in_order_without_repeats_and_early_ones_more_often(self) -> None:
        places = by_rank(torch.ones(4000, 30, dtype=torch.bool), 5, 10.0, torch.Generator().manual_seed(0))
        assert bool((places.diff(dim=1) > 0).all())
        counts = torch.bincount(places.flatten(), minlength=30)
        assert counts[0] > 1.5 * counts[8] > 2 * counts[20]

    def test_a_user_who_has_nearly_all_items_shortens_no_list_but_the_own(self) -> None:
        data = heavy(DATA.n_items - 2)
        train = data.train
        lesson = Lesson(teacher_of(data=DATA), build("mf", DATA), data, 10, BPR.loss)
        found, there = lesson.best(8)
        assert found.shape == (DATA.n_users, 8)
        scores = lesson.teacher.scores(torch.arange(DATA.n_users), None)
        for user, row in enumerate(found.tolist()):
            taken = set(train.items[train.users == user].tolist())
            order = sorted(range(DATA.n_items), key=lambda item: (item in taken, -scores[user, item].item()))
            assert row == order[:8]
            assert there[user].tolist() == [item not in taken for item in row]

    @pytest.mark.parametrize("owned", [DATA.n_items - 2, DATA.n_items])
    def test_a_user_with_fewer_candidates_than_k_has_a_boundary_behind_the_last_of_them(self, owned: int) -> None:
        teacher, student = teacher_of(), build("mf")
        built = distil("boundary", teacher=teacher, student=student, data=heavy(owned), k=4, delta=9.0, size=15)
        term = lists_of(built)
        assert sorted(listed(built, 0).tolist()) == list(range(owned, DATA.n_items))
        whole = lists_of(distil("boundary", teacher=teacher, student=student, k=4, delta=9.0, size=15))
        assert term.there is not None
        assert torch.equal(term.lists[1:], whole.lists[1:])
        value = value_of(built, student, batch_of())
        assert all(each.isfinite().all() for each in (value, *gradients(student, value).values()))

    def test_a_boundary_behind_all_candidates_of_everybody_is_refused(self) -> None:
        with pytest.raises(RrecError, match="1 <= k <= 15 candidates"):
            distil("boundary", k=16)

    @pytest.mark.parametrize("name", LISTS)
    def test_what_training_took_teaches_nothing_where_a_user_has_few_candidates(self, name: str) -> None:
        data = make_data(n_users=6, n_items=10, train=7)
        lists = {
            "boundary": {"k": 3, "size": 6, "delta": 9.0},
            "cd": {"count": 4, "top": 6},
            "rrd": {"interesting": 6, "top": 6, "uninteresting": 0, "sampled": False},
        }
        changes = lists.get(name, {"top": 6, "uniform": 0})
        student = build("mf", data)
        built = distil(name, teacher=teacher_of(data=data), student=student, data=data, task=0.0, **changes)
        term = lists_of(built)
        taken = torch.zeros(data.n_users, data.n_items, dtype=torch.bool)
        taken[data.train.users, data.train.items] = True
        there = ~taken.gather(1, term.lists)
        assert term.there is not None
        assert torch.equal(term.there, there)
        assert not bool(there.all())
        scores = torch.randn(term.lists.shape, requires_grad=True)
        term.compare(scores, term.taught, term.there).backward()
        assert scores.grad is not None
        assert bool((scores.grad[~there] == 0).all())
        assert bool((scores.grad[there] != 0).any())

    def test_uninteresting_items_are_neither_ranked_nor_seen(self) -> None:
        data = make_data(n_items=40)
        term = lists_of(
            distil("rrd", teacher=teacher_of(data=data), student=build("mf", data), data=data, uninteresting=9)
        )
        keys = torch.arange(data.n_users)[:, None] * data.n_items
        barred = {*term.lesson.taken.tolist(), *(keys + term.lesson.best(8)[0]).flatten().tolist()}
        assert not barred & set((keys + term.lists[:, 4:]).flatten().tolist())
        assert term.there is None

    def test_nobody_with_an_uninteresting_item_is_told(self, caplog: pytest.LogCaptureFixture) -> None:
        lists_of(distil("rrd", top=DATA.n_items, uninteresting=4))
        assert "nobody has an uninteresting item" in caplog.text

    def test_interesting_items_stand_in_the_order_of_the_teacher(self) -> None:
        for sampled in (True, False):
            term = lists_of(distil("rrd", sampled=sampled))
            assert bool((term.taught[:, :4].diff(dim=1) <= 0).all())


class TestPlackettLuce:
    """Conformance 9: RRD against the brute force of its definition."""

    def test_it_is_the_brute_force(self) -> None:
        ordered, tail = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 3, dtype=torch.double)
        for row in range(5):
            total = 0.0
            for k in range(4):
                rest = sum(math.exp(s) for s in (*ordered[row, k:].tolist(), *tail[row].tolist()))
                total -= math.log(math.exp(ordered[row, k]) / rest)
            assert plackett_luce(ordered, tail)[row].item() == pytest.approx(total, rel=1e-9)

    def test_orders_of_all_items_have_probabilities_that_sum_to_one(self) -> None:
        from itertools import permutations

        scores, none = torch.randn(4, dtype=torch.double), torch.empty(1, 0)
        total = sum(
            plackett_luce(scores[list(order)][None], none).neg().exp().item() for order in permutations(range(4))
        )
        assert total == pytest.approx(1)

    def test_a_constant_added_to_all_scores_changes_nothing(self) -> None:
        ordered, tail = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 3, dtype=torch.double)
        torch.testing.assert_close(plackett_luce(ordered, tail), plackett_luce(ordered + 7, tail + 7))

    def test_it_is_stable_for_scores_of_a_thousand(self) -> None:
        ordered = torch.tensor([[1e3, -1e3, 1e3], [-1e3, -1e3, 1e3]], requires_grad=True)
        tail = torch.tensor([[1e3, -1e3], [-1e3, 1e3]], requires_grad=True)
        value = plackett_luce(ordered, tail)
        value.sum().backward()
        assert value.isfinite().all()
        assert ordered.grad is not None
        assert tail.grad is not None
        assert ordered.grad.isfinite().all()
        assert tail.grad.isfinite().all()
        assert value[0].item() == pytest.approx(math.log(3) + 2e3 + math.log(2) + math.log(2), rel=1e-5)


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
        assert nce(e, n).item() == pytest.approx(sum(total) / 4, rel=1e-5)

    def test_the_negatives_of_crd_are_all_others_alike_and_never_oneself(self) -> None:
        index = torch.tensor([0, 2, 4])
        drawn = besides(index, 5, 6000, torch.Generator().manual_seed(0))
        for own, row in zip(index.tolist(), drawn, strict=True):
            counts = torch.bincount(row, minlength=5).tolist()
            assert counts.pop(own) == 0
            assert len(counts) == 4
            assert all(abs(each - 1500) < 150 for each in counts)

    def test_crd_is_the_sum_of_both_anchors_and_remembers(self) -> None:
        built = distil("crd", student=build("mf"))
        before = {key: each.clone() for key, each in built.state_dict().items()}
        value_of(built, build("mf"), batch_of())
        after = built.state_dict()
        changed = {key.rpartition(".")[2] for key in after if not torch.equal(before[key], after[key])}
        assert changed == {"student", "teacher", "scales"}

    def test_crd_treats_both_nets_alike(self) -> None:
        """Conformance 9: with the nets exchanged, memories and heads with them, the value is the same."""
        from robustbench_rec.distills._vectors import Entities
        from robustbench_rec.distills.crd import Contrast

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


class TestTeachers:
    def test_an_ensemble_is_the_mean_of_scores_that_are_standardised_over_the_catalogue(self) -> None:
        members = [teacher_of(), teacher_of("lightgcn")]
        users, items = torch.arange(DATA.n_users), torch.randint(DATA.n_items, (DATA.n_users, 4))
        whole = torch.stack(
            [(s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True) for s in (m.scores(users, None) for m in members)]
        ).mean(0)
        ensemble = Ensemble(members, DATA)
        torch.testing.assert_close(ensemble.scores(users, None), whole)
        torch.testing.assert_close(ensemble.scores(users, items), whole.gather(1, items))

    @pytest.mark.parametrize("name", VECTORS)
    def test_vectors_of_an_ensemble_are_those_of_its_members_side_by_side(self, name: str) -> None:
        members = [teacher_of(), teacher_of("stosa")]
        ensemble, index = Ensemble(members, DATA), torch.tensor([3, 1])
        for method in ("users", "items"):
            one, two = (getattr(each, method)(index) for each in members)
            both = getattr(ensemble, method)(index)
            torch.testing.assert_close(both[:, : one.shape[1]], one / one.norm(dim=1, keepdim=True))
            torch.testing.assert_close(both[:, one.shape[1] :], two / two.norm(dim=1, keepdim=True))
        student = build("mf")
        found = gradients(student, value_of(distil(name, teacher=ensemble, student=student), student, batch_of()))
        assert any(each.any() for each in found.values())

    def test_an_ensemble_with_a_member_that_has_no_vectors_names_it(self) -> None:
        with pytest.raises(RrecError, match="'pop' has no vectors"):
            distil("contrastive", teacher=Ensemble([teacher_of(), teacher_of("pop")], DATA))

    def test_vectors_of_fields_are_what_a_factorisation_machine_takes_products_of(self) -> None:
        model = build("deepfm").eval()
        with torch.no_grad():
            model.get_parameter("out.weight").zero_()
        teacher = Taught.of(model, DATA)
        users, items = torch.arange(DATA.n_users), torch.arange(DATA.n_items)
        scores, products = teacher.scores(users, None), teacher.users(users) @ teacher.items(items).T
        left = scores - products
        torch.testing.assert_close(left, left[:, :1] + left[:1] - left[0, 0], rtol=1e-4, atol=1e-5)

    def test_the_average_follows_the_student_and_speaks_for_an_epoch(self) -> None:
        student, batch = build("mf"), batch_of()
        teacher = Average(student, DATA, 0.9)
        built = distil(teacher=teacher, student=student)
        start = student.get_parameter("user.weight").detach().clone()
        with torch.no_grad():
            student.get_parameter("user.weight").add_(1.0)
        before = lists_of(built).taught
        built(Shifted(student), batch)
        torch.testing.assert_close(teacher.at.model.get_parameter("user.weight"), start + 0.1)
        assert torch.equal(before, lists_of(built).taught)
        start_epoch(built, 1, torch.Generator().manual_seed(0))
        assert not torch.equal(before[:, :6], lists_of(built).taught[:, :6])
        assert any(key.startswith("average.") for key in built.state_dict())
        assert not any(each.requires_grad for each in built.parameters())

    def test_the_average_knows_what_the_student_is_fitted_to(self) -> None:
        student = build("biased_mf")
        teacher = Average(student, DATA, 0.9)
        student.fit(DATA)
        assert student.get_buffer("mean") != 0
        assert torch.equal(teacher.at.model.get_buffer("mean"), student.get_buffer("mean"))

    def matrix(self, folder: Path, scores: Tensor, users: list[str], items: list[str]) -> Path:
        np.save(folder / "scores.npy", scores.numpy())
        (folder / "scores.users.txt").write_text("".join(f"{each}\n" for each in users))
        (folder / "scores.items.txt").write_text("".join(f"{each}\n" for each in items))
        return folder / "scores.npy"

    def test_a_matrix_is_read_by_ids_whatever_their_order(self, tmp_path: Path) -> None:
        scores = torch.randn(DATA.n_users, DATA.n_items)
        rows, columns = torch.randperm(DATA.n_users), torch.randperm(DATA.n_items)
        path = self.matrix(
            tmp_path,
            scores[rows][:, columns],
            [DATA.user_ids[each] for each in rows],
            [DATA.item_ids[each] for each in columns],
        )
        teacher, users = Matrix.read(path, DATA), torch.arange(DATA.n_users)
        assert isinstance(teacher.matrix, np.memmap)
        assert torch.equal(teacher.scores(users, None), scores)
        assert torch.equal(teacher.scores(users[[2]], torch.tensor([[4, 1]])), scores[[2]][:, [4, 1]])

    def test_a_matrix_that_lacks_somebody_or_is_a_pickle_is_refused(self, tmp_path: Path) -> None:
        path = self.matrix(tmp_path, torch.randn(DATA.n_users - 1, DATA.n_items), DATA.user_ids[1:], DATA.item_ids)
        with pytest.raises(RrecError, match="no scores for 1 of 12 users, e.g. 'u0'"):
            Matrix.read(path, DATA)
        np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
        with pytest.raises(RrecError, match="cannot be read as an array of numbers"):
            Matrix.read(path, DATA)
        np.save(path, np.zeros((3, 3), dtype=np.int64))
        with pytest.raises(RrecError, match="a matrix of floating point scores"):
            Matrix.read(path, DATA)

    def test_scores_are_computed_once_and_mapped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data, teacher, users = replace(DATA, place=tmp_path), teacher_of(), torch.arange(DATA.n_users)
        found = cached(teacher, data, "key")
        assert torch.equal(found.scores(users, None), teacher.scores(users, None))
        assert torch.equal(found.users(users), teacher.users(users))
        again = cached(fixed(torch.zeros(DATA.n_users, DATA.n_items)), data, "key")
        assert torch.equal(again.scores(users, None), teacher.scores(users, None))
        assert [each.name for each in (tmp_path / "teachers").iterdir()] == ["key.npy"]
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
        with pytest.raises(RrecError, match=r"cache=true: scores of 12 users × 20 items take .* GiB"):
            cached(teacher, data, "other")

    @pytest.mark.parametrize("which", ["users", "items"])
    def test_a_matrix_whose_ids_were_put_right_is_computed_anew(self, which: str, tmp_path: Path) -> None:
        data, scores = replace(DATA, place=tmp_path), torch.randn(DATA.n_users, DATA.n_items)
        ids = {"users": DATA.user_ids, "items": DATA.item_ids}
        path = self.matrix(tmp_path, scores, **{**ids, which: ids[which][::-1]})
        words = ("dataset=synthetic", f"teacher='{path}'", "cache=true")
        cfg, users = composing.typed(compose("distill", *words), "distill"), torch.arange(DATA.n_users)
        wrong = task.teacher_of(cfg, build("mf"), data).scores(users, None)
        assert torch.equal(wrong, scores.flip(0 if which == "users" else 1))
        self.matrix(tmp_path, scores, **ids)
        assert torch.equal(task.teacher_of(cfg, build("mf"), data).scores(users, None), scores)

    def test_what_moves_is_not_cached(self) -> None:
        with pytest.raises(RrecError, match="teacher=ema says something else in every epoch"):
            cached(Average(build("mf"), DATA, 0.9), DATA, "key")


PAIRS = list(product(STUDENTS, TEACHERS))
QUICK = [(each, TEACHERS[place % len(TEACHERS)]) for place, each in enumerate(STUDENTS)]  # every student and teacher


@pytest.mark.parametrize(
    ("student", "teacher"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in PAIRS if each not in QUICK)],
)
def test_every_family_learns_from_every_other(student: str, teacher: str) -> None:
    if not buildable(student):
        pytest.skip("needs an extra")
    model, batch = build(student), batch_for(build(student))
    silent = {*WITHOUT} & {student, teacher}
    for name in (*LISTS, *(() if silent else VECTORS)):
        if name == "topology" and student in UNEQUAL:
            continue
        built = distil(name, Plain(loss(model.loss)), teacher_of(teacher), model, task=0.0, weight=1.0)
        found = gradients(model, built(Shifted(model.train()), batch))
        assert all(each.isfinite().all() for each in found.values())
        assert max(each.abs().max() for each in found.values()) > 1e-7, name


class TestAgreement:
    def test_overlap_counts_what_both_lists_begin_with(self) -> None:
        one, two = torch.tensor([[5.0, 4, 3, 2, 1]]), torch.tensor([[5.0, 1, 4, 2, 3]])
        assert overlap(one, two, 2).item() == 0.5
        assert overlap(one, one, 3).item() == 1

    def test_kendall_does_not_count_what_is_not_there(self) -> None:
        one, two = torch.randn(4, 9), torch.randn(4, 9)
        holed = [each.index_fill(1, torch.tensor([2, 5]), torch.nan) for each in (one, two)]
        there = torch.tensor([0, 1, 3, 4, 6, 7, 8])
        torch.testing.assert_close(kendall(*holed), kendall(one[:, there], two[:, there]))

    def test_kendall_is_that_of_scipy(self) -> None:
        from scipy.stats import kendalltau

        one, two = torch.randn(6, 9), torch.randint(4, (6, 9)).float()
        expected = [kendalltau(a, b).statistic for a, b in zip(one.numpy(), two.numpy(), strict=True)]
        torch.testing.assert_close(kendall(one, two), torch.tensor(expected, dtype=torch.double))
