import io
import sys

import numpy as np
import pytest
from PIL import Image
from test_rasters import decode, png
from tiff_file import tiff

from medtl.data import rasters
from medtl.data.values import FileRules, UnreadableImageError

RNG = np.random.default_rng(0)
SIDE, SIZE = 128, 4  # blocks of 8 x 8
FACTOR = SIDE // (4 * SIZE)


def smooth(top, channels=1):
    """Return a picture of values up to `top` [H, W] or [H, W, C], with some noise."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    planes = [(x + c * y) / (1 + c) * 0.9 + RNG.uniform(0, 0.1, x.shape) for c in range(channels)]
    pixels = np.rint(np.stack(planes, axis=-1) * top)
    return pixels[..., 0] if channels == 1 else pixels


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def of_8_bit(mode, kind="PNG", **options):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = Image.fromarray(np.uint8(smooth(255, channels)), None if mode != "1" else "L")
    return saved(pixels if pixels.mode == mode else pixels.convert(mode), kind, **options)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return {"exif": tags.tobytes()}


DEEP_ALPHA = np.concatenate([smooth(65535, 3), smooth(65535)[..., None]], axis=-1)
FILES = {
    "grey PNG": of_8_bit("L"),
    "RGB PNG": of_8_bit("RGB"),
    "RGBA PNG": of_8_bit("RGBA"),
    "grey and alpha PNG": of_8_bit("LA"),
    "PNG of 1 bit": of_8_bit("1"),
    "palette PNG": of_8_bit("P"),
    "transparent palette PNG": of_8_bit("P", transparency=7),
    "turned PNG": of_8_bit("L", **exif(6)),
    "grey TIFF": of_8_bit("L", "TIFF"),
    "packed RGB TIFF": of_8_bit("RGB", "TIFF", compression="tiff_lzw"),
    "RGBA TIFF": of_8_bit("RGBA", "TIFF"),
    "TIFF of 1 bit": of_8_bit("1", "TIFF", compression="group4"),
    "palette TIFF": of_8_bit("P", "TIFF"),
    "JPEG in TIFF": of_8_bit("RGB", "TIFF", compression="jpeg"),
    "turned TIFF": of_8_bit("RGB", "TIFF", tiffinfo={274: 8}),
    "MinIsWhite TIFF": tiff(np.uint8(smooth(255)), photometric=0),
    "16-bit PNG": png(smooth(60000)),
    "16-bit RGB PNG": png(smooth(60000, 3)),
    "16-bit RGBA PNG": png(DEEP_ALPHA),
    "16-bit PNG with equal alpha": png(np.stack([smooth(60000), np.full((SIDE, SIDE), 9)], -1)),
    "16-bit turned PNG": saved(Image.fromarray(np.uint16(smooth(60000))), "PNG", **exif(7)),
    "16-bit TIFF": tiff(np.uint16(smooth(60000))),
    "16-bit big-endian RGB TIFF": tiff(np.uint16(smooth(60000, 3)), order=">"),
    "signed 16-bit TIFF": tiff(np.int16(smooth(60000) - 30000)),
    "signed 8-bit TIFF": tiff(np.int8(smooth(255) - 128)),
    "uint32 TIFF": tiff(np.uint32(smooth(60000))),
    "float TIFF": tiff(np.float32(smooth(60000) - 30000)),
}


def means(pixels):
    shape = (SIDE // FACTOR, FACTOR, SIDE // FACTOR, FACTOR, *pixels.shape[2:])
    return pixels.astype(np.float64).reshape(shape).mean(axis=(1, 3))


@pytest.mark.parametrize("name", FILES)
def test_an_image_in_strips_has_the_values_of_the_whole(name):
    pytest.importorskip("pyvips", reason="the extra large_images is not installed")
    most = SIDE**2 - 1
    whole = rasters.decode(FILES[name], size=SIZE, rules=FileRules())
    small = rasters.decode(FILES[name], size=SIZE, rules=FileRules(max_pixels=most))
    is_deep = isinstance(whole, rasters.Values)
    assert isinstance(small, rasters.Values) == is_deep
    if is_deep:
        assert small.words == whole.words and not small.is_inverted
        np.testing.assert_allclose(small.pixels, means(whole.pixels), rtol=1e-4, atol=1)
        with pytest.raises(UnreadableImageError, match="states no window"):
            decode(FILES[name], size=SIZE, max_pixels=most)
    else:
        assert small.size == (SIDE // FACTOR, SIDE // FACTOR)
        expected = means(np.asarray(whole.convert("RGB")))
        np.testing.assert_allclose(np.asarray(small.convert("RGB")), expected, atol=2)
    window = (-30000, 60000) if is_deep else ()
    shown = decode(FILES[name], window, size=SIZE, max_pixels=most)
    np.testing.assert_allclose(shown, decode(FILES[name], window, size=SIZE), atol=2)


def test_the_result_has_no_more_pixels_than_are_decoded_at_once():
    pytest.importorskip("pyvips", reason="the extra large_images is not installed")
    rules = FileRules(max_pixels=1000)
    assert rasters.decode(FILES["16-bit TIFF"], size=SIDE, rules=rules).pixels.shape == (26, 26)


def test_what_strips_do_not_read_as_the_whole_is_refused():
    pytest.importorskip("pyvips", reason="the extra large_images is not installed")
    for data in (
        of_8_bit("L", transparency=200),
        of_8_bit("CMYK", "TIFF"),
        of_8_bit("L", "BMP"),
        tiff(np.uint16(smooth(60000)), photometric=0),
    ):
        decode(data, (0, 1), size=SIZE)
        with pytest.raises(UnreadableImageError, match="has 16384 pixels; .* allows 16383; write"):
            decode(data, (0, 1), size=SIZE, max_pixels=SIDE**2 - 1)
    with pytest.raises(UnreadableImageError, match="allows 163; write"):  # a bomb
        decode(of_8_bit("L"), size=SIZE, max_pixels=SIDE**2 // 100)
    with pytest.raises(UnreadableImageError, match="libvips|pngload|tiff|spng"):
        decode(of_8_bit("L")[:-3000], size=SIZE, max_pixels=SIDE**2 - 1)


def test_without_pyvips_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(UnreadableImageError, match=r'pip install "medtl\[large_images\]"'):
        decode(of_8_bit("L"), size=SIZE, max_pixels=SIDE**2 - 1)
