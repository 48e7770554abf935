"""Files of other tools that were once misread, and the right answer of each."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from medtl.errors import UserError
from medtl.evaluation import analysis, metrics, predictions, summarize

SETTINGS = analysis.Settings(resamples=200)


def analysed(path):
    rows, classes = predictions.read(path)
    return analysis.analyse(rows, classes, SETTINGS)


def written(tmp_path, text):
    path = tmp_path / "p.csv"
    path.write_text(text)
    return path


def test_an_empty_cell_of_several_labels_is_unknown_not_negative(tmp_path):
    text = (
        "arm,id,label,prob_a,prob_b\nx,1,a,0.9,0.2\nx,2,,0.1,0.3\nx,3,|,0.2,0.1\nx,4,a|b,0.8,0.7\n"
    )
    (back,), _ = predictions.read(written(tmp_path, text))
    np.testing.assert_array_equal(back.labelled, [True, False, True, True])
    np.testing.assert_array_equal(back.label[[0, 2, 3]], [[1, 0], [0, 0], [1, 1]])


def test_unlabelled_rows_of_several_labels_are_left_out_and_counted(shared):
    path = shared / "cases/predictions/multi_unlabelled.csv"
    table = pd.read_csv(path, keep_default_na=False)
    table = table[table["label"] != ""]
    expected = np.mean(
        [
            average_precision_score(
                table["label"].str.split("|").map(lambda v, k=k: k in v), table[f"prob_{k}"]
            )
            for k in "abc"
        ]
    )
    report = analysed(path)
    assert report["arms"]["m"]["metrics"]["auprc"]["value"] == pytest.approx(expected)
    assert report["flow"]["labelled"] == len(table) == 80 and report["flow"]["unlabelled"] == 40


@pytest.mark.parametrize(
    ("digits", "k", "off", "accepted"),
    [(2, 3, 0.01, True), (2, 3, 0.02, False), (3, 10, 0.005, True), (3, 10, 0.006, False)],
)
def test_sums_may_miss_1_by_what_the_digits_round_away(tmp_path, digits, k, off, accepted):
    first = [1 / k] * (k - 1)
    lines = []
    for i, miss in enumerate((0.0, off)):
        p = np.round(first, digits)
        cells = [f"{v:.{digits}f}" for v in (*p, 1 - p.sum() - miss)]
        lines.append(f"x,{i},c0,{','.join(cells)}\n")
    head = "arm,id,label," + ",".join(f"prob_c{j}" for j in range(k)) + "\n"
    path = written(tmp_path, head + "".join(lines))
    if accepted:
        assert len(predictions.read(path)[0][0].id) == 2
    else:
        with pytest.raises(UserError, match="line 3, .*the probabilities sum to 0.9"):
            predictions.read(path)


def test_two_digits_are_read_as_one_label_per_example(shared):
    path = shared / "cases/predictions/round2.csv"
    table = pd.read_csv(path)
    guess = table[["prob_a", "prob_b", "prob_c"]].to_numpy().argmax(axis=1)
    report = analysed(path)
    accuracy = report["arms"]["m"]["metrics"]["accuracy"]["value"]
    assert report["task"] == "multi_class"
    assert accuracy == pytest.approx(np.mean(np.array(list("abc"))[guess] == table["label"]))


def test_one_column_of_two_labels_gives_the_other_class_the_rest(shared):
    path = shared / "cases/predictions/one_column.csv"
    table = pd.read_csv(path)
    report = analysed(path)
    found = report["arms"]["m"]["metrics"]
    assert report["classes"] == ["0", "1"] and report["positive"] == "1"
    assert found["auroc"]["value"] == pytest.approx(roc_auc_score(table["label"], table["prob_1"]))
    assert found["loss"]["value"] == pytest.approx(log_loss(table["label"], table["prob_1"]))


def test_one_column_of_three_labels_names_what_to_add(tmp_path):
    path = written(tmp_path, "arm,id,label,prob_1\nx,a,1,0.9\nx,b,0,0.2\nx,c,2,0.1\n")
    message = "there is no column 'prob_0' for '0'; add prob_0, or use the label '1'"
    with pytest.raises(UserError, match=re.escape(message)):
        predictions.read(path)


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "NA", "None", "null"])
def test_a_missing_patient_is_no_patient(tmp_path, cell):
    text = f"arm,id,label,patient_id,prob_a,prob_b\nx,1,a,{cell},0.9,0.1\nx,2,b,{cell},0.1,0.9\n"
    (back,), _ = predictions.read(written(tmp_path, text))
    assert back.patient is None
    (back,), _ = predictions.read(written(tmp_path, text + "x,3,a,p,0.9,0.1\n"))
    assert back.patient.tolist() == ["?1", "?2", "p"]
    assert back.without_patient.tolist() == [True, True, False]


def test_nan_is_not_one_patient(shared):
    path = shared / "cases/predictions/patients_nan.csv"
    patient = pd.read_csv(path, dtype=str)["patient_id"]
    report = analysed(path)
    assert report["patients"] == patient.nunique() + patient.isna().sum()
    assert any("is unknown; each counts as a patient" in note for note in report["notes"])


def test_a_fold_without_a_class_is_left_out_of_each_table_alike(shared):
    path = shared / "cases/predictions/folds_oneclass.csv"
    table = pd.read_csv(path)
    expected = np.mean(
        [
            roc_auc_score(fold["label"], fold["prob_1"])
            for _, fold in table.groupby("fold")
            if fold["label"].nunique() == 2
        ]
    )
    estimate = analysed(path)["arms"]["m"]["metrics"]["auroc"]
    assert estimate["value"] == pytest.approx(expected) and np.isfinite(estimate["std"])
    rows, classes = predictions.read(path)
    entries = [metrics.describe(p.label, p.probability, classes=classes) for p in rows]
    summary = summarize(
        {f"fold {p.fold}": {"m": {"test": e}} for p, e in zip(rows, entries, strict=True)},
        runs="splits",
    )
    assert summary["arms"]["m"]["test"]["auroc"] == pytest.approx(expected)
    assert summary["std"]["m"]["test"]["auroc"] == pytest.approx(estimate["std"])
