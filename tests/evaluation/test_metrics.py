"""Metrics against scikit-learn on random data with ties, and against values worked out by hand."""

import math
import subprocess
import sys

import numpy as np
import pytest
from random_predictions import random_case
from sklearn import metrics as sk

from medtl.errors import UserError
from medtl.evaluation import metrics

NAMES = ("a", "b", "c", "d")


def close(value, wanted):
    assert value == pytest.approx(wanted, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("n", [9, 200])
def test_one_label_agrees_with_scikit_learn(k, decimals, n):
    label, p, _ = random_case(n + k, n, k, decimals)
    got = metrics.describe(label, p, classes=NAMES[:k])
    predicted, one_hot = p.argmax(axis=1), np.eye(k)[label]
    assert got["n"] == n and "undefined" not in got
    close(got["accuracy"], sk.accuracy_score(label, predicted))
    close(got["balanced_accuracy"], sk.balanced_accuracy_score(label, predicted))
    close(got["f1_macro"], sk.f1_score(label, predicted, average="macro"))
    close(got["auroc"], sk.roc_auc_score(label, p[:, 1] if k == 2 else p, multi_class="ovr"))
    of = (label, p[:, 1]) if k == 2 else (one_hot, p)
    close(got["auprc"], sk.average_precision_score(*of))
    if k == 2:  # of the positive class, which a class of the source's need not be
        first = metrics.describe(label, p, classes=NAMES[:2], positive=NAMES[0])["auprc"]
        close(first, sk.average_precision_score(label == 0, p[:, 0]))
        other = metrics.describe(label, p, classes=NAMES[:2], positive="another")["auprc"]
        close(other, got["auprc"])
    close(got["loss"], sk.log_loss(label, p))
    assert got["confusion"] == sk.confusion_matrix(label, predicted).tolist()


@pytest.mark.parametrize("decimals", [None, 1])
def test_several_labels_agree_with_scikit_learn(decimals):
    rng = np.random.default_rng(5)
    label, p = rng.integers(0, 2, (60, 4)).astype(float), rng.uniform(0.01, 0.99, (60, 4))
    if decimals is not None:
        p = np.clip(np.round(p, decimals), 0.05, 0.95)
    got = metrics.describe(label, p, classes=NAMES)
    predicted, each = (p > 0.5).astype(int), range(4)
    assert got["n"] == 60 and "undefined" not in got
    close(got["accuracy"], np.mean([sk.accuracy_score(label[:, k], predicted[:, k]) for k in each]))
    recall = [sk.balanced_accuracy_score(label[:, k], predicted[:, k]) for k in each]
    close(got["balanced_accuracy"], np.mean(recall))
    close(got["f1_macro"], sk.f1_score(label, predicted, average="macro"))
    close(got["auroc"], sk.roc_auc_score(label, p, average="macro"))
    close(got["auprc"], sk.average_precision_score(label, p, average="macro"))
    close(got["loss"], np.mean([sk.log_loss(label[:, k], p[:, k]) for k in each]))
    assert got["confusion"] == sk.multilabel_confusion_matrix(label, predicted).tolist()


def test_unknown_labels_leave_out_that_label_alone():
    rng = np.random.default_rng(6)
    label, p = rng.integers(0, 2, (80, 3)).astype(float), rng.uniform(0.01, 0.99, (80, 3))
    label[rng.uniform(size=label.shape) < 0.3] = np.nan
    label[:2] = np.nan
    got = metrics.describe(label, p, classes=NAMES[:3])
    known = ~np.isnan(label)
    assert got["n"] == known.any(axis=1).sum() < 80
    aurocs = [sk.roc_auc_score(label[known[:, k], k], p[known[:, k], k]) for k in range(3)]
    close(got["auroc"], np.mean(aurocs))
    rows = [
        sk.log_loss(y[m], q[m], labels=[0, 1])
        for y, q, m in zip(label, p, known, strict=True)
        if m.any()
    ]
    close(got["loss"], np.mean(rows))
    assert np.sum(got["confusion"], axis=(1, 2)).tolist() == known.sum(axis=0).tolist()


def test_by_hand():
    # Two classes, six examples; P(b) orders them a a b a b b: 8 of 9 pairs (a, b) are in order.
    label = np.array([0, 0, 1, 0, 1, 1])
    b = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
    got = metrics.describe(label, np.stack([1 - b, b], axis=1), classes=("a", "b"))
    assert got["confusion"] == [[2, 1], [1, 2]] and isinstance(got["confusion"][0][0], int)
    for name in ("accuracy", "balanced_accuracy", "f1_macro"):
        close(got[name], 2 / 3)
    close(got["auroc"], 8 / 9)
    # Precision at each b, from the top: 1, 1, 3/4; by symmetry the same for a from the bottom.
    close(got["auprc"], (1 + 1 + 3 / 4) / 3)
    close(got["loss"], -(math.log(0.9 * 0.8 * 0.3) + math.log(0.4 * 0.7 * 0.9)) / 6)


def test_relabelling_the_classes_changes_no_metric():
    label, p, _ = random_case(3, 50, 2, decimals=1)
    label, p = (
        label[p[:, 0] != p[:, 1]],
        p[p[:, 0] != p[:, 1]],
    )  # of equal probabilities the first class is predicted
    one = metrics.describe(label, p, classes=("a", "b"), positive="b")
    other = metrics.describe(1 - label, p[:, ::-1], classes=("b", "a"), positive="b")
    for name in metrics.NAMES:
        close(one[name], other[name])


def test_equal_probabilities_are_chance():
    got = metrics.describe(np.array([0, 1, 1, 1]), np.full((4, 2), 0.5), classes=("a", "b"))
    close(got["auroc"], 0.5)
    close(got["auprc"], 3 / 4)  # the prevalence of b
    close(got["loss"], math.log(2))
    close(got["balanced_accuracy"], 0.5)


def test_unlabelled_examples_are_left_out():
    label, p, _ = random_case(9, 20, 3)
    hidden = label.copy()
    hidden[15:] = -1
    assert metrics.describe(hidden, p, classes=NAMES[:3]) == metrics.describe(
        label[:15], p[:15], classes=NAMES[:3]
    )


def test_the_loss_of_a_certain_mistake_is_finite():
    got = metrics.describe(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), classes=("a", "b"))
    eps = float(np.finfo(np.float32).eps)
    close(got["loss"], -(math.log(eps) + math.log(1 - eps)) / 2)


