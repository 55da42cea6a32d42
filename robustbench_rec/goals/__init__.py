"""What an attacker wants, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.goal import Goal

goals: "Registry[Goal]" = Registry(__name__)
