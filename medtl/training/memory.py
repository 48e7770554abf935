"""Keep the memory of a training step for the next one; say what a step needs and what there is.

XLA's CPU client takes the temporaries of every step, a gigabyte and more, from malloc. glibc gets
blocks of that size from the kernel and returns them at once, so each step pays again for every
page: a fault and 4 KiB of zeros. docs/performance.md has the figures. This changes the allocator of
the process, so programs call it; importing medtl does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any

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


class OutOfMemoryError(MemoryError):
    """The device is out of memory; the message says in one line what would fit."""


def needed(compiled: Any) -> int | None:
    """Return the bytes on a device that a compiled program needs; None where XLA does not say.

    They are its arguments, its results where they do not take the arguments' place, and what it
    keeps in between.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    used = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return used - stats.alias_size_in_bytes


def available() -> int:
    """Return the bytes of the host that a new program can take, within the limit of its cgroup."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        free = min(free, most - int((group / "memory.current").read_text()))
    return free


def is_exhausted(error: BaseException) -> bool:
    """Return whether XLA raised an error for lack of memory; imports no JAX."""
    is_jax = type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError")
    return is_jax and "RESOURCE_EXHAUSTED" in str(error)


def requested(text: str) -> str:
    """Return " (allocating 100 bytes)" from the message of XLA, or nothing.

    >>> requested("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.")
    ' (allocating 4096 bytes)'
    """
    found = re.search(r"allocat\w+ [\d.]+ ?\w*(?:bytes|B)\b", " ".join(text.split()))
    return f" ({found[0]})" if found else ""


def shown(size: int) -> str:
    """Return bytes in MiB or GiB.

    >>> shown(3 * 2**19), shown(3 * 2**29)
    ('2 MiB', '1.5 GiB')
    """
    return f"{-(-size // 2**20)} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
