"""Batches of NumPy arrays on the host, in an order that is a function of the seed and the step alone.

Step t of training takes the places [t * B, (t + 1) * B) of an endless sequence: one permutation of the split's rows after another,
that of epoch e drawn from (seed, e). Starting at a step therefore gives the very batches that a run which was not stopped
would have had. Evaluation takes each row once, in order, and fills the last batch up with masked zeros.

A batch holds `image` uint8[B, H, W, C], `label` int32[B] or float32[B, K], `mask` float32[B] (1 real, 0 padding), `weight`
float32[B], `index` int32[B] (the row in the examples, -1 padding) and `position` int32[B] (0..B-1).
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import numpy as np

from medtl.errors import UserError
from medtl.examples import Examples, ImageSource

Batch = dict[str, np.ndarray]
T = TypeVar("T")
_READ_THREADS = 4


def steps_per_epoch(n: int, batch_size: int) -> int:
    """ceil(n / batch_size)."""
    return -(-n // batch_size)


def train_batches(
    examples: Examples,
    split: str,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    features: np.ndarray | None = None,
) -> Generator[Batch, None, None]:
    """Endless full batches of one split.

    Args:
      examples: one domain's.
      split: "train", "val" or "test".
      batch_size: B; may exceed the number of rows.
      seed: of the order, >= 0.
      start_step: the step of the first batch.
      workers: processes that decode an `ImageSource`; 0: threads.
      features: float32[N, D], a frozen backbone's output for every row of `examples`: goes into the batch as
        `features`, in place of `image`.

    Raises:
      UserError: where the split is empty.
    """
    order = _order(examples, split, seed)
    first = start_step * batch_size
    fetch = _fetcher(examples, features, _From(order, first), workers)
    for step in itertools.count(start_step):
        yield _batch(
            examples, order.span(step * batch_size, (step + 1) * batch_size), batch_size, fetch
        )


def train_rows(
    examples: Examples, split: str, batch_size: int, *, seed: int, start_step: int = 0
) -> Generator[Batch, None, None]:
    """The batches of `train_batches` as rows alone, for data that lies on the device: `index`, `mask` and `position`."""
    order = _order(examples, split, seed)
    mask, position = np.ones(batch_size, np.float32), np.arange(batch_size, dtype=np.int32)
    for step in itertools.count(start_step):
        index = order.span(step * batch_size, (step + 1) * batch_size).astype(np.int32)
        yield {"index": index, "mask": mask, "position": position}


def eval_batches(
    examples: Examples,
    indices: np.ndarray,
    batch_size: int,
    *,
    workers: int = 0,
    features: np.ndarray | None = None,
) -> Generator[Batch, None, None]:
    """Every row of `indices` once, in that order; the last batch is filled up to `batch_size`.

    Padding has mask 0, weight 0, label 0, index -1 and a black image (zero features).

    Args:
      examples: one domain's.
      indices: int[n], rows of `examples`.
      batch_size: B.
      workers: as in `train_batches`.
      features: as in `train_batches`.
    """
    fetch = _fetcher(examples, features, _Listed(indices), workers)
    for start in range(0, len(indices), batch_size):
        yield _batch(examples, indices[start : start + batch_size], batch_size, fetch)


def prefetch(iterator: Iterator[T], size: int = 2) -> Generator[T, None, None]:
    """The same batches, up to `size` of them made ahead by a thread; what the iterator raises is raised here.

    Closing or collecting the generator ends the thread and closes the iterator.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(size)
    stopped = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in iterator:
                if not put((batch, None)):
                    return
            put((None, None))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, name="medtl-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stopped.set()
        thread.join()
        if isinstance(iterator, Generator):
            iterator.close()


def _order(examples: Examples, split: str, seed: int) -> _Endless:
    order = _Endless(examples.indices(split), seed)
    if not len(order.rows):
        raise UserError(
            f"{examples.name}: split {split} is empty; it has {', '.join(examples.splits)}"
        )
    return order


@dataclasses.dataclass
class _Endless:
    """The row at every place of the endless sequence of permutations."""

    rows: np.ndarray
    seed: int
    _drawn: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def epoch(self, e: int) -> np.ndarray:
        drawn = self._drawn.get(e)
        if drawn is None:
            bits = np.random.Philox(np.random.SeedSequence((self.seed, e)))
            drawn = self.rows[np.random.Generator(bits).permutation(len(self.rows))]
            # Replaced as a whole: Grain's threads read it while another one draws.
            self._drawn = {k: v for k, v in self._drawn.items() if abs(k - e) <= 1} | {e: drawn}
        return drawn

    def __getitem__(self, place: int) -> int:
        e, offset = divmod(place, len(self.rows))
        return int(self.epoch(e)[offset])

    def span(self, start: int, stop: int) -> np.ndarray:
        """int64[stop - start], the rows at these places."""
        n = len(self.rows)
        epochs = range(start // n, (stop - 1) // n + 1)
        return np.concatenate([self.epoch(e) for e in epochs])[
            start - epochs[0] * n : stop - epochs[0] * n
        ]


@dataclasses.dataclass(frozen=True)
class _From:
    """An endless sequence from a place on, with the length that Grain asks for."""

    order: _Endless
    first: int

    def __len__(self) -> int:
        return 2**62 - self.first

    def __getitem__(self, place: int) -> int:
        return self.order[self.first + place]


@dataclasses.dataclass(frozen=True)
class _Listed:
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> int:
        return int(self.rows[place])


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A Grain source: the image at each place of an order."""

    images: ImageSource
    order: _From | _Listed

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> np.ndarray:
        return self.images[self.order[place]]


@dataclasses.dataclass(frozen=True)
class _Fetcher:
    key: str
    get: Callable[[np.ndarray], np.ndarray]


def _fetcher(
    examples: Examples, features: np.ndarray | None, order: _From | _Listed, workers: int
) -> _Fetcher:
    """What gives the images of the next rows: an array by its index, an `ImageSource` through Grain, in order."""
    if features is not None:
        return _Fetcher("features", features.__getitem__)
    if isinstance(examples.image, np.ndarray):
        return _Fetcher("image", examples.image.__getitem__)
    stream = _stream(_Placed(examples.image, order), workers)
    return _Fetcher("image", lambda rows: np.stack([next(stream) for _ in rows]))


def _stream(source: _Placed, workers: int) -> Iterator[np.ndarray]:
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


def _batch(examples: Examples, rows: np.ndarray, batch_size: int, fetch: _Fetcher) -> Batch:
    n = len(rows)

    def padded(values: np.ndarray, fill: float = 0) -> np.ndarray:
        if n == batch_size:
            return values
        return np.concatenate(
            [values, np.full((batch_size - n, *values.shape[1:]), fill, values.dtype)]
        )

    return {
        fetch.key: padded(np.asarray(fetch.get(rows))),
        "label": padded(examples.label[rows]),
        "mask": padded(np.ones(n, np.float32)),
        "weight": padded(examples.weight[rows]),
        "index": padded(rows.astype(np.int32), -1),
        "position": np.arange(batch_size, dtype=np.int32),
    }
