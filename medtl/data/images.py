"""From an image file to uint8[size, size, channels].

Like a viewer, `decode` first applies the EXIF orientation, looks up palettes, and puts transparency
over black. Files of more than 8 bits (PNG, TIFF, DICOM, NIfTI, .npy) are shown through a window in
their own units: `data.window`, else the one that the file states; without either they are refused,
since a guessed range would differ from image to image. 8-bit files are shown as they are. RGB
becomes grey by ITU-R 601 luma; grey becomes RGB by repetition. Pillow's antialiased bilinear filter
resizes.

Refuses files that cannot be read completely, and files of several frames of which none is named.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from medtl.data import dicom, nifti, npy, rasters
from medtl.data.values import FileRules, UnreadableImageError, Values

RESIZE = ("squash", "crop", "pad")
# Part of the cache's keys: raise it with every change to the decoded pixels.
VERSION = 2
_NO_RULES = FileRules()


def decode(
    data: bytes,
    *,
    size: int,
    channels: int,
    resize: str,
    rules: FileRules = _NO_RULES,
    frame: int | None = None,
) -> np.ndarray:
    """Decode an image file.

    Args:
      data: the file's bytes.
      size: height and width of the result.
      channels: 1 or 3.
      resize: "squash" to the square, whatever the aspect ratio; "crop" the centre, such that the
        short side becomes `size`; "pad" with black, such that the long side becomes `size`.
      rules: the window, the largest image, and what is accepted.
      frame: the frame or slice, counted from 0; None: the file has one.

    Returns:
      uint8[size, size, channels].

    Raises:
      UnreadableImageError: with the reason.
    """
    try:
        image = read(data, size=size, rules=rules, frame=frame)
        if isinstance(image, Values):
            image = rasters.reduced(Image.fromarray(image.windowed(rules.window)), size)
    except UnreadableImageError:
        raise
    # Pillow raises SyntaxError, struct.error, zlib.error and more on damaged files.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableImageError(reason or type(error).__name__) from error
    return fit(image, size=size, channels=channels, resize=resize)


def read(data: bytes, *, size: int, rules: FileRules, frame: int | None) -> Image.Image | Values:
    """Return an 8-bit image, or values in the file's own units; a large image may be reduced.

    Args:
      data: the file's bytes.
      size: the height and width that are needed.
      rules: see `decode`.
      frame: see `decode`.

    Raises:
      UnreadableImageError: with the reason.
      Exception: whatever the file's reader raises on damaged files.
    """
    if dicom.is_dicom(data):
        return dicom.decode(data, rules=rules, frame=frame)
    if nifti.is_nifti(data):
        return nifti.decode(data, rules=rules, frame=frame)
    if npy.is_npy(data):
        return npy.decode(data, rules=rules, frame=frame)
    if data[:4] == b"PK\3\4":
        raise UnreadableImageError("it is a ZIP archive (.npz); write one array a file, as .npy")
    return rasters.decode(data, size=size, rules=rules, frame=frame)


def fit(image: Image.Image, *, size: int, channels: int, resize: str) -> np.ndarray:
    """Return uint8[size, size, channels] of an 8-bit grey or RGB image; see `decode`."""
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
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
