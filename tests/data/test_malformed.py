"""Malformed files give data, or one UserError of at most two lines.

Never another exception, a label that wraps around, or a row that is dropped silently. Hypothesis
makes the files, the same ones each time; its deadline stands in for a hang.
"""

import csv
import io
import shutil
import struct
import tempfile
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.errors import UserError

# Elsewhere in the tests a warning is an error, which would end the reading that goes on for users.
pytestmark = pytest.mark.filterwarnings("ignore")

KEY = "config.data.target"
RULES = data.FileRules(window=(0, 255), max_pixels=10**6)
EACH = settings(
    max_examples=80,
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=20),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)


def outcome(spec, **options):
    """Return the examples, or the error's message after checking its form."""
    options = {"require_label": True, "require_train": True} | options
    working = {"image_size": 8, "channels": 1, "resize": "squash"}
    cache = {"cache": "memory", "cache_dir": ""}
    try:
        data.check(spec, key=KEY, rules=RULES, **options)
        return data.load(spec, key=KEY, rules=RULES, **working, **cache, **options)
    except UserError as error:
        message = str(error)
    assert message.strip() and message.count("\n") <= 1 and len(message) < 1500
    assert Path(spec.path).name in message or KEY in message
    return message


@st.composite
def damages(draw):
    """Return a function that flips, drops, inserts or cuts bytes; most near the file's start."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "drop", "insert", "zero", "cut"]),
                st.one_of(st.integers(0, 200), st.integers(0, 5000)),
                st.binary(min_size=1, max_size=4),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def damage(content):
        content = bytearray(content)
        for kind, position, value in edits:
            i = position % max(1, len(content))
            part = slice(i, i + len(value))
            if kind == "flip":
                content[part] = bytes(
                    a ^ (b or 1) for a, b in zip(content[part], value, strict=False)
                )
            elif kind == "cut":
                del content[i:]
            else:
                content[part] = {"drop": b"", "insert": value + content[part]}.get(
                    kind, bytes(len(content[part]))
                )
        return bytes(content)

    return damage


# CSV

HEADER = ["image_path", "diagnosis", "split", "patient_id", "weight", "site", "age", "notes"]
ROWS = [HEADER] + [
    f"{i:02d}.png,{('well', 'ill')[i % 2]},{'train' if i < 6 else 'test'},p{i},1,a,"
    f"{50 + 3 * i % 7},a note of {i} words on a patient".split(",")
    for i in range(12)
]
CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *(
                "",
                " ",
                "nan",
                "NaN",
                "?",
                "-1",
                "inf",
                "1e400",
                "9" * 5000,
                "1e-999999999",
                "1_000",
            ),
            *("\0", "00.png\0", '"', "a\nb", "\ufeff", "\u202e", "١", "=1+1", "x" * 5000, "a;b"),
            *("a|b", "1E5", "train", "subgroup_", "image_path", "../../x", "/", "#", "00.png#1"),
        ]
    ),
)


INPUTS = st.sampled_from([("image",), ("table",), ("image", "table", "text")])


def manifest(folder, content):
    for i in range(12):
        Image.fromarray(PIXELS[i]).save(Path(folder) / f"{i:02d}.png")
    path = Path(folder) / "manifest.csv"
    path.write_bytes(content)
    return dataset("manifest", path=str(path))


def csv_bytes(rows, encoding="utf-8", **dialect):
    file = io.StringIO(newline="")
    csv.writer(file, **dialect).writerows(rows)
    return file.getvalue().encode(encoding, errors="replace")


@EACH
@given(
    edits=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7), CELLS), min_size=1, max_size=4),
    multi_label=st.booleans(),
    require_label=st.booleans(),
    inputs=INPUTS,
)
def test_odd_cells(edits, multi_label, require_label, inputs):
    rows = [list(row) for row in ROWS]
    for line, column, cell in edits:
        rows[line][column] = cell
    with tempfile.TemporaryDirectory() as folder:
        spec = manifest(folder, csv_bytes(rows))
        spec.multi_label = multi_label
        read = outcome(spec, require_label=require_label, inputs=inputs)
    if not isinstance(read, str):
        assert len(read) == 12, "no row is dropped"
        assert np.isfinite(read.weight).all() and (read.weight >= 0).all()


@EACH
@given(
    damage=damages(),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32"]),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    is_damaged=st.booleans(),
    inputs=INPUTS,
)
def test_csv_of_other_form(damage, encoding, delimiter, quoting, is_damaged, inputs):
    content = csv_bytes(ROWS, encoding, delimiter=delimiter, quoting=quoting)
    with tempfile.TemporaryDirectory() as folder:
        read = outcome(manifest(folder, damage(content) if is_damaged else content), inputs=inputs)
    if not is_damaged and delimiter == "," and encoding in ("utf-8", "utf-8-sig", "latin-1"):
        assert len(read) == 12


# npz


def npz_bytes(compressed=True, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def good_arrays():
    return {
        "train_images": PIXELS[:8],
        "train_labels": np.arange(8).reshape(8, 1) % 2,
        "test_images": PIXELS[8:],
        "test_labels": np.arange(4).reshape(4, 1) % 2,
    }


def npz(folder, content):
    path = Path(folder) / "set.npz"
    path.write_bytes(content)
    return dataset("npz", path=str(path))


@EACH
@given(damage=damages(), compressed=st.booleans())
def test_damaged_npz(damage, compressed):
    with tempfile.TemporaryDirectory() as folder:
        read = outcome(npz(folder, damage(npz_bytes(compressed, **good_arrays()))))
    if not isinstance(read, str):  # the checksum of each array has held
        np.testing.assert_array_equal(read.image[..., 0], PIXELS)


@EACH
@given(damage=damages(), compressed=st.booleans())
def test_damaged_features(damage, compressed):
    values = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    arrays = {"features": values, "labels": np.arange(12) % 2, "patients": np.arange(12)}
    with tempfile.TemporaryDirectory() as folder:
        spec = npz(folder, damage(npz_bytes(compressed, **arrays)))
        spec.kind = "features"
        read = outcome(spec, inputs=("features",))
    if not isinstance(read, str):
        np.testing.assert_array_equal(read.inputs["features"], values)


NUMBERS = st.sampled_from(
    [
        *(0, 1, 2, -1, 255, 256, 65536, 2**31 - 1, 2**31, 3e9, 2**32, 2**32 + 1, 2**63, 1e300),
        *(0.5, -0.0, float("inf"), float("nan")),
    ]
)
DTYPES = ("bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64")


@EACH
@given(
    values=st.lists(NUMBERS, min_size=12, max_size=12),
    dtype=st.sampled_from([*DTYPES, "complex64", "U4", "S4", "M8[s]", "longdouble"]),
    shape=st.sampled_from([(12,), (12, 1), (6, 2), (12, 1, 1), (0, 1), (1, 12), (12, 0), ()]),
    multi_label=st.booleans(),
    change=st.integers(0, 3),
)
def test_labels_of_any_type_never_wrap_around(values, dtype, shape, multi_label, change):
    values = [i % 2 if i >= change else value for i, value in enumerate(values)]
    with np.errstate(all="ignore"):
        try:
            column = np.array(values, np.float64 if max(values) == 1e300 else None).astype(dtype)
        except (ValueError, OverflowError):
            return
    size = int(np.prod(shape))
    arrays = {"train_images": PIXELS, "train_labels": column[:size].reshape(shape)}
    with tempfile.TemporaryDirectory() as folder:
        spec = npz(folder, npz_bytes(**arrays))
        spec.multi_label = multi_label
        read = outcome(spec)
    if not isinstance(read, str) and not multi_label and shape in ((12,), (12, 1)):
        classes = [float(read.classes[label]) for label in read.label]
        assert classes == [float(value) for value in column]


@EACH
@given(
    shape=st.sampled_from([(12, 0, 8), (12, 8, 0), (12, 8, 8, 3), (12, 1, 1), (12, 8, 8, 0), (0,)]),
    dtype=st.sampled_from(["uint8", "float32", "uint16", "bool"]),
    names=st.sampled_from([None, ["a"], ["a", "b"], ["a", "a"], [[1.5, np.nan]], [], ["", "b"]]),
)
def test_images_and_classes_of_any_shape(shape, dtype, names):
    arrays = {"train_images": np.zeros(shape, dtype), "train_labels": np.arange(12)[:, None] % 2}
    arrays |= {} if names is None else {"classes": np.array(names)}
    with tempfile.TemporaryDirectory() as folder:
        outcome(npz(folder, npz_bytes(**arrays)))


@pytest.mark.parametrize("shape", [(2**62, 8, 8), (2**64, 2), (12, -1, 8), (2**40, 1, 1)])
def test_a_header_that_promises_more_than_the_file_holds(tmp_path, shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (118 - len(header) % 64 - 1) + b"\n"
    file = io.BytesIO(npz_bytes(train_labels=np.arange(12)[:, None] % 2))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(
            "train_images.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"12"
        )
    message = outcome(npz(tmp_path, file.getvalue()), require_label=False)
    assert message.startswith(f"{KEY}.path: {tmp_path / 'set.npz'} is not a readable .npz (")


FAULTS = Path(__file__).parents[3] / "shared" / "cases" / "faults" / "inputs"


@pytest.mark.skipif(not FAULTS.is_dir(), reason="../shared holds the damaged files")
@pytest.mark.parametrize("name", ["npz_1821.npz", "npz_1827.npz", "npz_1946.npz"])
def test_damaged_files_that_were_found(name):
    assert isinstance(outcome(dataset("npz", path=str(FAULTS / name))), str)


# Images


def file_bytes(kind, mode, **options):
    file = io.BytesIO()
    picture = Image.fromarray(PIXELS[0].astype(np.uint16) if mode == "I;16" else PIXELS[0])
    (picture if mode == "I;16" else picture.convert(mode)).save(file, kind, **options)
    return file.getvalue()


FILES = {
    "grey.png": file_bytes("PNG", "L"),
    "deep.png": file_bytes("PNG", "I;16"),
    "palette.png": file_bytes("PNG", "P"),
    "photo.jpg": file_bytes("JPEG", "RGB"),
    "grey.tif": file_bytes("TIFF", "L"),
    "deep.tif": file_bytes("TIFF", "I;16"),
    "float.tif": file_bytes("TIFF", "F"),
    "packed.tif": file_bytes("TIFF", "RGB", compression="tiff_lzw"),
    "old.gif": file_bytes("GIF", "P"),
    "plain.bmp": file_bytes("BMP", "RGB"),
    "small.webp": file_bytes("WEBP", "RGB"),
    "grey.pgm": file_bytes("PPM", "L"),
}


@settings(EACH, max_examples=300)
@given(name=st.sampled_from(sorted(FILES)), damage=damages())
def test_damaged_images(name, damage):
    with tempfile.TemporaryDirectory() as folder:
        rows = [list(row) for row in ROWS]
        rows[3][0] = name
        spec = manifest(folder, csv_bytes(rows))
        (Path(folder) / name).write_bytes(damage(FILES[name]))
        read = outcome(spec)
    if isinstance(read, str):
        assert name in read or "copy" in read
    else:
        assert read.image.shape == (12, 8, 8, 1) and read.image.dtype == np.uint8


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a prepared data set of the twelve images."""
    tfds_export = pytest.importorskip("medtl.data.tfds_export")
    folder = tmp_path_factory.mktemp("sets")
    examples = outcome(manifest(folder, csv_bytes(ROWS)))
    return tfds_export.write(examples, folder, name="tiny")


@EACH
@given(number=st.integers(0, 4), damage=damages())
def test_damaged_tfds(prepared, number, damage):
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "1.0.0"
        shutil.copytree(prepared, folder)
        file = sorted(folder.iterdir())[number]
        file.write_bytes(damage(file.read_bytes()))
        read = outcome(dataset("tfds", path=str(folder)))
    if not isinstance(read, str):
        assert len(read) in (6, 12)


def test_a_label_that_has_no_class_is_named(prepared, tmp_path):
    folder = tmp_path / "1.0.0"
    shutil.copytree(prepared, folder)
    (folder / "label.labels.txt").write_text("ill\n")
    message = outcome(dataset("tfds", path=str(folder)))
    assert "train row 0, feature label: [1] is not one of the 1 classes" in message
