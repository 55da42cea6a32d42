"""The model at θ + δ as a value, surfaces, sites, and objectives streamed over many batches."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from conftest import DATA, Toy, batch_for, batch_of, build, gradients, judge, moved, question, surfaces
from torch import Tensor, nn

from robustbench_rec import objective
from robustbench_rec.batch import Batch, History, Output
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.losses import loss
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.objective import Plain, known, streamed
from robustbench_rec.shifted import SURFACES, Shifted, Site, label, surface


def shift_of(model: RecModel, *kinds: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in [each for kind in kinds for each in surface(model, kind)]:
        base = Shifted(model).tensors([name])[name]
        found[name] = 0.1 * torch.randn(base.shape, generator=generator, dtype=base.dtype)
    return found


class TestValue:
    def test_without_a_delta_the_model_itself_is_called(self, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("functional_call costs something")

        monkeypatch.setattr("robustbench_rec.shifted.functional_call", refuse)
        batch = batch_of()
        assert torch.equal(Shifted(toy)(batch).scores, toy(batch, toy.encode()).scores)

    def test_a_delta_of_zeros_gives_the_same_bits(self, toy: Toy) -> None:
        batch = batch_of()
        zeros = {name: torch.zeros_like(each) for name, each in shift_of(toy, "weight", "feature").items()}
        assert torch.equal(Shifted(toy, zeros)(batch).scores, Shifted(toy)(batch).scores)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("shifted", [True, False])
    def test_who_asks_first_without_a_gradient_takes_none_from_those_who_come_after(
        self, toy: Toy, training: bool, shifted: bool
    ) -> None:
        toy.train(training)
        delta = shift_of(toy, "weight") if shifted else {}
        at, batch = Shifted(toy, delta), batch_of()
        with torch.no_grad():
            assert not at(batch).scores.requires_grad
        expected = gradients(toy, Shifted(toy, delta)(batch).scores.square().sum())
        for name, each in gradients(toy, at(batch).scores.square().sum()).items():
            torch.testing.assert_close(each, expected[name])

    def test_shifts_add_up(self, toy: Toy) -> None:
        one, two = shift_of(toy, "weight"), shift_of(toy, "embedding", seed=1)
        both = Shifted(toy).shift(one).shift(two)
        for name, each in both.delta.items():
            assert torch.equal(each, one[name] + two[name] if name in two else one[name])
        assert torch.equal(both(batch_of()).scores, Shifted(toy, both.delta)(batch_of()).scores)

    def test_a_shift_leaves_the_first_value_as_it_was(self, toy: Toy) -> None:
        at = Shifted(toy)
        before = at(batch_of()).scores
        at.shift(shift_of(toy, "weight"))
        assert not at.delta
        assert torch.equal(at(batch_of()).scores, before)

    def test_what_was_said_of_a_training_batch_is_not_computed_again(self) -> None:
        model, batch, other = build("sasrec").train(), batch_for(build("sasrec")), batch_for(build("sasrec"))
        at = Shifted(model)
        output = at(batch)
        assert at.said(batch) is output
        assert at.said(other) is not output  # dropout draws anew
        with torch.no_grad():
            at(batch)
        assert at.said(batch).scores.requires_grad
        assert Shifted(model).said(batch) is not output
        at.shift({"item.weight": torch.zeros_like(model.item.weight)})(batch)  # type: ignore[union-attr]
        assert Shifted(model.eval()).said(batch).scores.requires_grad

    @pytest.mark.parametrize("name", ["toy", *models])
    def test_it_scores_like_a_model_whose_tensors_really_are_elsewhere(self, name: str) -> None:
        model = Toy() if name == "toy" else build(name).eval()
        kinds = [kind for kind in surfaces(model) if kind != "activation"]
        if not kinds:
            pytest.skip("a model without parameters has nowhere to go")
        delta = shift_of(model, *kinds)
        expected = moved(model, delta)
        for items in (None, batch_of().items):
            batch = question(model, batch_of().users, items)
            assert torch.equal(Shifted(model, delta)(batch).scores, Shifted(expected)(batch).scores)

    def test_encode_is_computed_at_the_shifted_point_and_once(self, toy: Toy) -> None:
        delta = shift_of(toy, "weight", "feature")
        at = Shifted(toy, delta)
        at(batch_of())
        at(batch_of(seed=1))
        assert toy.encoded_times == 1
        assert torch.equal(at.encoded, moved(toy, delta).encode())
        assert not torch.equal(at.encoded, Shifted(toy).encoded)

    def test_nothing_is_written_into_the_model(self, toy: Toy) -> None:
        before = deepcopy(dict(toy.named_buffers()) | dict(toy.named_parameters()))
        tensors = {name: id(each) for name, each in toy.named_parameters()}
        Shifted(toy, shift_of(toy, "weight", "embedding", "feature"))(batch_of()).scores.sum().backward()
        for name, each in (*toy.named_buffers(), *toy.named_parameters()):
            assert torch.equal(each, before[name])
        assert tensors == {name: id(each) for name, each in toy.named_parameters()}

    def test_the_model_is_whole_again_after_a_forward_that_failed(self, toy: Toy) -> None:
        before = toy.first.weight.clone()
        with pytest.raises(RuntimeError):
            Shifted(toy, {"first.weight": torch.ones(2, 2, 2)})(batch_of())
        assert torch.equal(toy.first.weight, before)
        assert isinstance(toy.first.weight, nn.Parameter)

    def test_parameters_receive_the_gradient_at_the_shifted_point(self, toy: Toy) -> None:
        delta, batch = shift_of(toy, "weight", "embedding", "feature"), batch_of()
        there = moved(toy, delta)
        expected = gradients(there, Plain(loss("bpr"))(Shifted(there), batch))
        found = gradients(toy, Plain(loss("bpr"))(Shifted(toy, delta), batch))
        assert any(each.any() for each in found.values())
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)

    def test_the_gradient_in_delta_is_the_gradient_in_the_parameter(self, toy: Toy) -> None:
        batch, objective = batch_of(), Plain(loss("bpr"))
        own = gradients(toy, objective(Shifted(toy), batch))
        names = surface(toy, "weight")
        delta = {name: torch.zeros_like(each).requires_grad_() for name, each in Shifted(toy).tensors(names).items()}
        objective(Shifted(toy, delta), batch).backward()
        for name, each in delta.items():
            if name.startswith("aside"):
                assert each.grad is None
            else:
                torch.testing.assert_close(each.grad, own[name])

    def test_tensors_are_those_at_the_point(self, toy: Toy) -> None:
        delta = shift_of(toy, "feature")
        found = Shifted(toy, delta).tensors(["feature_item", "last.bias"])
        assert torch.equal(found["feature_item"], toy.get_buffer("feature_item") + delta["feature_item"])
        assert found["last.bias"] is toy.last.bias


class TestSite:
    def test_a_site_is_the_identity_until_it_is_shifted(self) -> None:
        x = torch.randn(3, 4)
        assert Site()(x) is x

    def test_a_shifted_site_adds_to_its_activation(self, toy: Toy) -> None:
        delta = {"tower.shift": torch.randn(DATA.n_items, 4, dtype=torch.float64)}
        assert torch.equal(Shifted(toy, delta).encoded, toy.encode() + delta["tower.shift"])

    def test_activations_are_what_passes_through_in_encode_and_in_forward(self, toy: Toy) -> None:
        batch = batch_of()
        seen = Shifted(toy).activations(["tower.shift", "hidden.shift"], batch)
        assert torch.equal(seen["tower.shift"], toy.encode())
        assert seen["hidden.shift"].shape == (16, 3, 6)
        assert not any(each.requires_grad for each in seen.values())
        assert not toy.hidden._forward_hooks
        assert toy.state_dict().keys().isdisjoint({"tower.shift", "hidden.shift"})

    def test_activations_of_a_shifted_model_are_those_at_its_point(self, toy: Toy) -> None:
        delta = shift_of(toy, "weight", "feature")
        seen = Shifted(toy, delta).activations(["tower.shift"], batch_of())["tower.shift"]
        assert torch.equal(seen, moved(toy, delta).encode())


class TestSurface:
    def test_each_kind_lists_what_it_says(self, toy: Toy) -> None:
        assert surface(toy, "embedding") == ["user.weight", "item.weight"]
        assert set(surface(toy, "weight")) == {
            f"{name}.weight" for name in ("user", "item", "lift", "first", "last", "aside")
        }
        assert surface(toy, "feature") == ["feature_item"]
        assert set(surface(toy, "activation")) == {"tower.shift", "hidden.shift"}

    def test_named_modules_are_matched_exactly(self) -> None:
        class Numbered(RecModel):
            def __init__(self) -> None:
                super().__init__()
                self.fc1, self.fc10 = nn.Linear(2, 2), nn.Linear(2, 2)

        assert surface(Numbered(), "weight", ["fc1"]) == ["fc1.weight"]
        assert surface(Numbered(), "weight", ["fc10", "fc1"]) == ["fc10.weight", "fc1.weight"]

    def test_labels_are_module_names(self) -> None:
        assert [label(each) for each in ("a.b.weight", "tower.shift", "projection")] == ["a.b", "tower", "projection"]

    def test_a_missing_surface_module_or_kind_names_what_there_is(self, toy: Toy) -> None:
        with pytest.raises(RrecError, match=r"unknown surface 'weigth'.*choices: .*weight"):
            surface(toy, "weigth")
        with pytest.raises(RrecError, match=r"no module 'fc' on the weight surface .*aside, first"):
            surface(toy, "weight", ["fc"])
        with pytest.raises(
            RrecError, match=r"model 'mf' has no feature surface to attack \(it has: embedding, weight, activation\)"
        ):
            surface(build("mf"), "feature")
        assert set(SURFACES) == set(surfaces(toy))


class Twice(Toy):
    """Its encoding names a parameter itself, and holds the same tensor twice, in nested containers."""

    def encode(self) -> tuple[object, ...]:  # type: ignore[override]
        table = super().encode()
        return (table, [self.user.weight, table])

    def forward(self, batch: Batch, encoded: Any) -> Output:
        one, (users, two) = encoded
        return Output(super().forward(batch, (one + two) / 2).scores + users[batch.users].sum(1, keepdim=True))


class TestStreamed:
    def portions(self, sizes: list[int], data: Data = DATA) -> list[Batch]:
        whole = batch_of(size=sum(sizes))
        assert whole.items is not None
        parts = zip(
            *(each.split(sizes) for each in (whole.users, whole.items, whole.labels)),
            strict=True,
        )
        return [Batch(*each) for each in parts]

    @pytest.mark.parametrize("name", ["mf", "kgat", "toy", "twice"])
    @pytest.mark.parametrize("sizes", [[24], [8, 8, 8], [1] * 24, [20, 4]])
    def test_it_equals_one_batch_in_value_and_gradient(self, name: str, sizes: list[int]) -> None:
        own = {"toy": Toy, "twice": Twice}
        model = own[name]() if name in own else build(name).eval()
        delta = {key: each.requires_grad_() for key, each in shift_of(model, "weight").items()}

        def found(batches: list[Batch]) -> tuple[Tensor, list[Tensor | None]]:
            value = streamed(Shifted(model, delta), iter(batches), loss("softmax"))
            leaves = [*delta.values(), *model.parameters()]
            gradient = torch.autograd.grad(3 * value, leaves, allow_unused=True)
            return value, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradient, strict=True)]

        whole = self.portions([24])[0]
        expected = loss("softmax")(Shifted(model, delta)(whole), whole).mean()
        leaves = [*delta.values(), *model.parameters()]
        reference = torch.autograd.grad(3 * expected, leaves, allow_unused=True)
        value, gradient = found(self.portions(sizes))
        torch.testing.assert_close(value, expected, check_dtype=False)
        for x, g, r in zip(leaves, gradient, reference, strict=True):
            torch.testing.assert_close(g, torch.zeros_like(x) if r is None else r, rtol=1e-4, atol=1e-7)
        assert any(each is not None and bool(each.any()) for each in gradient)

    @pytest.mark.parametrize("name", ["neumf", "sasrec", "multi_intent_gaussian"])
    def test_on_a_cpu_few_rows_at_a_time_are_asked_about(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, seen = build(name).eval(), []
        judging = evaluator(DATA, judge(protocol="sampled", n_negatives=4))
        delta = {key: each.requires_grad_() for key, each in shift_of(model, "weight").items()}

        def counting(output: Output, batch: Batch) -> Tensor:
            seen.append(len(batch))
            return loss("margin")(output, batch)

        def found() -> tuple[Tensor, ...]:
            seen.clear()
            value = streamed(Shifted(model, delta), judging.batches(model, "test"), counting)
            return value.detach(), *torch.autograd.grad(value, list(delta.values()))

        whole = found()
        assert len(seen) == 1
        (batch,) = judging.batches(model, "test")
        asked = 0 if model.inner_product else batch.labels.shape[1]
        width = max(asked, 0 if batch.history is None else batch.history.items.shape[1])
        monkeypatch.setattr(objective, "TABLES", 2**40)
        monkeypatch.setattr(objective, "CELLS", 3 * width + 1)
        for one, other in zip(found(), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        assert max(seen) == 3
        assert sum(seen) == len(batch)
        seen.clear()
        with torch.no_grad():
            value = streamed(Shifted(model, delta), judging.batches(model, "test"), counting)
        torch.testing.assert_close(value, whole[0])
        assert max(seen) == 3

    def test_what_a_piece_costs_whatever_its_rows_bounds_how_many_there_are(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(objective, "CELLS", 1)
        monkeypatch.setattr(objective, "TABLES", 16)
        judging, least = evaluator(DATA, judge(protocol="sampled", n_negatives=4)), {}
        for name in ("mf", "neumf"):
            model, sizes = build(name).eval(), []
            delta = {key: each.requires_grad_() for key, each in shift_of(model, "embedding").items()}
            model.requires_grad_(False)
            for each, numel in ((delta, sum(each.numel() for each in delta.values())), ({}, 0)):
                sizes.clear()
                at, batches = Shifted(model, each), judging.batches(model, "test")
                streamed(
                    at,
                    batches,
                    lambda output, batch, sizes=sizes: sizes.append(len(batch)) or loss("margin")(output, batch),
                )
                least[name, bool(each)] = max(sizes), max(1, numel // (objective.TABLES * 5))
        users = len(next(iter(judging.portions("test"))).users)
        assert least["mf", True][0] == least["mf", False][0] == users  # products hold nothing of a candidate
        assert 1 < least["neumf", True][0] == min(users, least["neumf", True][1])
        assert least["neumf", False][0] == 1

    def test_steps_of_histories_stay_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(objective, "CELLS", 1)
        model, items, steps = build("sasrec").eval(), torch.randint(DATA.n_items, (3, 4)), torch.tensor([0, 5, 9])
        history, targets = History(items, torch.full((3,), 4), steps), torch.tensor([1, 2, 3])
        batch = Batch(torch.arange(3), None, torch.empty(3, 0), targets=targets, history=history)
        value = streamed(Shifted(model), [batch], loss("softmax"))
        torch.testing.assert_close(value, loss("softmax")(Shifted(model)(batch), batch).mean())

    def test_encode_runs_once_for_all_batches(self, toy: Toy) -> None:
        streamed(Shifted(toy), self.portions([8, 8, 8]), loss("bpr"))
        assert toy.encoded_times == 1

    def test_without_gradient_it_is_the_plain_mean_over_examples(self, toy: Toy) -> None:
        toy.requires_grad_(False)
        (whole,) = self.portions([24])
        expected = loss("bpr")(Shifted(toy)(whole), whole).mean()
        torch.testing.assert_close(streamed(Shifted(toy), self.portions([20, 4]), loss("bpr")), expected)
        toy.requires_grad_(True)
        with torch.no_grad():
            torch.testing.assert_close(streamed(Shifted(toy), self.portions([20, 4]), loss("bpr")), expected)

    def test_no_more_than_one_batch_is_asked_for_ahead(self, toy: Toy) -> None:
        alive: list[int] = []

        def batches() -> Iterator[Batch]:
            for number, each in enumerate(self.portions([8, 8, 8])):
                alive.append(number)
                yield each

        def counting(output: Output, batch: Batch) -> Tensor:
            assert len(alive) == alive[-1] + 1
            return loss("bpr")(output, batch)

        streamed(Shifted(toy), batches(), counting)
        assert alive == [0, 1, 2]


class TestKnown:
    def test_backward_deposits_the_gradients_times_what_comes_from_outside(self) -> None:
        x, y = torch.randn(3, requires_grad=True), torch.randn(2, 2, requires_grad=True)
        gx, gy = torch.randn(3), torch.randn(2, 2)
        value = known(torch.tensor(1.5), [x, y], [gx, gy])
        assert value.item() == 1.5
        (2 * value + x.sum()).backward()
        torch.testing.assert_close(x.grad, 2 * gx + 1)
        torch.testing.assert_close(y.grad, 2 * gy)

    def test_nothing_to_deposit_gives_a_constant(self) -> None:
        assert not known(torch.tensor(1.0), [], []).requires_grad


def test_a_module_that_is_named_twice_counts_once() -> None:
    assert surface(build("mf"), "weight", ["user", "user"]) == surface(build("mf"), "weight", ["user"])
