"""Progress of training: one line that renews itself on a terminal, plain lines when piped."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO


class Progress:
    """Show the step, loss parts, examples per second, the share of waiting, the time left.

    The rate counts the time of training alone, without evaluation and saving.

    Args:
      label: the training stage, e.g. "seed 0 transfer source".
      steps: the last step.
      start: the step from which a run resumes.
      stream: where to write; a terminal gets one line that renews itself.
      every: seconds between plain lines.
      brief: keep only the last evaluation's line, and do not announce compiling.
      unit: what is counted; the share of waiting is shown for steps only.
      examples: the word for what the rate counts.
    """

    def __init__(
        self,
        label: str,
        steps: int,
        *,
        start: int = 0,
        stream: TextIO | None = None,
        every: float = 15.0,
        brief: bool = False,
        unit: str = "step",
        examples: str = "images",
    ):
        self._label, self._steps, self._start, self._brief, self._unit = (
            label,
            steps,
            start,
            brief,
            unit,
        )
        self._word = examples
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._every = 0.5 if self._live else every
        self._began: float | None = None
        self._shown = time.monotonic()
        self._examples = 0
        self._waited = 0.0
        self._apart = 0.0
        self._width = 0
        if steps > start and (self._live or not brief):
            self._write(f"{self._head(start)}  compiling", keep=not self._live)

    def waited(self, seconds: float) -> None:
        """Add seconds in which the devices waited for data."""
        self._waited += seconds

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Leave the time of evaluation and saving out of the rate, but not out of the time left."""
        began = time.monotonic()
        yield
        self._apart += time.monotonic() - began

    def count(self, step: int, examples: int) -> None:
        """Count examples; the first dispatch, which compiles, is left out of the rate."""
        if self._began is None:
            self._began, self._start, self._waited, self._apart = time.monotonic(), step, 0.0, 0.0
        else:
            self._examples += examples

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Show the state of training, if it is time to."""
        now = time.monotonic()
        if now - self._shown >= self._every:
            self._shown = now
            self._write(
                f"{self._head(step)}{self._speed(step, now)}  {self._losses(values)}".rstrip(),
                keep=not self._live,
            )

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line that stays, with the metrics of an evaluation."""
        shown = "  ".join(
            f"{name} {value:.4f}"
            for name, value in values.items()
            if name in ("loss", "accuracy", "auroc", "mae", "r2")
        )
        keep = not self._brief or step == self._steps
        if keep or self._live:
            self._write(
                f"{self._head(step)}{self._speed(step, time.monotonic())}  val: {shown}", keep=keep
            )

    def note(self, text: str) -> None:
        """Write a finding that stays."""
        self._write(f"{self._label}  {text}", keep=True)

    def end(self, text: str) -> None:
        """Write a last line that stays."""
        self._write(text, keep=True)

    def _head(self, step: int) -> str:
        return f"{self._label}  {self._unit} {step}/{self._steps}"

    def _losses(self, values: Mapping[str, float]) -> str:
        names = [n for n in values if n == "loss" or "/" in n or n in ("lambda",)]
        return "  ".join(
            f"{n} {values[n]:.4g}" for n in sorted(names, key=lambda n: (n != "loss", n))
        )

    def _speed(self, step: int, now: float) -> str:
        if self._began is None or step <= self._start or now - self._began <= self._apart:
            return ""
        left = (self._steps - step) * (now - self._began) / (step - self._start)
        training = now - self._began - self._apart
        waiting = (
            f", {min(self._waited / training, 1.0):.0%} waiting for data"
            if self._unit == "step"
            else ""
        )
        return f"  {self._examples / training:.0f} {self._word}/s{waiting}  {duration(left)} left"

    def _write(self, text: str, *, keep: bool) -> None:
        if self._live:
            if not keep:  # a line that wraps could not renew itself
                text = text[: shutil.get_terminal_size().columns - 1]
            self._stream.write("\r" + text.ljust(self._width) + ("\n" if keep else ""))
            self._width = 0 if keep else len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Return a duration as text, such as "2m05s".

    >>> duration(125), duration(7300)
    ('2m05s', '2h01m')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
    )
