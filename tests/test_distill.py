"""Distillation: the term itself, its lists, and how it composes."""

from typing import Any

import pytest
import torch
from conftest import DATA, Fixed, batch_of, build, configured, gradients, make_data

from robustbench_rec.batch import Batch
from robustbench_rec.defenses import defenses
from robustbench_rec.distills import distills
from robustbench_rec.distills import listwise as module
from robustbench_rec.distills.listwise import Listwise
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.objective import Objective, Plain, start_epoch
from robustbench_rec.shifted import Shifted

BPR = Plain(loss("bpr"))


def teacher_of(seed: int = 9) -> Shifted:
    return Shifted(build("mf", seed=seed).requires_grad_(False).eval())


def listwise(inner: Objective = BPR, teacher: Shifted | None = None, *, epoch: int = 0, **changes: Any) -> Listwise:
    settings = configured("distill", "listwise", **({"top": 6, "uniform": 4} | changes))
    built = distills.build(settings, inner, teacher or teacher_of(), DATA)
    assert isinstance(built, Listwise)
    start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
    return built


@pytest.mark.parametrize("name", list(distills))
@pytest.mark.parametrize("student", ["mf", "kgat"])
def test_no_weight_is_the_inner_objective_bit_for_bit(name: str, student: str) -> None:
    data = make_data(n_items=80)
    model, batch = build(student, data).eval(), batch_of(data)
    teacher = Shifted(build("mf", data, seed=9).requires_grad_(False))
    built = distills.build(configured("distill", name, weight=0.0), BPR, teacher, data)
    start_epoch(built, 0, torch.Generator().manual_seed(0))
    plain, found = BPR(Shifted(model), batch), built(Shifted(model), batch)
    assert torch.equal(plain, found)
    one, two = gradients(model, plain), gradients(model, found)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_term_is_the_naive_loop_over_the_users_of_the_batch() -> None:
    student, teacher, batch = build("mf"), teacher_of(), batch_of()
    for standardise in (True, False):
        built = listwise(teacher=teacher, weight=1.0, temperature=1.7, standardise=standardise)
        total = []
        for user in sorted(set(batch.users.tolist())):
            items = built.lists[[user]]
            both = []
            for model in (student, teacher.model):
                s = Shifted(model)(Batch.unlabelled(torch.tensor([user]), items)).scores[0]
                both.append(((s - s.mean()) / s.std() if standardise else s) / 1.7)
            q, p = (each.log_softmax(0) for each in both)
            total.append((p.exp() * (p - q)).sum())
        expected = 1.7**2 * torch.stack(total).mean()
        torch.testing.assert_close(built(Shifted(student), batch), expected, rtol=1e-4, atol=1e-6)


def test_weight_mixes_the_inner_objective_and_the_term() -> None:
    student, batch, teacher = build("mf"), batch_of(), teacher_of()
    inner, term = BPR(Shifted(student), batch), listwise(teacher=teacher, weight=1.0)(Shifted(student), batch)
    found = listwise(teacher=teacher, weight=0.3)(Shifted(student), batch)
    torch.testing.assert_close(found, 0.7 * inner + 0.3 * term)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    student, batch = build("mf", seed=9), batch_of()
    value = listwise(weight=1.0)(Shifted(student), batch)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert max(each.abs().max().item() for each in gradients(student, value).values()) < 1e-6


def test_standardised_lists_do_not_care_for_the_scale_of_a_teacher() -> None:
    student, batch = build("mf"), batch_of()
    scores = torch.randn(DATA.n_users, DATA.n_items)
    one, two = (
        listwise(teacher=Shifted(Fixed(each).requires_grad_(False)), weight=1.0)(Shifted(student), batch)
        for each in (scores, 5 * scores + 3)
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


class TestLists:
    def test_they_begin_with_the_teachers_best_items_that_are_no_training_items(self) -> None:
        teacher = teacher_of()
        built = listwise(teacher=teacher)
        scores = teacher(Batch.unlabelled(torch.arange(DATA.n_users))).scores.clone()
        scores[DATA.train.users, DATA.train.items] = -torch.inf
        assert torch.equal(built.lists[:, :6], scores.topk(6, 1).indices)
        assert built.lists.shape == (DATA.n_users, 10)

    def test_the_rest_is_drawn_anew_every_epoch_and_the_best_stay(self) -> None:
        built, lists = listwise(), []
        for epoch in (0, 1, 0):
            start_epoch(built, epoch, torch.Generator().manual_seed(epoch))
            lists.append(built.lists)
        assert torch.equal(lists[0], lists[2])
        assert torch.equal(lists[0][:, :6], lists[1][:, :6])
        assert not torch.equal(lists[0], lists[1])

    def test_it_is_as_short_as_keeps_training_items_out_of_it(self) -> None:
        assert listwise(top=15).top.shape[1] == listwise(top=16).top.shape[1] == 15

    def test_portions_do_not_change_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        teacher, whole = teacher_of(), listwise(teacher=teacher_of())
        monkeypatch.setattr(module, "CELLS", DATA.n_items * 5)
        parts = listwise(teacher=teacher)
        assert torch.equal(whole.lists, parts.lists)
        torch.testing.assert_close(whole.taught, parts.taught)


class TestComposed:
    @pytest.mark.parametrize("student", ["mf", "kgat"])
    def test_a_defence_inside_is_the_defence_plus_the_term(self, student: str) -> None:
        model, batch, teacher = build(student).eval(), batch_of(), teacher_of()
        inner = defenses.build(configured("defense", "apr"), BPR, model)
        found = gradients(model, listwise(inner, teacher, weight=0.4)(Shifted(model), batch))
        hard = gradients(model, inner(Shifted(model), batch))
        soft = gradients(model, listwise(teacher=teacher, weight=1.0)(Shifted(model), batch))
        for key in found:
            torch.testing.assert_close(found[key], 0.6 * hard[key] + 0.4 * soft[key], rtol=1e-4, atol=1e-7)

    def test_the_inner_defence_hears_that_an_epoch_begins(self) -> None:
        model = build("mf")
        inner = defenses.build(configured("defense", "rawp"), BPR, model)
        listwise(inner)(Shifted(model), batch_of())

    def test_a_teacher_of_another_kind_and_size_is_welcome(self) -> None:
        teacher = Shifted(build("kgat", dim=8, layers=[4]).requires_grad_(False).eval())
        value = listwise(teacher=teacher)(Shifted(build("mf")), batch_of())
        assert value.isfinite()

    def test_pop_can_teach(self) -> None:
        assert listwise(teacher=Shifted(build("pop")))(Shifted(build("mf")), batch_of()).isfinite()

    def test_distilling_pulls_the_student_to_the_teacher(self) -> None:
        student, teacher = build("mf"), teacher_of()
        built = listwise(teacher=teacher, weight=1.0)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
        values = []
        for _ in range(60):
            optimizer.zero_grad()
            value = built(Shifted(student), batch_of(size=60))
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.1 * values[0]

    def test_the_teacher_learns_nothing(self) -> None:
        teacher: RecModel = build("mf", seed=9).eval()  # even if it is not frozen
        listwise(teacher=Shifted(teacher))(Shifted(build("mf")), batch_of()).backward()
        assert all(each.grad is None for each in teacher.parameters())


@pytest.mark.parametrize(
    "changes",
    [{"weight": -0.1}, {"weight": 1.1}, {"temperature": 0.0}, {"top": 0}, {"uniform": -1}, {"top": 1, "uniform": 0}],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RrecError, match="distill"):
        listwise(**changes)
