"""The cards of many models with many defences, each step a run of its own."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from robustbench_rec.composing.places import kept
from robustbench_rec.composing.words import chosen
from robustbench_rec.config import RESUMABLE_WITH, Base
from robustbench_rec.defenses import defenses as registry
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.finetunes import finetunes
from robustbench_rec.models import models
from robustbench_rec.progress import Bar
from robustbench_rec.reports.cards import STANDARD
from robustbench_rec.tasks.leaderboard import add

ELSEWHERE = (*RESUMABLE_WITH, "ckpt")
"""What may be another when `fill` is called again: where things run and lie."""


def fill(
    folder: Path, work: Path, chosen: Sequence[str], defenses: Sequence[str], seeds: Sequence[int], words: Sequence[str]
) -> list[str]:
    """Train, fine-tune, attack and add every combination; what is there is not done again, what was killed goes on.

    What is there with other settings is not taken for what is asked for: that combination fails.
    defenses: several, outermost first, and fine-tunings after them are joined by "+", as cards name them; a fine-tuning
    alone is of the undefended model.
    words: overrides of the training; those that say where it runs, and what the standard leaves open, count for every
    step. Each step is a process of its own. Returns a line for each that failed; the others go on. RrecError where a
    name is none.
    """
    named = [each for name in defenses for each in name.split("+")]
    for what, asked, known in (
        ("model", chosen, models.names()),
        ("defense or fine-tuning", named, [*registry.names(), *finetunes.names()]),
    ):
        for name in asked:
            if name not in known:
                raise unknown(what, name, known)
    for name in defenses:
        if name != "+".join([*(parts := _parts(name))[0], *parts[1]]):
            raise RrecError(
                f"defenses={name}: defences first, then what fine-tunes the defended model, as rawp+rawp_ft"
            )
    left_open = {key for key, each in STANDARD.items() if isinstance(each, tuple)}
    everywhere = {field.name for field in fields(Base)} - {"seed"} | left_open
    shared = [each for each in words if each.partition("=")[0] in everywhere]
    wanted = [(m, d, s) for m in chosen or models.names() for d in defenses for s in dict.fromkeys(seeds)]
    failed = []
    with Bar("leaderboard", total=len(wanted), steps=1) as bar:
        for number, (model, defense, seed) in enumerate(wanted):
            name = f"{model}-{defense}-{seed}"
            try:
                _entry(folder, work, model, defense, seed, words, shared)
                bar.note(number, name)
            except RrecError as error:
                failed.append(f"{name}: {error}")
                bar.note(number, f"{name}: {error}")
    return failed


def _entry(
    folder: Path, work: Path, model: str, defense: str, seed: int, words: Sequence[str], shared: Sequence[str]
) -> None:
    trained, tuned = _parts(defense)
    ckpt = work / f"{model}-{'+'.join(trained) or 'none'}-{seed}"
    around = f"[{','.join(trained)}]" if len(trained) > 1 else "".join(trained) or "none"
    _run("train", ckpt, [f"model={model}", f"defense={around}", f"seed={seed}", *words])
    for count, tuning in enumerate(tuned, 1):
        start, ckpt = ckpt, work / f"{model}-{'+'.join([*trained, *tuned[:count]])}-{seed}"
        _run("finetune", ckpt, [f"ckpt={_quoted(start)}", f"finetune={tuning}", f"seed={seed}", *shared])
    attacked = work / f"{model}-{defense}-{seed}-attack"
    standard = [f"{k}={_said(each)}" for k, each in STANDARD.items() if not isinstance(each, Mapping | tuple)]
    inner = {key: each for key, each in STANDARD["attack"].items() if key not in ("name", "eps")}
    standard += [f"attack={STANDARD['attack']['name']}", *(f"attack.{key}={_said(e)}" for key, e in inner.items())]
    _run("attack", attacked, [f"ckpt={_quoted(ckpt)}", *standard, *shared])
    data_dir = next((each.partition("=")[2] for each in shared if each.startswith("data_dir=")), None)
    add(attacked, folder, data_dir)


def _parts(defense: str) -> tuple[list[str], list[str]]:
    """Defences to train with, and fine-tunings of what was trained."""
    names = defense.split("+")
    tuned = [each for each in names if each in finetunes.names()]
    return [each for each in names if each not in tuned], tuned


def _run(verb: str, out: Path, words: Sequence[str]) -> None:
    """`rrec` in a process of its own, so that time and memory are of this run alone; resumed where it was killed."""
    placed = [*words, f"hydra.run.dir={_quoted(out)}"]
    if kept(verb, chosen(verb, placed), but=ELSEWHERE):
        return
    go_on = (out / "resume").is_dir() and verb != "attack"
    told = [f"resume={_quoted(out)}"] if go_on else placed
    command = [sys.executable, "-m", "robustbench_rec", verb, *told]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode or not (out / "metrics.json").is_file():
        lines = [each.strip() for each in ended.stderr.splitlines() if each.strip()]
        raise RrecError(lines[-1].removeprefix("rrec: ") if lines else f"rrec {verb} ended with {ended.returncode}")


def _quoted(path: Path) -> str:
    return "'" + str(path.resolve()).replace("'", r"\'") + "'"


def _said(value: Any) -> str:
    """As a word of the command line."""
    if value is None:
        return "null"
    return f"'{value}'" if isinstance(value, str) else str(value).lower()
