"""Checkpoints: tensors in safetensors, everything else in JSON; nothing in them can be executed."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor

from robustbench_rec import cleanings, profiles
from robustbench_rec.adaptations import adaptations
from robustbench_rec.adapters import adapted, merged, plain
from robustbench_rec.config import Recipe, typed_recipe
from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError
from robustbench_rec.features import features, is_prose
from robustbench_rec.files import read_json, write_bytes, write_json
from robustbench_rec.model import RecModel
from robustbench_rec.models import models
from robustbench_rec.noise import Noise
from robustbench_rec.noises import noises
from robustbench_rec.prepare import load as load_data
from robustbench_rec.savepoint import load_state, packed, save_state

log = logging.getLogger(__name__)

FORMAT = 1
TENSORS, CARD, TRAJECTORY = "model.safetensors", "model.json", "trajectory"


@dataclass(frozen=True)
class Loaded:
    """A model as it was saved, with the data that it was trained on.

    config: of the model, with its name. training: how it was trained, where a run of `rrec train` says so. uncleaned:
    the data before cleaning, where there was some, else the same. digest: sha256 of its tensors. learnt: the loss and
    the negatives that it learnt with last, fine-tuned or not.
    """

    model: RecModel
    data: Data
    config: dict[str, Any]
    recipe: Recipe
    uncleaned: Data
    training: Mapping[str, Any] | None = None
    digest: str = ""
    learnt: Mapping[str, Any] = field(default_factory=dict)


def save(
    out: Path,
    model: RecModel,
    config: Mapping[str, Any],
    recipe: Recipe,
    data: Data,
    *,
    training: Mapping[str, Any] | None = None,
    learnt: Mapping[str, Any] | None = None,
) -> None:
    """Write `model.safetensors` and `model.json` into a run directory, each atomically, and fakes and cleaning."""
    if data.fakes is not None:
        profiles.save(out, data.fakes)
    if data.cleaning is not None:
        cleanings.save(out, data.cleaning)
    content = packed(model.state_dict())
    write_bytes(out / TENSORS, content)
    card = {
        "format": FORMAT,
        "model": dict(config),
        "recipe": {
            "dataset": recipe.dataset,
            "split": recipe.split,
            "prepare": asdict(recipe.prepare),
            "noise": recipe.noise,
        },
        "fingerprint": data.fingerprint,
        "sha256": sha256(content).hexdigest(),
    }
    if data.fakes is not None:
        card["fakes"] = profiles.digest(data.fakes)
    if data.cleaning is not None:
        card["cleaning"] = cleanings.digest(data.cleaning)
    if training is not None:
        card["training"] = dict(training)
    if learnt is not None:
        card["learnt"] = dict(learnt)
    write_json(out / CARD, card)


def load(
    path: str,
    *,
    data_dir: str | None,
    device: torch.device,
    key: str = "ckpt",
    noise: Mapping[str, Any] | None = None,
) -> Loaded:
    """The model and the data of a run directory (or of its `model.safetensors`).

    noise: what is done afterwards: the model has the parameters that it was trained to, with noise where it is on them,
    on the graph, the histories and the features of the changed data, whose new texts pass the rules that a cleaning
    left. RrecError when a file is missing, truncated, of another format, of another model or does not fit the data.
    """
    folder, card = _folder(path), _card(path, key)
    if card.get("format") != FORMAT:
        raise RrecError(
            f"{key}={path}: format {card.get('format')} of the checkpoint, this version reads format {FORMAT}"
        )
    content = (folder / TENSORS).read_bytes()
    if sha256(content).hexdigest() != card.get("sha256"):
        raise RrecError(f"{key}={path}: {TENSORS} is truncated or is not the file that {CARD} describes")
    try:
        tensors = from_bytes(content)
        recipe = typed_recipe(card["recipe"])
        config, fingerprint = dict(card["model"]), str(card["fingerprint"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RrecError(
            f"{key}={path}: not a checkpoint of robustbench_rec ({type(error).__name__}: {error})"
        ) from error
    try:
        data = load_data(recipe, data_dir)
    except RrecError as error:
        told = (
            "a relative path starts from where rrec is run, as it did then; if the data were moved, write where they "
            f"are into its {CARD}, under recipe, dataset"
        )
        raise RrecError(f"{key}={path}: the data that it was trained on: {error}; {told}") from error
    if "fakes" in card:
        data = profiles.inject(data, profiles.load(str(folder), key))
    uncleaned = data
    if "cleaning" in card:
        cleaning = cleanings.load(str(folder), key)
        if cleanings.digest(cleaning) != card["cleaning"]:
            raise RrecError(f"{key}={path}: {cleanings.KEPT.card} was changed; it is not what {CARD} describes")
        data = cleanings.apply(data, cleaning)
    if data.fingerprint != fingerprint:
        raise RrecError(
            f"{key}={path}: trained on data {fingerprint[:12]}, but dataset '{data.name}' now is "
            f"{data.fingerprint[:12]}; "
            "restore the files it was trained on"
        )
    if noise is not None:
        tell_unread(noise, config, data)
    kind = None if noise is None else noises.build(noise)
    if kind is not None and kind.level and not kind.finished:
        raise RrecError(f"noise={kind.name}: drawn in each epoch of a training; a trained model is judged with another")
    trained, data = data, data if kind is None else cleanings.reread(data, kind(data))
    changed = data.train is not trained.train
    if data is not trained:
        data = replace(data, learnt=trained.train)
    if data.edges is not None and data is not trained:
        raise RrecError(
            f"{key}={path}: its graph was made by cleaning, which noise={noise and noise['name']} cannot reach"
        )
    data, trained = data.to(device), trained.to(device)
    reworded = data.item_table is not trained.item_table
    taught = replace(trained, reworded=data.item_table) if reworded else data  # words keep their numbers
    model = build(config, taught)
    try:
        _fill(model, tensors, f"{key}={path}")
    except RrecError as error:
        if noise is None or data.fingerprint == trained.fingerprint:
            raise
        told = f"the sizes of this model change with noise={noise['name']}, with which it can be trained, not judged"
        raise RrecError(f"{error}; {told}") from error
    if reworded:
        _reread(model, trained, data)
    if kind is not None:
        _disturb(model, kind)
    if changed and not (model.window or model.reads_events or model.reads_graph):
        told = "changes training events, which this model does not read again: its results are those without noise"
        log.warning("noise=%s %s", noise and noise["name"], told)
    uncleaned = uncleaned.to(device)
    training = card.get("training")
    learnt = card.get("learnt") or training or {}
    return Loaded(model.to(device), data, config, recipe, uncleaned, training, card["sha256"], learnt)


def digest(path: str, key: str = "ckpt") -> str:
    """sha256 of the tensors of a run directory, as its card has it; RrecError where there are none."""
    return str(_card(path, key).get("sha256"))


def forget(out: Path, *, after: int = 0) -> None:
    """Remove the checkpoint that an earlier run left in a run directory, and what it kept after so many epochs."""
    states = (_state(out, each) for each in epochs(str(out)) if each > after)
    for each in (out / TENSORS, out / CARD, *states):
        each.unlink(missing_ok=True)


def keep_epoch(out: Path, model: RecModel, epoch: int, valid: Mapping[str, float]) -> None:
    """Write the parameters after an epoch, counted from 1, to the trajectory of a run, with what was measured."""
    (out / TRAJECTORY).mkdir(exist_ok=True)
    notes = {"epoch": str(epoch), **{name: repr(value) for name, value in valid.items()}}
    save_state(_state(out, epoch), model.state_dict(), notes)


def history(path: str) -> pd.DataFrame | None:
    """A row for each epoch of a run; None where it has none."""
    file = _folder(path) / "history.csv"
    return pd.read_csv(file) if file.is_file() else None


def epochs(path: str) -> list[int]:
    """The epochs whose parameters a run has kept, in order."""
    kept = (_folder(path) / TRAJECTORY).glob("*.safetensors")
    return sorted(int(each.stem) for each in kept if each.stem.isdigit())


def at_epoch(path: str, loaded: Loaded, epoch: int, key: str = "ckpt") -> None:
    """Give a loaded model the parameters that its run had after an epoch."""
    file = _state(_folder(path), epoch)
    try:
        tensors, _ = load_state(file, loaded.data.train.users.device)
    except RrecError as error:
        raise RrecError(f"{key}={path}: {file.name} of its {TRAJECTORY} cannot be read") from error
    _fill(loaded.model, tensors, f"{key}={path}, epoch {epoch}")


def build(config: Mapping[str, Any], data: Data) -> RecModel:
    """The model of a config, on the device of the data; RrecError when the dataset lacks what it needs."""
    name = str(config.get("name", "???"))
    missing = sorted(models[name].needs - data.has)
    if missing:
        has = ", ".join(sorted(data.has)) or "interactions only"
        told = f"model '{name}' needs {', '.join(missing)}, which dataset '{data.name}' does not have ({has})"
        raise RrecError(f"{told}; times give an order" if "order" in missing else told)
    adaptation = config.get("adaptation")
    model = models.build({key: each for key, each in config.items() if key != "adaptation"}, data)
    if isinstance(adaptation, Mapping):
        adaptations.build(adaptation)(model, data)
    return model.to(data.train.users.device)


def tell_unread(noise: Mapping[str, Any], config: Mapping[str, Any], data: Data) -> None:
    """Warn where a noise changes a graph, texts or an order of events that the model of a config does not read."""
    if not noise.get("level"):
        return
    unread = noises.build(noise).only - models[str(config.get("name", "???"))].needs
    for need, what in (("kg", "the knowledge graph"), ("text", "texts of items"), ("order", "the order of events")):
        if need in unread and not (need == "text" and _coded(noise, config, data)):
            log.warning(
                "noise=%s changes %s, which model '%s' does not read: its results are those without noise",
                noise["name"],
                what,
                config["name"],
            )


def _coded(noise: Mapping[str, Any], config: Mapping[str, Any], data: Data) -> bool:
    """Whether a model reads as categories the texts that a noise changes."""
    if "item_columns" not in config:
        return False
    read, column = features(data, "item", config["item_columns"]).names, noise.get("column")
    return column in read if column else any(map(is_prose, read))


@torch.no_grad()
def _disturb(model: RecModel, noise: Noise) -> None:
    """Put a noise that is not on data into a model."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, each in noise.delta(model, torch.Generator().manual_seed(noise.seed)).items():
        tensors[name].add_(each)
    model.refresh()


