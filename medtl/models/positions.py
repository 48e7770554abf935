"""Positions of a transformer's patches: learned embeddings for other image sizes, and rotations."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize(
    embeddings: Float[Array, "1 n d"],
    prefix: int,
    grid: tuple[int, int],
    *,
    antialias: bool = False,
    offset: float = 0.0,
) -> Float[Array, "1 m d"]:
    """Interpolate learned embeddings to another grid, as `torch.nn.functional.interpolate` does.

    The mode is "bicubic" with align_corners=False. The embeddings of the grid on which they were
    learned are returned as they are.

    Args:
      embeddings: float32[1, N, D]: `prefix` tokens, which stay, then a square of patches.
      prefix: the number of tokens that are no patches.
      grid: rows and columns of patches.
      antialias: PyTorch's option; widens the kernel where the grid becomes smaller.
      offset: is added to the grid's sides in the scale alone, as DINO and DINOv2 do with 0.1 to
        avoid a wrong number of patches; it shifts the samples.

    Returns:
      float32[1, prefix + rows * columns, D].
    """
    side = round((embeddings.shape[1] - prefix) ** 0.5)
    if grid == (side, side):
        return embeddings
    rows, columns = (cubic_weights(side, n, antialias, offset) for n in grid)
    patches = embeddings[0, prefix:].reshape(side, side, -1)
    patches = jnp.einsum("rh,cw,hwd->rcd", rows, columns, patches, precision="highest")
    flat = patches.reshape(1, -1, patches.shape[-1])
    return jnp.concatenate([embeddings[:, :prefix], flat], axis=1)


@functools.cache
def cubic_weights(size: int, new: int, antialias: bool, offset: float = 0.0) -> np.ndarray:
    """Return the matrix float32[new, size] of PyTorch's cubic interpolation of one axis.

    Keys 1981, equation 4, with a = -0.75 (-0.5 with antialias) and edges repeated (renormalized
    with antialias).

    >>> cubic_weights(2, 1, False)
    array([[0.5, 0.5]], dtype=float32)
    """
    scale = size / (new + offset)
    centre = (np.arange(new) + 0.5) * scale
    weights = np.zeros((new, size))
    if antialias:
        width = max(scale, 1.0)
        for i, c in enumerate(centre):
            first, last = max(int(c - 2 * width + 0.5), 0), min(int(c + 2 * width + 0.5), size)
            row = _cubic((np.arange(first, last) - c + 0.5) / width, -0.5)
            weights[i, first:last] = row / row.sum()
        return weights.astype(np.float32)
    for i, c in enumerate(centre - 0.5):
        for j in range(int(np.floor(c)) - 1, int(np.floor(c)) + 3):
            weights[i, min(max(j, 0), size - 1)] += _cubic(j - c, -0.75)
    return weights.astype(np.float32)


def _cubic(x: np.ndarray | float, a: float) -> np.ndarray:
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def rotations(grid: tuple[int, int], width: int, base: float = 100.0) -> np.ndarray:
    """Return the angles float32[rows * columns, width] of DINOv3's rotary embeddings.

    A patch's centre is at (y, x) in -1..1 whatever the size of the image; channel i turns by
    2 pi y / base^(4i / width), the second quarter by x, and the second half as the first: Siméoni
    et al. 2025, arXiv:2508.10104, section 3.2.

    Args:
      grid: rows and columns of patches.
      width: channels of a head, a multiple of 4.
      base: of the periods.
    """
    y, x = (2 * (np.arange(n) + 0.5) / n - 1 for n in grid)
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    frequency = base ** -np.arange(0, 1, 4 / width)
    angles = 2 * np.pi * centres[:, :, None] * frequency
    return np.tile(angles.reshape(len(centres), -1), 2).astype(np.float32)


def rotate(
    x: Float[Array, "b n heads d"], angles: Float[Array | np.ndarray, "m d"]
) -> Float[Array, "b n heads d"]:
    """Turn the last M of N tokens by their angles; the others are class and register tokens."""
    prefix = x.shape[1] - len(angles)
    cosine, sine = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    patches = x[:, prefix:]
    first, second = jnp.split(patches, 2, axis=-1)
    turned = patches * cosine + jnp.concatenate([-second, first], axis=-1) * sine
    return jnp.concatenate([x[:, :prefix], turned], axis=1)
