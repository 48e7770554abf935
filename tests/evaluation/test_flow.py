"""The flow of participants: examples, patients and what is left out, counted once each."""

import numpy as np

from medtl.evaluation import analysis, flow
from medtl.evaluation.predictions import Predictions

CLASSES = ("well", "ill")


def rows(arms=("net", "other"), seeds=(0, 1)):
    """Twelve examples of six patients on test, two of them without a label; four on val."""
    label = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1, -1, -1])
    score = np.linspace(0.1, 0.9, 12)
    test = (
        np.array([f"t{i}" for i in range(12)]),
        label,
        np.array([f"p{i // 2}" for i in range(12)]),
    )
    val = (np.array([f"v{i}" for i in range(4)]), np.array([0, 0, 0, 1]), np.array(list("qqrs")))
    return [
        Predictions(
            arm,
            split,
            ids,
            labels,
            np.stack([1 - score, score], axis=1)[: len(ids)],
            seed=seed,
            patient=patient,
        )
        for arm in arms
        for seed in seeds
        for split, (ids, labels, patient) in (("test", test), ("val", val))
    ]


def test_examples_count_once_whatever_the_number_of_arms_and_seeds():
    expected = {
        "rows": 16,
        "labelled": 14,
        "unlabelled": 2,
        "excluded": [{"reason": "no label, test split", "rows": 2, "patients": 1}],
        "splits": {
            "val": {"examples": 4, "patients": 3, "positive_patients": 1},
            "test": {"examples": 10, "patients": 5, "positive_patients": 5},
        },
    }
    for arms, seeds in ((("net",), (0,)), (("net", "other"), (0, 1, 2))):
        assert flow.of_predictions(rows(arms, seeds), positive=1) == expected


def test_the_analysis_holds_the_flow_and_a_sentence_on_what_is_left_out():
    report = analysis.analyse(rows(), CLASSES, analysis.Settings(resamples=200))
    assert report["flow"]["unlabelled"] == 2 and report["n"] == 10
    sentence = "2 of 12 examples of the test split, of 1 patients, have no label and are left out."
    assert sentence in report["notes"]


def test_without_patients_and_with_several_classes_their_counts_are_none():
    one = Predictions("a", "test", np.array(["x", "y"]), np.array([2, -1]), np.full((2, 3), 1 / 3))
    found = flow.of_predictions([one])
    assert found["splits"]["test"] == {"examples": 1, "patients": None, "positive_patients": None}
    assert found["excluded"] == [{"reason": "no label, test split", "rows": 1, "patients": None}]


def test_a_run_adds_the_split_that_it_does_not_predict():
    train = {"examples": 50, "patients": 20, "positive_patients": 7, "unlabelled": 3}
    of_run = flow.of_predictions(rows(), positive=1)
    card = {"flow": {"train": train, "val": {}, "test": {}}}
    total = flow.with_data(of_run, card)
    assert list(total["splits"]) == ["train", "val", "test"]
    assert (total["rows"], total["labelled"], total["unlabelled"]) == (69, 64, 5)
    assert total["splits"]["train"] == {n: v for n, v in train.items() if n != "unlabelled"}
    assert total["excluded"][0] == {"reason": "no label, train split", "rows": 3, "patients": None}
    assert flow.with_data(of_run, None) == of_run


def test_a_patient_that_is_unknown_is_its_own_and_the_note_says_so():
    (one,) = rows(("net",), (0,))[:1]
    patient = np.where(np.arange(12) < 3, np.strings.add("?", one.id), one.patient)
    one = Predictions(one.arm, "test", one.id, one.label, one.probability, patient=patient)
    (_, note) = flow.notes([one], "test")
    assert note.startswith("The patient of 3 of 12 examples of the test split is unknown; each")
