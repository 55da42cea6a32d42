"""What a long loop says where there is no terminal."""

import subprocess
import sys
from io import StringIO
from pathlib import Path
from subprocess import PIPE

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


def test_who_stops_reading_stops_nothing(tmp_path: Path) -> None:
    code = """
from robustbench_rec.console import line
from robustbench_rec.progress import Bar
import sys
for stderr in (False, True):
    for number in range(3):
        line("x" * 100000, stderr=stderr)
with Bar("epoch", total=1, steps=1) as bar:
    bar.note(0, "y" * 100000)
open(sys.argv[1], "w").close()
"""
    there = tmp_path / "there"
    with subprocess.Popen([sys.executable, "-c", code, str(there)], stdout=PIPE, stderr=PIPE) as process:
        for each in (process.stdout, process.stderr):
            assert each is not None
            each.close()
        assert process.wait(60) == 0
    assert there.exists()


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
