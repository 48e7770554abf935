"""Reduces PNG and TIFF files strip by strip with libvips, `pip install medtl[large_images]`.

For images of more pixels than are decoded at once. The memory is that of the file, of a few rows
of its strips or tiles, and of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medtl.data.values import UnreadableImageError


def reduce(data: bytes, *, page: int, factor: int, is_deep: bool) -> np.ndarray:
    """Return the means of blocks of pixels; transparency is put over black.

    Args:
      data: the bytes of a PNG or TIFF of one or three colours, whose lowest value is black.
      page: of a TIFF; 0 for a PNG.
      factor: the sides of a block.
      is_deep: whether 8 unsigned bits do not hold the values.

    Returns:
      uint8 or float32 (if deep, in the file's own units) [H, W] or [H, W, 3]; H and W are rounded
      up.

    Raises:
      UnreadableImageError: libvips is not installed, or cannot read the file.
    """
    try:
        import pyvips
    except ImportError:
        raise UnreadableImageError(
            "it has more pixels than config.data.max_pixels; pyvips reads it at reduced size: "
            'pip install "medtl[large_images]"'
        ) from None
    pyvips.cache_set_max(0)  # it would keep the file's bytes

    def opened() -> Any:
        source = pyvips.Source.new_from_memory(data)  # a buffer would be copied
        options = {"page": page} if page else {}
        return pyvips.Image.new_from_source(
            source, "", access="sequential", fail_on="warning", **options
        )

    try:
        image = opened()
        if image.hasalpha():
            if is_deep and (alpha := opened()[image.bands - 1].stats())(0, 0) == alpha(1, 0):
                image = image[: image.bands - 1]  # opaque, or without a meaning
            else:
                image = image.flatten()
        image = image.cast("float") if is_deep else image
        image = image.shrink(factor, factor, ceil=True)
        pixels = np.frombuffer(image.write_to_memory(), np.float32 if is_deep else np.uint8)
    except pyvips.Error as error:
        raise UnreadableImageError(" ".join(str(error).split())[:200]) from None
    shape = (image.height, image.width, image.bands)
    return pixels.reshape(shape[: 2 if image.bands == 1 else 3])
