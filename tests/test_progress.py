"""What a long loop says where there is no terminal."""

from io import StringIO

import pytest
from rich.console import Console

from robustbench_rec import progress
from robustbench_rec.progress import Bar


def said(rounds: int, steps: int, width: int = 100) -> list[str]:
    out = StringIO()
    with Bar("epoch", total=rounds, steps=steps, console=Console(file=out, width=width)) as bar:
        for number in range(rounds):
            assert list(bar.each(number, range(steps))) == list(range(steps))
            bar.note(number, f"loss {number}")
    return out.getvalue().splitlines()


def test_short_rounds_tell_the_first_and_the_last() -> None:
    assert said(5, 3) == ["epoch 1/5  loss 0", "epoch 5/5  loss 4"]


def test_a_line_is_one_line_however_narrow_the_page() -> None:
    assert said(5, 3, width=8) == ["epoch 1/5  loss 0", "epoch 5/5  loss 4"]


def test_a_long_round_tells_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "ALIVE", -1.0)  # every step is long
    lines = said(2, 2)
    assert [each.partition(",")[0] for each in lines] == [
        "epoch 1/2  step 1/2",
        "epoch 1/2  step 2/2",
        "epoch 2/2  step 1/2",
        "epoch 2/2  step 2/2",
        "epoch 2/2  loss 1",
    ]
    assert all(" a second" in each for each in lines[:-1])
