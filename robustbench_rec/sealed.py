"""Tensors in a file of a run directory, with a JSON card beside it that tells what they are and their sha256."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from robustbench_rec.errors import RrecError
from robustbench_rec.files import read_json, write_bytes, write_json

T = TypeVar("T")


@dataclass(frozen=True)
class Sealed:
    """A kind of such pairs. stem: of both names. what: they hold, as errors call it. format: its number."""

    stem: str
    what: str
    format: int

    @property
    def tensors(self) -> str:
        return f"{self.stem}.safetensors"

    @property
    def card(self) -> str:
        return f"{self.stem}.json"

    def save(self, out: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Write both files into a run directory, each atomically."""
        content = as_bytes(tensors)
        write_bytes(out / self.tensors, content)
        write_json(out / self.card, {"format": self.format, **about, "sha256": sha256(content).hexdigest()})

    def load(self, path: str, key: str, make: Callable[[dict[str, Tensor], dict[str, Any]], T]) -> T:
        """What `make` makes of the tensors and the card of a run directory, which may be named by either file.

        RrecError where one is missing, was changed, is of another format or is not what `make` expects.
        """
        said = f"{key}={path}"
        folder = Path(path).parent if Path(path).name in (self.tensors, self.card) else Path(path)
        if not (folder / self.card).is_file():
            raise RrecError(f"{said}: no {self.card} there; name the directory of a run that has {self.what}")
        card = read_json(folder / self.card, said)
        if card.pop("format", None) != self.format:
            raise RrecError(f"{said}: {self.card} is of another format, this version reads format {self.format}")
        try:
            content = (folder / self.tensors).read_bytes()
        except OSError as error:
            raise RrecError(f"{said}: {self.tensors} cannot be read ({error.strerror})") from error
        if sha256(content).hexdigest() != card.pop("sha256", None):
            raise RrecError(f"{said}: {self.tensors} is truncated or is not the file that {self.card} describes")
        try:
            return make(from_bytes(content), card)
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise RrecError(f"{said}: {self.card} has not {self.what} ({type(error).__name__}: {error})") from error


def as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """As safetensors, on the CPU."""
    content: bytes = to_bytes({name: each.cpu().contiguous() for name, each in tensors.items()})
    return content
