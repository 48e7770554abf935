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
    spec = dataset("phantom", size=90, scanner="b", split_seed=4)
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
    """In the mean over many bodies an ill lobe is brighter than a healthy one, by either scanner."""
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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 0}, "config.data.source.size is 0"),
        ({"size": -5}, "config.data.source.size is -5; it must be 0 or more"),
        ({"size": 9, "scanner": "c"}, "config.data.source.scanner is 'c'; it can be a, b"),
        ({"size": 9, "split_seed": -1}, "config.data.source.split_seed is -1"),
    ],
)
def test_refuses(fields, said):
    with pytest.raises(UserError) as error:
        data.check(dataset("phantom", **fields), key=KEY)
    assert said in str(error.value)
