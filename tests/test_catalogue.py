"""Cross-entropy over a whole catalogue against PyTorch's, which has all scores in memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import DATA, build
from torch import Tensor

from robustbench_rec import catalogue
from robustbench_rec.batch import Batch, Output
from robustbench_rec.catalogue import Products, product, surprise
from robustbench_rec.losses import loss, trained
from robustbench_rec.metrics.cost import Passes
from robustbench_rec.sampling import sampler
from robustbench_rec.shifted import Shifted
from robustbench_rec.traced import tracing


@pytest.fixture(params=[1, 3, 64])
def _portions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "TOGETHER", 0)
    monkeypatch.setattr(catalogue, "FEWEST", request.param)


def drawn(rows: int = 7, items: int = 11, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, 4, generator=generator, dtype=dtype).requires_grad_()
    right = torch.randn(items, 4, generator=generator, dtype=dtype).requires_grad_()
    return left, right, torch.randint(items, (rows,), generator=generator)


@pytest.mark.parametrize("dim", [3, 40])
def test_products_of_few_rows_at_a_time_are_those_of_all(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MANY", 11)
    left, right = (torch.randn(each, dim, dtype=torch.float64, requires_grad=True) for each in (70, 11))
    outer = torch.randn(70, 11, dtype=torch.float64)
    torch.testing.assert_close(product(left, right), left @ right.T)
    found = (product(left, right), left @ right.T)
    ours, theirs = (torch.autograd.grad((outer * each).sum(), (left, right)) for each in found)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.usefixtures("_portions")
class TestSurprise:
    def test_is_the_cross_entropy_of_the_products(self) -> None:
        left, right, targets = drawn()
        torch.testing.assert_close(
            surprise(Products(left, right), targets), F.cross_entropy(left @ right.T, targets, reduction="none")
        )

    def test_has_its_gradient_whatever_the_rows_count(self) -> None:
        left, right, targets = drawn()
        weights = torch.linspace(-1, 2, len(left), dtype=left.dtype)
        ours = torch.autograd.grad(weights @ surprise(Products(left, right), targets), (left, right))
        whole = F.cross_entropy(left @ right.T, targets, reduction="none")
        for one, two in zip(ours, torch.autograd.grad(weights @ whole, (left, right)), strict=True):
            torch.testing.assert_close(one, two)
        assert torch.autograd.gradcheck(lambda a, b: surprise(Products(a, b), targets), (left, right))

    def test_large_scores_stay_finite(self) -> None:
        left, right, targets = drawn(dtype=torch.float32)
        (surprise(Products(1e3 * left, 1e3 * right), targets).mean()).backward()
        assert left.grad is not None
        assert left.grad.isfinite().all()

    def test_a_frozen_side_has_no_gradient(self) -> None:
        left, right, targets = drawn()
        surprise(Products(left, right.detach()), targets).sum().backward()
        surprise(Products(left.detach(), right), targets).sum().backward()
        whole = F.cross_entropy(left @ right.T, targets, reduction="sum")
        for each, wanted in zip((left, right), torch.autograd.grad(whole, (left, right)), strict=True):
            torch.testing.assert_close(each.grad, wanted)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "traced": tracing,
    "bf16": partial(torch.autocast, "cpu", torch.bfloat16),
}


@pytest.mark.usefixtures("_portions")
def test_the_largest_of_several_products_counts_alone() -> None:
    left, right, targets = drawn(rows=14)
    several, weights = left.view(7, 2, 4), torch.linspace(-1, 2, 7, dtype=left.dtype)
    best = torch.stack([each @ right.T for each in several.unbind(1)]).amax(0)
    whole = F.cross_entropy(best, targets[:7], reduction="none")
    found = surprise(Products(several, right), targets[:7])
    torch.testing.assert_close(found, whole)
    ours, wanted = (torch.autograd.grad(weights @ each, (left, right)) for each in (found, whole))
    for one, two in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", CONTEXTS)
def test_is_left_to_torch_where_that_knows_more(name: str) -> None:
    left, right, targets = drawn(dtype=torch.float32)
    with CONTEXTS[name]():
        ours = surprise(Products(left, right), targets)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, F.cross_entropy((left @ right.T).float(), targets, reduction="none"))


@pytest.mark.parametrize(
    "name", ["sasrec", "gru4rec", "comirec", "stosa", "multi_intent_gaussian", "mf", "lightgcn", "kgat"]
)
def test_models_train_on_the_catalogue_without_its_scores(name: str) -> None:
    model = build(name).eval()
    batch = next(sampler(DATA, model, loss="softmax", batch_size=64, negatives=0).epoch(torch.Generator()))
    output = Shifted(model)(batch)
    assert isinstance(output.given, Products)
    found = trained("softmax")(output, batch)
    assert "scores" not in vars(output)
    assert batch.targets is not None
    whole = F.cross_entropy(output.scores, batch.targets, reduction="none")
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)  # distances are small differences of large numbers


@pytest.mark.parametrize("frozen", ["", "user", "item"])
def test_passes_are_counted_without_the_scores_too(frozen: str) -> None:
    model = build("mf").train()
    if frozen:
        model.get_submodule(frozen).requires_grad_(False)
    batches = list(sampler(DATA, model, loss="softmax", batch_size=64, negatives=0).epoch(torch.Generator()))
    with Passes(model) as passes:
        for batch in batches:
            output = Shifted(model)(batch)
            trained("softmax")(output, batch).mean().backward()
            assert "scores" not in vars(output)
    assert (passes.forward, passes.backward) == (len(batches), len(batches))


def test_other_losses_find_the_scores_multiplied_out() -> None:
    left, right, targets = drawn()
    batch = Batch(torch.arange(len(left)), None, F.one_hot(targets, len(right)), targets=targets)
    lazy, whole = Output(Products(left, right)), Output(left @ right.T)
    for name in ("margin", "topk", "dlr"):
        assert torch.equal(loss(name, k=2)(lazy, batch), loss(name, k=2)(whole, batch))


def test_who_asks_for_scores_without_a_gradient_takes_it_from_nobody() -> None:
    left, right, targets = drawn()
    batch = Batch(torch.arange(len(left)), None, F.one_hot(targets, len(right)), targets=targets)
    output = Output(batch.products(left, right))
    with torch.no_grad():
        output.scores.argmax(1)
        assert not Output(batch.products(left, right)).scores.requires_grad
    loss("margin", k=2)(output, batch).sum().backward()
    assert left.grad is not None
