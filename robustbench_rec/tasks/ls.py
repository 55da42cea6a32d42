"""rrec ls: what can be chosen, read from the sources without importing a component."""

import ast
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import robustbench_rec
from robustbench_rec.console import Output
from robustbench_rec.errors import RrecError, unknown
from robustbench_rec.registry import Registry

DECLARED = ("attacks", "certificates", "poisons")
"""Groups whose components declare a threat."""
MODULES = ("prediction", "uncertainty", "popularity", "ranking")
TABLES = {"losses": ("losses",), "metrics": tuple(f"metrics.{each}" for each in MODULES)}
"""Groups that are functions, with the modules whose tables list them; of two of one name the last counts."""


def groups() -> dict[str, str]:
    """Every group with the module that defines it: the registries, the losses, the metrics."""
    found = {}
    for module in iter_modules(robustbench_rec.__path__):
        if module.ispkg and "Registry(__name__" in _source(f"robustbench_rec.{module.name}"):
            found[module.name] = f"robustbench_rec.{module.name}"
    return dict(sorted((found | {"losses": "robustbench_rec.losses", "metrics": "robustbench_rec.metrics"}).items()))


def names(group: str) -> dict[str, str]:
    """The names of a group, each with the first line of its docstring; RrecError names the groups."""
    if group not in groups():
        raise unknown("group", group, groups())
    if group in TABLES:
        return _functions(TABLES[group])
    registry = getattr(import_module(groups()[group]), group)
    assert isinstance(registry, Registry)
    return {name: registry.describe(name) for name in registry}


def threats(group: str) -> dict[str, str]:
    """What each component of a group of attacks may do; these modules are imported."""
    registry = getattr(import_module(groups()[group]), group)
    return {name: str(registry[name].threat) for name in registry}


def show(group: str | None) -> None:
    """Print one line a name, or one line a group."""
    lines: Mapping[str, str]
    if group is None:
        lines = {each: f"{len(names(each)):3}  {', '.join(names(each))}" for each in groups()}
    else:
        lines = names(group)
    width = max(map(len, lines), default=0)
    console = Output()
    declared = threats(group) if group in DECLARED else {}
    for name, line in lines.items():
        console.print(f"{name:{width}}  {line}".rstrip(), markup=False, highlight=False, soft_wrap=True)
        if name in declared:
            console.print(f"{'':{width}}  {declared[name]}", markup=False, highlight=False, soft_wrap=True, style="dim")
    if group is None:
        console.print("\nrrec ls <group> describes each.", markup=False, highlight=False, soft_wrap=True)


def _functions(modules: Sequence[str]) -> dict[str, str]:
    """The names that the upper-case tables of modules list, each with its text or its function's first line."""
    lines: dict[str, str] = {}
    found: dict[str, str] = {}
    for module in modules:
        body = ast.parse(_source(f"robustbench_rec.{module}")).body
        lines |= {node.name: _first_line(ast.get_docstring(node)) for node in body if isinstance(node, ast.FunctionDef)}
        for node in body:
            table = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
            if isinstance(table, ast.Tuple):
                named = [str(each.value) for each in table.elts if isinstance(each, ast.Constant)]
                found |= {name: lines[name] for name in named if name in lines}
            if isinstance(table, ast.Dict):
                for key, value in zip(table.keys, table.values, strict=True):
                    if isinstance(key, ast.Constant):
                        name = str(key.value)
                        function = value.id if isinstance(value, ast.Name) else name  # or something made of it
                        found[name] = ast.literal_eval(value) if isinstance(value, ast.Constant) else lines[function]
    return dict(sorted(found.items()))


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _source(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise RrecError(f"module {module} cannot be found; is robustbench_rec installed in full?")
    return Path(spec.origin).read_text(encoding="utf-8")
