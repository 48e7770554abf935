"""Finds near copies among images: a 64-bit perceptual hash, then the correlation of thumbnails.

Two unrelated hashes differ in 32 of 64 bits, with a standard deviation of 4. Images of one organ in
one view are related, so two conditions must meet: at most `MOST_BITS` different bits, which is
quick to see, and a correlation of at least `LEAST_CORRELATION`.

- In COVID-CT (CT slices, 224 px) 10 of 146,522 pairs of different patients differ in at most 6
  bits; their correlations are 0.65 to 0.87. None is taken for a copy.
- In BreastMNIST (28 px), which holds copies, 202 of 303,810 pairs differ in at most 6 bits, 20 in 8
  or 10, and from 14 on the number grows; 182 of the 202 correlate by 0.98 or more.
- A copy that was brightened, compressed or resized keeps a correlation above 0.98. One that was
  turned, mirrored or cropped is not found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import fft

SIDE = 32  # of a thumbnail
MOST_BITS = 6
LEAST_CORRELATION = 0.98
_LEAST_CONTRAST = 2.0  # standard deviation in grey levels; below it a correlation is of noise
_BLOCK = 2**20  # pairs of hashes that are compared at once
_PAIRS = 2**13  # pairs of thumbnails that are compared at once


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Average images to small grey ones.

    Args:
      images: uint8[N, H, W, 1] or [N, H, W, 3].

    Returns:
      uint8[N, 32, 32].
    """
    thumbs = np.empty((len(images), SIDE, SIDE), np.uint8)
    for thumb, image in zip(thumbs, images, strict=True):
        picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("L")
        thumb[:] = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
    return thumbs


def hashes(thumbs: np.ndarray) -> np.ndarray:
    """Return uint64[N], the perceptual hashes of thumbnails uint8[N, 32, 32].

    A bit says whether one of the 64 lowest coefficients of the discrete cosine transform, less the
    mean's, is above their median (Zauner 2010, "Implementation and Benchmarking of Perceptual Image
    Hash Functions", chapter 3.2.1).
    """
    basis = fft.dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")[:8]
    low = (basis @ thumbs.astype(np.float32) @ basis.T).reshape(len(thumbs), 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


@dataclasses.dataclass(frozen=True)
class Prints:
    """What is known of images for the search.

    Attributes:
      thumbs: uint8[N, 32, 32].
      hashes: uint64[N].
    """

    thumbs: np.ndarray
    hashes: np.ndarray

    @classmethod
    def of(cls, thumbs: np.ndarray) -> Prints:
        """Hash thumbnails uint8[N, 32, 32]."""
        blocks = range(0, len(thumbs), _PAIRS)
        parts = [hashes(thumbs[start : start + _PAIRS]) for start in blocks]
        return cls(thumbs, np.concatenate(parts) if parts else np.zeros(0, np.uint64))

    def take(self, rows: np.ndarray) -> Prints:
        return Prints(self.thumbs[rows], self.hashes[rows])


def nearest(
    prints: Prints, others: Prints, fits: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> dict[int, int]:
    """Find the nearest copy of each image.

    Args:
      prints: the images whose copies are looked for.
      others: the images among which they are looked for.
      fits: (rows, rows of others), int64[P] each -> bool[P], the pairs that count.

    Returns:
      row -> the row of `others` with the highest correlation, for rows that have a near copy; the
      most alike first.
    """
    best: dict[int, tuple[float, int]] = {}
    step = max(1, _BLOCK // max(1, len(others.hashes)))
    for start in range(0, len(prints.hashes), step):
        differ = np.bitwise_count(prints.hashes[start : start + step, None] ^ others.hashes)
        rows, columns = np.nonzero(differ <= MOST_BITS)
        rows += start
        kept = fits(rows, columns)
        rows, columns = rows[kept], columns[kept]
        for first in range(0, len(rows), _PAIRS):
            r, c = rows[first : first + _PAIRS], columns[first : first + _PAIRS]
            values = _correlations(prints.thumbs[r], others.thumbs[c])
            for k in np.flatnonzero(values >= LEAST_CORRELATION):
                found = (float(values[k]), int(c[k]))
                best[int(r[k])] = max(best.get(int(r[k]), found), found, key=lambda pair: pair[0])
    ordered = sorted(best.items(), key=lambda item: -item[1][0])
    return {row: column for row, (_, column) in ordered}


def _correlations(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return float64[P], Pearson's correlation of pairs of thumbnails; 0 without contrast."""
    pairs = [x.reshape(len(x), -1).astype(np.float32) for x in (one, two)]
    centred = [x - x.mean(1, keepdims=True) for x in pairs]
    products = np.einsum("pi,pi->p", *centred) / SIDE**2
    spread = [np.sqrt(np.einsum("pi,pi->p", x, x) / SIDE**2) for x in centred]
    is_flat = np.minimum(*spread) < _LEAST_CONTRAST
    return np.where(is_flat, 0.0, products / np.maximum(spread[0] * spread[1], 1e-9))
