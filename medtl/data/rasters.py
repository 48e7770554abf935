"""Decodes PNG, TIFF, JPEG and whatever else Pillow reads, without loss of bits.

Pillow shows RGB and grey with alpha of 16 bits a channel as 8 bits, takes signed bytes for unsigned
ones, and leaves 16-bit greys inverted where 0 is white. Bit depth, sample format and photometric
interpretation are therefore asked of the file, and the two bytes of a sample are unpacked by
themselves. Refuses what would still be lost, with its bit depth. A large image holds the lock
`_LARGE_ONES`, so that threads decode them one after the other. A PNG or TIFF of more pixels than
`max_pixels` is reduced in strips.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from medtl.data import strips
from medtl.data.values import FileRules, UnreadableImageError, Values

LARGE = 2**24  # pixels from which an image is reduced before it is resized
_LARGE_ONES = threading.Lock()
_BITS, _PHOTOMETRIC, _PLANAR, _FORMAT, _SUBFILE = 258, 262, 284, 339, 254  # TIFF 6.0, section 8
_ORIENTATION, _SAMPLES, _ROWS, _TILE_HEIGHT = 274, 277, 278, 323
_IN_STRIPS = 100  # times max_pixels, so that a file of a few bytes does not take hours
_INTERPRETATIONS = {0: "MinIsWhite", 1: "MinIsBlack", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
# The low bytes of a 16-bit sample are the high ones of the other byte order.
_OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def decode(
    data: bytes, *, size: int, rules: FileRules, frame: int | None = None
) -> Image.Image | Values:
    """Decode an image file.

    Args:
      data: the file's bytes.
      size: the height and width that are needed; an image of more than `LARGE` pixels is reduced
        to about four times of it.
      rules: see `FileRules`.
      frame: counted from 0; None: the file has one, or smaller copies of it.

    Returns:
      An image of mode "L" or "RGB" that is turned as EXIF says, or values of more than 8 bits.

    Raises:
      UnreadableImageError: with the reason.
      Exception: whatever Pillow raises on damaged files.
    """
    with _opened(data) as image:
        _choose_frame(image, frame, size)
        pixels = image.width * image.height
        if pixels > min(LARGE, rules.max_pixels):
            image.draft("", (4 * size, 4 * size))  # a JPEG is decoded at 1/2, 1/4 or 1/8
        if image.width * image.height > rules.max_pixels and _has_strips(image, rules):
            least = math.ceil(math.sqrt(pixels / rules.max_pixels))
            with _LARGE_ONES:
                return _in_strips(image, data, max(least, min(image.size) // (4 * size)))
        _refuse_too_large(image, pixels, rules.max_pixels)
        with _LARGE_ONES if pixels > LARGE else contextlib.nullcontext():
            deep = _deep(image, data)
            if deep is not None:
                return deep
            if image.getexif().get(_ORIENTATION, 1) != 1:  # it would copy the others, too
                return reduced(_to_8_bit(ImageOps.exif_transpose(image)), size)
            return reduced(_to_8_bit(image), size)


def _refuse_too_large(image: ImageFile.ImageFile, stored: int, most: int) -> None:
    """Refuse an image of more pixels than are decoded at once, with the memory that it needs."""
    pixels = image.width * image.height
    if pixels <= most:
        return
    if pixels < stored:
        raise UnreadableImageError(
            f"it has {stored} pixels, {pixels} as it is decoded; config.data.max_pixels allows "
            f"{most}"
        )
    gib = pixels * 4 / 2**30  # Pillow has 4 bytes for an RGB pixel
    raise UnreadableImageError(
        f"it has {pixels} pixels; config.data.max_pixels allows {most}; write a JPEG, a TIFF in "
        "small strips, or a TIFF with smaller copies of it (a pyramid), which are read at reduced "
        "size, or allow more: "
        f"it takes up to {gib:.1f} GiB of memory"
    )


def _has_strips(image: ImageFile.ImageFile, rules: FileRules) -> bool:
    """Return whether `_in_strips` reads it as the whole would be read, in bounded memory."""
    tags = getattr(image, "tag_v2", {})
    rawmode, most = _rawmode(image), rules.max_pixels
    if image.width * image.height > _IN_STRIPS * most:
        return False
    if image.format != "TIFF":
        has_key = "transparency" in image.info and image.mode != "P"  # a colour that is transparent
        return image.format == "PNG" and not image.info.get("interlace") and not has_key
    black_or_white = (1, 2) if _is_deep_tiff(image) else (0, 1, 2, 3, 6)
    rows = tags.get(_TILE_HEIGHT) or min(tags.get(_ROWS, image.height), image.height)
    return (
        tags.get(_PHOTOMETRIC) in black_or_white
        and (tags.get(_SAMPLES, 1) in (1, 3) or rawmode == "RGBA")
        and rows * image.width <= max(most, LARGE)
    )


def _in_strips(image: ImageFile.ImageFile, data: bytes, factor: int) -> Image.Image | Values:
    """Decode a PNG or TIFF at a `factor`-th of its sides; deep values are means of blocks."""
    is_png, rawmode = image.format == "PNG", _rawmode(image)
    is_deep = ";16" in rawmode if is_png else _is_deep_tiff(image)
    pixels = strips.reduce(data, page=image.tell(), factor=factor, is_deep=is_deep)
    exif = Image.Image.getexif(image)  # that of a PNG's own class loads the pixels
    pixels = _turned(pixels, exif.get(_ORIENTATION, 1))
    if not is_deep:
        return Image.fromarray(np.ascontiguousarray(pixels))
    words = _png_words(rawmode) if is_png else _tiff_words(image.tag_v2)  # type: ignore[attr-defined]
    return Values(pixels, words)


def reduced(image: Image.Image, size: int) -> Image.Image:
    """Average blocks of a large image of mode "L" or "RGB" to about four times `size`."""
    factor = min(image.size) // (4 * size)
    return image.reduce(factor) if factor > 1 and image.width * image.height > LARGE else image


class _NoLimit:
    """Lifts Pillow's limit of pixels, which is one for the whole program, while threads are within.

    `max_pixels` stands in for it.
    """

    def __init__(self) -> None:
        self._lock, self._within, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._within += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                Image.MAX_IMAGE_PIXELS = self._limit


_NO_LIMIT = _NoLimit()


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    with _NO_LIMIT:
        try:
            image = Image.open(io.BytesIO(data))
        except Image.UnidentifiedImageError:
            raise UnreadableImageError(_unknown(data)) from None
        with image:
            yield image


def _unknown(data: bytes) -> str:
    """Return the reason why Pillow does not read a file."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return "not an image"
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return f"it is a {_tiff_words(tags)}, which is not read; write 8, 16 or 32 bits"
    except Exception:  # whatever Pillow raises on damaged tags
        return "not an image"