@pytest.mark.filterwarnings("error")
def test_one_class_leaves_ranking_and_recall_undefined():
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    got = metrics.describe(np.array([0, 0]), p, classes=("ill", "well"))
    reason = "no example has the label 'well'"
    assert got["undefined"] == {"balanced_accuracy": reason, "auroc": reason, "auprc": reason}
    assert all(math.isnan(got[name]) for name in got["undefined"])
    close(got["accuracy"], 0.5)
    close(
        got["f1_macro"], (2 / 3 + 0) / 2
    )  # `well` was predicted, wrongly: its F1 is 0, not undefined
    never = metrics.describe(np.array([0, 0]), p[[0, 0]], classes=("ill", "well"))
    assert never["undefined"]["f1_macro"] == "no example has the label or the prediction 'well'"
    assert math.isnan(never["f1_macro"])


@pytest.mark.filterwarnings("error")
def test_no_example_and_nan_leave_everything_undefined():
    for label, p, reason in (
        (np.zeros(0, int), np.zeros((0, 2)), "there is no labelled example"),
        (np.array([-1, -1]), np.full((2, 2), 0.5), "there is no labelled example"),
        (np.full((2, 2), np.nan), np.full((2, 2), 0.5), "there is no labelled example"),
        (
            np.array([0, 1, 1]),
            np.array([[0.5, 0.5], [np.nan, 0.5], [0, 1]]),
            "the probability is NaN in 1 of 3 examples",
        ),
    ):
        got = metrics.describe(label, p, classes=("a", "b"))
        assert got["undefined"] == dict.fromkeys(metrics.NAMES, reason)
        assert all(math.isnan(got[name]) for name in metrics.NAMES)
        assert np.sum(got["confusion"]) == (2 if "NaN" in reason else 0)


