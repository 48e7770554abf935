import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiff_file import tiff

from medtl.data import images, rasters
from medtl.data.values import FileRules, UnreadableImageError, Values, is_window

RNG = np.random.default_rng(0)
RAMP = np.linspace(0, 1, 256).reshape(16, 16)
SHOWN = np.rint(RAMP * 255)
TWELVE, FULL = np.rint(RAMP * 4095), np.rint(RAMP * 65535)


def png(pixels):
    """Return a 16-bit PNG of uint16[H, W] or [H, W, C], with each kind of row filter that is 0."""
    pixels = np.atleast_3d(pixels).astype(">u2")
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def decode(data, window=(), channels=1, size=16, **options):
    rules = FileRules(window=window, **options)
    return images.decode(data, size=size, channels=channels, resize="squash", rules=rules)


def with_alpha(values, alpha=65535):
    return np.stack([*np.atleast_3d(values).transpose(2, 0, 1), np.full(RAMP.shape, alpha)], -1)


def rgb(values):
    return np.stack([values] * 3, -1)


FILES = {
    "grey PNG": (lambda v: png(v), False),
    "grey and alpha PNG": (lambda v: png(with_alpha(v)), False),
    "RGB PNG": (lambda v: png(rgb(v)), False),
    "RGBA PNG": (lambda v: png(with_alpha(rgb(v))), False),
    "TIFF": (lambda v: tiff(v.astype(np.uint16)), False),
    "big-endian TIFF": (lambda v: tiff(v.astype(np.uint16), order=">"), False),
    "packed TIFF": (lambda v: tiff(v.astype(np.uint16), packed=True), False),
    "RGB TIFF": (lambda v: tiff(rgb(v).astype(np.uint16)), False),
    "big-endian RGB TIFF": (lambda v: tiff(rgb(v).astype(np.uint16), order=">"), False),
    "packed RGB TIFF": (lambda v: tiff(rgb(v).astype(np.uint16), packed=True), False),
    "RGBA TIFF": (lambda v: tiff(with_alpha(rgb(v)).astype(np.uint16)), False),
    "MinIsWhite TIFF": (lambda v: tiff(v.astype(np.uint16), photometric=0), True),
    "uint32 TIFF": (lambda v: tiff(v.astype(np.uint32) * 65537), False),
    "float TIFF": (lambda v: tiff(v.astype(np.float32)), False),
}


@pytest.mark.parametrize("values", [TWELVE, FULL], ids=["12 bit", "16 bit"])
@pytest.mark.parametrize("kind", FILES)
def test_a_ramp_is_the_same_picture_in_every_file(kind, values):
    write, is_inverted = FILES[kind]
    data = write(values.max() - values if is_inverted else values)
    top = float(values.max()) * (65537 if kind.startswith("uint32") else 1)
    for window in ((0, top), ("0%", "100%")):
        shown = decode(data, window, channels=3)
        assert (shown == shown[..., :1]).all()
        assert np.abs(shown[..., 0] - np.round(RAMP * 255)).max() <= 1
    words = "float 32-bit" if kind == "float TIFF" else "32-bit" if "32" in kind else "16-bit"
    with pytest.raises(UnreadableImageError, match=f"{words} .*states no window; set config.data"):
        decode(data)


def test_both_bytes_of_each_channel_are_kept():
    values = RNG.integers(0, 65536, (16, 16, 3)).astype(np.uint16)
    for data in (png(values), tiff(values), tiff(values, order=">"), tiff(values, packed=True)):
        decoded = rasters.decode(data, size=16, rules=FileRules())
        np.testing.assert_array_equal(decoded.pixels, values)


def test_alpha_of_16_bits_is_put_over_black():
    alpha = np.where(RAMP > 0.5, 65535, 0)
    pixels = np.stack([np.full(RAMP.shape, 4095), alpha], -1)
    shown = decode(png(pixels), (0, 4095))[..., 0]
    np.testing.assert_array_equal(shown, np.where(RAMP > 0.5, 255, 0))


def test_hounsfield_units_stay_what_they_are():
    pixels = np.rint(-1000 + 2000 * RAMP).astype(np.int16)
    np.testing.assert_allclose(decode(tiff(pixels), (-1000, 1000))[..., 0], SHOWN, atol=1)
    lung = decode(tiff(pixels), (-1000, 0))[..., 0]
    assert (lung[pixels >= 0] == 255).all()
    np.testing.assert_allclose(lung[pixels < 0], (pixels[pixels < 0] + 1000) * 0.255, atol=0.51)
    brighter = tiff(np.maximum(pixels, 500).astype(np.int16))  # of another range, on the same scale
    assert (decode(brighter, (-1000, 1000))[..., 0][pixels >= 500] >= 191).all()
    with pytest.raises(UnreadableImageError, match="signed 16-bit .* from -1000 to 1000"):
        decode(tiff(pixels))


