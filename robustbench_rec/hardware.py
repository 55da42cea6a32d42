"""Device, threads, precision and determinism of a run."""

import ctypes
import os
from contextlib import AbstractContextManager, nullcontext

import torch

from robustbench_rec.config import Base
from robustbench_rec.errors import RrecError, unknown

PRECISIONS = ("fp32", "bf16")
KEPT = 2**30
"""Bytes that are freed and not given back to the system."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def setup(cfg: Base) -> torch.device:
    """Apply threads and determinism, and return the device; RrecError when it is not there."""
    if cfg.precision not in PRECISIONS:
        raise unknown("precision", cfg.precision, PRECISIONS)
    for key, value in (("threads", cfg.threads), ("seed", cfg.seed)):
        if value < 0:
            raise RrecError(f"{key}={value}: must not be negative")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
    torch.use_deterministic_algorithms(cfg.deterministic)
    _keep_memory()
    return _device(cfg.device)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """bf16 autocast, or nothing for fp32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _keep_memory() -> None:
    """Let glibc use again what is freed; new pages cost more than the arithmetic on a catalogue's scores does."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        mallopt(option, KEPT)


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
