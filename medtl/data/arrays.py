"""Arrays on disk that can be computed again, each with a checksum of its content.

A file is NumPy's `.npy` followed by the CRC-32 of the values. Reading compares it, so that a
flipped bit, a hole left by a power cut or a truncated file is found and the array is computed
again. Imports no JAX.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from medtl import files

_TRAILER = 4  # bytes of the checksum
_CHUNK = 2**26


def write(path: Path, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable) -> None:
    """Write an array atomically, readable by the user alone; the folder is made where absent.

    Args:
      path: the file.
      shape: of the array.
      dtype: of the array.
      parts: arrays whose rows follow one another.

    Raises:
      OSError: the file cannot be written.
      ValueError: the parts have another size in all.
    """
    dtype, checksum, size = np.dtype(dtype), 0, 0
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.sweep_temporary(path.parent)
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype)) | {"shape": shape}
    with files.atomic(path, permissions=0o600) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            content = np.ascontiguousarray(part, dtype).data.cast("B")
            checksum, size = zlib.crc32(content, checksum), size + len(content)
            file.write(content)
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size != expected:
            raise ValueError(f"{path}: {size} bytes for an array of {expected}")
        file.write(checksum.to_bytes(_TRAILER, "little"))


def read(path: Path, dtype: DTypeLike) -> np.memmap | None:
    """Map an array that `write` made, for reading; None where it is absent or damaged."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        size = os.path.getsize(path)
        if not isinstance(array, np.memmap) or array.dtype != np.dtype(dtype):
            return None
        if array.offset + array.nbytes + _TRAILER != size:
            return None
        checksum = 0
        with open(path, "rb") as file:
            file.seek(array.offset)
            left = array.nbytes
            while left:
                content = file.read(min(left, _CHUNK))
                checksum, left = zlib.crc32(content, checksum), left - len(content)
                if not content:
                    return None
            stored = int.from_bytes(file.read(_TRAILER), "little")
    except Exception:  # NumPy parses a damaged header: TokenError, SyntaxError, OverflowError, ...
        return None
    return array if checksum == stored else None
