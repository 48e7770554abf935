import numpy as np
import pytest
from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.errors import UserError

KEY = "config.data.target"


def arrays(channels=0, splits=("train", "val", "test"), size=8):
    rng = np.random.default_rng(0)
    shape = (size, size, channels) if channels else (size, size)
    out = {}
    for name, n in zip(splits, (6, 4, 4), strict=False):
        out[f"{name}_images"] = rng.integers(0, 256, (n, *shape), np.uint8)
        out[f"{name}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    return out


@pytest.fixture
def load(tmp_path):
    def load(content, *, stem="scans", channels=1, image_size=8, require_label=True, **fields):
        path = tmp_path / f"{stem}.npz"
        np.savez_compressed(path, **content)
        spec = dataset("npz", path=str(path), **fields)
        data.check(spec, key=KEY, require_label=require_label)
        return data.load(
            spec,
            image_size=image_size,
            channels=channels,
            resize="squash",
            cache="auto",
            cache_dir="",
            key=KEY,
            require_label=require_label,
        )

    return load


def test_reads_medmnists_layout(load):
    content = arrays()
    examples = load(content)
    assert examples.name == "scans"
    assert examples.id[[0, 6, 13]].tolist() == ["train/0", "val/0", "test/3"]
    assert examples.classes == ("0", "1")
    assert examples.image.shape == (14, 8, 8, 1)
    for name in ("train", "val", "test"):
        rows = examples.indices(name)
        np.testing.assert_array_equal(examples.image[rows][..., 0], content[f"{name}_images"])
        np.testing.assert_array_equal(examples.label[rows], content[f"{name}_labels"][:, 0])


def test_resizes_only_where_the_size_differs(load):
    content = arrays(channels=3)
    examples = load(content, channels=3)
    np.testing.assert_array_equal(examples.image[:6], content["train_images"])
    small = load(content, channels=1, image_size=4)
    expected = (
        Image.fromarray(content["train_images"][0])
        .convert("L")
        .resize((4, 4), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(small.image[0, ..., 0], expected)


def test_class_names(load):
    assert load(arrays(), stem="breastmnist_28").classes == ("malignant", "normal_or_benign")
    assert load(arrays() | {"classes": np.array(["well", "ill"])}).classes == ("well", "ill")
    with pytest.raises(
        UserError, match="`classes` has 1 different names, the labels have 2 classes"
    ):
        load(arrays() | {"classes": np.array(["well"])})


def test_several_diagnoses_of_which_some_are_unknown(load):
    content = arrays()
    for name, n in (("train", 6), ("val", 4), ("test", 4)):
        content[f"{name}_labels"] = np.eye(6)[np.arange(n)]
    content["train_labels"][0, 1] = np.nan
    examples = load(content, multi_label=True)
    assert examples.label.dtype == np.float32
    assert np.isnan(examples.label[0, 1])
    assert examples.classes == ("0", "1", "2", "3", "4", "5")
    with pytest.raises(
        UserError, match="train_labels has 6 columns; set config.data.target.multi_label to True"
    ):
        load(content)
    content["val_labels"][2, 3] = 0.5
    with pytest.raises(UserError, match="val_labels, row 2: 0.5 is not 0, 1 or NaN"):
        load(content, multi_label=True)


def test_a_file_with_train_only_is_split(load):
    examples = load(arrays(splits=("train",)), split=(0.34, 0.33, 0.33))
    assert [len(examples.indices(s)) for s in ("train", "val", "test")] == [2, 2, 2]


def test_a_file_without_labels_can_be_scored(load):
    content = {"test_images": arrays()["test_images"]}
    examples = load(content, require_label=False)
    assert examples.label.tolist() == [-1] * 4
    with pytest.raises(UserError, match="has test_images but no test_labels"):
        load(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_images": np.zeros((6, 8, 8), np.float32)},
            r"train_images is float32\[6, 8, 8\]; it must be uint8",
        ),
        ({"train_labels": np.arange(5) % 2}, "6 train_images but 5 train_labels"),
        (
            {"val_labels": np.array([0.0, 1, np.nan, 1])},
            "val_labels, row 2: nan is not a class number",
        ),
        ({"val_labels": np.array([0, 1, -1, 1])}, "val_labels, row 2: -1 is not a class number"),
        ({"val_labels": np.array([0, 1, 2, 1])}, "row 2: label '2' occurs in val but not in train"),
        ({"val_labels": np.zeros(4, int)}, "split val has 4 example"),
        ({"val_labels": np.array(list("abcd"))}, "it must hold numbers"),
        ({"val_labels": np.array([{}, 1, 2, 3], object)}, "not a readable .npz"),
        ({"val_images": np.zeros((4, 9, 9), np.uint8)}, "the splits differ in the shape"),
    ],
)
def test_refuses(load, change, message):
    with pytest.raises(UserError, match=message):
        load(arrays() | change)


def test_refuses_what_is_no_npz(load, tmp_path):
    with pytest.raises(UserError, match="it needs train_images and train_labels"):
        load({"x": np.zeros(3)})
    with pytest.raises(UserError, match="there is no file"):
        data.check(dataset("npz", path=str(tmp_path / "none.npz")), key=KEY)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "scans.npz").read_bytes()[:100])
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name in ("cut.npz", "single.npy"):
        with pytest.raises(UserError, match="not a readable .npz"):
            data.check(dataset("npz", path=str(tmp_path / name)), key=KEY)
