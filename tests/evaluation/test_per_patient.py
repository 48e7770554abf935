"""Metrics per patient against scikit-learn on joined images, and who counts as which class."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from medtl.evaluation import analysis
from medtl.evaluation.per_patient import of_patients
from medtl.evaluation.predictions import Predictions

CLASSES = ("well", "ill")


def images(patients=80, *, arms=("transfer", "scratch"), split="test", seed=0, seeds=(None,)):
    """One to five images a patient, of one label."""
    rng = np.random.default_rng([seed, split == "val"])
    patient = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    n, ids = len(patient), np.array([f"{split}{i}" for i in range(len(patient))])
    rows = []
    for arm in arms:
        for s in seeds:
            p = 1 / (1 + np.exp(-1.2 * (patient % 2 - 0.5) - rng.normal(size=n)))
            names = np.array([f"{split} {k}" for k in patient])
            rows.append(
                Predictions(
                    arm, split, ids, patient % 2, np.stack([1 - p, p], axis=1), s, patient=names
                )
            )
    return rows


def analysed(rows, **settings):
    return analysis.analyse(rows, CLASSES, analysis.Settings(resamples=200, **settings))


@pytest.mark.parametrize(("rule", "join"), [("mean", np.mean), ("max", np.max)])
def test_metrics_are_those_of_scikit_learn_on_the_joined_images(rule, join):
    rows = images()
    found = analysed(rows, patient_rule=rule, threshold="0.5")["per_patient"]
    assert (found["rule"], found["n"], found["left_out"]) == (rule, 80, 0)
    for p in rows:
        names = np.unique(p.patient)
        score = [join(p.probability[p.patient == name, 1]) for name in names]
        label = [p.label[p.patient == name][0] for name in names]
        metrics = found["arms"][p.arm]
        auroc = sk.roc_auc_score(label, score)
        assert metrics["auroc"]["value"] == pytest.approx(auroc, abs=1e-12)
        assert metrics["auroc"]["low"] < auroc < metrics["auroc"]["high"]
        recall = sk.recall_score(label, np.array(score) >= 0.5)
        assert metrics["sensitivity"]["value"] == pytest.approx(recall, abs=1e-12)
        assert metrics["loss"]["value"] == pytest.approx(sk.log_loss(label, score), abs=1e-9)
    a, b = (found["arms"][arm]["auroc"]["value"] for arm in ("transfer", "scratch"))
    difference = found["differences"]["transfer"]
    assert difference["value"] == pytest.approx(a - b, abs=1e-12)
    assert difference["low"] < difference["value"] < difference["high"]


def test_the_threshold_is_chosen_on_the_patients_of_val():
    rows = [*images(), *images(split="val")]
    found = analysed(rows, patient_rule="max", threshold="sensitivity=0.9")
    (val,) = (p for p in rows if (p.arm, p.split) == ("transfer", "val"))
    joined = of_patients(val, rule="max", positive=1)
    called = joined.probability[:, 1] >= found["per_patient"]["thresholds"]["transfer"]
    assert called[joined.label == 1].mean() >= 0.9
    images_threshold = found["arms"]["transfer"]["threshold"]["value"]
    assert found["per_patient"]["thresholds"]["transfer"] > images_threshold


def test_seeds_and_folds_are_joined_model_by_model():
    rows = images(seeds=(0, 1, 2))
    found = analysed(rows)["per_patient"]["arms"]["transfer"]["auroc"]
    each = [
        sk.roc_auc_score(q.label, q.probability[:, 1])
        for q in (of_patients(p, rule="mean", positive=1) for p in rows if p.arm == "transfer")
    ]
    assert found["value"] == pytest.approx(np.mean(each), abs=1e-12)
    assert found["std"] == pytest.approx(np.std(each, ddof=1), abs=1e-12)


def test_there_is_nothing_to_add_where_each_patient_has_one_image_or_is_unknown():
    one = [p.take(np.unique(p.patient, return_index=True)[1]) for p in images()]
    assert analysed(one)["per_patient"] is None
    assert analysed([dataclasses.replace(p, patient=None) for p in images()])["per_patient"] is None


def joined(label, probability, patient, *, rule="mean", positive=1):
    ids = np.array([f"i{i}" for i in range(len(patient))])
    p = Predictions("a", "test", ids, np.array(label), np.array(probability), patient=patient)
    return of_patients(p, rule=rule, positive=positive)


@pytest.mark.parametrize(("positive", "label"), [(1, [1, 0, 1]), (0, [0, 0, 1])])
def test_of_two_classes_a_patient_with_any_positive_image_is_positive(positive, label):
    made = joined(
        [0, 1, 0, 0, 1],
        [[0.8, 0.2], [0.4, 0.6], [0.7, 0.3], [0.9, 0.1], [0.5, 0.5]],
        np.array(["p", "p", "q", "q", "r"]),
        rule="max",
        positive=positive,
    )
    assert made.label.tolist() == label
    largest = {1: [0.6, 0.3, 0.5], 0: [0.8, 0.9, 0.5]}[positive]
    assert made.probability[:, positive] == pytest.approx(largest)
    assert made.probability.sum(axis=1) == pytest.approx(1)


def test_of_more_classes_patients_of_several_are_left_out():
    probability = [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.3, 0.5, 0.2]]
    made = joined([0, 2, 1, 1], probability, np.array(["p", "p", "q", "q"]), rule="max")
    assert made.id.tolist() == ["q"] and made.label.tolist() == [1]
    assert made.probability[0] == pytest.approx(np.array([0.3, 0.8, 0.2]) / 1.3)


def test_a_label_is_present_if_in_any_image_and_unknown_if_in_none_known():
    nan = np.nan
    made = joined(
        [[1, 0, nan], [0, 0, nan], [nan, 0, 1]],
        [[0.9, 0.2, 0.5], [0.1, 0.4, 0.7], [0.5, 0.5, 0.5]],
        np.array(["p", "p", "q"]),
    )
    np.testing.assert_array_equal(made.label, [[1, 0, nan], [nan, 0, 1]])
    assert made.probability[0] == pytest.approx([0.5, 0.3, 0.6])


def test_an_image_without_a_patient_is_a_patient_of_its_own():
    made = joined([0, 1, 1], np.full((3, 2), 0.5), np.array(["", "i0", ""]))
    assert len(made.id) == 3 and sorted(made.label.tolist()) == [0, 1, 1]