def test_signed_bytes_and_8_bit_minimum_is_white():
    pixels = np.rint(-100 + 200 * RAMP).astype(np.int8)
    np.testing.assert_allclose(decode(tiff(pixels), (-100, 100))[..., 0], SHOWN, atol=2)
    inverted = np.uint8(255 - SHOWN)
    np.testing.assert_array_equal(decode(tiff(inverted, photometric=0))[..., 0], SHOWN)
    np.testing.assert_array_equal(decode(tiff(np.uint8(SHOWN)), (10, 20))[..., 0], SHOWN)


def test_what_would_lose_bits_is_refused_with_its_bit_depth():
    for data, words in (
        (tiff(RAMP), "float 64-bit MinIsBlack TIFF, which is not read"),
        (tiff(with_alpha(rgb(FULL)).astype(np.uint16), photometric=5), "16-bit CMYK TIFF"),
        (b"P5 16 16 4095\n" + TWELVE.astype(">u2").tobytes(), "PPM of more than 8 bits"),
        (b"P6 16 16 4095\n" + rgb(TWELVE).astype(">u2").tobytes(), "PPM of more than 8 bits"),
    ):
        with pytest.raises(UnreadableImageError, match=words):
            decode(data, ("0%", "100%"))
    buffer = io.BytesIO()
    Image.fromarray(TWELVE.astype(np.uint16)).save(buffer, "JPEG2000")
    with pytest.raises(UnreadableImageError, match="JPEG2000 of more than 8 bits"):
        decode(buffer.getvalue(), (0, 4095))
    with pytest.raises(UnreadableImageError, match="NaN or infinite"):
        decode(tiff(np.full((4, 4), np.nan, np.float32)), (0, 1))
    assert (decode(png(np.full((4, 4), 7)), ("0%", "100%")) == 0).all()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_16_bit_png_is_turned_as_exif_says(orientation):
    pixels = np.uint8(RNG.integers(0, 255, (8, 8)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    files = []
    for image in (Image.fromarray(pixels), Image.fromarray(pixels.astype(np.uint16))):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", exif=exif.tobytes())
        files.append(buffer.getvalue())
    shown = [decode(data, (0, 255), size=8) for data in files]
    np.testing.assert_array_equal(*shown)


def test_images_of_any_size_are_reduced_and_the_limit_is_a_field():
    side = 10_000  # more than Pillow's own limit
    pixels = np.zeros((side, side), np.uint8)
    pixels[:, side // 2 :] = 255
    for kind, options in (("PNG", {"compress_level": 1}), ("JPEG", {}), ("TIFF", {})):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        shown = decode(buffer.getvalue(), size=8)[..., 0]
        np.testing.assert_allclose(shown[:, [0, 1, 2, 5, 6, 7]], [[0] * 3 + [255] * 3] * 8, atol=3)
        if kind == "JPEG":  # decoded at an eighth of its sides
            small = decode(buffer.getvalue(), size=8, max_pixels=(side // 8) ** 2)[..., 0]
            np.testing.assert_array_equal(small, shown)
            with pytest.raises(UnreadableImageError, match="1562500 as it is decoded"):
                decode(buffer.getvalue(), size=8, max_pixels=(side // 8) ** 2 - 1)
            continue
        with pytest.raises(UnreadableImageError, match="has 100000000 pixels; config.data.max_pix"):
            decode(buffer.getvalue(), max_pixels=999_999)
    assert Image.MAX_IMAGE_PIXELS < 10**8  # Pillow's limit holds again for everyone else


def test_a_frame_is_named_by_its_number():
    frames = [Image.fromarray(np.full((8, 8), 50 * i, np.uint8)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    options = {"size": 4, "channels": 1, "resize": "squash"}
    for i in range(3):
        assert (images.decode(buffer.getvalue(), frame=i, **options) == 50 * i).all()
    with pytest.raises(UnreadableImageError, match="no frame 3, but 0 to 2"):
        images.decode(buffer.getvalue(), frame=3, **options)


def test_a_pyramid_gives_the_smallest_copy_that_is_large_enough():
    copies = [Image.fromarray(np.full((n, n), n, np.uint8)) for n in (200, 100, 40, 10)]
    buffer = io.BytesIO()
    with_flag = [{254: 1}] * 3
    for copy, info in zip(copies[1:], with_flag, strict=True):
        copy.encoderinfo = {"tiffinfo": info}
    copies[0].save(buffer, "TIFF", save_all=True, append_images=copies[1:])
    assert decode(buffer.getvalue(), size=10).max() == 40
    assert decode(buffer.getvalue(), size=25).max() == 100
    assert decode(buffer.getvalue(), size=150).max() == 200


def test_a_window_is_two_numbers_or_two_percentiles():
    assert all(map(is_window, [(), (-1000, 400), (0.0, 1.5), ("0%", "99.5%")]))
    assert not any(map(is_window, [(1,), (1, 1), (1, 0), ("a", "b"), ("99%", "1%"), ("0", "9")]))
    assert not any(map(is_window, [(0, float("nan")), (0, float("inf")), ("0%", 100)]))
    shown = Values(np.arange(101.0)[None], "test").windowed(("10%", "90%"))[0]
    assert (shown[:11] == 0).all() and (shown[90:] == 255).all() and shown[50] == 128
