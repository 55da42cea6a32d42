"""Typed root configurations: types here, values in conf/*.yaml; unknown keys and wrong types are refused.

A dict field is the config of one component: `name` picks the module, its `Config` checks the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")
INTERPOLATED = "${"
"""How a text begins that OmegaConf would replace by something else; what a config says was replaced before."""
RESUMABLE_WITH = ("device", "threads", "data_dir", "tracker")
"""What may change when a run is continued: where it runs, not what it computes."""


@dataclass
class Base:
    """What every verb that computes has.

    seed: initialisation and training order. device: auto, cpu, cuda, cuda:1, mps. threads: 0 leaves torch's choice.
    precision: fp32 or bf16 (autocast). data_dir: where datasets are fetched to and cached; null: RREC_DATA, else the
    user's cache directory. tracker: who else is told of the run.
    """

    seed: int = MISSING
    device: str = MISSING
    precision: str = MISSING
    threads: int = MISSING
    deterministic: bool = MISSING
    data_dir: str | None = MISSING
    tracker: dict[str, Any] = field(default_factory=lambda: {"name": "none"})  # runs from before it have none


@dataclass
class Prepare:
    """What happens to the events of a dataset before the split.

    threshold: keep events rated at least this much as positives (null: every event is one). label: turn ratings into
    clicks, 1 for at least this much, 0 for less (null: ratings stay what they are). user_core, item_core: drop
    users and items with fewer events, to a fixed point. defects: drop, refuse or keep what cleaning finds. pseudonyms:
    users have salted hashes in the place of their ids, see `prepare.pseudonyms`.
    """

    threshold: float | None = MISSING
    label: float | None = MISSING
    user_core: int = MISSING
    item_core: int = MISSING
    defects: str = MISSING
    pseudonyms: bool = False  # checkpoints from before it have none


@dataclass
class Recipe:
    """Everything that decides which data a model sees; stored in every checkpoint.

    noise: what is done to the prepared data.
    """

    dataset: dict[str, Any] = MISSING
    split: dict[str, Any] = MISSING
    prepare: Prepare = field(default_factory=Prepare)
    noise: dict[str, Any] = field(default_factory=lambda: {"name": "none"})  # checkpoints from before it have none


def typed_recipe(values: Mapping[str, Any]) -> Recipe:
    """A recipe from untrusted values; ValueError where a key or a type is wrong."""
    return _typed(Recipe, values)


@dataclass
class Judge:
    """How a model is evaluated.

    protocol: full (ranking of the whole catalogue), sampled (1 + n_negatives candidates an event), clicks or ratings
    (single predictions). seen: whether in a ranking what a user had before is a candidate and may be relevant, as in
    data where items come back. n_negatives, metrics: null for what is usual in the protocol.
    """

    protocol: str = MISSING
    seen: bool = MISSING
    n_negatives: int | None = MISSING
    metrics: list[str] | None = MISSING
    top_k: list[int] = MISSING
    per_user: bool = MISSING


@dataclass
class Fit:
    """How a model is trained.

    loss, negatives: null is the model's own; negatives=0 compares with the whole catalogue (softmax) or takes events
    with their own labels (bce, mse). batch_size: events. momentum: of sgd. decay_after: share of the epochs after which
    lr is a tenth (null: never). patience: epochs without a better monitor before training stops. monitor: null is the
    protocol's own. trajectory: the parameters after every so many epochs are kept (0: only the best are).
    """

    loss: str | None = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    negatives: int | None = MISSING
    optimizer: str = MISSING
    lr: float = MISSING
    momentum: float = MISSING
    decay_after: float | None = MISSING
    weight_decay: float = MISSING
    clip_norm: float | None = MISSING
    patience: int = MISSING
    monitor: str | None = MISSING
    trajectory: int = 0  # checkpoints from before it do not say


def _nothing() -> dict[str, Any]:
    return {"name": "none"}


@dataclass
class Train(Fit, Judge, Recipe, Base):
    """clean: what is done to the training events, poison included, before the training.

    start: a run, whose parameters are taken wherever names and shapes agree. adaptation: what is then trained. attack:
    what the trained model is judged under on test, beside without (null: nothing); its budget is eps.
    """

    model: dict[str, Any] = MISSING
    defense: dict[str, Any] = MISSING
    poison: dict[str, Any] = MISSING
    clean: dict[str, Any] = field(default_factory=_nothing)
    start: str | None = None
    adaptation: dict[str, Any] = field(default_factory=_nothing)
    attack: dict[str, Any] | None = None
    eps: float = 0.1  # checkpoints say nothing of the two
    resume: str | None = MISSING


@dataclass
class Distill(Train):
    """teacher: a run directory, a list of them (an ensemble), a file of scores `….npy`, or ema: the student's average.

    distill: the terms; task_weight: what the student's own loss counts beside them. ema: what is kept of the average at
    each step. cache: the teacher's scores of all pairs, and vectors, are computed once and kept in the data directory.
    """

    distill: dict[str, Any] = MISSING
    teacher: Any = MISSING
    task_weight: float = MISSING
    ema: float = MISSING
    cache: bool = MISSING


def typed_training(values: Mapping[str, Any]) -> Train:
    """Settings of a training from untrusted values; ValueError where one is missing, or a key or a type is wrong."""
    return _typed(Distill if "teacher" in values else Train, values)


@dataclass
class Attack(Judge, Base):
    """ckpt: a run directory or its model.safetensors. eps: budget of the attack.

    loss: what the attack climbs, null for the goal's own and beside an attack that has its own. labels: true, the worst
    case, or own: what the model itself takes for relevant, a score above 0, as in the evaluations of the RAWP line, but
    not of ratings. frontier: the directory of an undefended run of the same model that kept its trajectory, to compare
    with at equal clean quality; true for the trajectory of the checkpoint alone. poison: fake users in the training
    data, then the model is trained again and nothing of goal, attack, eps, loss and labels counts; none for an attack
    on the model as it is. clean: what is done to the poisoned data before that training; none for what was done in the
    training of the checkpoint. slices: groups that the result is broken down by (activity, cold_users, popularity,
    cold_items, a column of the user table). anonymity: users of the smallest group that anything is told of; smaller
    ones are joined. baseline: the directory of the same attack, or the same poison, on the undefended model, for the
    robustness improvement.
    """

    ckpt: str = MISSING
    part: str = MISSING
    eps: float = MISSING
    loss: str | None = MISSING
    labels: str = MISSING
    goal: dict[str, Any] = MISSING
    attack: dict[str, Any] = MISSING
    frontier: str | None = MISSING
    resume: str | None = MISSING
    poison: dict[str, Any] = MISSING
    clean: dict[str, Any] = field(default_factory=_nothing)
    slices: list[str] = MISSING
    anonymity: int = 1  # cards of before it have none
    baseline: str | None = MISSING


def flat(settings: Any, prefix: str = "") -> dict[str, str]:
    """A typed configuration by dotted keys."""
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = {each.name: getattr(settings, each.name) for each in fields(settings)}
    if not isinstance(settings, Mapping):
        return {prefix.removesuffix("."): str(settings)}
    found: dict[str, str] = {}
    for key, each in settings.items():
        found |= flat(each, f"{prefix}{key}.")
    return found


def difference(one: Any, other: Any, but: Sequence[str]) -> tuple[str, str | None, str | None] | None:
    """The first dotted key in which two configurations differ, and what they have there; None where they agree.

    but: keys that do not count, with all that is below them.
    """
    first, second = flat(one), flat(other)
    for name in dict.fromkeys((*first, *second)):
        if first.get(name) != second.get(name) and name.partition(".")[0] not in but:
            return name, first.get(name), second.get(name)
    return None


def typed_attack(values: Mapping[str, Any]) -> Attack:
    """Settings of an attack from untrusted values; ValueError as for a training."""
    return _typed(Attack, values)


@dataclass
class Eval(Judge, Base):
    """noise: what is done to the data that the model was trained on, before it is judged. certify: what is proven.

    slices, anonymity: as for `rrec attack`. baseline: another checkpoint of the same data, to compare with user by
    user. calibrate: fit probabilities, a threshold or an interval on validation, and judge them before and after.
    """

    ckpt: str = MISSING
    part: str = MISSING
    slices: list[str] = MISSING
    anonymity: int = MISSING
    baseline: str | None = MISSING
    calibrate: bool = MISSING
    noise: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    certify: dict[str, Any] = field(default_factory=lambda: {"name": "none"})


@dataclass
class Recommend(Base):
    """user: one or several, by original id. liked: original ids, or titles, of what a new user likes, oldest first.

    all: for every user, written to `out`. part: null for all that the data has; test or valid: what the user did in
    that part, and later, is not known, as when it is judged. seen: whether what the user had is recommended again.
    history: so many of the latest events are shown with a list. format: table, json or csv, on standard output, where
    `out` names no file (.csv, .parquet or .json).
    """

    ckpt: str = MISSING
    user: Any = MISSING
    liked: Any = MISSING
    all: bool = MISSING
    k: int = MISSING
    part: str | None = MISSING
    seen: bool = MISSING
    history: int = MISSING
    format: str = MISSING
    out: str | None = MISSING


@dataclass
class Explain(Base):
    """user, item: original ids (a title for the item, too); item null is the first that is recommended.

    by: paths, events or words, null for the first of them that the model has. method: removal or gradient, what events
    and words are ordered by. top: how many are told. hops: triples of a path, at most. k: of the list that an item is
    ejected from. draws: random orders to compare with. part: as in `recommend`. sample: the explanations of so many
    users' first items are measured, instead of one shown; then attack is what they have to be stable under (null:
    nothing), within eps.
    """

    ckpt: str = MISSING
    user: Any = MISSING
    item: Any = MISSING
    by: str | None = MISSING
    method: str = MISSING
    top: int = MISSING
    hops: int = MISSING
    k: int = MISSING
    draws: int = MISSING
    part: str | None = MISSING
    format: str = MISSING
    sample: int | None = MISSING
    attack: dict[str, Any] | None = None
    eps: float = MISSING


@dataclass
class Gate(Judge, Base):
    """What a model has to be, to be shipped; limits are shares, 5% or 0.05, by the name of a metric.

    max_drop: of the baseline's quality, that may be lost; under the attack too, where there is one. max_harm: of the
    clean quality, that the attack may take. at_least: clean quality. certain: the whole 95 % interval has to be within
    the limit, not the value alone. attack: null for none; its budget is eps, and what it climbs is loss.
    """

    ckpt: str = MISSING
    baseline: str | None = MISSING
    part: str = MISSING
    max_drop: Any = MISSING
    max_harm: Any = MISSING
    at_least: Any = MISSING
    certain: bool = MISSING
    goal: dict[str, Any] = MISSING
    attack: dict[str, Any] | None = None
    eps: float = MISSING
    loss: str | None = MISSING


LIMITS = ("max_drop", "max_harm", "at_least")
"""Keys of `Gate` that hold a limit for each metric."""
TEXTS = {"recommend": ("user", "liked"), "explain": ("user", "item"), "attack": ("labels",)}
"""Keys of a verb that hold texts which look like something else: original ids, true as a word."""


@dataclass
class Criticality:
    """Module robustness: steps of ascent within eps, on the loss of so many training pairs.

    per: what norms are of, each row of a matrix, its whole layer or each element. embedding_eps: the pairs are read
    through embeddings that ten steps of PGD have moved before, each row by this share of its norm; 0 leaves them clean.
    """

    eps: float = MISSING
    per: str = MISSING
    steps: int = MISSING
    pairs: int = MISSING
    embedding_eps: float = MISSING


@dataclass
class Finetune(Fit, Judge, Base):
    """attack: what robustness on validation is measured with.

    tolerance: share of the clean quality that may be lost (of the attacked one with `finetune=rift`). alphas: number
    of points of the interpolation between before (0) and after (1).
    """

    ckpt: str = MISSING
    finetune: dict[str, Any] = MISSING
    criticality: Criticality = field(default_factory=Criticality)
    attack: dict[str, Any] = MISSING
    tolerance: float = MISSING
    alphas: int = MISSING
    resume: str | None = MISSING


@dataclass
class Dataset(Recipe):
    """`rrec data`: a dataset and how it is prepared."""

    data_dir: str | None = MISSING


ROOTS = {
    "train": Train,
    "attack": Attack,
    "finetune": Finetune,
    "distill": Distill,
    "eval": Eval,
    "recommend": Recommend,
    "explain": Explain,
    "gate": Gate,
    "data": Dataset,
}


def _typed(schema: type[T], values: Mapping[str, Any]) -> T:
    for name, value in flat(values).items():
        if INTERPOLATED in value:
            raise ValueError(f"{name}={value}: not read from the environment or from other keys here")
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    assert isinstance(typed, schema)
    return typed