@torch.no_grad()
def _reread(model: RecModel, trained: Data, data: Data) -> None:
    """Give a model that was built of the texts of its training the texts of other data."""
    table = data.item_table
    if table is None or "text" not in model.needs:
        return
    for name, rows in model.text_reader(trained).read(table).items():
        model.get_buffer(name).copy_(rows)
    model.refresh()


def start(model: RecModel, loaded: Loaded, path: str) -> tuple[int, int]:
    """Give a model the tensors of a run wherever names and shapes agree; how many agree, of how many.

    Adapters have no part in the names: a run without them starts a model with them. Low-rank maps of the run that the
    model has not are multiplied into their matrices. RrecError where nothing agrees, or its adapters would be lost.
    """
    own, adapters = model.state_dict(), adapted(model)
    if all(adapters.get(name) == shape for name, shape in adapted(loaded.model).items()):
        given = {plain(name): each for name, each in loaded.model.state_dict().items()}
    else:
        try:
            given = merged(loaded.model)
        except RrecError as error:
            raise RrecError(
                f"start={path}: {error}: take the same adaptation, or the run that it started from"
            ) from error
    shared = [name for name in own if plain(name) in given and given[plain(name)].shape == own[name].shape]
    if not shared:
        raise RrecError(f"start={path}: no tensor there has the name and the shape of one of this model")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(given[plain(name)])
    model.refresh()
    return len(shared), len(own)


