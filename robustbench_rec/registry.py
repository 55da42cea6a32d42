"""Components by name: `models["kgat"]` is the class registered in `models/kgat.py`."""

import ast
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_rec.config import INTERPOLATED
from robustbench_rec.errors import RrecError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """One package, one component per module; a module is imported when its name is first asked for.

    Other distributions add components through an entry point in the group named after the package,
    `[project.entry-points."robustbench_rec.models"] mine = "my_package.mine"`. Components are found by name and never
    by a dotted path, so neither a config nor a checkpoint can name code to run.
    """

    def __init__(self, package: str, *, key: str | None = None) -> None:
        """key: where a config has the component; None: under its kind, as `model`."""
        self.package = package
        self.kind = package.rpartition(".")[2].removesuffix("s")
        self.key = key or self.kind
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Class decorator: the component takes the name of its module."""
        self._classes[cls.__module__.rpartition(".")[2]] = cls
        return cls

    def names(self) -> list[str]:
        """Every name that can be asked for; nothing is imported."""
        return sorted(self._modules())

    def describe(self, name: str) -> str:
        """First line of the component's docstring, read from the source without importing it."""
        for node in ast.walk(ast.parse(self._source(name))):
            if isinstance(node, ast.ClassDef) and any("register" in ast.dump(each) for each in node.decorator_list):
                return (ast.get_docstring(node) or "").partition("\n")[0]
        return ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> type[T]:
        modules = self._modules()
        if name not in modules:
            raise unknown(self.kind, name, modules)
        import_module(modules[name])
        return self._classes[name]

    def config(self, config: Mapping[str, Any]) -> Any:
        """The component's typed `Config`, filled from a mapping; unknown keys, wrong types, nan and inf are refused."""
        values = dict(config)
        name = str(values.pop("name", "???"))
        cls: Any = self[name]
        for key, value in _leaves(values):
            if isinstance(value, float) and not math.isfinite(value):
                raise RrecError(f"{self.key}.{key}={value}: not a finite number")
            if isinstance(value, str) and INTERPOLATED in value:
                raise RrecError(f"{self.key}.{key}={value}: not read from the environment or from other keys here")
        try:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls.Config), values))
        except OmegaConfBaseException as error:
            reason = str(error).partition("\n")[0]
            if reason.startswith("Key "):  # omegaconf: "Key 'x' not in 'Config'"
                key = reason.split("'")[1]
                raise unknown(f"key of {self.kind} '{name}'", key, cls.Config.__dataclass_fields__) from error
            if "is not a ListConfig" in reason:
                reason = f"a list is written {self.key}.{getattr(error, 'full_key', None)}=[a,b]"
            at = f" at '{error.full_key}'" if getattr(error, "full_key", None) else ""
            raise RrecError(f"{self.kind} '{name}'{at}: {reason}") from error

    def build(self, config: Mapping[str, Any], *args: Any) -> T:
        """The component named by `config["name"]`, constructed as `cls(typed_config, *args)`."""
        cls: Any = self[str(config.get("name", "???"))]
        typed = self.config(config)
        try:
            built: T = cls(typed, *args)
        except RrecError as error:
            key = str(error).partition("=")[0]
            if key not in cls.Config.__dataclass_fields__:
                raise
            raise type(error)(f"{self.key}.{error}") from error  # the key as it is typed
        return built

    def _modules(self) -> dict[str, str]:
        package = import_module(self.package)
        own = {m.name: f"{self.package}.{m.name}" for m in iter_modules(package.__path__) if not m.name.startswith("_")}
        return {**_plugins(self.package), **own}

    def _source(self, name: str) -> str:
        modules = self._modules()
        if name not in modules:
            raise unknown(self.kind, name, modules)
        from importlib.util import find_spec

        spec = find_spec(modules[name])
        if spec is None or spec.origin is None:
            raise RrecError(f"{self.kind} '{name}': module {modules[name]} cannot be found")
        with open(spec.origin, encoding="utf-8") as file:
            return file.read()


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a config and their values."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _leaves(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each, key)
    else:
        yield key, value


@cache
def _plugins(group: str) -> dict[str, str]:
    """What other distributions add; looked up once, since every one that is installed is read for it."""
    return {entry.name: entry.value for entry in entry_points(group=group)}
