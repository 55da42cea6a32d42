"""Atomic files, the format of RecBole."""

from dataclasses import dataclass
from pathlib import Path

from robustbench_rec.datasets import datasets
from robustbench_rec.datasets._atomic import AtomicFolder
from robustbench_rec.datasets._options import folder_of, scale_of
from robustbench_rec.errors import RrecError
from robustbench_rec.raw import PARTS, Raw, Source


@datasets.register
class RecBole(Source):
    """A folder of RecBole's atomic files: .inter and, where there are any, .item, .user, .kg and .link.

    The stem is that of the one interaction file. With `parts` the interactions come split: `[a, b, c]` reads
    `<stem>.a.inter` as train, b as valid, c as test; `[a, b]` is train and test. Keep it with split=presplit. context:
    columns of the interactions that tell the circumstances of an event, each of their values a category.
    """

    @dataclass
    class Config:
        path: str
        parts: list[str] | None
        user: str
        item: str
        rating: str | None
        time: str | None
        scale: list[float] | None
        context: list[str]

    config: Config

    def files(self, root: Path) -> list[Path]:
        return self._folder().files()

    def load(self, root: Path) -> Raw:
        return self._folder().load()

    def _folder(self) -> AtomicFolder:
        c = self.config
        folder = folder_of(c.path)
        if c.parts is not None and len(set(c.parts)) not in (2, 3):
            raise RrecError(
                f"dataset.parts names the files for train, valid and test, or train and test; got {c.parts}"
            )
        ending = ".inter" if c.parts is None else f".{c.parts[0]}.inter"
        stems = sorted(path.name.removesuffix(ending) for path in folder.glob(f"*{ending}"))
        if len(stems) != 1:
            found = f"{len(stems)} of them ({', '.join(stems)})" if stems else "none"
            hint = "" if c.parts else "; data that comes split needs dataset.parts=[train,valid,test]"
            raise RrecError(f"{folder} must hold one interaction file *{ending}, it holds {found}{hint}")
        return AtomicFolder(
            folder=folder,
            stem=stems[0],
            parts=_roles(c.parts),
            user=c.user,
            item=c.item,
            rating=c.rating,
            time=c.time,
            scale=scale_of(c.scale),
            context=c.context,
        )


def _roles(infixes: list[str] | None) -> dict[str, str | None]:
    if infixes is None:
        return {"": None}
    return dict(zip(infixes, PARTS if len(infixes) == len(PARTS) else (PARTS[0], PARTS[2]), strict=True))
