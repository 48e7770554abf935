"""Images decoded once to uint8 at the working size: in memory, in a mapped file, or on demand.

Whatever the kind of cache, each file is read, hashed and decoded before training, so that a damaged
image is an error at the start and not in the middle of a run. The name of a cache file is a digest
of its content: the sha256 of the image files, the size, the way of resizing, the version of the
decoder. It is written atomically, so two processes may build it at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from medtl.data import arrays, copies, images
from medtl.data.table import Encoded, Table
from medtl.data.values import FileRules
from medtl.errors import UserError
from medtl.examples import ImageSource

KINDS = ("auto", "memory", "disk", "stream")
MEMORY_LIMIT = 2 * 2**30
DISK_LIMIT = 64 * 2**30
_THREADS = max(2, min(8, os.cpu_count() or 1))
_CHUNK = 128
_DIGEST = 16  # bytes
_NO_RULES = FileRules()
_T = TypeVar("_T")


class DecodedOnDemand:
    """An `ImageSource` of uint8[size, size, channels], which worker processes can unpickle.

    Attributes:
      digests: bytes[N], digests of the pixels, as `digests` computes them.
      thumbnails: uint8[N, 32, 32], as `copies.thumbnails` makes them.
    """

    def __init__(
        self,
        table: Table,
        *,
        size: int,
        channels: int,
        resize: str,
        rules: FileRules,
        digests: Sequence[bytes] = (),
        thumbnails: np.ndarray | None = None,
    ):
        self._table = table
        self._size, self._channels, self._resize, self._rules = size, channels, resize, rules
        self.digests, self.thumbnails = digests, thumbnails

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return self.decode(index)
        except (OSError, images.UnreadableImageError) as error:
            raise _unreadable(self._table, [(index, _reason(error))]) from None

    def decode(self, index: int) -> np.ndarray:
        """Return an image.

        Raises:
          OSError: its file cannot be read.
          images.UnreadableImageError: it cannot be decoded.
        """
        return images.decode(
            _encoded(self._table)[index],
            size=self._size,
            channels=self._channels,
            resize=self._resize,
            rules=self._rules,
            frame=_encoded(self._table).frame(index),
        )


def load(
    table: Table,
    *,
    size: int,
    channels: int,
    resize: str,
    cache: str,
    cache_dir: str,
    rules: FileRules = _NO_RULES,
) -> tuple[np.ndarray | ImageSource, list[bytes]]:
    """Decode a table's images.

    Args:
      table: the examples; their images are an array (which stays in memory) or `Encoded`.
      size: height and width of the result.
      channels: 1 or 3.
      resize: see `images.decode`.
      cache: "memory", "disk" or "stream"; "auto": the first whose limit the decoded images meet.
      cache_dir: the folder for the images of "disk" and the digests of "stream"; empty:
        ~/.cache/medtl.
      rules: how image files are read.

    Returns:
      uint8[N, size, size, channels] or an `ImageSource` of it; and a sha256 per stored image.

    Raises:
      UserError: images cannot be read (names the first five), or a cache file cannot be written.
    """
    if isinstance(table.images, np.ndarray):
        contents = [
            hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in table.images
        ]
        return images.fit_all(table.images, size=size, channels=channels, resize=resize), contents
    shape = (len(table), size, size, channels)
    nbytes = int(np.prod(shape, dtype=np.int64))
    if cache == "auto":
        cache = "memory" if nbytes <= MEMORY_LIMIT else "disk" if nbytes <= DISK_LIMIT else "stream"
    hashed = _each(table, lambda row: _content(_encoded(table), row))
    contents = [digest for part in hashed for digest in part]
    decoder = DecodedOnDemand(table, size=size, channels=channels, resize=resize, rules=rules)

    def decoded() -> Iterator[np.ndarray]:
        return (np.stack(part) for part in _each(table, decoder.decode))

    if cache == "memory":
        array, start = np.empty(shape, np.uint8), 0
        for part in decoded():
            array[start : start + len(part)] = part
            start += len(part)
        return array, contents
    key = json.dumps([images.VERSION, size, channels, resize, rules.window]).encode()
    name = hashlib.sha256(key + b"".join(contents)).hexdigest()
    path = folder(cache_dir) / name
    if cache == "disk":
        return _mapped(path.with_suffix(".npy"), shape, decoded), contents
    width = _DIGEST + copies.SIDE**2
    prints = _mapped(
        path.with_suffix(".prints.npy"),
        (len(table), width),
        lambda: (
            np.concatenate(
                [
                    np.frombuffer(b"".join(digests(p)), np.uint8).reshape(-1, _DIGEST),
                    copies.thumbnails(p).reshape(len(p), -1),
                ],
                axis=1,
            )
            for p in decoded()
        ),
    )
    decoder.digests = [row.tobytes() for row in prints[:, :_DIGEST]]
    decoder.thumbnails = prints[:, _DIGEST:].reshape(-1, copies.SIDE, copies.SIDE)
    return decoder, contents


def folder(cache_dir: str) -> pathlib.Path:
    """Return the folder for files that can be computed again.

    Args:
      cache_dir: the folder; empty: `medtl` in $XDG_CACHE_HOME, by default ~/.cache.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache_dir or f"{home}/medtl").expanduser()


