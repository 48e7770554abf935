"""Keeping freed memory, tested in a process of its own, because it changes the process for good."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from medtl.training import memory
print(memory.keep())
for _ in range(3):
    np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment):
    """Return whether memory is kept, and the number of page faults."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    keeps, faults = done.stdout.split()
    return keeps == "True", int(faults)


def test_kept_memory_causes_no_page_faults():
    keeps, faults = run()
    if not keeps:
        pytest.skip("not glibc")
    _, without = run(MALLOC_TOP_PAD_="131072")
    assert faults < without / 10


def test_settings_of_the_user_are_left_alone():
    assert run(MALLOC_ARENA_MAX="4")[0] is False
    assert run(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=1048576")[0] is False
