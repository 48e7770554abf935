"""Keeps the memory of one training step for the next: on a CPU the costliest part of a step otherwise.

XLA's CPU client takes the temporaries of every step, a gigabyte and more, from malloc. glibc gets blocks of that size from
the kernel and gives them back at once, so each step pays again for every page: a fault and 4 KiB of zeros. docs/performance.md
has the figures. Changes the allocator of the whole process, so a program calls it, and importing medtl does not.
"""

from __future__ import annotations

import ctypes
import os
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep() -> bool:
    """Tells glibc to keep freed memory for this process; True if it now does.

    Leaves alone what the user set by MALLOC_* or GLIBC_TUNABLES, and any system without glibc. The process then holds its
    peak until it ends; peak memory itself does not change.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    ):
        return False
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # An arena of a thread's own holds 64 MiB at most and falls back on mmap; the main arena grows without a limit.
    return all(
        mallopt(*option)
        for option in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    )
