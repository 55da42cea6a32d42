import subprocess
import sys
from pathlib import Path

import pytest
from conftest import configured

from robustbench_rec.attacks import attacks
from robustbench_rec.certificates import certificates
from robustbench_rec.errors import RrecError
from robustbench_rec.registry import Registry

LINE = '''
from dataclasses import dataclass
from toys import toys
@toys.register
class Line:
    """A straight line.

    More of it.
    """
    @dataclass
    class Config:
        slope: float
        steps: list[int]
    def __init__(self, config, *args):
        self.config, self.args = config, args
'''


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[object]:
    package = tmp_path / "toys"
    package.mkdir()
    (package / "__init__.py").write_text("from robustbench_rec.registry import Registry\ntoys = Registry(__name__)\n")
    (package / "line.py").write_text(LINE)
    (package / "curve.py").write_text("raise RuntimeError('imported')\n")
    (package / "_private.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [each for each in sys.modules if each.partition(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, name)
    from toys import toys as registry

    return registry


def test_names_are_the_public_modules_and_import_none_of_them(toys: Registry[object]) -> None:
    assert toys.names() == list(toys) == ["curve", "line"]
    assert "toys.line" not in sys.modules


def test_a_component_is_built_by_name_from_its_typed_config(toys: Registry[object]) -> None:
    built = toys.build({"name": "line", "slope": "0.5", "steps": [1, 2]}, "data")
    assert (built.config.slope, built.config.steps, built.args) == (0.5, [1, 2], ("data",))


def test_the_description_is_the_first_docstring_line_without_an_import(toys: Registry[object]) -> None:
    assert toys.describe("line") == "A straight line."
    assert "toys.line" not in sys.modules


@pytest.mark.parametrize(
    ("config", "fragments"),
    [
        ({"name": "lime"}, ["unknown toy 'lime'", "did you mean 'line'", "curve, line"]),
        ({"name": "line", "slope": "steep", "steps": []}, ["toy 'line' at 'slope'", "steep"]),
        ({"name": "line", "slope": float("nan")}, ["toy.slope=nan: not a finite number"]),
        ({"name": "line", "slope": {"a": [1, float("inf")]}}, ["toy.slope.a=inf: not a finite number"]),
        ({"name": "line", "slop": 1}, ["unknown key of toy 'line' 'slop'", "did you mean 'slope'", "slope, steps"]),
    ],
)
def test_a_mistake_is_one_line_with_the_name_and_the_choices(
    toys: Registry[object], config: dict[str, object], fragments: list[str]
) -> None:
    with pytest.raises(RrecError) as caught:
        toys.build(config)
    assert "\n" not in str(caught.value)
    assert all(each in str(caught.value) for each in fragments), caught.value


def test_a_key_is_named_as_a_config_has_it_where_that_is_not_the_kind() -> None:
    with pytest.raises(RrecError, match=r"^certify\.budgets=nan: not a finite number"):
        certificates.config(configured("certify", "radius", budgets=[0, float("nan")]))


def test_a_dotted_path_is_not_a_name(toys: Registry[object]) -> None:
    with pytest.raises(RrecError, match="unknown toy"):
        toys.build({"name": "subprocess.Popen"})


def test_importing_the_registries_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from robustbench_rec.tasks.ls import groups, names; [names(each) for each in groups()];"
        "sys.exit(' '.join({'torch', 'pandas', 'hydra'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_text_where_a_list_is_wanted_says_how_a_list_is_written() -> None:
    with pytest.raises(RrecError, match=r"attack 'pgd' at 'modules': a list is written attack.modules=\[a,b\]"):
        attacks.config(configured("attack", "pgd", modules="user"))
