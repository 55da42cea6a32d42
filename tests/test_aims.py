"""Losses about given items, by plain loops."""

import math
from collections.abc import Callable

import pytest
import torch

from robustbench_rec.aims import AIMED, aimed
from robustbench_rec.batch import Batch, Output

K = 3


def spread(scores: list[float]) -> float:
    return scores[0] - scores[K + 1]


FORMULAS: dict[str, Callable[[float, list[float]], float]] = {  # of the score of an aim and the others, best first
    "demote": lambda s, others: -math.log1p(math.exp(s - others[K - 1])),
    "demote_margin": lambda s, others: -max(0.0, s - others[K - 1]),
    "demote_softmax": lambda s, others: -s + math.log(sum(map(math.exp, [s, *others]))),
    "promote": lambda s, others: -math.log1p(math.exp(others[K - 1] - s)),
    "promote_dlr": lambda s, others: (s - others[K - 1]) / spread(sorted([s, *others], reverse=True)),
    "promote_margin": lambda s, others: -max(0.0, others[K - 1] - s),
    "promote_rank": lambda s, others: -0.5 - sum(1 / (1 + math.exp(s - each)) for each in others),
    "promote_softmax": lambda s, others: s - math.log(sum(map(math.exp, [s, *others]))),
}


def test_every_loss_has_its_formula() -> None:
    assert set(FORMULAS) == set(AIMED)


@pytest.mark.parametrize("name", FORMULAS)
def test_it_is_the_mean_of_its_formula_over_the_aims_that_are_candidates(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    scores, mask = 2 * torch.randn(40, 9, generator=draw), torch.rand(40, 9, generator=draw) > 0.2
    aims = torch.rand(40, 9, generator=draw).argsort(1)[:, :2]
    batch = Batch(torch.arange(40), None, torch.zeros(40, 9), mask, aims=aims)
    expected = []
    for row in range(40):
        values = []
        for aim in aims[row].tolist():
            others = [scores[row, item].item() for item in range(9) if mask[row, item] and item != aim]
            if mask[row, aim]:
                values.append(FORMULAS[name](scores[row, aim].item(), sorted(others, reverse=True)))
        expected.append(sum(values) / max(len(values), 1))
    found = aimed(name, k=K)(Output(scores), batch)
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
