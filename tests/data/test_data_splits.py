import numpy as np
import pytest

from medtl.data import phantom, splits
from medtl.errors import UserError


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.1, 0.1, 0.8), (0.5, 0.5, 0.0)])
def test_without_patients_every_class_is_within_one_of_its_fraction(fractions):
    label = np.random.default_rng(0).choice(4, 203, p=[0.5, 0.3, 0.15, 0.05])
    drawn = splits.assign(label, fractions, seed=3)
    for name, fraction in zip(splits.NAMES, fractions, strict=True):
        for c in range(4):
            assert abs(np.sum((drawn == name) & (label == c)) - fraction * np.sum(label == c)) <= 1
    assert ("test" in drawn) == (fractions[2] > 0)


def test_patients_stay_whole_and_classes_stay_in_proportion():
    rng = np.random.default_rng(1)
    patient = np.array([f"p{i}" for i in rng.integers(0, 150, 600)])
    ill = {p: rng.random() < 0.3 for p in np.unique(patient)}
    label = np.array([int(ill[p]) for p in patient])
    drawn = splits.assign(label, (0.6, 0.2, 0.2), seed=0, patient=patient)
    assert all(len(set(drawn[patient == p])) == 1 for p in set(patient))
    for name, fraction in zip(splits.NAMES, (0.6, 0.2, 0.2), strict=True):
        assert abs(np.mean(drawn == name) - fraction) < 0.02
        assert abs(label[drawn == name].mean() - label.mean()) < 0.02


def test_rows_without_a_patient_are_not_kept_together():
    drawn = splits.assign(np.arange(40) % 2, (0.5, 0.25, 0.25), seed=0, patient=np.full(40, ""))
    assert [np.sum(drawn == name) for name in splits.NAMES] == [20, 10, 10]


def test_several_diagnoses_are_spread_each_in_proportion():
    label = (np.random.default_rng(2).random((400, 5)) < [0.5, 0.2, 0.1, 0.05, 0.3]).astype(
        np.float32
    )
    label[0, 0] = np.nan
    drawn = splits.assign(label, (0.5, 0.25, 0.25), seed=0)
    for name, fraction in zip(splits.NAMES, (0.5, 0.25, 0.25), strict=True):
        np.testing.assert_allclose(
            np.nansum(label[drawn == name], 0), fraction * np.nansum(label, 0), atol=3
        )


def test_a_split_is_a_function_of_the_seed():
    label = np.arange(100) % 3
    draw = lambda seed: splits.assign(label, (0.7, 0.15, 0.15), seed=seed).tolist()  # noqa: E731
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_training_subsets_nest_and_are_stratified_at_every_size():
    label = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    order = splits.subset_order(label, seed=5)
    assert sorted(order) == list(range(100))
    for n in range(3, 101):
        counts = np.bincount(label[order[:n]], minlength=3)
        assert counts.min() >= 1
        np.testing.assert_allclose(counts, np.array([0.6, 0.3, 0.1]) * n, atol=2)


def test_train_size_takes_from_train_only_and_nests():
    def draw(size):
        return phantom.examples(
            300, scanner="a", seed=0, image_size=4, split=(0.6, 0.2, 0.2), train_size=size
        )

    full, fifty, twenty_five = draw(0), draw(50), draw(25)
    ids = lambda e, s: set(e.id[e.indices(s)])  # noqa: E731
    assert len(ids(fifty, "train")) == 50
    assert ids(twenty_five, "train") < ids(fifty, "train") < ids(full, "train")
    assert ids(twenty_five, "val") == ids(full, "val")
    assert ids(twenty_five, "test") == ids(full, "test")
    assert len({full.split_hash, fifty.split_hash, twenty_five.split_hash}) == 3
    with pytest.raises(UserError, match=r"phantom.train_size is 999; train has 1\d\d examples"):
        draw(999)


@pytest.mark.parametrize(
    "fractions", [(0.7, 0.2, 0.2), (0.5, 0.5), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)]
)
def test_refuses_fractions_that_are_none(fractions):
    with pytest.raises(UserError, match=r"phantom\.split is"):
        phantom.examples(60, scanner="a", seed=0, image_size=4, split=fractions)


def test_a_split_that_would_be_empty_is_refused(tmp_path):
    """Two patients cannot be three splits."""
    from medtl import data
    from medtl.config import dataset

    rows = "".join(f"{i}.png,{'ab'[i % 2]},p{i // 4}\n" for i in range(8))
    (tmp_path / "m.csv").write_text("image_path,diagnosis,patient_id\n" + rows)
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"not read")
    with pytest.raises(
        UserError, match=r"8 examples are too few to draw split \w+ from, .*change k\.split"
    ):
        data.check(dataset(path=str(tmp_path / "m.csv")), key="k")
