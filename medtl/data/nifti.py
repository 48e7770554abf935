"""Decodes slices of NIfTI files with nibabel, `pip install medtl[nifti]`.

Slice k is the k-th axial plane from the feet, whatever the order and direction of the stored axes;
it is shown as DICOM shows it, with the patient's right side on the left and the front above. Values
are scaled by the header's slope and intercept. Refuses volumes of which no slice is named.
"""

from __future__ import annotations

import gzip
import io
import math
from typing import Any

import numpy as np

from medtl.data.values import FileRules, UnreadableImageError, Values

_HEADER = 540  # bytes of the longer header, that of NIfTI-2


def is_nifti(data: bytes) -> bool:
    """Return whether the bytes are a NIfTI file, also within gzip."""
    head = data[:_HEADER]
    if head[:2] == b"\x1f\x8b":
        try:
            head = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_HEADER)
        except (OSError, EOFError):
            return False
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


def decode(data: bytes, *, rules: FileRules, frame: int | None = None) -> Values:
    """Decode a slice.

    Args:
      data: the file's bytes.
      rules: the number of values in the volume is at most 16 times `max_pixels`.
      frame: the axial slice from the feet, counted from 0; None: there is one.

    Raises:
      UnreadableImageError: with the reason.
      Exception: whatever nibabel raises on damaged files.
    """
    try:
        import nibabel
        from nibabel import orientations
    except ImportError:
        raise UnreadableImageError(
            'it is a NIfTI file, which nibabel reads: pip install "medtl[nifti]"'
        ) from None
    image: Any = _volume(data, nibabel, 16 * rules.max_pixels)
    shape = image.shape
    if len(shape) not in (2, 3) and any(side > 1 for side in shape[3:]):
        raise UnreadableImageError(f"it has the shape {list(shape)}; split it into volumes")
    # L, P, S: the directions in which the columns, rows and slices of the result run.
    to_display = orientations.ornt_transform(
        orientations.io_orientation(image.affine), orientations.axcodes2ornt(("L", "P", "S"))
    )
    (axis,) = np.flatnonzero(to_display[:, 0] == 2)
    n = shape[axis] if axis < len(shape) else 1
    if (frame is None and n > 1) or not 0 <= (frame or 0) < n:
        problem = f"it has {n} slices" if frame is None else f"it has no slice {frame}, but 0 to"
        raise UnreadableImageError(
            f"{problem}; name one as FILE#0" if frame is None else f"{problem} {n - 1}"
        )
    stored = (frame or 0) if to_display[axis, 1] == 1 else n - 1 - (frame or 0)
    index = tuple(
        slice(stored, stored + 1) if i == axis else slice(None) if i < 3 else 0
        for i in range(len(shape))
    )
    part = np.asarray(image.dataobj[index])
    if part.dtype.kind not in "iuf":
        raise UnreadableImageError(f"it holds {part.dtype}, which is not read; write grey values")
    volume = part.reshape(part.shape + (1,) * (3 - part.ndim))
    plane = orientations.apply_orientation(volume, to_display)
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    return Values(plane[:, :, 0].T, f"{part.dtype} NIfTI", (low, high) if low < high else ())


def _volume(data: bytes, nibabel: Any, most: int) -> Any:
    """Return the volume, whose values are not read yet; unpacks no more than `most` of them."""
    is_packed = data[:2] == b"\x1f\x8b"
    stream = gzip.GzipFile(fileobj=io.BytesIO(data)) if is_packed else io.BytesIO(data)
    head = stream.read(_HEADER)
    kind = nibabel.Nifti2Image if head[4:8] in (b"n+2\0", b"ni2\0") else nibabel.Nifti1Image
    header = kind.header_class(head[: kind.header_class.sizeof_hdr], check=False)
    count = math.prod(max(1, int(side)) for side in header.get_data_shape())
    if count > most:
        raise UnreadableImageError(f"it holds {count} values; config.data.max_pixels allows {most}")
    size = int(header["vox_offset"]) + count * header.get_data_dtype().itemsize
    return kind.from_bytes(head + stream.read(max(0, size - len(head))))
