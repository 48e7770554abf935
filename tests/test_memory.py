"""Keeping freed memory: in a process of its own, since it is for the whole of one."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from medtl import memory
print(memory.keep())
for _ in range(3):
    np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment):
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    } | environment
    answer = subprocess.run(
        [sys.executable, "-c", FAULTS], env=kept, capture_output=True, text=True, check=True
    )
    keeps, faults = answer.stdout.split()
    return keeps == "True", int(faults)


def test_memory_that_is_kept_is_not_faulted_in_again():
    keeps, faults = run()
    if not keeps:
        pytest.skip("not glibc")
    _, without = run(MALLOC_TOP_PAD_="131072")
    assert faults < without / 10


def test_what_the_user_set_is_left_alone():
    assert run(MALLOC_ARENA_MAX="4")[0] is False
    assert run(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1048576")[0] is False
