"""Whether arms can be compared: what is refused, and what is noted."""

import dataclasses

import numpy as np
import pytest
from prediction_rows import CLASSES, four, frame

from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.evaluation.predictions import Predictions

IDS = ("wxyz", "stuv")


def test_one_class_splits_are_noted_and_not_refused():
    ill, both = np.zeros(4, np.int32), np.array([0, 1, 0, -1])
    frames = [
        frame(arm, "test", n=4, label=label, seed=k)
        for arm in "ab"
        for k, label in enumerate((both, ill))
    ]
    frames += [
        frame("a", "val", n=4, ids=list("wxyz"), label=np.full(4, -1), seed=k) for k in (0, 1)
    ]
    assert predictions.check(frames, ("ill", "well", "worse")) == [
        "test, seed 1: all of 4 labelled examples are 'ill' (arms: a, b); metrics that "
        "need two classes are undefined",
        "val, seed 0: none of 4 examples has a label (arms: a); metrics that need two "
        "classes are undefined",
        "val, seed 1: none of 4 examples has a label (arms: a); metrics that need two "
        "classes are undefined",
        "only some arms have val (with: a; without: b): their thresholds and calibration are "
        "fitted on it, so the arms are not compared alike in what depends on these",
    ]
    many = [frame("a", "test", n=4, label=ill, seed=k) for k in range(9)]
    notes = predictions.check(many, ("ill", "well", "worse"))
    assert len(notes) == 6 and notes[-1] == "and 4 more such"
    nothing = np.full((4, 3), np.nan)
    assert (
        "none of 4 examples has a label"
        in predictions.check([frame("a", "test", n=4, label=nothing)], CLASSES)[0]
    )


def test_arms_must_predict_the_same_examples():
    def one(arm, ids, **cell):
        return four(arm, ids=ids, **cell)

    assert (
        predictions.check([one("a", "wxyz"), one("b", "zyxw")], CLASSES) == []
    )  # the order does not matter
    with pytest.raises(
        UserError,
        match=r"f.csv: test: 1 of the 4 examples of arm 'a' .* 4 of arm 'b', the first is 'w'",
    ):
        predictions.check([one("a", "wxyz"), one("b", "xyzu")], CLASSES, name="f.csv")
    subset = Predictions("b", "test", np.array(["x"]), np.array([0]), np.ones((1, 3)) / 3)
    with pytest.raises(UserError, match="3 of the 4 examples of arm 'a'"):
        predictions.check([subset, one("a", "wxyz")], CLASSES)
    with pytest.raises(
        UserError, match="arm 'b' has predictions of test, seed 1, fold 0, and arm 'a' has none"
    ):
        predictions.check(
            [one("a", "wxyz", seed=0, fold=0), one("b", "wxyz", seed=1, fold=0)][::-1], CLASSES
        )
    with pytest.raises(
        UserError, match=r"^f.csv: arm 'b' has predictions of test, seed 1, and arm 'a' has none"
    ):
        predictions.check(
            [one("b", "wxyz", seed=1), one("a", "wxyz", seed=0)], CLASSES, name="f.csv"
        )
    with pytest.raises(
        UserError, match=r"predictions.csv has no split 'tset'; did you mean 'test'?"
    ):
        predictions.check([one("a", "wxyz")], CLASSES, split="tset")
    with pytest.raises(
        UserError, match=r"^f.csv: arm 'transfer' has no predictions of split 'test'"
    ):
        predictions.check([one("a", "wxyz"), frame()], CLASSES, name="f.csv")


@pytest.mark.parametrize("others", [(50,), (25,), (None,), (25, 50, 75)])
def test_an_arm_of_other_sizes_is_refused_and_does_not_vanish(others):
    sizes = {"a": (25, 50), "b": others}
    frames = [four(arm, size=size) for arm in "ab" for size in sizes[arm]]
    with pytest.raises(
        UserError,
        match=r"^f.csv: arm '[ab]' has predictions of test.*, and arm '[ab]' has none; .* sizes",
    ):
        predictions.check(frames, CLASSES, name="f.csv")