def _tiff_words(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    bits = max(tags.get(_BITS, (1,)))
    kind = {2: "signed ", 3: "float "}.get(max(tags.get(_FORMAT, (1,))), "")
    photometric = tags.get(_PHOTOMETRIC, 1)
    return f"{kind}{bits}-bit {_INTERPRETATIONS.get(photometric, photometric)} TIFF"


def _choose_frame(image: ImageFile.ImageFile, frame: int | None, size: int) -> None:
    """Go to the frame; without one, to the smallest copy in a pyramid that is large enough."""
    n = getattr(image, "n_frames", 1)
    if frame is not None:
        if frame >= n:
            raise UnreadableImageError(f"it has no frame {frame}, but 0 to {n - 1}")
        image.seek(frame)
    elif n > 1 and image.format != "MPO":  # a photograph, followed by previews of it
        sides = []
        for i in range(n):
            image.seek(i)
            sides.append(min(image.size))
            tags = getattr(image, "tag_v2", {})
            if i and not tags.get(_SUBFILE, 0) & 1:  # bit 0: a reduced copy of another frame
                raise UnreadableImageError(
                    f"it has {n} frames; give one image a file, or name one as FILE#0"
                )
        enough = [i for i, side in enumerate(sides) if side >= 4 * size]
        image.seek(min(enough, key=lambda i: sides[i]) if enough else int(np.argmax(sides)))


def _deep(image: ImageFile.ImageFile, data: bytes) -> Values | None:
    """Return the values of an image that 8 unsigned bits do not hold; None: they do."""
    codec = image.tile[0].codec_name if image.tile else ""
    rawmode = _rawmode(image)
    is_deep = image.mode.startswith("I") or image.mode == "F"
    if image.format == "TIFF":
        return _deep_tiff(image, data, rawmode, is_deep)
    if image.format == "PNG" and ";16" in rawmode:
        words = _png_words(rawmode)  # before the image is loaded
        turned = _turned(_samples(image, data, rawmode), image.getexif().get(_ORIENTATION, 1))
        return Values(_without_alpha(turned), words)
    args: Any = image.tile[0].args if image.tile else ""
    maximum = args[1] if codec == "ppm" else 0
    if is_deep or codec == "SGI16" or maximum > 255 or _is_deep_jpeg_2000(data, image):
        raise UnreadableImageError(
            f"it is a {image.format} of more than 8 bits, which is not read; write a 16-bit PNG or "
            "TIFF"
        )
    return None


def _png_words(rawmode: str) -> str:
    kinds = {"I;16B": "grey", "LA;16B": "grey with alpha", "RGB;16B": "RGB"}
    return f"16-bit {kinds.get(rawmode, 'RGBA')} PNG"


def _is_deep_tiff(image: ImageFile.ImageFile) -> bool:
    """Return whether 8 unsigned bits do not hold the values."""
    tags = image.tag_v2  # type: ignore[attr-defined]  # only TIFFs have tags
    is_deep = image.mode.startswith("I") or image.mode == "F" or max(tags.get(_BITS, (1,))) > 8
    return is_deep or max(tags.get(_FORMAT, (1,))) == 2


def _deep_tiff(
    image: ImageFile.ImageFile, data: bytes, rawmode: str, is_deep: bool
) -> Values | None:
    tags = image.tag_v2  # type: ignore[attr-defined]  # only TIFFs have tags
    bits, is_signed = max(tags.get(_BITS, (1,))), max(tags.get(_FORMAT, (1,))) == 2
    is_inverted, words = tags.get(_PHOTOMETRIC) == 0, _tiff_words(tags)
    if not _is_deep_tiff(image):
        return None
    layout = rawmode.partition(";")[0]
    if not is_deep and (
        (bits > 8 and (layout not in ("RGB", "RGBA", "RGBX") or tags.get(_PLANAR, 1) != 1))
        or (bits <= 8 and image.mode != "L")
    ):
        raise UnreadableImageError(
            f"it is a {words}, which is not read; write grey or RGB in chunks"
        )
    if is_deep or bits <= 8:
        pixels = np.asarray(image)
        if is_signed and bits <= 8:
            # Pillow has inverted the bytes of MinIsWhite as if they had no sign.
            pixels = (255 - pixels if is_inverted else pixels).view(np.int8)
        elif bits == 32 and image.mode == "I" and not is_signed:
            pixels = pixels.view(np.uint32)
        return Values(pixels, words, is_inverted=is_inverted)
    return Values(_without_alpha(_samples(image, data, rawmode)), words)


def _rawmode(image: ImageFile.ImageFile) -> str:
    args = image.tile[0].args if image.tile else ""
    return str(args[0] if isinstance(args, tuple) else args)


def _samples(image: ImageFile.ImageFile, data: bytes, rawmode: str) -> np.ndarray:
    """Return uint16[H, W], or with the channels [H, W, C]."""
    if rawmode.startswith("I;16"):
        return np.asarray(image)
    if rawmode == "LA;16B":  # four bytes, unpacked as if they were RGBA of 8 bits
        return _unpacked(image, data, "RGBA", "RGBA").view(">u2")
    mode = "RGBA" if rawmode.startswith("RGBA") else "RGB"
    high = _unpacked(image, data, mode, rawmode).astype(np.uint16)
    low = _unpacked(image, data, mode, rawmode[:-1] + _OTHER_ORDER[rawmode[-1]])
    return (high << 8) | low


def _unpacked(image: ImageFile.ImageFile, data: bytes, mode: str, rawmode: str) -> np.ndarray:
    """Return uint8[H, W, C], the frame as its decoder unpacks it in another raw mode."""
    with _opened(data) as again:
        again.seek(image.tell())
        again._mode = mode
        again.tile = [
            tile._replace(args=(rawmode, *tile.args[1:]) if type(tile.args) is tuple else rawmode)
            for tile in again.tile
        ]
        return np.asarray(again)


def _without_alpha(samples: np.ndarray) -> np.ndarray:
    """Put the last of two or four channels over black, unless it is the same everywhere."""
    if samples.ndim == 2 or samples.shape[-1] == 3:
        return samples
    color, alpha = samples[..., :-1], samples[..., -1:]
    if alpha.min() < alpha.max():
        color = np.rint(color * (alpha / 65535.0)).astype(np.uint16)
    return color[..., 0] if color.shape[-1] == 1 else color


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn as EXIF's orientation says; a TIFF is turned when Pillow loads it."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def _is_deep_jpeg_2000(data: bytes, image: Image.Image) -> bool:
    """Return whether its first component has more than 8 bits: Ssiz in ISO 15444-1, A.5.1."""
    start = data.find(b"\xff\x4f\xff\x51")
    return image.format == "JPEG2000" and 0 <= start < len(data) - 42 and data[start + 42] & 127 > 7


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Return the image in mode "L" or "RGB"."""
    image.load()
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over).convert(
            "RGB"
        )
    return image.convert("RGB")
