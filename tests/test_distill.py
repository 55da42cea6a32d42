"""Distillation: the objective, and which families teach which."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from conftest import DATA, batch_for, batch_of, build, buildable, configured, gradients, make_data
from lessons import (
    BPR,
    FEW,
    LISTS,
    PERTURBED,
    STUDENTS,
    TEACHERS,
    UNEQUAL,
    VECTORS,
    WITHOUT,
    distil,
    teacher_of,
    value_of,
)

from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import Bottleneck, LowRank, Probe
from robustbench_rec.defenses import defenses
from robustbench_rec.distillation import Lesson
from robustbench_rec.distills import distilled, distills
from robustbench_rec.errors import RrecError
from robustbench_rec.hardware import autocast
from robustbench_rec.losses import loss
from robustbench_rec.objective import Plain, start_epoch, told
from robustbench_rec.shifted import Shifted


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

    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("smart", {"weight": 0.0}),
            ("vat", {"weight": 0.0}),
            ("rdrop", {"weight": 0.0}),
            ("gaussian", {"consistency": 0.0, "noisy": 0.0}),
        ],
    )
    def test_a_robust_term_whose_own_weights_are_0_draws_nothing(self, name: str, changes: dict[str, float]) -> None:
        model = build("sasrec").train()
        plain, batch = Plain(loss(model.loss)), batch_for(model)
        term = distil("robust", plain, student=model, by=configured("defense", name, **changes), warmup=0.0)
        states = []
        for objective in (plain, term):
            start_epoch(objective, 0, torch.Generator().manual_seed(5))
            torch.manual_seed(3)
            states.append((objective(Shifted(model), batch).item(), torch.get_rng_state()))
        assert states[0][0] == states[1][0]
        assert torch.equal(states[0][1], states[1][1])

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


class TestParameters:
    """Terms about the student's own parameters, against sums over them."""

    def test_distance_is_the_sum_of_the_squared_ways_of_all_numbers_that_are_trained(self) -> None:
        student, batch = build("biased_mf"), batch_of()
        student.get_parameter("item.weight").requires_grad_(False)
        built = distil("distance", student=student)
        assert value_of(built, student, batch).item() == 0
        ways = {name: torch.randn_like(each) for name, each in student.named_parameters()}
        with torch.no_grad():
            for name, each in student.named_parameters():
                each.add_(ways[name])
        ways["item.weight"].zero_()
        value = value_of(built, student, batch)
        assert value.item() == pytest.approx(sum(x**2 for each in ways.values() for x in each.flatten().tolist()))
        found = gradients(student, value)
        for name, each in ways.items():
            torch.testing.assert_close(found[name], 2 * each)

    @pytest.mark.parametrize(
        ("model", "adaptation", "changes"),
        [
            ("sasrec", "lora", {"rank": 2, "alpha": 6}),
            ("gru4rec", "lora", {"rank": 2, "alpha": 6}),
            ("gru4rec", "adapter", {"size": 3}),
            ("kgat", "head", {}),
        ],
    )
    def test_adapter_norm_is_the_sum_of_the_squares_in_the_matrices_that_are_added(
        self, model: str, adaptation: str, changes: dict[str, Any]
    ) -> None:
        student = build(model)
        adaptations.build(configured("adaptation", adaptation, **changes))(student, DATA)
        built = distil("adapter_norm", student=student)
        assert value_of(built, student, batch_for(student)).item() == 0
        added = []
        for each in student.modules():
            if isinstance(each, LowRank):
                torch.nn.init.normal_(each.up)
                added.append(6 / 2 * each.up @ each.down)
            elif isinstance(each, Bottleneck):
                torch.nn.init.normal_(each.up.weight)
                added.append(each.up.weight @ each.down.weight)
            elif isinstance(each, Probe):
                torch.nn.init.normal_(each.map.weight)
                added.append(each.map.weight)
        assert added
        expected = torch.stack([each.square().sum() for each in added]).sum()
        torch.testing.assert_close(value_of(built, student, batch_for(student)), expected)


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
