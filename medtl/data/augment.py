"""Image augmentation and input normalization, as pure functions inside the jitted step.

Each example has its own key, folded from the seed, the step and its position in the global batch:
its variant does not depend on the division of the batch over devices. Crop, flip and rotation are
one affine map and one bilinear resampling; a part that is off is not compiled. Options outside
their range are errors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num, UInt8

from medtl.errors import UserError
from medtl.examples import Normalization

_LOG_ASPECT = 0.28768207  # log 4/3
_FIRST_EXTRA = 100  # is folded into the key of the first of the user's own augmentations


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The variations and their ranges. The default varies nothing.

    Attributes:
      crop: random resized crop: the least area, as a share of the image, in (0, 1]; 1: none.
      flip: left-right, half of the time.
      rotation: degrees, uniform in +-, in [0, 180].
      brightness: shift, uniform in +-, as a share of the range 0..255, in [0, 1].
      contrast: factor about the image's mean, uniform in 1 +-, in [0, 1].
      noise: standard deviation of Gaussian noise, as a share of the range 0..255, in [0, 1].
      extra: the user's own, `(key, image f32[H, W, C]) -> image f32[H, W, C]` in 0..255, applied to
        each example in this order after all others, each with its own key.
    """

    crop: float = 1.0
    flip: bool = False
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    extra: tuple[Callable[[Any, Any], Any], ...] = dataclasses.field(default=(), hash=False)

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(
                f"augment.crop is {self.crop}; "
                "it must be above 0 and at most 1 (the complete image: no crop)"
            )
        for name, most in (("rotation", 180), ("brightness", 1), ("contrast", 1), ("noise", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(
                    f"augment.{name} is {getattr(self, name)}; it must be from 0 (off) to {most}"
                )

    @property
    def is_identity(self) -> bool:
        """Return whether every part is off."""
        return self == Augmentation()


def example_keys(
    key: Key[Array, ""], step: Int[Array, ""] | int, position: Int[Array, " b"]
) -> Key[Array, " b"]:
    """Return one key per example.

    Args:
      key: key[], the stream of the experiment's seed that augmentation uses.
      step: int[], the optimizer step.
      position: int[B], the example's position in the global batch.

    Returns:
      key[B].
    """
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, step)))(position)


def augment(
    images: UInt8[Array, "b h w c"], keys: Key[Array, " b"], options: Augmentation
) -> Float[Array, "b h w c"]:
    """Draw one variant of each image.

    In this order: crop, flip and rotation (`affine`, `resample`), contrast, brightness, noise,
    clipping to 0..255; then the user's own and clipping again.

    Args:
      images: uint8[B, H, W, C].
      keys: key[B], one per image; see `example_keys`.
      options: the variations; static under `jit`.

    Returns:
      f32[B, H, W, C] in 0..255.

    Raises:
      UserError: one of `options.extra` returns another shape than that of its image.

    >>> images = jnp.full((2, 4, 4, 1), 100, jnp.uint8)
    >>> keys = example_keys(jax.random.key(0), 0, jnp.arange(2))
    >>> darker = Augmentation(extra=(lambda key, image: image / 2,))
    >>> augment(images, keys, darker).mean(axis=(1, 2, 3)).tolist()
    [50.0, 50.0]
    """
    if options.is_identity:
        return images.astype(jnp.float32)
    return jax.vmap(functools.partial(_augment_image, options=options))(images, keys)


def normalize(
    images: Num[Array, "*rest c"], normalization: Normalization
) -> Float[Array, "*rest c"]:
    """Return `(x - mean) / std` per channel.

    Args:
      images: uint8 or float [..., C], in 0..255.
      normalization: of a backbone's family; adapted to C channels by `Normalization.for_channels`.

    Returns:
      f32[..., C].
    """
    normalization = normalization.for_channels(images.shape[-1])
    mean, std = (jnp.asarray(v, jnp.float32) for v in (normalization.mean, normalization.std))
    return (images.astype(jnp.float32) - mean) / std


