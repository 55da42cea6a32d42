"""Device, threads, precision and determinism of a run."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from robustbench_rec.config import Base
from robustbench_rec.errors import RrecError, unknown

PRECISIONS = ("fp32", "bf16")


def setup(cfg: Base) -> torch.device:
    """Apply threads and determinism, and return the device; RrecError when it is not there."""
    if cfg.precision not in PRECISIONS:
        raise unknown("precision", cfg.precision, PRECISIONS)
    if cfg.threads < 0 or cfg.seed < 0:
        raise RrecError(f"threads={cfg.threads}, seed={cfg.seed}: neither may be negative")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
    torch.use_deterministic_algorithms(cfg.deterministic)
    return _device(cfg.device)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _device(name: str) -> torch.device:
    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.mps.is_available() else [])]
    if name == "auto":  # MPS has no double precision, which metrics are computed in
        return torch.device("cuda" if "cuda" in there else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "mps")) from None
    if device.type not in there:
        raise RrecError(f"device '{name}' is not on this machine (choices: auto, {', '.join(there)})")
    return device
