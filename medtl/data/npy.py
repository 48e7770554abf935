"""Decodes NumPy's `.npy` files: one image, or a slice of several. Refuses pickled objects."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image

from medtl.data.values import FileRules, UnreadableImageError, Values


def is_npy(data: bytes) -> bool:
    """Return whether the bytes begin as an `.npy` file."""
    return data[:6] == np.lib.format.MAGIC_PREFIX


def decode(data: bytes, *, rules: FileRules, frame: int | None = None) -> Image.Image | Values:
    """Decode an array [H, W], [H, W, 1] or [H, W, 3], or a slice of [N, ...].

    Args:
      data: the file's bytes.
      rules: the image has at most `max_pixels`.
      frame: the slice of the first axis, counted from 0; None: there is one.

    Returns:
      An image of mode "L" or "RGB" for uint8, else the values.

    Raises:
      UnreadableImageError: with the reason.
      ValueError: NumPy's, on damaged headers.
    """
    file = io.BytesIO(data)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if read is None:
        raise UnreadableImageError("it is an array of a version of .npy that is not read")
    shape, is_fortran, dtype = read(file)
    words = f"{dtype.name} array [{', '.join(map(str, shape))}]"
    color = (3,) if shape[-1:] == (3,) and len(shape) > 2 else ()
    flat = shape[:-1] if color or (len(shape) > 2 and shape[-1] == 1) else shape
    if dtype.kind not in "iuf" or len(flat) not in (2, 3) or not math.prod(shape):
        raise UnreadableImageError(
            f"it is a {words}; write whole numbers or floats [H, W] or [H, W, 3]"
        )
    n = flat[0] if len(flat) == 3 else 1
    if not 0 <= (frame or 0) < n:
        raise UnreadableImageError(f"it is a {words}; it has no slice {frame}, but 0 to {n - 1}")
    if frame is None and n > 1:
        raise UnreadableImageError(f"it is a {words}; write [H, W], or name a slice as FILE#0")
    if flat[-2] * flat[-1] > rules.max_pixels:
        raise UnreadableImageError(
            f"it has {flat[-2] * flat[-1]} pixels; config.data.max_pixels allows {rules.max_pixels}"
        )
    if len(data) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise UnreadableImageError(f"it is a {words}, but the file ends early or late")
    values = np.frombuffer(data, dtype, offset=file.tell())
    pixels = values.reshape(shape, order="F" if is_fortran else "C")
    pixels = pixels.reshape(n, *flat[-2:], *color)[frame or 0]
    if dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels))
    return Values(pixels, f"{dtype.name} array")
