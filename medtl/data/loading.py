"""Batches of NumPy arrays on the host, in an order that depends on the seed and the step alone.

Step t of training takes the positions [t * B, (t + 1) * B) of an endless sequence: the rows of one
epoch after another, where a sampler draws epoch e from (seed, e). A run that starts at a step
therefore sees the same batches as one that was not stopped. Evaluation takes each row once, in
order, and pads the last batch.

A batch of one domain is a flat dict:

| key | value |
|---|---|
| an input's name | [B, ...], such as `image` uint8[B, H, W, C] |
| `encoded_<input>` | f32[B, D], a frozen encoder's output, in place of that input |
| `present_<input>` | float32[B], 0 where an example lacks the input, if there are several |
| `label` | int32[B] or float32[B, K]; a quantity float32[B], standardized |
| `weight` | float32[B], 0 for padding |
| `mask` | float32[B], 1 for an example, 0 for padding |
| `index` | int32[B], the row in the examples, -1 for padding |
| `position` | int32[B], 0 to B - 1; in a part of a batch from its first row on |

Padding repeats the batch's first row, so that no loss sees an input that could not occur.
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from medtl.data.order import From, Listed, Part, order_of
from medtl.data.samplers import Sampler
from medtl.examples import ENCODED, PRESENT, Examples, ImageSource

Batch = dict[str, np.ndarray]
T = TypeVar("T")
_READ_THREADS = 4
_END = object()


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Return ceil(n / batch_size)."""
    return -(-n // batch_size)


def columns(
    examples: Examples, replaced: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray | ImageSource]:
    """Return everything that goes into a batch with one row per example.

    Args:
      examples: one domain's examples.
      replaced: "encoded_<input>" -> f32[N, D], which stands in for that input; None: nothing.

    Returns:
      The inputs under their names, less those that are replaced; then `replaced`,
      "present_<input>" where some are missing, "label" and "weight".

    Raises:
      ValueError: `replaced` has a key other than "encoded_<input>".
    """
    replaced = replaced or {}
    for name in replaced:
        if name.removeprefix(ENCODED) not in examples.inputs or not name.startswith(ENCODED):
            raise ValueError(f"{name!r} replaces none of the inputs {list(examples.inputs)}")
    inputs = {k: v for k, v in examples.inputs.items() if f"{ENCODED}{k}" not in replaced}
    present = {f"{PRESENT}{k}": v.astype(np.float32) for k, v in examples.present.items()}
    return {
        **inputs,
        **replaced,
        **present,
        "label": examples.learned,
        "weight": examples.weight,
    }


def gather(columns: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    """Return `rows` of each column; NumPy and JAX arrays alike, also inside `jax.jit`."""
    return {name: values[rows] for name, values in columns.items()}


def batch_of(columns: Mapping[str, Any], rows: np.ndarray, size: int | None = None) -> Batch:
    """Gather a batch on the host and pad it.

    Args:
      columns: name -> an array [N, ...] or an `ImageSource`, as `columns` returns them.
      rows: int[n], at least one.
      size: rows of the batch, at least n; None: n.

    Returns:
      The columns' rows, "mask", "index" and "position"; see the module's docstring.

    >>> table = {"table": np.array([[0.5], [1.5], [2.5]]), "weight": np.ones(3, np.float32)}
    >>> batch = batch_of(table, np.array([2, 1]), size=3)
    >>> batch["table"].tolist(), batch["mask"].tolist(), batch["weight"].tolist()
    ([[2.5], [1.5], [2.5]], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    >>> batch["index"].tolist(), batch["position"].tolist()
    ([2, 1, -1], [0, 1, 2])
    """
    n, size = len(rows), len(rows) if size is None else size
    batch = gather({name: _by_rows(values) for name, values in columns.items()}, rows)
    if n < size:
        batch = {
            k: np.concatenate([v, np.repeat(v[:1], size - n, axis=0)]) for k, v in batch.items()
        }
        if "weight" in batch:
            batch["weight"][n:] = 0
    index = np.full(size, -1, np.int32)
    index[:n] = rows
    position = np.arange(size, dtype=np.int32)
    return {
        **batch,
        "mask": (position < n).astype(np.float32),
        "index": index,
        "position": position,
    }


def train_batches(
    examples: Examples,
    split: str,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    replaced: Mapping[str, np.ndarray] | None = None,
    sampler: Sampler | None = None,
    domain: str = "target",
    part: Part | None = None,
) -> Generator[Batch, None, None]:
    """Yield full batches of one split without end.

    Args:
      examples: one domain's examples.
      split: "train", "val" or "test".
      batch_size: B; may exceed the number of rows.
      seed: the seed of the order, >= 0.
      start_step: the step of the first batch.
      workers: processes that decode an `ImageSource`; 0: threads.
      replaced: frozen encoders' outputs; see `columns`.
      sampler: draws the rows of an epoch, see `medtl.data.samplers`; None: `samplers.shuffled`.
      domain: passed to the sampler.
      part: the rows of each batch to read, padded; None: all.

    Raises:
      UserError: the split is empty, or the sampler returns something else than positions.
    """
    part = part or Part(0, batch_size)
    order = order_of(examples, split, seed, sampler, domain)
    read = From(order, start_step, batch_size, part)
    opened = _opened(columns(examples, replaced), read, workers)
    for step in itertools.count(start_step):
        yield _part_of_batch(opened, read.rows(step), part, batch_size)


def train_rows(
    examples: Examples,
    split: str,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    sampler: Sampler | None = None,
    domain: str = "target",
    part: Part | None = None,
) -> Generator[Batch, None, None]:
    """Yield "mask", "index" and "position" of the batches of `train_batches`.

    For columns that are on the device already, where `gather` takes the rows. Arguments and errors
    as in `train_batches`.
    """
    part = part or Part(0, batch_size)
    order = order_of(examples, split, seed, sampler, domain)
    read = From(order, start_step, batch_size, part)
    for step in itertools.count(start_step):
        yield _part_of_batch({}, read.rows(step), part, batch_size)


def eval_batches(
    examples: Examples,
    indices: np.ndarray,
    batch_size: int,
    *,
    workers: int = 0,
    replaced: Mapping[str, np.ndarray] | None = None,
    part: Part | None = None,
) -> Generator[Batch, None, None]:
    """Yield every row of `indices` once, in that order; the last batch is padded to `batch_size`.

    Args:
      examples: one domain's examples.
      indices: int[n], rows of `examples`.
      batch_size: B.
      workers: as in `train_batches`.
      replaced: as in `train_batches`.
      part: as in `train_batches`.
    """
    part = part or Part(0, batch_size)
    batches = []  # rows to read, and the size of the batch of all parts
    for start in range(0, len(indices), batch_size):
        size = min(batch_size, len(indices) - start)
        first, n = part.read(size)
        batches.append((indices[start + first : start + first + n], size))
    listed = Listed(np.concatenate([rows for rows, _ in batches] or [indices]))
    opened = _opened(columns(examples, replaced), listed, workers)
    for rows, size in batches:
        yield _part_of_batch(opened, rows, part, size)


def _part_of_batch(columns: Mapping[str, Any], rows: np.ndarray, part: Part, size: int) -> Batch:
    """Gather a part of a batch of `size`; its positions are those in the batch."""
    batch = batch_of(columns, rows, part.stop - part.start)
    batch["position"] += np.int32(part.start)
    if part.start >= size:  # padding alone
        batch["mask"][:], batch["index"][:] = 0, -1
        if "weight" in batch:
            batch["weight"][:] = 0
    return batch


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: BaseException


class Prefetch(Generic[T]):
    """The items of an iterator, which a thread makes ahead; an iterator and a context manager.

    An exception in the iterator is raised by `__next__`. The owner calls `close()`, best by `with`:
    it ends the thread and closes the iterator. Where nobody does, the thread ends with the object
    or with the program, which never waits for it.
    """

    def __init__(self, iterator: Iterator[T], size: int = 2):
        """Start the thread.

        Args:
          iterator: the source; from here on only the thread may use it.
          size: the number of items that may wait.
        """
        self._source = iterator
        self._ready: queue.Queue[Any] = queue.Queue(size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=_fill,
            args=(iterator, self._ready, self._stopped),
            name="medtl-prefetch",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Prefetch[T]:
        return self

    def __next__(self) -> T:
        if self._stopped.is_set():
            raise StopIteration
        item = self._ready.get()
        if item is _END or isinstance(item, _Failure):
            self._stopped.set()
            raise item.error if isinstance(item, _Failure) else StopIteration
        return item

    def close(self, timeout: float = 10.0) -> None:
        """Stop the thread and close the iterator.

        A thread that does not end within `timeout` seconds keeps its iterator, and ends with the
        program.
        """
        self._stopped.set()
        self._thread.join(timeout)
        if not self._thread.is_alive() and hasattr(self._source, "close"):
            self._source.close()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # No join: at the end of the program a daemon thread is frozen and would never be joined.
        self._stopped.set()


def _fill(iterator: Iterator[Any], ready: queue.Queue[Any], stopped: threading.Event) -> None:
    """Put the items, then `_END` or a `_Failure`. Holds no `Prefetch`, so that one can be freed."""

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    try:
        for item in iterator:
            put(item)
            if stopped.is_set():
                return
        put(_END)
    except BaseException as error:
        put(_Failure(error))


@dataclasses.dataclass(frozen=True)
class _Ordered:
    """A Grain source: the input at each position of an order."""

    inputs: ImageSource
    order: From | Listed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> np.ndarray:
        return self.inputs[self.order[position]]


@dataclasses.dataclass(frozen=True)
class _Stream:
    """A column that gives the next rows of its order, whatever rows are asked for."""

    items: Iterator[np.ndarray]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([next(self.items) for _ in rows])


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """A column that reads an `ImageSource` row by row."""

    inputs: ImageSource

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self.inputs[int(row)] for row in rows])


def _by_rows(column: Any) -> Any:
    """Return a column that takes an array of rows."""
    return column if isinstance(column, np.ndarray | _Stream) else _Stacked(column)


def _opened(
    columns: Mapping[str, np.ndarray | ImageSource], order: From | Listed, workers: int
) -> dict[str, Any]:
    """Return the columns, each `ImageSource` as a stream in that order."""
    return {
        name: column
        if isinstance(column, np.ndarray)
        else _Stream(_read(_Ordered(column, order), workers))
        for name, column in columns.items()
    }


def _read(source: _Ordered, workers: int) -> Iterator[np.ndarray]:
    import grain

    dataset = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=16 * _READ_THREADS)
    )
    if workers:
        from absl import flags

        # Grain's workers read absl flags, which a program without absl.app never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
