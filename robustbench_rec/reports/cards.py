"""Cards of the leaderboard: one JSON file for each entry, checked whenever it is read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from robustbench_rec.errors import RrecError
from robustbench_rec.files import read_json, write_json
from robustbench_rec.metrics.direction import sign
from robustbench_rec.reports.page import Cell, Page, Section, Table
from robustbench_rec.reports.sections.cells import NOISE, marked
from robustbench_rec.significance import Spread, over_seeds

FORMAT = 1
STANDARD: dict[str, Any] = {
    "part": "test",
    "eps": 0.1,
    "loss": None,
    "labels": "true",
    "protocol": "full",
    "seen": False,
    "goal": {"name": "untargeted"},
    "attack": {
        "name": "rank_autoattack",
        "surface": "embedding",
        "modules": None,
        "scope": "all",
        "eps": 0.1,
        "norm": "l2",
        "per": "row",
        "relative": "own",
        "seed": 0,
        "steps": 100,
        "queries": 500,
        "rivals": 9,
    },
}
"""What every entry is attacked with, the defaults of `rrec attack attack=rank_autoattack`."""
LIMITS = {"zero_gradients": 0.0, "random": 0.0, "saturated": 0.5, "black_box": 0.1}
"""The most that the flags of masked gradients of an eligible entry may be."""
RULES = (
    "Every entry went through the same attack, rank_autoattack with eps 0.1 of each embedding row's norm on the true "
    "labels of the test part, full ranking. It is eligible if gradients are not 0, if judging it twice gives the same "
    "numbers, if nothing is optimised or changed while it ranks, and if the checkpoint is the one whose hash is named. "
    "Verified: somebody ran the attack again on that checkpoint and found the same."
)


@dataclass(frozen=True)
class Card:
    """An entry: one checkpoint under the standard attack.

    defense: names, outermost first, joined by "+"; the fine-tuning where there was one. config: of the attack, all that
    is needed to run it again. checkpoint: sha256 of `model.safetensors`. reported, verified: metrics by name,
    "attacked/ndcg@10"; verified is None until somebody has. verification: when, with what, and the tolerance.
    """

    format: int
    model: str
    defense: str
    dataset: str
    fingerprint: str
    protocol: str
    threat: dict[str, str]
    config: dict[str, Any]
    metric: str
    seeds: dict[str, int | None]
    checkpoint: str
    cost: dict[str, float | None]
    flags: dict[str, float]
    versions: dict[str, str]
    reported: dict[str, float | None]
    verified: dict[str, float | None] | None = None
    verification: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        words = (self.dataset, self.model, self.defense, self.checkpoint[:12])
        return "-".join(re.sub(r"[^\w+]", "_", each) for each in words) + ".json"

    @property
    def state(self) -> str:
        """Whether it has been verified."""
        if self.verification is None:
            return "reported"
        return "verified" if self.verification.get("agrees") is True else "differs"


def save(card: Card, path: Path) -> None:
    """Write a card, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(card))


def load(path: Path) -> Card:
    """Read a card; RrecError names what is missing, unknown or of the wrong type."""
    content = read_json(path, "leaderboard")
    known = {each.name: each for each in fields(Card)}
    if content.get("format") != FORMAT:
        raise RrecError(f"{path}: format {content.get('format')} of a card, this version reads format {FORMAT}")
    for name in sorted(content.keys() - known.keys()):
        raise RrecError(f"{path}: a card has no '{name}' (it has: {', '.join(known)})")
    for name, each in known.items():
        if name not in content and name not in ("verified", "verification"):
            raise RrecError(f"{path}: the card lacks '{name}'")
        if not _fits(content.get(name), each.type):
            raise RrecError(f"{path}: '{name}' of the card is no {_words(each.type)}")
    if not re.fullmatch(r"[0-9a-f]{64}", content["checkpoint"]):
        raise RrecError(f"{path}: 'checkpoint' of the card is no sha256")
    return Card(**content)


