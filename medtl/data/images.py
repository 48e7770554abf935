"""From an image file to uint8[size, size, channels].

The first thing done is what a viewer does: the EXIF orientation is applied, a palette is looked up, transparency is laid over
black. Greys of more than 8 bits (16-bit PNG, 32-bit TIFF) are stretched so that the image's own least and greatest value become
0 and 255: a 12-bit image in a 16-bit file would be all but black otherwise; whoever needs one window for all images (CT in
Hounsfield units) writes 8-bit files. RGB becomes grey by ITU-R 601 luma; grey becomes RGB by repetition. Resizing is
Pillow's antialiased bilinear filter.

Refuses what Pillow cannot read in full, and files of several frames.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

RESIZE = ("squash", "crop", "pad")
# Enters the cache's keys: to be raised with every change to the pixels that come out.
VERSION = 1


class UnreadableImageError(Exception):
    """The reason why bytes are not an image that we take."""


def decode(data: bytes, *, size: int, channels: int, resize: str) -> np.ndarray:
    """Decodes an image file.

    Args:
      data: the file's bytes.
      size: height and width of the result.
      channels: 1 or 3.
      resize: "squash" to the square, whatever the aspect ratio; "crop" the centre, the short side becoming `size`; "pad" with
        black, the long side becoming `size`.

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
    """uint8[size, size, channels] of an 8-bit grey or RGB image; see `decode`."""
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
    """uint8[N, size, size, channels] of decoded images, uint8[N, H, W], [N, H, W, 1] or [N, H, W, 3]."""
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
    """Mode "L" or "RGB"."""
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
