"""Certificates: proofs of what no attack within a budget can do, one module each."""

from typing import TYPE_CHECKING

from robustbench_rec.registry import Registry

if TYPE_CHECKING:
    from robustbench_rec.certified import Certificate

certificates: "Registry[Certificate]" = Registry(__name__, key="certify")
