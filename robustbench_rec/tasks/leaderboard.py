"""rrec leaderboard."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from robustbench_rec import checkpoint
from robustbench_rec.config import Attack, typed_attack
from robustbench_rec.console import line
from robustbench_rec.errors import RrecError
from robustbench_rec.evaluation import evaluator
from robustbench_rec.files import write_text
from robustbench_rec.hardware import setup
from robustbench_rec.reports import cards
from robustbench_rec.reports.cards import STANDARD, TOLERANCE, Card
from robustbench_rec.reports.reading import LOCAL, Book, Found, parameters, read, without_seeds
from robustbench_rec.reports.render import html
from robustbench_rec.runs import versions
from robustbench_rec.shifted import Shifted
from robustbench_rec.tasks.attack import run as attack

LEFT_OUT = ("ckpt", "data_dir", "device", "threads", "resume", "tracker", "per_user", "baseline", "slices", "anonymity")
"""Of the configuration of an attack, what a card does not keep: where it ran, and what it wrote beside."""


def add(path: Path, folder: Path, data_dir: str | None = None) -> Path:
    """Make a card of a finished run of the standard attack, if its model is eligible; RrecError says why not."""
    if not path.is_dir():
        raise RrecError(f"{path} is no run directory")
    run = read(path.resolve())
    if run.metrics is None:
        raise RrecError(f"{path} is no finished run: {run.error}")
    if run.verb != "attack" or run.named("attack") != STANDARD["attack"]["name"]:
        raise RrecError(f"{path} is no run of rrec attack attack={STANDARD['attack']['name']}")
    if other := cards.unlike(run.config, STANDARD):
        raise RrecError(f"{path} was not attacked with the standard budget: {', '.join(other)}")
    flags = _flags(run.metrics)
    cards.eligible(path, flags)
    book = Book([run])
    source = book.source(run)
    if source is None:
        raise RrecError(f"{path}: the checkpoint that it attacked, {run.config.get('ckpt')}, is not there any more")
    cfg = _attack(run.config, source.path, data_dir)
    teacher = book.source(_first(source, book))
    kept = {name: value for name, value in run.config.items() if name not in LEFT_OUT}
    metric, clean = _judged(cfg)
    for name, value in clean.items():
        told = run.metrics.get(f"clean/{name}", float("nan"))
        if value == value and not abs(told - value) <= 1e-6:
            raise RrecError(f"{path}: not eligible, judged again clean {name} is {value:.6f}, not {told:.6f}")
    card = Card(
        format=cards.FORMAT,
        model=_model(source, book),
        defense=_defense(source, book),
        dataset=_first(source, book).named("dataset"),
        fingerprint=str(run.record.get("fingerprint", "")),
        protocol=str(run.config.get("protocol")),
        threat={str(key): str(each) for key, each in dict(run.record.get("threat") or {}).items()},
        config=kept,
        metric=metric,
        seeds=_seeds(run) | _seeds(_first(source, book)),
        checkpoint=sha256((source.path / checkpoint.TENSORS).read_bytes()).hexdigest(),
        cost={
            "train_seconds": sum(map(_seconds, _line(source, book))) + (_seconds(teacher) if teacher else 0.0),
            "attack_seconds": _seconds(run),
            "parameters": parameters(source.path),
        },
        flags=flags,
        versions={str(key): str(each) for key, each in dict(run.record.get("versions") or {}).items()},
        reported=_told(run.metrics),
        recipe=_recipe(source, book),
    )
    place = folder / card.name
    for twin in sorted({*folder.glob("*.json")} - {place}):
        if cards.load(twin).judged == card.judged:
            raise RrecError(f"{path}: its checkpoint is that of {twin.name}: what else was done to it changed nothing")
    if place.is_file() and (old := cards.load(place)).verified is not None and old.reported == card.reported:
        card = replace(card, verified=old.verified, verification=old.verification)
    cards.save(card, place)
    return place


def verify(path: Path, ckpt: Path, *, tolerance: float = TOLERANCE, data_dir: str | None = None) -> bool:
    """Attack the checkpoint of a card again and note what was found; whether all values agree with the reported ones.

    tolerance: the largest difference of a metric, at most 0.005. RrecError where the checkpoint is another one than the
    card says, of other data, or made in another way.
    """
    if not 0 <= tolerance <= TOLERANCE:
        raise RrecError(f"tolerance={tolerance}: a difference between 0 and {TOLERANCE}, the most of what is verified")
    card = cards.load(path)
    tensors = ckpt / checkpoint.TENSORS
    if not tensors.is_file():
        raise RrecError(f"ckpt={ckpt}: no {checkpoint.TENSORS} there")
    if sha256(tensors.read_bytes()).hexdigest() != card.checkpoint:
        raise RrecError(f"ckpt={ckpt} is not the checkpoint of {path}: its sha256 is another one")
    cfg = _attack(card.config, ckpt, data_dir)
    _as_carded(card, path, cfg)
    with TemporaryDirectory() as folder:
        measured = attack(cfg, Path(folder))
    cards.eligible(path, _flags(measured))
    found = _told(measured)
    worst, apart = cards.apart(card.reported, found)
    agrees = apart <= tolerance
    told = {
        "agrees": agrees,
        "tolerance": tolerance,
        "largest_difference": {worst: apart},
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    cards.save(replace(card, verified=found, verification=told), path)
    words = "agrees with" if agrees else "differs from"
    line(f"{path.name} {words} what was reported; the largest difference is {apart:.6f}, of {worst}")
    return agrees


def build(folder: Path, out: Path) -> None:
    """Write the page of all cards of a folder."""
    found = cards.load_all(folder)
    if not found:
        raise RrecError(f"{folder} has no cards: rrec leaderboard add makes them")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html("report.html.j2", page=cards.board(found), drawn={}))
    line(f"{out}: {len(found)} card{'s' * (len(found) > 1)}")


def _attack(config: Mapping[str, Any], ckpt: Path, data_dir: str | None) -> Attack:
    here: dict[str, Any] = {"ckpt": str(ckpt), "data_dir": data_dir, "device": "auto", "threads": 0, "resume": None}
    here |= {"per_user": False, "baseline": None, "slices": []}
    try:
        return typed_attack({**{k: v for k, v in config.items() if k not in LEFT_OUT}, **here})
    except ValueError as error:
        raise RrecError(f"the attack cannot be run again: its configuration has {error}") from error


def _judged(cfg: Attack) -> tuple[str, dict[str, float]]:
    """The watched metric, and the clean ones judged twice where nothing can be optimised; RrecError if that matters."""
    device = setup(cfg)
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=device)
    judging = evaluator(loaded.data, cfg)
    before = {name: each.clone() for name, each in loaded.model.state_dict().items()}
    try:
        with torch.inference_mode():  # there is no graph to optimise along
            once, again = (judging.evaluate(Shifted(loaded.model), cfg.part).metrics for _ in range(2))
    except RuntimeError as error:
        raise RrecError(f"{cfg.ckpt}: not eligible, it does not rank without gradients ({error})") from error
    if not all(torch.equal(each, before[name]) for name, each in loaded.model.state_dict().items()):
        raise RrecError(f"{cfg.ckpt}: not eligible, its parameters change while it ranks")
    if any(value != again[name] for name, value in once.items() if value == value):
        raise RrecError(f"{cfg.ckpt}: not eligible, judging it twice gives two results")
    return judging.watched(None), once


def _flags(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith("flag/")}


def _told(metrics: Mapping[str, float]) -> dict[str, float | None]:
    chosen = {name: each for name, each in metrics.items() if name.partition("/")[0] in ("clean", "attacked", "drop")}
    return {name: None if each != each else each for name, each in chosen.items()}


def _as_carded(card: Card, path: Path, cfg: Attack) -> None:
    """RrecError where a checkpoint is not what its card says."""
    loaded = checkpoint.load(cfg.ckpt, data_dir=cfg.data_dir, device=setup(cfg))
    source = read(Path(cfg.ckpt).resolve())
    book = Book([source])
    if _first(source, book).config.get("model") is None:
        raise RrecError(
            f"ckpt={cfg.ckpt}: how it was trained is not told there (.hydra/config.yaml, or that of its start)"
        )
    found = {
        "model": str(loaded.config["name"]),
        "defense": _defense(source, book),
        "dataset": str(loaded.recipe.dataset["name"]),
        "fingerprint": loaded.data.fingerprint,
    }
    for name, value in found.items():
        if value != (said := getattr(card, name)):
            raise RrecError(f"{path} is not about ckpt={cfg.ckpt}: its {name} is {value}, the card says {said}")
    seeds = _seeds(_first(source, book))
    other = cards.unlike(seeds, {name: card.seeds.get(name) for name in seeds})
    if card.recipe is not None:
        other += cards.unlike(_recipe(source, book), card.recipe)
    if other:
        raise RrecError(f"{path} is not about ckpt={cfg.ckpt}: trained with {', '.join(other)}")


def _line(source: Found, book: Book) -> list[Found]:
    """The training that a checkpoint began with, then what it was fine-tuned by; a teacher is no beginning."""
    line = [source]
    while line[0].verb == "finetune" and len(line) < 9 and (before := book.source(line[0])) is not None:
        line.insert(0, before)
    return line


def _first(source: Found, book: Book) -> Found:
    return _line(source, book)[0]


def _recipe(source: Found, book: Book) -> dict[str, Any]:
    """How a checkpoint was trained, without seeds and where it ran."""
    told: dict[str, Any] = {}
    for each in _line(source, book):
        settings = without_seeds(each.config, LOCAL)
        told = settings | {"ckpt": told} if each.verb == "finetune" else settings
    return told


def _model(source: Found, book: Book) -> str:
    return _first(source, book).named("model")


def _defense(source: Found, book: Book) -> str:
    names: list[str] = []
    node = _first(source, book).config.get("defense")
    while isinstance(node, Mapping) and len(names) < 9:
        names.append(str(node.get("name", "none")))
        node = node.get("inner")
    names += [each.named("finetune") for each in _line(source, book)[1:]]
    kept = [each for each in names if each != "none"]
    return "+".join(kept) or "none"


def _seeds(run: Found) -> dict[str, int | None]:
    told = run.record.get("seeds")
    found = dict(told) if isinstance(told, Mapping) else {}
    return {str(key): each if isinstance(each, int) else None for key, each in found.items()}


def _seconds(run: Found) -> float:
    value = run.record.get("seconds")
    return float(value) if isinstance(value, (int, float)) else 0.0