def digests(image: np.ndarray | ImageSource) -> Sequence[bytes]:
    """Return bytes[N], a digest of each image's pixels; equal images have equal digests."""
    if not isinstance(image, np.ndarray) and len(getattr(image, "digests", ())) == len(image):
        return image.digests  # type: ignore[attr-defined]  # a user's source may have none
    return [
        hashlib.blake2b(np.ascontiguousarray(image[i]).tobytes(), digest_size=_DIGEST).digest()
        for i in range(len(image))
    ]


def _encoded(table: Table) -> Encoded:
    assert not isinstance(table.images, np.ndarray)
    return table.images


def is_quick(image: np.ndarray | ImageSource) -> bool:
    """Return whether digests and thumbnails need no image to be decoded again."""
    return isinstance(image, np.ndarray) or getattr(image, "thumbnails", None) is not None


def thumbnails(image: np.ndarray | ImageSource) -> np.ndarray:
    """Return uint8[N, 32, 32] of images for which `is_quick` holds."""
    if not isinstance(image, np.ndarray):
        return image.thumbnails  # type: ignore[attr-defined]
    parts = (copies.thumbnails(image[i : i + _CHUNK]) for i in range(0, len(image), _CHUNK))
    return np.concatenate(list(parts))


def _content(encoded: Encoded, row: int) -> bytes:
    """Return a digest of a stored image: its file, and its frame where the file has several."""
    frame = encoded.frame(row)
    suffix = b"" if frame is None else f"#{frame}".encode()
    return hashlib.sha256(encoded[row] + suffix).digest()


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _unreadable(table: Table, failed: list[tuple[int, str]]) -> UserError:
    named = ", ".join(
        f"{str(table.id[i])!r} ({table.where(i)}: {reason})" for i, reason in failed[:5]
    )
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    return UserError(
        f"{table.origin}: {len(failed)} of {len(table)} images cannot be read: {named}{more}; "
        "replace them or leave them out"
    )


def _each(table: Table, work: Callable[[int], _T]) -> Iterator[list[_T]]:
    """Yield the results of `work` on every row, in chunks and in order; threads do the work.

    Raises:
      UserError: some rows cannot be read; names them all at once.
    """
    failed: list[tuple[int, str]] = []

    def attempt(index: int) -> _T | None:
        try:
            return work(index)
        except (OSError, images.UnreadableImageError) as error:
            failed.append((index, _reason(error)))
            return None

    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(table), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(table)))
            results = [result for result in pool.map(attempt, rows) if result is not None]
            if not failed:
                yield results
    if failed:
        raise _unreadable(table, sorted(failed))


def _mapped(
    path: pathlib.Path, shape: tuple[int, ...], chunks: Callable[[], Iterator[np.ndarray]]
) -> np.ndarray:
    """Return uint8[shape] mapped from `path`, written first where it is absent or damaged."""
    array = arrays.read(path, np.uint8)
    if array is not None and array.shape == shape:
        return array
    try:
        arrays.write(path, shape, np.uint8, chunks())
    except OSError as error:
        raise UserError(
            f"config.data.cache_dir: cannot write {path} ({_reason(error)}); name another folder"
        ) from None
    array = arrays.read(path, np.uint8)
    if array is None:
        raise UserError(f"config.data.cache_dir: {path} is damaged directly after it was written")
    return array
