"""The order in which training and evaluation take the rows of a split. Imports no JAX."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from medtl import plugins
from medtl.data import samplers
from medtl.data.samplers import Sampler
from medtl.errors import UserError
from medtl.examples import Examples


def order_of(
    examples: Examples, split: str, seed: int, sampler: Sampler | None, domain: str
) -> Endless:
    """Return the endless order of one split's rows.

    Args:
      examples: one domain's examples.
      split: "train", "val" or "test".
      seed: the seed of the order, >= 0.
      sampler: draws the rows of an epoch, see `medtl.data.samplers`; None: `samplers.shuffled`.
      domain: passed to the sampler.

    Raises:
      UserError: the split is empty.
    """
    rows = examples.indices(split)
    if not len(rows):
        raise UserError(
            f"{examples.name}: split {split} is empty; it has {', '.join(examples.splits)}"
        )
    return Endless(
        rows,
        examples.label[rows],
        examples.weight[rows],
        None if examples.patient is None else examples.patient[rows],
        domain,
        seed,
        samplers.shuffled if sampler is None else sampler,
    )


@dataclasses.dataclass
class Endless:
    """The row at every position of the endless sequence of epochs.

    Attributes:
      rows: int[n], the rows of the split.
      label: int[n] or float[n, K], their labels.
      weight: f32[n], their weights.
      patient: str[n], their patients; None where they are not known.
      domain: passed to the sampler.
      seed: the seed of the order.
      sampler: draws the rows of an epoch.
    """

    rows: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    patient: np.ndarray | None
    domain: str
    seed: int
    sampler: Sampler
    _drawn: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def epoch(self, e: int) -> np.ndarray:
        """Return int64[n], the rows of epoch e in order.

        Raises:
          UserError: the sampler returns something else than positions.
        """
        drawn = self._drawn.get(e)
        if drawn is None:
            drawn = self.rows[self._positions(e)]
            # Replaced, not changed: Grain's threads read the dict while another thread draws.
            self._drawn = {k: v for k, v in self._drawn.items() if abs(k - e) <= 1} | {e: drawn}
        return drawn

    def _positions(self, e: int) -> np.ndarray:
        """Call the sampler for epoch e and check the result: int[n], from 0 to n - 1."""
        bits = np.random.Philox(np.random.SeedSequence((self.seed, e)))
        rng = np.random.Generator(bits)
        given = {"patients": self.patient} if self._takes_patients else {}
        positions = np.asarray(self.sampler(self.label, self.weight, self.domain, rng, **given))
        n = len(self.rows)
        if positions.dtype.kind not in "iu" or positions.shape != (n,):
            problem = f"{positions.dtype}{list(positions.shape)}"
        elif positions.min() < 0 or positions.max() >= n:
            problem = f"the position {positions[(positions < 0) | (positions >= n)][0]}"
        else:
            return positions
        raise UserError(
            f"{_name(self.sampler)} returned {problem} for the {n} train rows of {self.domain}; "
            f"it must return {n} positions, whole numbers from 0 to {n - 1}"
        )

    @property
    def _takes_patients(self) -> bool:
        return bool(plugins.accepted(self.sampler, ("patients",)))

    def __getitem__(self, position: int) -> int:
        e, offset = divmod(position, len(self.rows))
        return int(self.epoch(e)[offset])

    def span(self, start: int, stop: int) -> np.ndarray:
        """Return int64[stop - start], the rows at these positions."""
        n = len(self.rows)
        epochs = range(start // n, (stop - 1) // n + 1)
        return np.concatenate([self.epoch(e) for e in epochs])[
            start - epochs[0] * n : stop - epochs[0] * n
        ]

    def __getstate__(self) -> dict[str, Any]:
        """Replace a plug-in by its text: the module of a user's file has no import path."""
        state = {**self.__dict__, "_drawn": {}}
        if isinstance(self.sampler, plugins.Plugin):
            state["sampler"] = (self.sampler.text, self.sampler.key)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["sampler"], tuple):
            text, key = state["sampler"]
            state["sampler"] = plugins.resolve(text, samplers.__name__, key=key)
        self.__dict__.update(state)


@dataclasses.dataclass(frozen=True)
class Part:
    """The rows of a batch that one of several processes reads.

    Attributes:
      start: the first, of the batch and its padding.
      stop: the one after the last.
    """

    start: int
    stop: int

    def read(self, size: int) -> tuple[int, int]:
        """Return the first row to read of a batch of `size`, and their number.

        A part that is padding alone reads the batch's first row, which is an input that occurs.

        >>> Part(0, 4).read(6), Part(4, 8).read(6), Part(8, 12).read(6)
        ((0, 4), (4, 2), (0, 1))
        """
        return (0, 1) if self.start >= size else (self.start, min(self.stop, size) - self.start)


@dataclasses.dataclass(frozen=True)
class From:
    """An endless sequence from a step on, with the length that Grain asks for.

    Attributes:
      order: the rows of all batches.
      step: the first step.
      size: rows of a batch.
      part: the rows of each batch that are in the sequence.
    """

    order: Endless
    step: int
    size: int
    part: Part

    def __len__(self) -> int:
        return 2**62 - self.step * self.size

    def __getitem__(self, position: int) -> int:
        first, n = self.part.read(self.size)
        step, row = divmod(position, n)
        return self.order[(self.step + step) * self.size + first + row]

    def rows(self, step: int) -> np.ndarray:
        """Return int64[n], the rows of the part at a step."""
        first, n = self.part.read(self.size)
        at = step * self.size + first
        return self.order.span(at, at + n)


@dataclasses.dataclass(frozen=True)
class Listed:
    """The given rows, in their order."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> int:
        return int(self.rows[position])


def _name(sampler: Sampler) -> str:
    text = getattr(sampler, "text", "") or getattr(sampler, "__name__", repr(sampler))
    return f"{getattr(sampler, 'key', 'the sampler')} {text!r}"
