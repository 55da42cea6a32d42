"""Files that are either whole or absent."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robustbench_rec.errors import RrecError

LOCK = "lock"
"""What a process has that is at a run, or at a job of a sweep."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically: a reader sees the old file or the new one, also after SIGKILL, a full disk or a power cut.

    Raises RrecError, with the old file untouched, when the content cannot be stored.
    """
    with drafted(path) as draft, open(draft, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Another path, to be written in whatever pieces; it becomes `path` where nothing is raised, else it is removed."""
    draft = path.with_name(f".{path.name}.draft")  # always the same, so that the next write takes up what a kill left
    try:
        yield draft
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):  # where nothing can be written nothing can be removed
            draft.unlink()
        if not isinstance(error, OSError):
            raise
        raise RrecError(f"cannot write {path}: {error.strerror or error}; nothing was changed there") from error


def write_text(path: Path, content: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """`write_bytes` of indented JSON; NaN and infinity stand as null, which every JSON reader accepts."""
    write_text(path, json.dumps(_finite(content), indent=2, default=str, allow_nan=False) + "\n")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Be the only process that has a file, for a while; RrecError where another one has it.

    The system lets go of it when a process ends, however it ends. Without locks of files (Windows) all may enter.
    """
    try:
        opened = open(path, "a", encoding="utf-8")  # noqa: SIM115 - it is closed below
    except OSError as error:
        raise RrecError(f"cannot write {path}: {error.strerror}; name another place for the outputs") from error
    with opened as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise FileExistsError(path)  # removed by the one who had it, and made anew
        except OSError as error:
            raise RrecError(f"{path.parent}: another process is still at it") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # still held, so that nobody gets hold of a file without a name


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object; RrecError names `what` and the file when it is missing or not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RrecError(f"{what}: {path} does not exist") from None
    except (ValueError, OSError, RecursionError) as error:
        raise RrecError(f"{what}: {path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise RrecError(f"{what}: {path} is not a JSON object")
    return content


def remove_empty(directory: Path) -> None:
    """Remove a directory, and those above it within the working directory, as far as nothing is in them."""
    here, inner = Path.cwd(), directory.absolute()
    with suppress(OSError):  # not empty
        inner.rmdir()
        for above in inner.parents:
            if not above.is_relative_to(here) or above == here:
                break
            above.rmdir()


def file_digest(path: Path, what: str) -> str:
    """sha256 of a file; RrecError names `what` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RrecError(f"{what}={path} cannot be read ({error.strerror})") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
