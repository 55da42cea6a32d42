"""`python -m robustbench_rec` is `rrec`."""

from robustbench_rec.cli import app

app(prog_name="rrec")
