"""Stopping on request: SIGTERM and Ctrl-C save a checkpoint at the next step, then end the run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PROMISE = (
    b"\nmedtl: stopping: a checkpoint is saved after the step or evaluation in progress; a second"
    b" signal stops at once\n"
)


class Stopped(KeyboardInterrupt):
    """A signal stopped the run.

    Attributes:
      exit_code: 128 + the signal's number, which schedulers take for a stop from outside: 130 for
        Ctrl-C, 143 for SIGTERM.
      is_agreed: whether all processes of the run end at the same step.
    """

    def __init__(self, signal_number: int, message: str = "", *, is_agreed: bool = False):
        super().__init__(message)
        self.exit_code = 128 + signal_number
        self.is_agreed = is_agreed


class Request:
    """The first signal that came, if any.

    Attributes:
      signal_number: its number; None: none came.
    """

    signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def stopped(self, message: str = "") -> Stopped:
        """Return the exception that ends the run."""
        return Stopped(self.signal_number or signal.SIGINT, message, is_agreed=True)


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
    """Note the first signal, so that the block can end where its state is complete.

    A second signal stops at once. Outside of the main thread, where Python handles no signals,
    nothing is noted.

    Yields:
      The request, true from the first signal on.

    Raises:
      Stopped: a second signal came.
    """
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        if request:
            raise Stopped(number)
        request.signal_number = number
        os.write(2, _PROMISE)

    with _handled(note):
        yield request


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise `Stopped` in the block where SIGTERM comes, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled(stop):
        yield


@contextlib.contextmanager
def _handled(handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in former.items():
            signal.signal(number, old if old is not None else signal.SIG_DFL)