def affine(
    key: Key[Array, ""], options: Augmentation, height: int, width: int
) -> tuple[Float[Array, "2 2"], Float[Array, " 2"]]:
    """Draw the map from pixels of the variant to pixels of the image.

    `(row, column)_in = matrix @ (row, column)_out + offset`.

    The crop is a window whose area a is uniform in [crop, 1] of the image and whose aspect ratio,
    relative to the image's, is log-uniform in [3/4, 4/3] as far as the window then fits ([a, 1/a]).
    So the area is uniform exactly, and nothing is drawn twice, unlike in the usual random resized
    crop, which draws again until the window fits. The window's position is uniform in the image; it
    turns about its own centre.

    Args:
      key: key[].
      options: `crop`, `flip` and `rotation` are read.
      height: of the image, in pixels.
      width: of the image, in pixels.

    Returns:
      matrix f32[2, 2] and offset f32[2], as `scipy.ndimage.affine_transform` takes them.
    """
    area_key, aspect_key, centre_key, flip_key, angle_key = jax.random.split(key, 5)
    shape = jnp.array([height, width], jnp.float32)
    share = jnp.ones(2)  # the window's height and width
    if options.crop < 1:
        area = jax.random.uniform(area_key, minval=options.crop, maxval=1.0)
        limit = jnp.minimum(_LOG_ASPECT, -jnp.log(area))
        log_aspect = jax.random.uniform(aspect_key, minval=-limit, maxval=limit)
        share = jnp.sqrt(area) * jnp.exp(jnp.array([-0.5, 0.5]) * log_aspect)
    centre = (
        0.5 + (1 - share) * jax.random.uniform(centre_key, (2,), minval=-0.5, maxval=0.5)
    ) * shape - 0.5
    matrix = jnp.diag(share)
    if options.flip:
        matrix = matrix * jnp.where(jax.random.bernoulli(flip_key), jnp.array([1.0, -1.0]), 1.0)
    if options.rotation:
        angle = jnp.deg2rad(
            jax.random.uniform(angle_key, minval=-options.rotation, maxval=options.rotation)
        )
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        matrix = jnp.stack([cos * matrix[0] - sin * matrix[1], sin * matrix[0] + cos * matrix[1]])
    # Sums of products, not `@`: a GPU or TPU may compute that in a precision that misses the pixel.
    return matrix, centre - jnp.sum(matrix * (shape - 1) / 2, axis=1)


def resample(
    image: Num[Array, "h w c"], matrix: Float[Array, "2 2"], offset: Float[Array, " 2"]
) -> Float[Array, "h w c"]:
    """Resample an image bilinearly; the outermost pixels are repeated beyond the border.

    It is `order=1, mode="nearest"` in scipy.ndimage.

    Args:
      image: uint8 or float [H, W, C].
      matrix: f32[2, 2].
      offset: f32[2]; see `affine`.

    Returns:
      f32[H, W, C].
    """
    height, width, channels = image.shape
    rows = jnp.arange(height, dtype=jnp.float32)[:, None]
    columns = jnp.arange(width, dtype=jnp.float32)
    y = jnp.clip(matrix[0, 0] * rows + matrix[0, 1] * columns + offset[0], 0, height - 1)
    x = jnp.clip(matrix[1, 0] * rows + matrix[1, 1] * columns + offset[1], 0, width - 1)
    top = jnp.clip(jnp.floor(y), 0, max(height - 2, 0))
    left = jnp.clip(jnp.floor(x), 0, max(width - 2, 0))
    down, right = (y - top).reshape(-1, 1), (x - left).reshape(-1, 1)
    corner = (top * width + left).astype(jnp.int32).reshape(-1)
    pixels = image.reshape(-1, channels)

    def neighbor(row: int, column: int) -> jax.Array:
        index = corner + min(row, height - 1) * width + min(column, width - 1)
        return pixels.at[index].get(mode="promise_in_bounds").astype(jnp.float32)

    upper = (1 - right) * neighbor(0, 0) + right * neighbor(0, 1)
    lower = (1 - right) * neighbor(1, 0) + right * neighbor(1, 1)
    return ((1 - down) * upper + down * lower).reshape(image.shape)


def _augment_image(
    image: UInt8[Array, "h w c"], key: Key[Array, ""], options: Augmentation
) -> Float[Array, "h w c"]:
    """Draw one variant of one image; see `augment`."""
    affine_key, contrast_key, brightness_key, noise_key = jax.random.split(key, 4)
    if options.crop < 1 or options.rotation:
        x = resample(image, *affine(affine_key, options, *image.shape[:2]))
    else:
        x = image.astype(jnp.float32)
        if options.flip:
            x = jnp.where(jax.random.bernoulli(affine_key), x[:, ::-1], x)
    if options.contrast:
        factor = jax.random.uniform(
            contrast_key, minval=1 - options.contrast, maxval=1 + options.contrast
        )
        mean = jnp.mean(x)
        x = mean + factor * (x - mean)
    if options.brightness:
        x = x + 255 * jax.random.uniform(
            brightness_key, minval=-options.brightness, maxval=options.brightness
        )
    if options.noise:
        # Drawn flat: a last axis of 3 channels costs a CPU half as much again.
        x = x + 255 * options.noise * jax.random.normal(noise_key, (x.size,)).reshape(x.shape)
    x = jnp.clip(x, 0.0, 255.0)
    for i, function in enumerate(options.extra):
        x = _apply_extra(function, jax.random.fold_in(key, _FIRST_EXTRA + i), x)
    return jnp.clip(x, 0.0, 255.0) if options.extra else x


def _apply_extra(
    function: Callable[[Any, Any], Any], key: Key[Array, ""], image: Float[Array, "h w c"]
) -> Float[Array, "h w c"]:
    """Apply one of the user's own augmentations, and check its result."""
    result = function(key, image)
    shape = getattr(result, "shape", None)
    if shape != image.shape:
        name = getattr(function, "text", getattr(function, "__name__", repr(function)))
        returned = type(result).__name__ if shape is None else list(shape)
        raise UserError(
            f"augment.extra: {name} returns {returned} for an image {list(image.shape)}; "
            "it must keep the shape"
        )
    return result.astype(jnp.float32)
