"""Measurements in processes of their own, one at a time, and the files that keep what came out."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from robustbench_rec.errors import RrecError
from robustbench_rec.files import write_json, write_text

HERE = Path(__file__).resolve().parent
ENVIRONMENT = HERE / ".venv-recbole"
REQUIREMENTS = HERE / "requirements-recbole.txt"
CALM = 0.3  # load average above which a machine is not idle
WIDTH = 140  # of tables that are written into a file or a pipe
console = Console(width=None if sys.stdout.isatty() else WIDTH)


def peer_python(given: str | None) -> str:
    """The interpreter that has RecBole: the given one, else that of an environment made on first use."""
    if given is not None:
        if shutil.which(given) is None:
            raise RrecError(f"--peer-python {given}: there is no such interpreter")
        return os.path.abspath(given) if os.sep in given else given
    python, ready = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".ready"
    if not (ready.is_file() and ready.read_bytes() == REQUIREMENTS.read_bytes()):
        base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
        if base is None:
            raise RrecError("RecBole 1.2.1 needs Python 3.11: install it, or name an interpreter with --peer-python")
        console.print("creating the environment of RecBole (once, some minutes)", highlight=False)
        _checked([base, "-m", "venv", "--clear", str(ENVIRONMENT)], "creating RecBole's environment")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "-r", str(REQUIREMENTS)]
        _checked(pip, "installing RecBole")
        ready.write_bytes(REQUIREMENTS.read_bytes())
    return str(python)


def ours(job: Mapping[str, Any], *, threads: int) -> dict[str, Any]:
    """One measurement of `ours.py`; a fresh process, so that nothing is warm or held from another one."""
    return _measure([sys.executable, str(HERE / "ours.py")], job, threads)


def peer(job: Mapping[str, Any], *, threads: int, python: str) -> dict[str, Any]:
    """One measurement of `peer.py`, in the peer's environment alone."""
    return _measure([python, "-I", str(HERE / "peer.py")], job, threads)


def environment(threads: int) -> dict[str, str]:
    """The environment variables of a measurement."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}


def machine(threads: int) -> dict[str, Any]:
    """What a time depends on, and how busy the machine was before the first one."""
    load = os.getloadavg()[0]
    if load > CALM:
        console.print(
            f"the machine is busy (load {load:.1f}): times and their ratios will not be comparable", style="red"
        )
    return {
        "start": datetime.now().astimezone().isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": round(load, 2),
        "platform": platform.platform(),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Print a table; the same as markdown, text left and the rest right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    rule = ["---"] + ["--:"] * (len(columns) - 1)
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def keep(name: str, out: Path, record: Mapping[str, Any], sections: Sequence[str]) -> None:
    """`<date>-<name>.json`, and the tables beside it as markdown."""
    stem = f"{datetime.now().astimezone():%Y-%m-%d_%H-%M}-{name}"
    out.mkdir(parents=True, exist_ok=True)
    on = record["machine"]
    head = f"{on['start']}, {on['processor']}, {on['cores']} cores, {on['threads']} threads, load {on['load_before']}"
    write_json(out / f"{stem}.json", record)
    write_text(out / f"{stem}.md", "\n".join([f"# {name}\n\n{head}\n", *sections]))
    console.print(f"written: {os.path.relpath(out / stem)}.json and .md", highlight=False)


def _measure(command: list[str], job: Mapping[str, Any], threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        settings = json.dumps({**job, "threads": threads, "scratch": scratch})
        _checked([*command, settings, str(result)], f"{Path(command[-1]).stem} {job['task']}", environment(threads))
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def _checked(command: list[str], what: str, variables: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        console.print(done.stderr, highlight=False, markup=False, style="dim")
        raise RrecError(f"{what} failed with status {done.returncode}: {lines[-1]}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
