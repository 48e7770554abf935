import time

import numpy as np
import pytest

from medtl import data
from medtl.config import dataset
from medtl.data import phantom
from medtl.errors import UserError

KEY = "config.data.source"


def test_a_function_of_the_seed_and_the_scanner():
    draw = lambda scanner, seed: phantom.draw(130, scanner=scanner, seed=seed, image_size=16)  # noqa: E731
    first = draw("a", 0)
    np.testing.assert_array_equal(first.images, draw("a", 0).images)
    assert not np.array_equal(first.images, draw("a", 1).images)
    assert not np.array_equal(first.label, draw("b", 0).label)


def test_labelled_as_what_it_is():
    spec = dataset("phantom(size=90, scanner='b', seed=4)", split=(0.7, 0.15, 0.15))
    working = {
        "image_size": 12,
        "channels": 3,
        "resize": "squash",
        "cache": "auto",
        "cache_dir": "",
        "key": KEY,
    }
    data.check(spec, key=KEY)
    examples = data.load(spec, **working)
    assert examples.synthetic
    assert all("phantom" in text for text in (examples.name, *examples.id, *examples.patient))
    assert examples.image.shape == (90, 12, 12, 3)
    assert len(examples.splits) == 3
    same = phantom.examples(90, scanner="b", seed=4, image_size=12, channels=3)
    np.testing.assert_array_equal(examples.image, same.image)
    np.testing.assert_array_equal(examples.split, same.split)


def test_patients_have_one_to_four_images_one_diagnosis_and_one_split():
    examples = phantom.examples(600, scanner="a", seed=0, image_size=4)
    patients, counts = np.unique(examples.patient, return_counts=True)
    assert set(counts) == {1, 2, 3, 4}
    for patient in patients:
        assert len(set(examples.label[examples.patient == patient])) == 1
        assert len(set(examples.split[examples.patient == patient])) == 1
    assert np.bincount(examples.label).min() > 150


@pytest.mark.parametrize("size", [28, 33, 96])
def test_the_same_kind_of_image_at_every_size(size):
    images = phantom.draw(60, scanner="a", seed=0, image_size=size).images / 255
    reference = phantom.draw(60, scanner="a", seed=0, image_size=32).images / 255
    assert abs(images.mean() - reference.mean()) < 0.01
    assert abs(images.std() - reference.std()) < 0.02


def test_lesions_are_bright_and_the_scanners_differ():
    """On average an ill lobe is brighter than a healthy one, with either scanner."""
    means = {}
    for scanner in "ab":
        table = phantom.draw(1500, scanner=scanner, seed=0, image_size=32)
        lobes = table.images[:, 10:22, 6:26].astype(float).mean((1, 2))
        healthy, infiltrate, nodule = (lobes[table.label == c].mean() for c in range(3))
        assert infiltrate > healthy + 1
        assert nodule > healthy + 1
        means[scanner] = table.images.mean()
    assert abs(means["a"] - means["b"]) > 10


def test_it_is_drawn_quickly():
    start = time.perf_counter()
    phantom.draw(2000, scanner="a", seed=0, image_size=32)
    assert time.perf_counter() - start < 10


def load(kind, **fields):
    working = {"image_size": 4, "channels": 1, "resize": "squash", "cache": "auto", "cache_dir": ""}
    return data.load(dataset(kind, **{"split": ()} | fields), key=KEY, **working)


def test_its_options_split_it_and_the_spec_may_split_it_otherwise():
    own = load("phantom(200, 'b', split=(0.1, 0.1, 0.8), seed=3)")
    same = load("phantom(size=200, scanner='b', seed=3)", split=(0.1, 0.1, 0.8))
    assert own.fingerprint == same.fingerprint
    drawn = phantom.examples(200, scanner="b", seed=3, image_size=4, split=(0.1, 0.1, 0.8))
    assert own.split_hash == drawn.split_hash
    assert len(own.indices("test")) == pytest.approx(160, abs=4)
    assert len(load("phantom(size=200)").indices("train")) == pytest.approx(160, abs=4)
    other = load("phantom(200, 'b', split=(0.1, 0.1, 0.8), seed=3)", split_seed=1)
    np.testing.assert_array_equal(other.image, own.image)
    assert (other.split != own.split).any()


def test_the_fractions_and_the_seed_of_a_split_are_known_without_the_data():
    def split_of(kind, **fields):
        spec = dataset(kind, **{"split": ()} | fields)
        return data.fractions(spec), data.split_seed(spec)

    assert split_of("manifest", split_seed=5) == ((0.7, 0.15, 0.15), 5)
    assert split_of("manifest", split=(0.5, 0.25, 0.25)) == ((0.5, 0.25, 0.25), 0)
    assert split_of("phantom") == ((0.8, 0.1, 0.1), 0)
    assert split_of("phantom(split=(0.1, 0.1, 0.8), seed=1)") == ((0.1, 0.1, 0.8), 1)
    with pytest.raises(UserError, match="did you mean 'phantom'"):
        split_of("fantom")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("phantom(size=0)", "size is 0; it must be a whole number, 1 or more"),
        ("phantom(size='9')", "size is '9'; it must be a whole number"),
        ("phantom(scanner='c')", "scanner is 'c'; it can be a, b"),
        ("phantom(seed=-1)", "seed is -1; it must be a whole number, 0 or more"),
        ("phantom(siz=9)", "phantom has no option 'siz'; did you mean 'size'?"),
        ("phantom(9, 'a', (1, 0, 0), 0, 0)", "takes from 0 to 4 positional arguments"),
        ("fantom(size=9)", "did you mean 'phantom'?"),
        ("manifest(size=9)", "manifest has no option 'size'"),
    ],
)
def test_refuses_a_kind_that_cannot_be(kind, message):
    with pytest.raises(UserError) as error:
        data.check(dataset(kind), key=KEY)
    assert str(error.value).startswith("config.data.source.kind")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"split_seed": -1}, "config.data.source.split_seed is -1; it must be 0 or more"),
        ({"train_size": -1}, "config.data.source.train_size is -1"),
        ({"split": (0.5, 0.1)}, "config.data.source.split is (0.5, 0.1)"),
    ],
)
def test_refuses_fields_that_cannot_be(fields, message):
    with pytest.raises(UserError) as error:
        data.check(dataset("phantom(size=9)", **fields), key=KEY)
    assert message in str(error.value)
