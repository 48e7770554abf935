"""Linear probes: the minimum that scikit-learn finds, and C chosen within the given rows."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from medtl.data import splits
from medtl.errors import UserError
from medtl.training import probe
from medtl.training.probe import LinearProbe


def blobs(n, d, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return rng.normal(size=(n, d)) + 0.7 * np.eye(classes, d)[y], y


@pytest.mark.parametrize(("n", "d", "classes"), [(80, 6, 3), (80, 6, 2), (30, 200, 3)])
def test_the_minimum_is_that_of_scikit_learn(n, d, classes):
    x, y = blobs(n, d, classes)
    weight = np.random.default_rng(1).uniform(0.5, 2, n)
    for C in (0.01, 30.0):
        theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
        theirs.fit(x, y, sample_weight=weight)
        ours = LinearProbe(C=C).fit(x, y, sample_weight=weight)
        np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-4)
        coef = theirs.coef_ if classes > 2 else np.concatenate([-theirs.coef_, theirs.coef_]) / 2
        np.testing.assert_allclose(ours.coef_, coef, atol=1e-4)


def test_several_diagnoses_are_the_mean_of_scikit_learns_and_unknown_labels_do_not_count():
    x, y = blobs(60, 5)
    labels = np.stack([y == 0, y == 1], axis=1).astype(float)
    labels[::7, 1] = np.nan
    known = ~np.isnan(labels)
    ours = LinearProbe(C=2.0).fit(x, labels)
    for k in range(2):
        rows, weight = known[:, k], 1 / known.sum(axis=1)
        theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000)
        theirs.fit(x[rows], labels[rows, k], sample_weight=weight[rows])
        np.testing.assert_allclose(
            ours.predict_proba(x)[:, k], theirs.predict_proba(x)[:, 1], atol=1e-4
        )


def test_cv_takes_the_c_with_the_lowest_loss_over_grouped_folds():
    x, y = blobs(60, 30)
    groups = np.array([f"p{i // 6}" for i in range(60)])
    grid = (0.001, 0.03, 1.0)
    ours = LinearProbe(C="cv", grid=grid, folds=4).fit(x, y, groups=groups)
    parts = splits.parts(y, [1 / 4] * 4, key=(0, 5), patient=groups)
    losses = []
    for C in grid:
        model = LogisticRegression(C=C, tol=1e-8, max_iter=10_000)
        p = cross_val_predict(model, x, y, cv=PredefinedSplit(parts), method="predict_proba")
        losses.append(-np.mean(np.log(p[np.arange(60), y])))
    best = grid[np.argmin(losses)]
    assert best == ours.C_
    same = LinearProbe(C=ours.C_).fit(x, y)
    np.testing.assert_allclose(ours.coef_, same.coef_, atol=1e-5)
    order = np.argsort(groups, kind="stable")
    assert all(len(set(parts[groups == g])) == 1 for g in groups[order])


def test_a_head_of_scikit_learn_or_of_the_probe_gives_the_same_logits_as_probabilities():
    x, y = blobs(40, 4, classes=2)
    for model in (LogisticRegression().fit(x, y), LinearProbe(C=1.0).fit(x, y)):
        made = probe.head(model, 2, key="k")["logits"]
        ours = jax.nn.softmax(x @ made["kernel"] + made["bias"])
        np.testing.assert_allclose(ours, model.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "C is 0; it must be a number above 0, or 'cv'"),
        ({"C": "cross"}, "C is 'cross'"),
        ({"grid": ()}, "grid is"),
        ({"folds": 1}, "folds is 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LinearProbe(**options)


def test_a_class_of_one_patient_cannot_be_in_folds_and_a_nonlinear_model_is_no_head():
    x, y = blobs(12, 3)
    groups = np.where(y == 1, "same", np.arange(12).astype(str))
    with pytest.raises(UserError, match="class 1 has examples of one patient"):
        LinearProbe().fit(x, y, groups=groups)
    with pytest.raises(UserError, match="is not linear"):
        probe.head(object(), 2, key="config.stages.target.head_start")
