"""Several processes that train together: what they agree on, and which of them writes.

All processes run the same program, step for step. What depends on time, signals or files, and so
could differ between them, is agreed on here. The first process alone writes. Where there is one
process, nothing here communicates.
"""

from __future__ import annotations

import json
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_BLOCK = 1024  # bytes of a message; one size, so that one program is compiled
_HEADER = 8  # bytes of its length
_SECONDS = 2.0  # between meetings


def count() -> int:
    """Return the number of processes."""
    return jax.process_count()


def is_first() -> bool:
    """Return whether this process writes logs, reports and predictions."""
    return jax.process_index() == 0


def agreed(value: Any) -> Any:
    """Return the first process's value in every process.

    Args:
      value: JSON; float64 keeps all its digits.

    >>> agreed([0.1, None])
    [0.1, None]
    """
    if count() == 1:
        return value
    text, received = json.dumps(value).encode(), b""
    message = len(text).to_bytes(_HEADER, "big") + text
    length = 0  # of the first process's text, which is known from the first block on
    while len(received) < _HEADER + length:
        block = message[len(received) : len(received) + _BLOCK].ljust(_BLOCK, b"\0")
        sent = multihost_utils.broadcast_one_to_all(np.frombuffer(block, np.uint8))
        received += bytes(np.asarray(sent))
        length = int.from_bytes(received[:_HEADER], "big")
    return json.loads(received[_HEADER : _HEADER + length])


def everywhere(flag: bool) -> bool:
    """Return whether the flag is set in every process."""
    return flag if count() == 1 else bool(np.all(_gathered(float(flag))))


def largest(value: float) -> float:
    """Return the largest of the processes' values, as a float32 holds it."""
    return value if count() == 1 else float(np.max(_gathered(value)))


def _gathered(value: float) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(np.float32(value)))


def fetched(leaf: Any) -> np.ndarray:
    """Copy an array to the host; gathered where the processes hold a part of it each."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.array(leaf, copy=True)


class Meetings:
    """The steps at which all processes exchange whether a signal asked them to stop.

    A meeting waits for the devices, so that there is one every few seconds alone. The step of the
    next follows from what all of them exchanged: it is the same in every process.
    """

    def __init__(self, step: int):
        """Begin at a step, the same in every process."""
        self._last, self._every, self._began = step, 1, time.monotonic()

    def until(self, step: int, steps: int) -> int:
        """Return the number of steps until the next meeting; `steps` where there is none."""
        return steps if count() == 1 else self._every - (step - self._last)

    def hold(self, step: int, signal_number: int, pending: Any) -> tuple[bool, int]:
        """Meet, if it is time to.

        Args:
          step: the number of steps done.
          signal_number: of the signal that this process got; 0: none.
          pending: arrays of the last step; nothing else may run while processes exchange.

        Returns:
          Whether they met, and the signal's number that one of them got, 0 for none.
        """
        if count() == 1:
            return False, signal_number
        if step - self._last < self._every:
            return False, 0
        jax.block_until_ready(pending)
        seconds = largest(time.monotonic() - self._began) / (step - self._last)
        most = 4 * self._every  # the first steps wait for the compiler
        self._every = int(np.clip(_SECONDS / max(seconds, 1e-6), 1, most))
        self._last, self._began = step, time.monotonic()
        return True, int(largest(signal_number))
