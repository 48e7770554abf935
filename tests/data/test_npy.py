"""`.npy` files in the cells of images."""

import io

import numpy as np
import pytest
from test_rasters import FULL, RAMP, SHOWN, decode, rgb

from medtl import cli, data
from medtl.config import dataset
from medtl.data import summary
from medtl.data.values import FileRules, UnreadableImageError


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def test_arrays_have_the_rules_of_all_files():
    for values in (FULL.astype(">u2"), FULL.astype(np.uint16), FULL.astype(np.float32)):
        for layout in (values, values[..., None], np.asfortranarray(values), rgb(values)):
            np.testing.assert_array_equal(decode(npy(layout), (0, 65535))[..., 0], SHOWN)
            with pytest.raises(UnreadableImageError, match="from 0 to 65535 and states no window"):
                decode(npy(layout))
    hounsfield = np.rint(-1000 + 2000 * RAMP).astype(np.int16)
    np.testing.assert_allclose(decode(npy(hounsfield), (-1000, 1000))[..., 0], SHOWN, atol=1)
    np.testing.assert_array_equal(decode(npy(np.uint8(SHOWN)), (5, 9))[..., 0], SHOWN)
    colors = np.stack([SHOWN, 255 - SHOWN, 0 * SHOWN], -1).astype(np.uint8)
    np.testing.assert_array_equal(decode(npy(colors), channels=3), colors)


def test_a_slice_is_named_by_its_number():
    volume = np.stack([np.full((16, 16), 10 * i, np.uint8) for i in range(4)])
    options = {"size": 16, "channels": 1, "resize": "squash"}
    for array in (volume, np.asfortranarray(volume), volume[..., None], rgb(volume)):
        assert (data.images.decode(npy(array), frame=3, **options) == 30).all()
    for frame, words in ((4, "no slice 4, but 0 to 3"), (None, "name a slice as FILE#0")):
        with pytest.raises(UnreadableImageError, match=words):
            data.images.decode(npy(volume), frame=frame, **options)


def test_what_is_no_image_is_refused():
    pickled = np.array([{"a": 1}], object)
    for content, words in (
        (npy(pickled, allow_pickle=True), r"object array \[1\]; write whole numbers or floats"),
        (npy(RAMP > 0.5), "bool array"),
        (npy(RAMP * 1j), "complex128 array"),
        (npy(np.zeros(())), r"float64 array \[\]"),
        (npy(np.zeros((0, 4))), r"float64 array \[0, 4\]"),
        (npy(np.zeros((2, 3, 4, 5))), r"array \[2, 3, 4, 5\]; write"),
        (npy(RAMP)[:-1], "ends early or late"),
        (npy(np.where(RAMP > 0.5, np.nan, 0)), "NaN or infinite"),
        (npy(RAMP).replace(b"16, 16", b"9**9**9"), "."),
        (b"PK\3\4" + bytes(50), "ZIP archive .*npz.*; write one array a file, as .npy"),
    ):
        with pytest.raises(UnreadableImageError, match=words):
            decode(content, (0, 1))
    with pytest.raises(UnreadableImageError, match="256 pixels; config.data.max_pixels allows 255"):
        decode(npy(RAMP), (0, 1), max_pixels=255)


def test_a_manifest_of_arrays_is_read_and_inspected(tmp_path):
    rows = ["id,image_path,label"]
    for i in range(20):
        np.save(tmp_path / f"{i}.npy", np.int16(100 * RAMP) + 10 * i)
        rows.append(f"a{i},{i}.npy,{'well' if i % 2 else 'ill'}")
    np.save(tmp_path / "20.npy", np.uint8(SHOWN))
    rows.append("a20,20.npy,ill")
    (tmp_path / "m.csv").write_text("\n".join(rows))
    spec = dataset("manifest", path=str(tmp_path / "m.csv"), label="label")
    stored = summary.stored_images(spec, key="config.data.target", image_size=16)
    kinds, reasons = summary.file_kinds(stored, rules=FileRules())
    assert not reasons and [k.words for k in kinds] == ["int16 array", "8-bit grey array"]
    assert kinds[0].values[3].tolist() == [30, 79.5, 130]  # minimum, median, maximum
    flags = [f"--config.data.target.path={tmp_path / 'm.csv'}", "--config.data.target.label=label"]
    arguments = ["--config=configs/manifest.py", "--mode=inspect", f"--workdir={tmp_path / 'run'}"]
    assert cli.run([*arguments, *flags, "--config.data.window=0,300", "--config.arms=scratch"]) == 0
    assert "int16 array" in (tmp_path / "run" / "inspect.html").read_text()
