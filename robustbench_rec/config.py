"""Typed root configurations: types here, values in conf/*.yaml; unknown keys and wrong types are refused.

A dict field is the config of one component: `name` picks the module, its `Config` checks the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


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
    users and items with fewer events, to a fixed point. defects: drop, refuse or keep what cleaning finds.
    """

    threshold: float | None = MISSING
    label: float | None = MISSING
    user_core: int = MISSING
    item_core: int = MISSING
    defects: str = MISSING


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
    (single predictions). seen: whether in a full ranking what a user had before is a candidate too, as in data where
    items come back. n_negatives, metrics: null for what is usual in the protocol.
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


@dataclass
class Train(Fit, Judge, Recipe, Base):
    model: dict[str, Any] = MISSING
    defense: dict[str, Any] = MISSING
    poison: dict[str, Any] = MISSING
    resume: str | None = MISSING


def typed_training(values: Mapping[str, Any]) -> Train:
    """Settings of a training from untrusted values; ValueError where one is missing, or a key or a type is wrong."""
    return _typed(Train, values)


@dataclass
class Distill(Train):
    distill: dict[str, Any] = MISSING
    teacher: str = MISSING


@dataclass
class Attack(Judge, Base):
    """ckpt: a run directory or its model.safetensors. eps: budget of the attack.

    loss: what the attack climbs, null for the goal's own. labels: true, the worst case, or own: what the model itself
    takes for relevant, a score above 0, as in the evaluations of the RAWP line. frontier: the directory of an
    undefended run that kept its trajectory, to compare with at equal clean quality; true for the trajectory of the
    checkpoint alone. poison: fake users in the training data, then the model is trained again and nothing of goal,
    attack, eps, loss and labels counts; none for an attack on the model as it is.
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


def typed_attack(values: Mapping[str, Any]) -> Attack:
    """Settings of an attack from untrusted values; ValueError as for a training."""
    return _typed(Attack, values)


@dataclass
class Eval(Judge, Base):
    """noise: what is done to the data that the model was trained on, before it is judged."""

    ckpt: str = MISSING
    part: str = MISSING
    noise: dict[str, Any] = field(default_factory=lambda: {"name": "none"})


@dataclass
class Criticality:
    """Module robustness: steps of ascent within eps, row by row, on the loss of so many training pairs.

    embedding_eps: the pairs are read through embeddings that ten steps of PGD have moved before, each row by this share
    of its norm; 0 leaves them clean.
    """

    eps: float = MISSING
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


ROOTS = {"train": Train, "attack": Attack, "finetune": Finetune, "distill": Distill, "eval": Eval, "data": Dataset}


def _typed(schema: type[T], values: Mapping[str, Any]) -> T:
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    assert isinstance(typed, schema)
    return typed
