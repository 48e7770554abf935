import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from medtl import data
from medtl.data import cache, images
from medtl.errors import UserError

KEY = "config.data.target"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (10, 20), np.uint8)
COLOR = RNG.integers(0, 256, (10, 20, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data, size=10, channels=1, resize="crop"):
    return images.decode(data, size=size, channels=channels, resize=resize)


def test_8_bit_grey_is_what_is_in_the_file():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(GREY)))[..., 0], GREY[:, 5:15])


def test_grey_as_rgb_is_repeated_and_rgb_as_grey_is_luma():
    three = decode(encoded(Image.fromarray(GREY)), channels=3)
    assert three.shape == (10, 10, 3)
    assert (three == three[..., :1]).all()
    one = decode(encoded(Image.fromarray(COLOR)))[..., 0]
    luma = COLOR[:, 5:15] @ [0.299, 0.587, 0.114]
    assert np.abs(one - luma).max() <= 1


def test_palette_bilevel_and_transparency():
    palette = Image.fromarray(COLOR).quantize(16)
    np.testing.assert_array_equal(
        decode(encoded(palette), channels=3), np.asarray(palette.convert("RGB"))[:, 5:15]
    )
    bits = Image.fromarray(GREY > 100)
    np.testing.assert_array_equal(decode(encoded(bits))[..., 0], 255 * (GREY > 100)[:, 5:15])
    alpha = np.dstack(
        [np.full((10, 20, 3), 200, np.uint8), np.repeat(np.uint8([0, 255]), 10)[None].repeat(10, 0)]
    )
    seen = decode(encoded(Image.fromarray(alpha)))[..., 0]
    assert (seen[:, :5] == 0).all()
    assert (seen[:, 5:] == 200).all()


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = decode(encoded(Image.fromarray(GREY), exif=exif.tobytes()))
    np.testing.assert_array_equal(turned[..., 0], np.rot90(GREY, -1)[5:15])


def test_squash_crop_and_pad():
    wide = np.zeros((10, 20), np.uint8)
    wide[:, :10] = 255
    data_ = encoded(Image.fromarray(wide))
    np.testing.assert_array_equal(decode(data_, 10, resize="crop")[0, :, 0], [255] * 5 + [0] * 5)
    squashed = decode(data_, 10, resize="squash")[..., 0]
    np.testing.assert_array_equal(
        squashed[:, [0, 1, 2, 7, 8, 9]], np.uint8([[255] * 3 + [0] * 3] * 10)
    )
    padded = decode(encoded(Image.fromarray(np.full((10, 20), 255, np.uint8))), 20, resize="pad")[
        ..., 0
    ]
    np.testing.assert_array_equal(padded[:, 0], [0] * 5 + [255] * 10 + [0] * 5)


def test_shrinking_averages_instead_of_dropping_pixels():
    stripes = np.tile(np.uint8([0, 255]), (64, 32))
    small = decode(encoded(Image.fromarray(stripes)), 8, resize="squash")[1:-1, 1:-1]
    assert np.abs(small.astype(int) - 127).max() <= 4


def test_files_of_several_frames_are_refused():
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    with pytest.raises(images.UnreadableImageError, match="2 frames"):
        decode(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))


def load(spec, folder, **options):
    working = {
        "image_size": 6,
        "channels": 3,
        "resize": "pad",
        "cache": "disk",
        "cache_dir": str(folder / "cache"),
    }
    return data.load(spec, key=KEY, **working | options)


def test_every_cache_gives_the_same_pixels(write, twelve, folder):
    spec = write(twelve)
    memory, disk, stream = (load(spec, folder, cache=kind) for kind in ("memory", "disk", "stream"))
    assert isinstance(disk.image, np.memmap)
    np.testing.assert_array_equal(memory.image, disk.image)
    np.testing.assert_array_equal(memory.image, [stream.image[i] for i in range(12)])
    assert memory.fingerprint == disk.fingerprint == stream.fingerprint
    assert list(cache.digests(memory.image)) == list(cache.digests(stream.image))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stream.image))[3], memory.image[3])


def test_a_cached_file_is_used_and_its_key_is_the_content(write, twelve, folder):
    spec = write(twelve)
    expected = np.array(load(spec, folder).image)
    (file,) = (folder / "cache").iterdir()
    stamp = file.stat().st_mtime_ns
    load(spec, folder)
    assert file.stat().st_mtime_ns == stamp
    load(spec, folder, image_size=5)
    assert len(list((folder / "cache").iterdir())) == 2
    (folder / "03.png").write_bytes((folder / "05.png").read_bytes())
    changed = load(spec, folder).image
    np.testing.assert_array_equal(changed[3], expected[5])
    assert len(list((folder / "cache").iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "garbage", "zeros", "one bit"])
def test_a_damaged_cache_is_built_again(write, twelve, folder, damage):
    spec = write(twelve)
    expected = np.array(load(spec, folder).image)
    (file,) = (folder / "cache").iterdir()
    content = file.read_bytes()
    damaged = {
        "cut": content[:-7],
        "longer": content + b"x",
        "empty": b"",
        "garbage": os.urandom(500),
        "zeros": content[:-90] + bytes(80) + content[-10:],
        "one bit": content[:-90] + bytes([content[-90] ^ 1]) + content[-89:],
    }
    file.write_bytes(damaged[damage])
    np.testing.assert_array_equal(load(spec, folder).image, expected)
    assert file.read_bytes() == content
    assert [f.name for f in (folder / "cache").iterdir()] == [file.name]


def test_auto_goes_by_size(write, twelve, folder, monkeypatch):
    spec = write(twelve)
    assert type(load(spec, folder, cache="auto").image) is np.ndarray
    monkeypatch.setattr(cache, "MEMORY_LIMIT", 100)
    assert isinstance(load(spec, folder, cache="auto").image, np.memmap)
    monkeypatch.setattr(cache, "DISK_LIMIT", 100)
    assert isinstance(load(spec, folder, cache="auto").image, cache.DecodedOnDemand)


def test_a_cache_folder_that_cannot_be_written(write, twelve, folder):
    (folder / "file").write_text("")
    with pytest.raises(UserError, match=r"config\.data\.cache_dir: cannot write"):
        load(write(twelve), folder, cache_dir=str(folder / "file"))


def test_an_image_that_vanishes_in_the_run_is_named(write, twelve, folder):
    stream = load(write(twelve), folder, cache="stream").image
    (folder / "02.png").unlink()
    with pytest.raises(UserError, match=r"'02.png' \(line 4: No such file"):
        stream[2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"resize": "squish"}, "config.data.resize is 'squish'; did you mean 'squash'?"),
        ({"cache": "dsk"}, "config.data.cache is 'dsk'; did you mean 'disk'?"),
        ({"channels": 2}, "config.data.channels is 2"),
        ({"image_size": 0}, "config.data.image_size is 0"),
    ],
)
def test_refuses_options_that_are_none(write, twelve, folder, option, message):
    with pytest.raises(UserError) as error:
        load(write(twelve), folder, **option)
    assert message in str(error.value)
