"""Views of an image for test-time augmentation: flips and crops, the same for every image."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

SIDE = 0.875  # of a crop, as a share of the image's: 224 of 256 pixels

View = tuple[np.ndarray, np.ndarray]


def views(names: Collection[str], height: int, width: int) -> list[View]:
    """Return the maps from pixels of each view to pixels of the image; the first is the image.

    "flip" adds the mirrored image (left and right), "crop" five windows of 7/8 of the side, at the
    centre and the corners; with both the mirrored windows, too (Krizhevsky et al. 2012, NIPS,
    section 4.1).

    Args:
      names: any of "flip", "crop".
      height: of the image, in pixels.
      width: of the image, in pixels.

    Returns:
      (matrix f32[2, 2], offset f32[2]) of each, as `augment.resample` takes them.

    >>> [len(views(names, 8, 8)) for names in ((), ("flip",), ("crop",), ("flip", "crop"))]
    [1, 2, 6, 12]
    """
    shape = np.array([height, width], np.float64)
    windows: list[tuple[float, tuple[float, float]]] = [(1.0, (0.0, 0.0))]
    if "crop" in names:
        corners = [(row, column) for row in (-1.0, 1.0) for column in (-1.0, 1.0)]
        windows += [(SIDE, place) for place in ((0.0, 0.0), *corners)]
    made = []
    for side, place in windows:
        centre = (shape - 1) / 2 + np.array(place) * (1 - side) * shape / 2
        for sign in (1.0, -1.0) if "flip" in names else (1.0,):
            matrix = side * np.diag([1.0, sign])
            offset = centre - matrix @ (shape - 1) / 2
            made.append((matrix.astype(np.float32), offset.astype(np.float32)))
    return made
