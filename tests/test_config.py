import ast
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from robustbench_rec import composing, config
from robustbench_rec.composing.words import nested
from robustbench_rec.registry import Registry
from robustbench_rec.tasks.ls import groups

CONF = composing.conf_dir()
YAMLS = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
REGISTRIES = {name: path for name, path in groups().items() if name not in ("losses", "metrics")}
KINDS = {name: {"certificates": "certify"}.get(name, name.removesuffix("s")) for name in REGISTRIES}
COMPONENTS = [(group, path.stem) for group in REGISTRIES for path in sorted((CONF / KINDS[group]).glob("*.yaml"))]


def compose(verb: str, *overrides: str) -> DictConfig:
    with composing.session():
        return hydra.compose(verb, nested(overrides))


@cache
def registry(group: str) -> Registry[Any]:
    return getattr(import_module(REGISTRIES[group]), group)


@pytest.mark.parametrize("yaml", YAMLS, ids=str)
def test_the_first_line_of_a_yaml_is_a_command_that_composes(yaml: Path) -> None:
    lines = [line for line in (CONF / yaml).read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# rrec "), f"{yaml}: line 1 must be the command that uses it"
    command = re.split(r"\s{2,}", lines[0].removeprefix("# rrec "))[0]
    words = shlex.split(command.replace("<run directory>", "run").replace("<verb>", "train"))
    verb, overrides = (words[0], words[1:]) if words[0] != "data" else ("data", words[2:])
    assert verb in config.ROOTS
    if "-m" not in overrides:
        OmegaConf.to_object(compose(verb, *overrides))


@pytest.mark.parametrize("verb", config.ROOTS)
def test_every_root_composes_to_its_dataclass(verb: str) -> None:
    required = {"attack": ["ckpt=x"], "eval": ["ckpt=x"], "finetune": ["ckpt=x"], "distill": ["teacher=x"]}
    required |= {each: ["ckpt=x"] for each in ("recommend", "explain", "gate")}
    assert type(OmegaConf.to_object(compose(verb, *required.get(verb, [])))) is config.ROOTS[verb]


@pytest.mark.parametrize("group", REGISTRIES)
def test_a_registry_has_a_yaml_for_every_module_and_no_other(group: str) -> None:
    assert [name for each, name in COMPONENTS if each == group] == registry(group).names()


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_a_component_yaml_has_the_name_of_its_file_and_the_keys_of_its_config(group: str, name: str) -> None:
    kind = KINDS[group]
    verbs = {"attack": "attack", "certify": "eval", "distill": "distill", "finetune": "finetune", "goal": "attack"}
    verb = verbs.get(kind, "train")
    composed = compose(verb, f"{kind}={name}")  # so that defaults lists and package directives count
    node: Mapping[str, Any] = OmegaConf.to_container(composed[kind], resolve=False)  # type: ignore[assignment]
    assert node["name"] == name
    assert set(node) - {"name"} == {each.name for each in fields(registry(group)[name].Config)}


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_the_types_of_a_component_stand_in_its_config_and_the_values_in_its_yaml(group: str, name: str) -> None:
    cls = registry(group)[name].Config
    assert is_dataclass(cls)
    tree = ast.parse(Path(import_module(f"{REGISTRIES[group]}.{name}").__file__ or "").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            with_value = [each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and each.value]  # type: ignore[union-attr]
            assert not with_value, f"{name}: {with_value} have their values twice"
