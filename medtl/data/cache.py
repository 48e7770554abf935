"""Images decoded once to uint8 at the working size: kept in memory, in a file mapped into memory, or decoded on demand.

Every file is read and hashed before training, whatever the kind of cache, and decoded at least once: a damaged image is an error
then, not in the middle of a run. A cache file is named by what is in it (the sha256 of the files, the size, the way of resizing,
the version of the decoder); it is written beside its final name and renamed, so two processes may build it at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from medtl.data import images
from medtl.data.table import Encoded, Table
from medtl.errors import UserError
from medtl.examples import ImageSource

KINDS = ("auto", "memory", "disk", "stream")
MEMORY_LIMIT = 2 * 2**30
DISK_LIMIT = 64 * 2**30
_THREADS = max(2, min(8, os.cpu_count() or 1))
_CHUNK = 128
_T = TypeVar("_T")


class DecodedOnDemand:
    """An `ImageSource` of uint8[size, size, channels]; it pickles, so that worker processes can read it.

    Attributes:
      digests: bytes[N], of the pixels, as `digests` computes them.
    """

    def __init__(
        self, table: Table, *, size: int, channels: int, resize: str, digests: Sequence[bytes] = ()
    ):
        self._table = table
        self._size, self._channels, self._resize = size, channels, resize
        self.digests = digests

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return self.decode(index)
        except (OSError, images.UnreadableImageError) as error:
            raise _unreadable(self._table, [(index, _reason(error))]) from None

    def decode(self, index: int) -> np.ndarray:
        """As indexing, but raises what reading and decoding raise: OSError, `images.UnreadableImageError`."""
        return images.decode(
            _encoded(self._table)[index],
            size=self._size,
            channels=self._channels,
            resize=self._resize,
        )


def load(
    table: Table, *, size: int, channels: int, resize: str, cache: str, cache_dir: str
) -> tuple[np.ndarray | ImageSource, list[bytes]]:
    """Decodes a table's images.

    Args:
      table: its images decoded already (an array, which stays in memory), or `Encoded`.
      size: height and width of the result.
      channels: 1 or 3.
      resize: see `images.decode`.
      cache: "memory", "disk", "stream" or "auto": the first of them whose limit the decoded images keep.
      cache_dir: where "disk" keeps its files, and "stream" what it has checked; empty: ~/.cache/medtl.

    Returns:
      uint8[N, size, size, channels] or an `ImageSource` of it; and a sha256 per image as it was found.

    Raises:
      UserError: where images cannot be read (the first five are named), or a cache file cannot be written.
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
    contents = [
        digest
        for part in _each(table, lambda i: hashlib.sha256(_encoded(table)[i]).digest())
        for digest in part
    ]
    decoder = DecodedOnDemand(table, size=size, channels=channels, resize=resize)

    def decoded() -> Iterator[np.ndarray]:
        return (np.stack(part) for part in _each(table, decoder.decode))

    if cache == "memory":
        array, at = np.empty(shape, np.uint8), 0
        for part in decoded():
            array[at : at + len(part)] = part
            at += len(part)
        return array, contents
    name = hashlib.sha256(
        json.dumps([images.VERSION, size, channels, resize]).encode() + b"".join(contents)
    ).hexdigest()
    folder = place(cache_dir)
    if cache == "disk":
        return _mapped(folder / f"{name}.npy", shape, decoded), contents
    width = len(digests(np.zeros((1, 1), np.uint8))[0])
    pixels = _mapped(
        folder / f"{name}.digests.npy",
        (len(table), width),
        lambda: (
            np.frombuffer(b"".join(digests(p)), np.uint8).reshape(-1, width) for p in decoded()
        ),
    )
    known = [row.tobytes() for row in pixels]
    return DecodedOnDemand(
        table, size=size, channels=channels, resize=resize, digests=known
    ), contents


def place(cache_dir: str) -> pathlib.Path:
    """The folder of what can be computed again: the given one, or `medtl` in $XDG_CACHE_HOME, by default ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache_dir or f"{home}/medtl").expanduser()


def digests(image: np.ndarray | ImageSource) -> Sequence[bytes]:
    """bytes[N], one digest per image of its pixels at the working size; equal images have equal digests."""
    if not isinstance(image, np.ndarray) and len(getattr(image, "digests", ())) == len(image):
        return image.digests  # type: ignore[attr-defined]  # what a user's own source need not have
    return [
        hashlib.blake2b(np.ascontiguousarray(image[i]).tobytes(), digest_size=16).digest()
        for i in range(len(image))
    ]


def _encoded(table: Table) -> Encoded:
    assert not isinstance(table.images, np.ndarray)
    return table.images


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _unreadable(table: Table, failed: list[tuple[int, str]]) -> UserError:
    named = ", ".join(
        f"{str(table.id[i])!r} ({table.where(i)}: {reason})" for i, reason in failed[:5]
    )
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    return UserError(
        f"{table.origin}: {len(failed)} of {len(table)} images cannot be read: {named}{more}; replace them or leave them out"
    )


def _each(table: Table, work: Callable[[int], _T]) -> Iterator[list[_T]]:
    """`work` on every row, in threads, chunk by chunk in the rows' order; the rows that cannot be read, all in one error."""
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
            done = [result for result in pool.map(attempt, rows) if result is not None]
            if not failed:
                yield done
    if failed:
        raise _unreadable(table, sorted(failed))


def _mapped(
    path: pathlib.Path, shape: tuple[int, ...], chunks: Callable[[], Iterator[np.ndarray]]
) -> np.ndarray:
    """uint8[shape] mapped from `path`, which is written first where it is not there or is damaged."""
    found = _existing(path, shape)
    if found is not None:
        return found
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False
        ) as file:
            temporary = file.name
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks():
                file.write(np.ascontiguousarray(chunk).data)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"config.data.cache_dir: cannot write {path} ({_reason(error)}); name another folder"
        ) from None
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    written = _existing(path, shape)
    if written is None:
        raise UserError(f"config.data.cache_dir: {path} is damaged directly after it was written")
    return written


def _existing(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != np.uint8:
        return None
    return array if array.offset + array.nbytes == os.path.getsize(path) else None
