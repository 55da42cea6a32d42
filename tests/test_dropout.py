import pytest
import torch
from torch import nn

from robustbench_rec.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_number_stays_with_probability_one_minus_p_and_is_scaled_as_in_torch(p: float) -> None:
    x = torch.ones(400_000, dtype=torch.float64, requires_grad=True)
    found, expected = Dropout(p)(x), nn.Dropout(p)(x)
    assert (found > 0).double().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / len(x)) ** 0.5)
    assert found.max().item() == pytest.approx(expected.max().item(), rel=2**-15 / (1 - p))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.equal(found)


def test_neighbours_are_dropped_independently() -> None:
    kept = (Dropout(0.5)(torch.ones(100_000, 8)) > 0).float()
    off_diagonal = torch.corrcoef(kept.T) - torch.eye(8)
    assert off_diagonal.abs().max() < 5 / 100_000**0.5


def test_masks_follow_the_seed_and_judging_drops_nothing() -> None:
    layer, x = Dropout(0.3), torch.randn(3, 7, 5)
    torch.manual_seed(0)
    first = layer(x)
    torch.manual_seed(0)
    assert layer(x).equal(first)
    assert not layer(x).equal(first)
    assert layer.eval()(x).equal(x)


@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (3, 1)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape
