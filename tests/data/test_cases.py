"""The cases in ../shared/cases: inputs that people really have, and the right answer to each."""

import numpy as np
import pytest

from medtl import data
from medtl.config import dataset
from medtl.data import images
from medtl.errors import UserError

KEY = "config.data.target"
OPTIONS = {"image_size": 16, "channels": 1, "resize": "squash", "cache": "memory", "cache_dir": ""}


@pytest.fixture
def load(shared):
    """load("manifests/plain.csv", **fields): a case's examples."""

    def load(name, **fields):
        path = shared / "cases" / name
        if not path.exists():
            pytest.skip(f"needs {path}")
        kind = "npz" if path.suffix == ".npz" else "manifest"
        return data.load(dataset(kind, path=str(path), **fields), key=KEY, **OPTIONS)

    return load


def sizes(examples):
    return {split: len(examples.indices(split)) for split in examples.splits}


def test_numbers_are_one_class_however_they_are_written(load):
    for name in ("mixed_float", "float01", "int01"):
        assert load(f"manifests/{name}.csv").classes == ("0", "1")
    grades = [load(f"manifests/gleason_{kind}.csv") for kind in ("float", "int")]
    assert grades[0].classes == grades[1].classes == ("8", "9", "10")
    np.testing.assert_array_equal(grades[0].label, grades[1].label)


def test_copies_with_swapped_labels_are_named_with_both_rows(load):
    with pytest.raises(UserError) as error:
        load("manifests/dup_other_label.csv")
    assert "12 images have a copy with another label: 'copy/048.png' (test, line 50" in str(
        error.value
    )
    assert "= 'img/000.png' (train, line 2" in str(error.value)


def test_unknown_patients_labels_and_paths(load):
    examples = load("manifests/nan_patient.csv")
    assert not any("nan" in patient.split("?")[0] for patient in examples.patient)
    unknown = load("manifests/multi_unknown.csv", multi_label=True)
    assert unknown.classes == ("edema", "effusion")
    assert np.isnan(unknown.label).sum() == 12
    same = [load(f"manifests/{name}.csv") for name in ("backslash", "plain")]
    np.testing.assert_array_equal(same[0].image, same[1].image)


def test_a_quantity_is_no_diagnosis(load):
    with pytest.raises(UserError, match=r"looks continuous: 60 rows .* asks for regression"):
        load("manifests/bone_age.csv")


def test_a_manifest_without_a_split_is_split_70_15_15(load):
    assert sizes(load("manifests/zeros_patient.csv")) == {"train": 42, "val": 9, "test": 9}


def test_one_based_and_one_hot_labels(load):
    plain, one_based, one_hot = (load(f"npz/{n}.npz") for n in ("plain", "one_based", "onehot"))
    assert one_based.classes == ("1", "2")
    assert "no example has '0'" in one_based.notes[0]
    assert one_hot.classes == plain.classes == ("0", "1")
    np.testing.assert_array_equal(one_hot.label, plain.label)


def test_one_ramp_is_one_picture_in_every_file(shared):
    folder = shared / "cases/images"
    if not folder.exists():
        pytest.skip(f"needs {folder}")
    files = sorted(folder.glob("*16*.*"))
    assert len(files) >= 7
    options = {"size": 32, "channels": 1, "resize": "squash"}
    expected = images.decode((folder / "miniswhite8.tif").read_bytes(), **options)
    rules = data.FileRules(window=("0%", "100%"))
    for file in files:
        shown = images.decode(file.read_bytes(), rules=rules, **options)
        np.testing.assert_allclose(shown, expected, atol=1, err_msg=file.name)
        with pytest.raises(images.UnreadableImageError, match="16-bit"):
            images.decode(file.read_bytes(), **options)
    hounsfield = data.FileRules(window=(-1000, 1000))
    shown = images.decode((folder / "int16_hu.tif").read_bytes(), rules=hounsfield, **options)
    np.testing.assert_allclose(shown, expected, atol=1)
    large = images.decode((folder / "wsi100MP.png").read_bytes(), **options)
    assert large.shape == (32, 32, 1)