def load_all(folder: Path) -> list[Card]:
    """All cards of a folder, by the names of their files."""
    if not folder.is_dir():
        raise RrecError(f"{folder} is no directory: rrec leaderboard add makes cards")
    return [load(path) for path in sorted(folder.glob("*.json"))]


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON has the type of a field."""
    options = get_args(kind) if not isinstance(kind, type) and getattr(kind, "__origin__", None) is None else (kind,)
    return any(_is(value, each) for each in options or (kind,))


def _is(value: Any, kind: Any) -> bool:
    if getattr(kind, "__origin__", None) is dict:
        inner = get_args(kind)[1]
        return isinstance(value, dict) and (inner is Any or all(_fits(each, inner) for each in value.values()))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is NoneType:
        return value is None
    return isinstance(value, kind) and not isinstance(value, bool)


def _words(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def unlike(config: Mapping[str, Any], standard: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where the configuration of an attack is not the standard one, as `eps=0.2 instead of 0.1`."""
    found = []
    for key, wanted in standard.items():
        value = config.get(key)
        if isinstance(wanted, Mapping):
            inner = value if isinstance(value, Mapping) else {}
            found += unlike(inner, wanted, f"{prefix}{key}.")
        elif value != wanted:
            found.append(f"{prefix}{key}={value} instead of {wanted}")
    return found


def board(cards: Sequence[Card]) -> Page:
    """The page of a leaderboard: checkpoints that differ in their seed alone are one entry."""
    groups: dict[tuple[str, str, str, str], list[Card]] = {}
    for card in cards:
        groups.setdefault((card.dataset, card.metric, card.model, card.defense), []).append(card)
    sections = []
    for dataset, metric in dict.fromkeys((each.dataset, each.metric) for each in cards):
        here = [(key, found) for key, found in groups.items() if key[:2] == (dataset, metric)]
        way = sign(metric)
        here.sort(key=lambda pair: -way * _spread(pair[1], f"attacked/{metric}").mean)
        columns = [marked([_spread(found, f"{side}/{metric}") for _, found in here], metric) for side in SIDES]
        rows = []
        for place, ((*_, model, defense), found) in enumerate(here):
            states = {each.state for each in found}
            state = "differs" if "differs" in states else "reported" if "reported" in states else "verified"
            cost = [over_seeds([_known(each.cost.get(name)) for each in found]).mean for name in COSTS]
            cells = [Cell(place + 1), Cell(model), Cell(defense), columns[0][place], columns[1][place]]
            cells += [Cell(_spread(found, f"drop/{metric}"), share=True), Cell(len(found)), Cell(state)]
            cells += [Cell(None if each != each else round(each)) for each in cost]
            rows.append(cells)
        head = ["place", "model", "defence", f"clean {metric}", f"robust {metric}", "drop", "seeds", "state"]
        name = re.sub(r"\W", "_", f"{dataset}_{metric}")
        table = Table(name, f"{dataset}, {metric}", [*head, *COSTS.values()], rows, NOISE, choices=("model", "defence"))
        single = [
            [
                Cell(c.model),
                Cell(c.defense),
                Cell(str(c.seeds.get("seed"))),
                Cell(c.reported.get(f"attacked/{metric}")),
                Cell((c.verified or {}).get(f"attacked/{metric}")),
                Cell(c.state),
                Cell(c.checkpoint[:16]),
            ]
            for c in cards
            if (c.dataset, c.metric) == (dataset, metric)
        ]
        head = ["model", "defence", "seed", "reported", "verified", "state", "checkpoint"]
        folded = Table(f"{name}_cards", "Cards", head, single, folded=True)
        sections.append(Section(name, f"{dataset}", "", [table, folded]))
    return Page("Leaderboard of robust recommenders", f"{len(cards)} cards", [RULES], sections, lead="Rules")


SIDES = ("clean", "attacked")
COSTS = {"train_seconds": "training (s)", "parameters": "parameters"}


def _spread(cards: Sequence[Card], name: str) -> Spread:
    return over_seeds([_known(each.reported.get(name)) for each in cards])


def _known(value: float | None) -> float:
    return float("nan") if value is None else float(value)
