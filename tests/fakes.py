"""What the tests of cleaning share: data with fake users, and the steps that look for them."""

from typing import Any

from conftest import configured, make_data

from robustbench_rec.clean import visible
from robustbench_rec.cleans import cleans
from robustbench_rec.data import Data
from robustbench_rec.poisons import poisons

GENUINE = make_data(n_users=60, n_items=50, train=12, valid=2, test=3)
SETTINGS: dict[str, dict[str, Any]] = {"rules": {"constant": 2, "longest": 0.9}, "sanitise": {"words": 2}}


def poisoned(name: str = "copy", data: Data = GENUINE, **changes: Any) -> Data:
    settings = {"count": 2, "size": 0.1, "length": 10, **changes}
    return poisons.build(configured("poison", name, **settings))(data)  # type: ignore[no-any-return]


def step(name: str, **changes: Any) -> Any:
    return cleans.build({**configured("clean", name), **SETTINGS.get(name, {}), **changes})


def find(name: str, data: Data, **changes: Any) -> Any:
    return step(name, **changes).find(visible(data), None)


FAKED = poisoned()
GROUP = poisoned("covisit")
