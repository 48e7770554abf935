"""From an image file to uint8[size, size, channels].

Like a viewer, `decode` first applies the EXIF orientation, looks up palettes, and puts transparency
over black. It stretches greys of more than 8 bits (16-bit PNG, 32-bit TIFF) such that the least and
greatest value of an image become 0 and 255, since a 12-bit image in a 16-bit file would otherwise
be almost black. Write 8-bit files if all images need one window (CT in Hounsfield units). RGB
becomes grey by ITU-R 601 luma; grey becomes RGB by repetition. Pillow's antialiased bilinear filter
resizes.

Refuses files that Pillow cannot read completely, and files of several frames.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

RESIZE = ("squash", "crop", "pad")
# Part of the cache's keys: raise it with every change to the decoded pixels.
VERSION = 1


class UnreadableImageError(Exception):
    """The reason why bytes are not a readable image."""


def decode(data: bytes, *, size: int, channels: int, resize: str) -> np.ndarray:
    """Decode an image file.

    Args:
      data: the file's bytes.
      size: height and width of the result.
      channels: 1 or 3.
      resize: "squash" to the square, whatever the aspect ratio; "crop" the centre, such that the
        short side becomes `size`; "pad" with black, such that the long side becomes `size`.

    Returns:
      uint8[size, size, channels].

    Raises:
      UnreadableImageError: with the reason.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            # An MPO is a photograph; its further frames are previews of the first.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise UnreadableImageError(
                    f"it has {getattr(image, 'n_frames', 1)} frames; give one image a file"
                )
            plain = _to_8_bit(ImageOps.exif_transpose(image))
    except UnreadableImageError:
        raise
    # Pillow raises SyntaxError, struct.error, zlib.error and more on damaged files.
    except Exception as error:
        message = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UnreadableImageError(message or type(error).__name__) from error
    return fit(plain, size=size, channels=channels, resize=resize)


def fit(image: Image.Image, *, size: int, channels: int, resize: str) -> np.ndarray:
    """Return uint8[size, size, channels] of an 8-bit grey or RGB image; see `decode`."""
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    if resize == "pad":
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas = Image.new(image.mode, (size, size))
        canvas.paste(_resized(image, inner), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        image = canvas
    else:
        box = None
        if resize == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        image = _resized(image, (size, size), box)
    return np.asarray(image, np.uint8).reshape(size, size, channels)


def fit_all(images: np.ndarray, *, size: int, channels: int, resize: str) -> np.ndarray:
    """Resize decoded images.

    Args:
      images: uint8[N, H, W], [N, H, W, 1] or [N, H, W, 3].
      size: height and width of the result.
      channels: 1 or 3.
      resize: see `decode`.

    Returns:
      uint8[N, size, size, channels].
    """
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    out = np.empty((len(images), size, size, channels), np.uint8)
    if images.ndim == 3 and images.shape[1:] == (size, size):
        out[:] = images[..., None]
    elif images.shape[1:] == (size, size, channels):
        out[:] = images
    else:
        for i, image in enumerate(images):
            out[i] = fit(Image.fromarray(image), size=size, channels=channels, resize=resize)
    return out


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    if image.size == size and box is None:
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Return the image in mode "L" or "RGB"."""
    image.load()
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_stretched(np.asarray(image, np.float64)))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over).convert(
            "RGB"
        )
    return image.convert("RGB")


def _stretched(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UnreadableImageError("it holds NaN or infinite values")
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    return np.rint((values - low) * (255.0 / (high - low))).astype(np.uint8)