def same_source(loaded: Loaded, recipe: Recipe, data: Data, key: str, path: str) -> None:
    """RrecError where a run was trained on other data than these; noise may differ, users and items may not."""
    if loaded.data.fingerprint == data.fingerprint:
        return
    mine, theirs = _source(recipe), _source(loaded.recipe)
    if mine == theirs and _named(data) != _named(loaded.data):
        raise RrecError(
            f"{key}={path} was trained on data {loaded.data.fingerprint[:12]}, these are {data.fingerprint[:12]}, with "
            "other users or items, as fake users of a poison are: poison=file poison.path=<run> takes those of a run"
        )
    if mine != theirs:
        raise RrecError(
            f"{key}={path} was trained on data {loaded.data.fingerprint[:12]}, these are "
            f"{data.fingerprint[:12]}: use the {key}'s dataset, prepare and split settings"
        )


def fingerprints(data: Data) -> dict[str, str]:
    """What `run.json` tells of data: `fingerprint`, and `uncleaned_fingerprint` where there was a cleaning."""
    told = {"fingerprint": data.fingerprint, "uncleaned_fingerprint": data.uncleaned_fingerprint}
    return {name: each for name, each in told.items() if each is not None}


def uncleaned(record: Mapping[str, Any]) -> str | None:
    """The fingerprint that a record has in common with all runs that it can be compared with; None where it has none.

    It is that of the data before cleaning: dataset, preparation, split, noise and poison are the same. What cleaning
    leaves out is `hidden`, so that users, candidates and what is relevant to them are the same too.
    """
    told: str | None = record.get("uncleaned_fingerprint", record.get("fingerprint"))
    return told


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records are of runs that can be compared (`uncleaned`)."""
    return uncleaned(one) is not None and uncleaned(one) == uncleaned(other)


def comparable(loaded: Loaded, other: Loaded, key: str, path: str, ckpt: str, *, noise: bool = False) -> None:
    """RrecError where two models were trained on data that are not `alike`, or that differ in more than their noise."""
    same = alike(fingerprints(loaded.data), fingerprints(other.data))
    if not same and noise:
        fakes = [None if each.data.fakes is None else profiles.digest(each.data.fakes) for each in (loaded, other)]
        same = _source(loaded.recipe) == _source(other.recipe) and fakes[0] == fakes[1]
        same = same and _named(loaded.data) == _named(other.data)
    if not same:
        raise RrecError(
            f"{key}={path} was trained on data {other.data.fingerprint[:12]}, ckpt={ckpt} on "
            f"{loaded.data.fingerprint[:12]}: there is nothing to compare"
        )


def _source(recipe: Recipe) -> list[Any]:
    """What data are made of, before noise, poison and cleaning."""
    return [recipe.dataset, recipe.split, recipe.prepare]


def _named(data: Data) -> list[list[str]]:
    return [data.user_ids, data.item_ids]


def _card(path: str, key: str) -> dict[str, Any]:
    """What is told of the tensors of a run directory; RrecError where there are none."""
    folder = _folder(path)
    if not (folder / TENSORS).is_file():
        begun = (folder / "resume").is_dir()
        what = (
            f"continue it first, with resume={path}" if begun else "name the directory of a finished run of rrec train"
        )
        raise RrecError(f"{key}={path}: no {TENSORS} there; {what}")
    return read_json(folder / CARD, f"{key}={path}")


def _folder(path: str) -> Path:
    """Of a run, which may be named by its tensors."""
    return Path(path).parent if Path(path).name == TENSORS else Path(path)


def _state(out: Path, epoch: int) -> Path:
    """File of the parameters after an epoch."""
    return out / TRAJECTORY / f"{epoch:05d}.safetensors"


def _fill(model: RecModel, tensors: Mapping[str, Tensor], where: str) -> None:
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own:
            raise RrecError(f"{where}: the file {'has an unknown' if name in tensors else 'lacks'} tensor '{name}'")
        if own[name].shape != tensors[name].shape:
            found, wanted = tuple(tensors[name].shape), tuple(own[name].shape)
            raise RrecError(f"{where}: tensor '{name}' has shape {found}, the model of {CARD} needs {wanted}")
        if own[name].dtype != tensors[name].dtype:
            kinds = f"is of {tensors[name].dtype}, the model of {CARD} needs {own[name].dtype}"
            raise RrecError(f"{where}: tensor '{name}' {kinds}".replace("torch.", ""))
    model.load_state_dict(tensors)
    model.refresh()
