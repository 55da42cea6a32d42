"""Cards of the leaderboard: one JSON file for each entry, checked whenever it is read."""

import json
import math
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
from robustbench_rec.reports.reading import RECIPE, is_number
from robustbench_rec.reports.sections.cells import NOISE, marked
from robustbench_rec.reports.sections.grouping import in_words
from robustbench_rec.significance import Spread, over_seeds

FORMAT = 1
STANDARD: dict[str, Any] = {
    "precision": "fp32",
    "part": "test",
    "eps": 0.1,
    "loss": None,
    "labels": "true",
    "protocol": ("full", "sampled"),
    "seen": False,
    "n_negatives": (None, 99),
    "frontier": None,
    "goal": {"name": "untargeted", "k": 10},
    "poison": {"name": "none"},
    "clean": {"name": "none"},
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
"""What every entry is attacked with, the defaults of `rrec attack attack=rank_autoattack`; a tuple: one of these."""
LIMITS = {"zero_gradients": 0.0, "random": 0.0, "saturated": 0.5, "black_box": 0.1}
"""The most that the flags of masked gradients of an eligible entry may be."""
TOLERANCE = 0.005
"""The largest difference of a metric of what counts as verified."""
ROUNDING = 1e-4
"""Of a drop from single precision."""
RULES = (
    "Every entry went through the same attack, rank_autoattack with eps 0.1 of each embedding row's norm on the true "
    "labels of the test part. Full rankings and 99 sampled negatives an event have tables of their own: values of one "
    "say nothing about the other. It is eligible if gradients are not 0, if judging it twice gives the same numbers, "
    "if nothing is optimised or changed while it ranks, and if the checkpoint is the one whose hash is named. "
    "Verified: somebody ran the attack again on that checkpoint and found the same, up to 0.005; values are those that "
    "were found then."
)


@dataclass(frozen=True)
class Card:
    """An entry: one checkpoint under the standard attack.

    defense: names, outermost first, joined by "+"; the fine-tuning where there was one. config: of the attack, all that
    is needed to run it again. checkpoint: sha256 of `model.safetensors`. reported, verified: metrics by name,
    "attacked/ndcg@10"; verified is None until somebody has. verification: when, with what, and the tolerance.
    recipe: how the checkpoint was trained, without seeds, that of its start under `ckpt`; None on cards of before.
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
    recipe: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        protocol = () if self.protocol == "full" else (self.protocol,)
        words = (self.dataset, *protocol, self.model, self.defense, self.checkpoint[:12])
        return "-".join(re.sub(r"[^\w+]", "_", each) for each in words) + ".json"

    @property
    def judged(self) -> tuple[str, str, str]:
        """What no other card may be about, whatever else it says."""
        return self.checkpoint, self.protocol, self.metric

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


def apart(reported: Mapping[str, float | None], found: Mapping[str, float | None]) -> tuple[str, float]:
    """The metric that is furthest from what was reported, and how far; infinitely where only one of them has it."""
    far = {}
    for name, value in reported.items():
        other = found.get(name)
        if value is None or other is None:
            far[name] = 0.0 if value == other else math.inf
        else:
            far[name] = abs(value - other)
    worst = max(far, key=lambda name: far[name])
    return worst, far[worst]


def _consistent(path: Path, which: str, values: Mapping[str, float | None]) -> None:
    """RrecError where a drop is not that from the clean to the attacked value."""
    for name, drop in values.items():
        side, _, metric = name.partition("/")
        clean, attacked = (values.get(f"{each}/{metric}") for each in ("clean", "attacked"))
        if side != "drop" or drop is None or not clean or attacked is None:
            continue
        if abs(drop - (clean - attacked) / clean) > ROUNDING:
            raise RrecError(f"{path}: '{which}' of the card: {name} is not the drop from {clean} to {attacked}")


def load(path: Path) -> Card:
    """Read a card; RrecError names what is missing, unknown, of the wrong type or against the rules."""
    content = read_json(path, "leaderboard")
    known = {each.name: each for each in fields(Card)}
    if content.get("format") != FORMAT:
        raise RrecError(f"{path}: format {content.get('format')} of a card, this version reads format {FORMAT}")
    for name in sorted(content.keys() - known.keys()):
        raise RrecError(f"{path}: a card has no '{name}' (it has: {', '.join(known)})")
    for name, each in known.items():
        if name not in content and name not in ("verified", "verification", "recipe"):
            raise RrecError(f"{path}: the card lacks '{name}'")
        if not _fits(content.get(name), each.type):
            raise RrecError(f"{path}: '{name}' of the card is no {_words(each.type)}")
    if not re.fullmatch(r"[0-9a-f]{64}", content["checkpoint"]):
        raise RrecError(f"{path}: 'checkpoint' of the card is no sha256")
    card = Card(**content)
    if other := unlike(card.config, STANDARD):
        raise RrecError(f"{path}: not attacked with the standard budget: {', '.join(other)}")
    if card.protocol != (said := card.config["protocol"]):
        raise RrecError(f"{path}: 'protocol' of the card is {card.protocol}, its attack had {said}")
    eligible(path, card.flags)
    for name in ("reported", "verified"):
        _consistent(path, name, content.get(name) or {})
    if card.state == "verified":
        worst, difference = apart(card.reported, card.verified or {})
        if not difference <= TOLERANCE:
            far = f"{difference:.6f} from what was reported, at most {TOLERANCE}"
            raise RrecError(f"{path}: said to be verified, but {worst} is {far}")
    if f"attacked/{card.metric}" not in card.reported:
        raise RrecError(f"{path}: 'reported' of the card has no attacked/{card.metric}, the metric that it is about")
    return card


def eligible(path: Path, flags: Mapping[str, float]) -> None:
    """RrecError where a sign of masked gradients is beyond its limit, or was not looked for."""
    for name, most in LIMITS.items():
        if name not in flags:
            raise RrecError(f"{path}: not eligible, 'flags' of the card do not tell of {name.replace('_', ' ')}")
        if not flags[name] <= most:
            raise RrecError(f"{path}: not eligible, {name.replace('_', ' ')} is {flags[name]:.4g}, at most {most:g}")


def load_all(folder: Path) -> list[Card]:
    """All cards of a folder, by the names of their files."""
    if not folder.is_dir():
        raise RrecError(f"{folder} is no directory: rrec leaderboard add makes cards")
    found: dict[Path, Card] = {path: load(path) for path in sorted(folder.glob("*.json"))}
    first: dict[tuple[str, str, str], Path] = {}
    for path, card in found.items():
        if (other := first.setdefault(card.judged, path)) is not path:
            raise RrecError(f"{other.name} and {path.name} in {folder} are cards of the same checkpoint: remove one")
    return list(found.values())


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON has the type of a field."""
    options = get_args(kind) if not isinstance(kind, type) and getattr(kind, "__origin__", None) is None else (kind,)
    return any(_is(value, each) for each in options or (kind,))


def _is(value: Any, kind: Any) -> bool:
    if getattr(kind, "__origin__", None) is dict:
        inner = get_args(kind)[1]
        return isinstance(value, dict) and (inner is Any or all(_fits(each, inner) for each in value.values()))
    if kind is float:
        return is_number(value)
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
        elif value not in (options := wanted if isinstance(wanted, tuple) else (wanted,)):
            found.append(f"{prefix}{key}={value} instead of {' or '.join(map(str, options))}")
    return found


def board(cards: Sequence[Card]) -> Page:
    """The page of a leaderboard, a table for each data, protocol and metric; what differs in seeds is one entry.

    Entries on other splits are in tables of their own: which is easier says nothing about a model.
    """
    entries: dict[tuple[str, str], list[Card]] = {}
    judged_on = {}
    for card, told in zip(cards, _data(cards), strict=True):
        where = _exact([card.dataset, card.protocol, card.metric, told])
        judged_on[where] = told
        entries.setdefault((where, _exact([card.model, card.defense, card.recipe])), []).append(card)
    boards: dict[str, dict[str, list[Card]]] = {}
    titles: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for (where, entry), found in entries.items():
        card, splits = found[0], ", ".join(sorted({str(each.seeds.get("split.seed")) for each in found}))
        key = _exact([where, splits])
        boards.setdefault(key, {})[entry] = found
        title = f"{card.dataset}, {PROTOCOLS[card.protocol]}, {card.metric}"
        titles[key] = title, judged_on[where] | {"split.seed": splits}
    sections: list[Section] = []
    for key, title in in_words(titles).items():
        here = list(boards[key].items())
        together = [card for _, found in here for card in found]
        dataset, protocol, metric = together[0].dataset, together[0].protocol, together[0].metric
        named = {entry: (_exact([found[0].model, found[0].defense]), found[0].recipe or {}) for entry, found in here}
        apart = {entry: words.removeprefix(named[entry][0]) for entry, words in in_words(named).items()}
        way = sign(metric)
        here.sort(key=lambda pair: -way * _spread(pair[1], f"attacked/{metric}").mean)
        columns = [marked([_spread(found, f"{side}/{metric}") for _, found in here], metric) for side in SIDES]
        rows = []
        for place, (entry, found) in enumerate(here):
            states = {each.state for each in found}
            state = "differs" if "differs" in states else "reported" if "reported" in states else "verified"
            cost = [over_seeds([_known(each.cost.get(name)) for each in found]).mean for name in COSTS]
            model = f"{found[0].model}{apart[entry]}"
            cells = [Cell(place + 1), Cell(model), Cell(found[0].defense), columns[0][place], columns[1][place]]
            cells += [Cell(_spread(found, f"drop/{metric}"), share=True), Cell(len(found)), Cell(state)]
            cells += [Cell(None if each != each else round(each)) for each in cost]
            rows.append(cells)
        head = ["place", "model", "defence", f"clean {metric}", f"robust {metric}", "drop", "seeds", "state"]
        name = re.sub(r"\W", "_", f"{dataset}_{protocol}_{metric}")
        name += f"_{len(sections) + 1}" if any(each.name == name for each in sections) else ""
        table = Table(name, title, [*head, *COSTS.values()], rows, NOISE, choices=("model", "defence"))
        seeds = ["seed", *(each for each in DATA_SEEDS if len({c.seeds.get(each) for c in together}) > 1)]
        single = [
            [
                Cell(c.model),
                Cell(c.defense),
                Cell(", ".join(f"{each.rpartition('.')[0]} {c.seeds.get(each)}".strip() for each in seeds)),
                Cell(c.reported.get(f"attacked/{metric}")),
                Cell((c.verified or {}).get(f"attacked/{metric}")),
                Cell(c.state),
                Cell(c.checkpoint[:16]),
            ]
            for c in together
        ]
        head = ["model", "defence", "seed", "reported", "verified", "state", "checkpoint"]
        folded = Table(f"{name}_cards", "Cards", head, single, folded=True)
        sections.append(Section(name, f"{dataset}", "", [table, folded]))
    return Page("Leaderboard of robust recommenders", f"{len(cards)} cards", [RULES], sections, lead="Rules")


def _data(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """What each was judged on: dataset, split and preparation without seeds, and the fingerprint where it takes that.

    It does where a card has no recipe and no other one knows its data, and where one recipe with the same seeds gave
    several data: then the files changed.
    """
    recipes = [_trained(card) for card in cards]
    prints: dict[str, set[str]] = {}
    exact = []
    for card, recipe in zip(cards, recipes, strict=True):
        seeds = {key: each for key, each in card.seeds.items() if key in DATA_SEEDS}
        exact.append(_exact([{key: recipe.get(key) for key in CHANGES}, seeds]))
        prints.setdefault(exact[-1], set()).add(card.fingerprint)
    changed = {
        _exact([recipe.get(key) for key in RECIPE])
        for each, recipe in zip(exact, recipes, strict=True)
        if len(prints[each]) > 1
    }
    known = {card.fingerprint: recipe for card, recipe in zip(cards, recipes, strict=True) if recipe}
    found = []
    for card in cards:
        recipe = known.get(card.fingerprint, {})
        told = {key: recipe.get(key) for key in RECIPE}
        sure = recipe and _exact(list(told.values())) not in changed
        found.append(told if sure else told | {"fingerprint": card.fingerprint[:12]})
    return found


def _trained(card: Card) -> Mapping[str, Any]:
    """The recipe of the training that a checkpoint began with, empty where it is not known."""
    recipe: Mapping[str, Any] = card.recipe or {}
    while isinstance(before := recipe.get("ckpt"), Mapping):
        recipe = before
    return recipe


def _exact(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


CHANGES = (*RECIPE, "noise", "poison", "clean")
"""Of a recipe, what decides the fingerprint of the data, together with these seeds."""
PROTOCOLS = {"full": "full ranking", "sampled": "99 sampled negatives"}
DATA_SEEDS = ("split.seed", "noise.seed", "poison.seed", "clean.seed")
SIDES = ("clean", "attacked")
COSTS = {"train_seconds": "training (s)", "parameters": "parameters"}


def _spread(cards: Sequence[Card], name: str) -> Spread:
    return over_seeds([_known((each.reported | (each.verified or {})).get(name)) for each in cards])


def _known(value: float | None) -> float:
    return float("nan") if value is None else float(value)
