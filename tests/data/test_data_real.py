"""The real data sets: what their README counts is what is loaded."""

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
    source = data.load(
        dataset("manifest", path=str(shared / "data/sao_paulo_ct/manifest.csv")),
        image_size=32,
        **WORKING,
    )
    assert sum(np.array(list(counts(source).values()))).tolist() == [1252, 1229]
    assert source.patient is None
    data.check_domains(source, target)


def test_breastmnist(shared):
    examples = data.load(
        dataset("npz", path=str(shared / "data/breastmnist/breastmnist.npz")),
        image_size=28,
        **WORKING,
    )
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