@pytest.mark.filterwarnings("error")
def test_a_label_without_both_answers_is_left_out_of_the_mean_and_named():
    label = np.array([[0, 0, 1], [1, 0, 1], [1, 0, np.nan]], float)
    p = np.array([[0.2, 0.1, 0.9], [0.8, 0.2, 0.4], [0.7, 0.3, 0.5]])
    got = metrics.describe(label, p, classes=("x", "y", "z"))
    close(got["auroc"], 1.0)  # x alone
    close(got["auprc"], 1.0)  # x and z
    close(got["f1_macro"], (1 + 2 / 3) / 2)  # x and z
    close(got["accuracy"], (1 + 1 + 1 / 2) / 3)
    negative, positive = "every example is negative", "every example is positive"
    assert got["undefined"] == {
        "f1_macro[y]": "no example is or is predicted positive",
        "balanced_accuracy[y]": negative,
        "auroc[y]": negative,
        "auprc[y]": negative,
        "balanced_accuracy[z]": positive,
        "auroc[z]": positive,
    }
    alone = metrics.describe(label[:, 1:2], p[:, 1:2], classes=("y",))
    assert (
        math.isnan(alone["auroc"])
        and alone["undefined"]["auroc"] == "it is undefined for each class"
    )


def test_an_entry_has_the_keys_of_the_report():
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    keys = ["n", "accuracy", "balanced_accuracy", "f1_macro", "auroc", "auprc", "loss", "confusion"]
    assert list(metrics.describe(np.array([0, 1]), p, classes=("a", "b"))) == keys
    assert list(metrics.describe(np.array([0, 0]), p, classes=("a", "b"))) == [*keys, "undefined"]


@pytest.mark.parametrize(
    "label, p, message",
    [
        ([0, 1], np.full((3, 2), 0.5), r"probability is \[3, 2\]; 2 labels and 2 classes"),
        ([0, 2], np.full((2, 2), 0.5), r"label\[1\] is 2; it must be -1 \(unknown\) or 0\.\.1"),
        ([0.0, 1.0], np.full((2, 2), 0.5), "int"),
        ([[0, 1], [0.5, 1]], np.full((2, 2), 0.5), r"label\[1\]"),
        ([0, 1], np.array([[3.0, -2.0], [0.1, 0.2]]), "logits"),
    ],
)
def test_input_that_does_not_fit_is_refused(label, p, message):
    with pytest.raises(UserError, match=message):
        metrics.compute(np.array(label), p, classes=("a", "b"))


def test_what_training_logs_is_the_entry_without_counts():
    label, p, _ = random_case(3, 200, 3, 1)
    logged = metrics.compute(label, p, classes=NAMES[:3])
    entry = metrics.describe(label, p, classes=NAMES[:3])
    assert logged == {name: entry[name] for name in metrics.NAMES}


def test_higher_is_better_after_ranking():
    assert metrics.rank("auroc", 0.7) == metrics.rank("of_the_user", 0.7) == 0.7
    assert metrics.rank("loss", 0.7) == metrics.rank("brier", 0.7) == -0.7


def test_evaluation_imports_neither_jax_nor_scikit_learn():
    modules = (
        "medtl.evaluation.metrics, medtl.evaluation.predictions, medtl.evaluation.table, "
        "medtl.evaluation.summary"
    )
    code = (
        f"import sys, {modules}; print(sorted({{'jax', 'sklearn', 'pandas'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
