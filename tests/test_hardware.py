import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from robustbench_rec.config import Base
from robustbench_rec.hardware import setup

setup(Base(seed=0, device="cpu", precision="fp32", threads=1, deterministic=False, data_dir=None))
for _ in range(2):  # first until freed blocks have found their places between those of the interpreter
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_was_freed_is_used_again_without_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**26 / resource.getpagesize() / 4  # of the 8 times as many that it takes without
