"""Keep the memory of a training step for the next one, which saves much of a step on CPUs.

XLA's CPU client takes the temporaries of every step, a gigabyte and more, from malloc. glibc gets
blocks of that size from the kernel and returns them at once, so each step pays again for every
page: a fault and 4 KiB of zeros. docs/performance.md has the figures. This changes the allocator of
the process, so programs call it; importing medtl does not.
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
    """Tell glibc to keep freed memory for this process; return True if it now does.

    It changes nothing if the user set MALLOC_* or GLIBC_TUNABLES, or without glibc. The process
    holds its peak memory until it ends; the peak does not change.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if is_set or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # A thread's arena holds 64 MiB at most and falls back on mmap; the main arena is unlimited.
    return all(
        mallopt(*option)
        for option in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    )
