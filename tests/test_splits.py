"""Folds, val parts and nested subsets: who trains, who chooses, who is tested."""

import dataclasses

import numpy as np
import pytest
from tiny_run import tiny

from medtl.errors import UserError
from medtl.examples import Examples, class_counts
from medtl.experiment import splits


def target(n=120, classes=2, images_a_patient=3, seed=0):
    """Patients with several images; a patient has one diagnosis."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(-(-n // images_a_patient)), images_a_patient)[:n]
    label = rng.integers(0, classes, patient.max() + 1)[patient].astype(np.int32)
    return Examples(
        name="clinic",
        inputs={"image": np.zeros((n, 4, 4, 1), np.uint8)},
        label=label,
        id=np.array([f"i{i}" for i in range(n)]),
        split=np.where(np.arange(n) < n // 2, "train", "val"),
        patient=np.array([f"p{i}" for i in patient]),
        weight=np.ones(n, np.float32),
        classes=tuple("abcdef"[:classes]),
        fingerprint="f",
        split_hash="h",
    )


def crossed(**fields):
    return tiny(
        evaluation__folds=5, evaluation__repeats=3, data__target__split=(0.7, 0.1, 0.2), **fields
    )


def test_each_example_is_tested_on_once_a_repeat_and_no_patient_is_in_two_parts():
    examples = target()
    all_splits = splits.splits_of(crossed(), examples, seed=0)
    assert [(s.repeat, s.fold) for s in all_splits] == [(r, f) for r in range(3) for f in range(5)]
    for repeat in range(3):
        tested = np.sum([s.part == "test" for s in all_splits if s.repeat == repeat], axis=0)
        assert (tested == 1).all()
    for split in all_splits:
        parts = [set(examples.patient[split.part == s]) for s in ("train", "val", "test")]
        assert all(parts)
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
        # val has the share of what is not tested that the config's fractions give it: 0.1 / 0.8.
        assert np.sum(split.part == "val") == pytest.approx(96 / 8, abs=3)


def test_folds_are_stratified_and_about_equal():
    examples = target(n=600)
    for split in splits.splits_of(crossed(), examples, seed=0):
        tested = examples.label[split.part == "test"]
        assert len(tested) == pytest.approx(120, abs=4)
        assert tested.mean() == pytest.approx(examples.label.mean(), abs=0.03)


def test_repeats_differ_and_seeds_share_their_folds():
    examples = target()
    first, again = (splits.splits_of(crossed(), examples, seed=seed) for seed in (0, 1))
    assert all((a.part == b.part).all() for a, b in zip(first, again, strict=True))
    assert (first[0].part != first[5].part).any()
    other = splits.splits_of(crossed(data__target__split_seed=7), examples, seed=0)
    assert (first[0].part != other[0].part).any()


def test_subsets_of_a_learning_curve_are_nested_stratified_and_leave_val_and_test_alone():
    examples = target(n=600)
    config = crossed(evaluation__target_sizes=(100, 25, "all"))
    all_splits = splits.splits_of(config, examples, seed=0)
    assert len(all_splits) == 15 * 3
    full, small, large = all_splits[:3]
    assert (full.size, small.size, large.size) == (None, 25, 100)
    rows = [set(np.flatnonzero(s.part == "train")) for s in (small, large, full)]
    assert [len(r) for r in rows[:2]] == [25, 100]
    assert rows[0] < rows[1] < rows[2]
    assert examples.label[sorted(rows[0])].mean() == pytest.approx(examples.label.mean(), abs=0.04)
    for part in ("val", "test"):
        assert ((small.part == part) == (full.part == part)).all()
    other = splits.splits_of(config, examples, seed=1)[1]
    assert (other.part != small.part).any()
    assert small.path == "repeat_0/fold_0/size_25"


def test_repeated_subsets_differ_and_the_first_is_that_of_one_repeat():
    examples = target()
    (_, once), (full, *repeated) = (
        splits.splits_of(
            tiny(evaluation__target_sizes=(20, "all"), evaluation__size_repeats=repeats),
            examples,
            seed=0,
        )
        for repeats in (1, 3)
    )
    assert [(s.size, s.repeat) for s in (full, *repeated)] == [
        (None, None),
        (20, 0),
        (20, 1),
        (20, 2),
    ]
    assert (once.part == repeated[0].part).all()
    assert len({s.part.tobytes() for s in repeated}) == 3
    assert repeated[2].path == "repeat_2/size_20"


def test_a_size_of_all_the_train_labels_is_the_split_itself():
    examples = target()
    config = tiny(evaluation__target_sizes=(20, 60))
    assert [s.size for s in splits.splits_of(config, examples, seed=0)] == [None, 20]


def test_a_split_has_a_hash_of_its_own():
    examples = target()
    hashes = [
        split.of(examples).split_hash for split in splits.splits_of(crossed(), examples, seed=0)
    ]
    assert len({*hashes, examples.split_hash}) == 16


def test_the_table_names_every_example_in_every_fold():
    examples = target()
    header, *rows = splits.fold_rows(
        examples, splits.splits_of(crossed(evaluation__target_sizes=(10,)), examples, seed=0)
    )
    assert header == ("repeat", "fold", "id", "split")
    assert len(rows) == 15 * len(examples)
    assert {row[3] for row in rows} == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("examples", "fields", "message"),
    [
        (target(n=12), {}, "folds is 5, but clinic has 4 patients"),
        (
            target(),
            {"evaluation__target_sizes": (90,)},
            "asks for 90 labels, but fold . of repeat . of clinic has 8",
        ),
        (
            dataclasses.replace(
                target(), label=np.where(np.arange(120) < 3, 1, 0).astype(np.int32)
            ),
            {"checkpoint__metric": "loss"},
            "has no 'b' to train on",
        ),
        (
            dataclasses.replace(
                target(), label=np.where(np.arange(120) < 6, 1, 0).astype(np.int32)
            ),
            {},
            "has no 'b' to test on, so auroc would be undefined; use fewer folds",
        ),
    ],
)
def test_what_could_not_be_trained_is_refused(examples, fields, message):
    with pytest.raises(UserError, match=message):
        splits.splits_of(crossed(**fields), examples, seed=0)


def test_unknown_labels_are_of_no_class():
    assert class_counts(np.array([2, -1, 0, 2], np.int32), "abcd") == {
        "a": 1,
        "b": 0,
        "c": 2,
        "d": 0,
    }
    several = np.array([[1, 0, np.nan], [1, 1, 0]], np.float32)
    assert class_counts(several, "abc") == {"a": 2, "b": 1, "c": 0}
    assert class_counts(np.empty(0, np.int32), "ab") == {"a": 0, "b": 0}


def test_without_folds_the_data_s_own_split_is_the_only_one():
    examples = target()
    (split,) = splits.splits_of(tiny(), examples, seed=0)
    assert split.path == "" and (split.part == examples.split).all()
