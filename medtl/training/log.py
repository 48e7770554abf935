"""The log of a training stage: metrics of each step, checked for NaN, on disk and to writers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import jax
import numpy as np

from medtl import files
from medtl.errors import UserError, damaged
from medtl.evaluation import plain
from medtl.training.checkpoint import Store


class DivergedError(UserError):
    """A loss part is NaN or infinite."""


class Logger(Protocol):
    """A metric writer, such as a plug-in of `config.loggers` makes."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the metrics of one step; names of validation metrics begin with "val/"."""

    def close(self) -> None:
        """Flush."""


class Log:
    """`log.jsonl`, one JSON object a line, and further writers of the same metrics.

    Lines after the step at which a run resumes are dropped from `log.jsonl`. Without a path nothing
    is written: of several processes only the first has one.
    """

    def __init__(self, path: Path | None, step: int, loggers: Sequence[Logger]):
        self.loggers = list(loggers)
        self._file: TextIO | None = None
        if path is None:
            return
        kept = ""
        if step > 0 and path.exists():
            with damaged(f"{path} is damaged; delete it, and the same command goes on"):
                for line in path.read_text().splitlines(keepends=True):
                    if not line.endswith("\n") or json.loads(line)["step"] > step:
                        break
                    kept += line
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, kept)
        self._file = path.open("a")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._line({"step": step, **values})
        for logger in self.loggers:
            logger.write(step, values)

    def write_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._line({"step": step, "val": metrics})
        self.flush()
        for logger in self.loggers:
            logger.write(step, {f"val/{name}": value for name, value in metrics.items()})

    def write_note(self, step: int, note: str) -> None:
        """Write a finding in words, into `log.jsonl` alone."""
        self._line({"step": step, "note": note})
        self.flush()

    def _line(self, entry: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(plain(entry), allow_nan=False) + "\n")

    def flush(self) -> None:
        if self._file:
            self._file.flush()


def flush(pending: list[tuple[int, int, Any]], log: Log, store: Store) -> dict[str, float]:
    """Fetch the pending metrics, refuse NaN, log them; return the last."""
    values: dict[str, float] = {}
    for before, steps, metrics in jax.device_get(pending):
        by_step = {name: np.atleast_1d(value) for name, value in metrics.items()}
        for i in range(steps):
            values = {name: float(value[i]) for name, value in by_step.items()}
            _check_finite(before + i + 1, values, store)
            log.write(before + i + 1, values)
    log.flush()
    pending.clear()
    return values


def _check_finite(step: int, values: Mapping[str, float], store: Store) -> None:
    wrong = [name for name, value in values.items() if not np.isfinite(value)]
    if wrong:
        store.wait()
        last = store.last_step
        kept = f"{store.folder}/checkpoints/{last}" if last is not None else "none yet"
        names = sorted(wrong, key=lambda name: ("/" not in name, name))[:3]
        shown = ", ".join(f"{name} is {values[name]}" for name in names)
        raise DivergedError(
            f"step {step}: {shown}. A lower learning_rate or clip_norm may help. "
            f"Last good checkpoint: {kept}"
        )