def test_every_row_has_its_size_outside_of_cross_validation():
    def sizes(*found, **cell):
        return [four(size=size, **cell) for size in found]

    with pytest.raises(
        UserError,
        match="f.csv: arm 'a' has predictions of test, size 25, .* give every row its size",
    ):
        predictions.check(sizes(25, None), CLASSES, name="f.csv")
    with pytest.raises(UserError, match="give every row its size"):
        predictions.check([*sizes(25), four(split="val", ids="stuv")], CLASSES)
    assert (
        predictions.check(sizes(25, 50), CLASSES)
        == predictions.check(sizes(25, None, fold=0), CLASSES)
        == []
    )


def test_val_is_of_the_models_that_are_evaluated():
    def rows(split, arm="a", **cell):
        return four(arm, split, "wxyz" if split == "test" else "stuv", **cell)

    test = [rows("test", seed=k) for k in (0, 1)]
    with pytest.raises(
        UserError,
        match=r"^f.csv: arm 'a' has predictions of val, but of test none .* such as test, seed 0",
    ):
        predictions.check([*test, rows("val")], CLASSES, name="f.csv")
    with pytest.raises(
        UserError,
        match=r"^f.csv: arm 'a' .* val, seed 0, but none of val for test, seed 1 \(1 of 2 ",
    ):
        predictions.check([*test, rows("val", seed=0)], CLASSES, name="f.csv")
    both = [*test, rows("val", seed=0), rows("val", seed=1)]
    assert predictions.check(both, CLASSES) == []
    assert (
        predictions.check([*test, rows("val")], CLASSES, split="val") == []
    )  # then val is what is evaluated
    # An arm without val is told and not refused.
    notes = predictions.check([*both, *(rows("test", "b", seed=k) for k in (0, 1))], CLASSES)
    assert len(notes) == 1 and notes[0].startswith("only some arms have val (with: a; without: b)")


def test_an_example_is_tested_on_in_one_fold():
    for twice in ({"fold": 1}, {}):
        with pytest.raises(
            UserError, match=r"^f.csv: arm 'a': 'z' is in test, seed 2, fold 0 and in test, seed 2"
        ):
            predictions.check(
                [four(seed=2, fold=0), four(ids="zuvs", seed=2, **twice)], CLASSES, name="f.csv"
            )
    # Other seeds, repeats and sizes test on the same examples again, and so do other folds' val.
    again = [
        {"seed": s, "repeat": r, "size": size}
        for s in (0, 1)
        for r in (0, 1)
        for size in (25, None)
    ]
    frames = [
        four(arm, ids=ids, fold=k, **cell)
        for arm in "ab"
        for cell in again
        for k, ids in enumerate(IDS)
    ]
    frames += [dataclasses.replace(p, split="val", id=np.array(list("klmn"))) for p in frames]
    assert predictions.check(frames, CLASSES) == []


def test_folds_that_share_patients_are_noted():
    patients = [["p", "p", "q", "r"], ["r", "q", "q", "s"], ["t", "u", "s", "s"]]
    frames = [
        four(arm, ids=[f"{k}{i}" for i in range(4)], patient=np.array(who), fold=k, **cell)
        for arm in "ab"
        for cell in ({"repeat": 0, "seed": 0}, {"repeat": 0, "seed": 1}, {"repeat": 1, "seed": 0})
        for k, who in enumerate(
            patients if cell["repeat"] == 0 else (["p"] * 4, ["q"] * 4, ["r"] * 4)
        )
    ]
    said = "the folds are not grouped by patient, so scores are optimistic"
    assert predictions.check(frames, CLASSES) == [
        f"test, repeat 0: fold 0 and 1 share 2 patients, the first is 'q': {said}",
        f"test, repeat 0: fold 1 and 2 share 1 patients, the first is 's': {said}",
    ]


def test_patients_of_test_that_are_also_in_val_are_noted():
    patients = {"test": np.array(["p", "p", "q", "r"]), "val": np.array(["q", "s", "r", "r"])}
    frames = [
        four(split=split, ids=[f"{split}{i}" for i in range(4)], patient=patient)
        for split, patient in patients.items()
    ]
    assert predictions.check(frames, CLASSES) == [
        "test: 2 patients are also in val, the first is 'q' (arms: a); choices made on "
        "val have seen them"
    ]
    # What another fold's model was tuned on is no concern of this one's.
    folds = [four(ids=ids, fold=k) for k, ids in enumerate(IDS)]
    folds += [dataclasses.replace(p, split="val", fold=1 - p.fold) for p in folds]
    assert predictions.check(folds, CLASSES) == []
