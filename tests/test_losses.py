"""Losses against PyTorch, scikit-learn and naive loops."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import batch_of
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor
from torch.nn import functional as F

from robustbench_rec.batch import Batch, Output
from robustbench_rec.errors import RrecError
from robustbench_rec.losses import LOSSES, lead, loss, margin

SEEDS = st.integers(0, 2**31)


def case(seed: int, *, columns: int = 6, positives: int = 1, masked: float = 0.0) -> tuple[Output, Batch]:
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(5, columns, generator=generator)
    labels = torch.zeros(5, columns)
    labels[:, :positives] = 1
    mask = torch.rand(5, columns, generator=generator) >= masked
    mask[:, : positives + 1] = True
    return Output(scores), Batch(torch.arange(5), None, labels, mask if masked else None)


@given(SEEDS)
def test_bpr_is_minus_log_sigmoid_of_every_pair(seed: int) -> None:
    output, batch = case(seed)
    pairs = output.scores[:, :1] - output.scores[:, 1:]
    torch.testing.assert_close(loss("bpr")(output, batch), -F.logsigmoid(pairs).mean(1))


@given(SEEDS)
def test_bce_agrees_with_scikit_learn(seed: int) -> None:
    output, batch = case(seed, positives=2)
    expected = [
        log_loss(labels, scores.sigmoid(), labels=[0, 1])
        for labels, scores in zip(batch.labels, output.scores.double(), strict=True)
    ]
    assert loss("bce")(output, batch).tolist() == pytest.approx(expected, rel=1e-4)


@given(SEEDS)
def test_bce_leaves_masked_candidates_out(seed: int) -> None:
    output, batch = case(seed, masked=0.5)
    assert batch.mask is not None
    for row, value in enumerate(loss("bce")(output, batch)):
        keep = batch.mask[row]
        expected = F.binary_cross_entropy_with_logits(output.scores[row, keep], batch.labels[row, keep])
        torch.testing.assert_close(value, expected)


@given(SEEDS)
def test_softmax_is_cross_entropy_with_one_positive(seed: int) -> None:
    output, batch = case(seed)
    expected = F.cross_entropy(output.scores, torch.zeros(5, dtype=torch.long), reduction="none")
    torch.testing.assert_close(loss("softmax")(output, batch), expected)


@given(SEEDS)
def test_softmax_averages_over_the_positives_and_leaves_masked_candidates_out(seed: int) -> None:
    output, batch = case(seed, positives=2, masked=0.4)
    assert batch.mask is not None
    kept = output.scores.masked_fill(~batch.mask, -math.inf).log_softmax(1)
    torch.testing.assert_close(loss("softmax")(output, batch), -kept[:, :2].mean(1))


def naive_margin(scores: Tensor, labels: Tensor, mask: Tensor | None, k: int) -> float:
    others = sorted(
        (s.item() for c, s in enumerate(scores) if not labels[c] and (mask is None or mask[c])), reverse=True
    )
    bar = others[min(k, len(others)) - 1]
    own = [max(scores[c].item() - bar, 0) for c in range(len(scores)) if labels[c]]
    return float(-sum(own) / max(len(own), 1))


@given(SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_margin_is_the_naive_loop(seed: int, k: int, positives: int) -> None:
    output, batch = case(seed, columns=9, positives=positives)
    expected = [naive_margin(s, y, None, k) for s, y in zip(output.scores, batch.labels, strict=True)]
    assert margin(output, batch, k=k).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_margin_does_not_move_for_a_positive_that_is_out_already() -> None:
    scores = torch.tensor([[-5.0, 3.0, 2.0, 1.0]], requires_grad=True)
    batch = Batch(torch.zeros(1, dtype=torch.long), None, torch.tensor([[1.0, 0, 0, 0]]))
    value = margin(Output(scores), batch, k=2)
    value.sum().backward()
    assert value.item() == 0
    assert not scores.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("free", [0, 1, 3])
def test_margin_stays_finite_for_a_user_with_fewer_negatives_than_k(free: int) -> None:
    """A user who knows nearly everything has no k-th negative: the list cannot be broken any further."""
    output, batch = case(0, columns=20)
    mask = torch.ones(5, 20, dtype=torch.bool)
    mask[0, 1 + free :] = False
    value = margin(output, Batch(batch.users, None, batch.labels, mask), k=10)
    assert value.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_one_finite_value_an_example_with_a_finite_gradient(self, name: str) -> None:
        for scale in (1.0, 100.0, 1e4):
            output, batch = case(1)
            scores = (scale * output.scores).requires_grad_()
            value = loss(name)(Output(scores), batch)
            value.sum().backward()
            assert value.shape == (5,)
            assert value.isfinite().all()
            assert scores.grad is not None
            assert scores.grad.isfinite().all()

    def test_a_better_positive_lowers_it(self, name: str) -> None:
        output, batch = case(2)
        output.scores[:, 0] = output.scores[:, 1:].max(1).values + 1  # inside the list, so that `margin` counts it
        if name == "squared_hinge":
            output.scores[:, 0] = 0.0  # within its margin
        better = output.scores.clone()
        better[:, 0] += -0.5 if name == "mse" else 0.5  # a score is to be the label, not to be high
        assert (loss(name)(Output(better), batch) < loss(name)(output, batch)).all()

    def test_examples_do_not_mix(self, name: str) -> None:
        output, batch = case(3)
        alone = Batch(batch.users[[2]], None, batch.labels[[2]])
        torch.testing.assert_close(loss(name)(output, batch)[[2]], loss(name)(Output(output.scores[[2]]), alone))

    def test_half_precision_scores_are_judged_in_single(self, name: str) -> None:
        output, batch = case(4)
        assert loss(name)(Output(output.scores.bfloat16()), batch).dtype == torch.float32

    def test_a_training_batch_is_accepted(self, name: str) -> None:
        batch = batch_of()
        assert loss(name)(Output(torch.randn(len(batch), 3)), batch).shape == (len(batch),)


def test_an_unknown_loss_names_the_choices() -> None:
    with pytest.raises(
        RrecError, match=r"unknown loss 'bp'.*'bpr'.*bce, bpr, dlr, margin, mse, softmax, squared_hinge, topk"
    ):
        loss("bp")


@given(SEEDS)
def test_lead_ends_where_a_negative_is_as_good(seed: int) -> None:
    output, batch = case(seed)
    gaps = output.scores[:, 0] - output.scores[:, 1:].amax(1)
    torch.testing.assert_close(lead(output, batch), -gaps.clamp_min(0))


@given(SEEDS)
def test_lead_over_the_catalogue_is_the_margin_of_a_list(seed: int) -> None:
    output, batch = case(seed, columns=30)
    aimed = replace(batch, labels=torch.zeros(5, 0), targets=torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(lead(output, aimed), margin(output, batch))


def test_lead_of_an_event_is_its_score_on_the_side_of_its_label() -> None:
    batch = Batch(torch.arange(4), None, torch.tensor([[1.0], [1.0], [0.0], [0.0]]))
    found = lead(Output(torch.tensor([[2.0], [-2.0], [3.0], [-3.0]])), batch)
    assert found.tolist() == [-2.0, 0.0, 0.0, -3.0]
