"""The real data sets: what their README counts is what is loaded."""

import re

import numpy as np
import pytest

from medtl import data
from medtl.config import dataset
from medtl.errors import UserError

WORKING = {
    "channels": 1,
    "resize": "squash",
    "cache": "memory",
    "cache_dir": "",
    "key": "config.data.target",
}


def counts(examples):
    return {s: np.bincount(examples.label[examples.indices(s)]).tolist() for s in examples.splits}


def test_covid_ct_and_sao_paulo(shared):
    target = data.load(
        dataset("manifest", path=str(shared / "data/covid_ct/manifest.csv")),
        image_size=32,
        **WORKING,
    )
    assert target.classes == ("covid", "non_covid")
    assert counts(target) == {"train": [191, 234], "val": [60, 58]}
    assert target.image.std() > 30
    spec = dataset("manifest", path=str(shared / "data/sao_paulo_ct/manifest.csv"))
    with pytest.raises(UserError, match="'images/sp_0269.jpg' .* = 'images/sp_2125.jpg'"):
        data.load(spec, image_size=32, **WORKING)
    rules = data.FileRules(allow=("duplicate_images", "near_duplicate_images"))
    source = data.load(spec, image_size=32, rules=rules, **WORKING)
    assert sum(np.array(list(counts(source).values()))).tolist() == [1252, 1229]
    assert source.patient is None
    assert data.check_domains(source, target) == ()


def test_breastmnist_with_its_copies(shared):
    spec = dataset("npz", path=str(shared / "data/breastmnist/breastmnist.npz"))
    allow = ["conflicting_labels", "duplicate_images", "near_duplicate_images"]
    for i, missing in enumerate(allow):
        rules = data.FileRules(allow=tuple(allow[:i]))
        with pytest.raises(UserError, match=f"add '{missing}' to config.data.allow"):
            data.load(spec, image_size=28, rules=rules, **WORKING)
    examples = data.load(spec, image_size=28, rules=data.FileRules(allow=tuple(allow)), **WORKING)
    assert "'test/76' (test, row 76, normal_or_benign) = 'train/115'" in examples.notes[0]
    named = set(re.findall(r"'(test/\d+)' \(test", " ".join(examples.notes)))
    # The 15 that are known: the test images with the least mean difference to a train image.
    images = examples.image[..., 0].astype(np.float64)
    test, train = examples.indices("test"), examples.indices("train")
    least = [np.abs(images[train] - images[i]).mean((1, 2)).min() for i in test]
    nearest = {str(examples.id[test[i]]) for i in np.argsort(least)[:15]}
    assert len(nearest & named) == 15
    assert examples.classes == ("malignant", "normal_or_benign")
    assert {s: sum(c) for s, c in counts(examples).items()} == {
        "train": 546,
        "val": 78,
        "test": 156,
    }


@pytest.mark.parametrize("name", ["cleveland", "hungarian"])
def test_a_table_without_images_is_refused(shared, name):
    with pytest.raises(UserError, match="has no column 'image_path'"):
        data.check(
            dataset("manifest", path=str(shared / f"data/uci_heart/{name}.csv")),
            key="config.data.target",
        )
