"""The benchmark of methods: its subsets, its choice, its metric, and that its heads are medtl's."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import rbf_kernel

from medtl import config as configs
from medtl.experiment.splits import Split
from medtl.experiment.trials import Trial, with_values
from medtl.sweep import trainer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def runs():
    return importlib.import_module("methods_runs")


def arrays(rng, n, shift=0.0):
    """Return n rows of 6 features, two rows a patient, with a class that two of them show."""
    label = np.arange(n) // 2 % 2
    x = rng.normal(size=(n, 6)) + shift
    x[:, :2] += label[:, None]
    return {
        "plain": x.astype(np.float32),
        "label": label,
        "classes": np.array(["ill", "well"]),
        "patient": (np.arange(n) // 2).astype(str),
        "split": np.where(np.arange(n) < 0.6 * n, "train", "test"),
    }


@pytest.fixture
def data(runs):
    rng = np.random.default_rng(0)
    return runs.DataSet("toy", arrays(rng, 100), arrays(rng, 40, 0.3), (12, 24, 0))


def test_subsets_are_nested_and_neither_tested_nor_divided_within_a_patient(runs, data):
    made = runs.runs_of(data, (0, 1))
    assert [len(r.train) for r in made] == [12, 24, 60] * 2
    for small, large in itertools.pairwise(made):
        if small.seed == large.seed:
            assert set(small.train) <= set(large.train)
    for r in made:
        assert not set(r.train) & set(r.test)
        patient = data.target["patient"][r.train]
        folds = {p: set(r.fold[patient == p]) for p in patient}
        assert all(len(of_patient) == 1 for of_patient in folds.values())


def test_the_largest_penalty_within_one_standard_error_is_chosen(runs):
    losses = np.array([[1.0, 3.0], [1.0, 1.2], [1.1, 1.15], [0.0, 0.4]])
    by_penalty = [{runs.PENALTY: p, "x": x} for p, x in ((9.0, 0), (3.0, 0), (1.0, 0), (1.0, 1))]
    # The best has mean 0.2 and standard error 0.2 / sqrt(2), and no other setting has its x.
    assert runs.choose(losses, by_penalty) == 3
    # Without it the best is 1.1, error 0.1 / sqrt(2); 1.125 is within it, with a smaller penalty.
    assert runs.choose(losses[:3], by_penalty[:3]) == 1
    assert runs.choose(losses[[2, 1]], [by_penalty[1], by_penalty[2]]) == 0


def test_a_cautious_choice_takes_the_source_only_where_it_is_shown_to_help(runs):
    values = [{runs.PENALTY: p, runs.LAMBDA: x} for p, x in ((1.0, 10.0), (1.0, 1e3), (2.0, 1e3))]
    near, far = np.array([0.0, 0.4]), np.array([0.4, 0.8])  # the best's standard error is 0.14
    losses = np.stack([near, near + 0.1, near + 0.2])
    assert runs.choose(losses, values) == 0
    assert runs.choose(losses, values, cautious=True) == 1
    assert runs.choose(np.stack([near, far, far]), values, cautious=True) == 0


def test_gaussian_features_have_the_kernel_of_scikit_learn(runs, data):
    x = runs.VIEWS["standard"](data, data.target, True)
    rows, gamma = data.pool, 1 / (x.shape[1] * x[data.pool].var())
    made = runs.VIEWS["kernel"](data, data.target, True)
    np.testing.assert_allclose(
        made[rows] @ made[rows].T, rbf_kernel(x[rows], gamma=gamma), atol=1e-4
    )


def test_corrected_test_probabilities_have_the_estimated_frequencies(runs):
    label = np.repeat([0, 1], 50)
    held = np.where(label[:, None] == [0, 1], 0.9, 0.1)
    test = held[np.r_[:45, 95:100]]  # of the first class nine in ten
    for name in ("em", "bbse"):
        assert runs._shifted(name, held, label, test).mean(axis=0)[0] == pytest.approx(0.9, abs=0.1)


def test_the_weighted_auroc_is_scikit_learns():
    report = importlib.import_module("methods_report")
    rng = np.random.default_rng(1)
    label, p = rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60).round(1)  # with ties
    weight = rng.integers(0, 3, (4, 60)).astype(float)
    got = report.macro_auroc(label, p, weight, np.arange(3))
    for w, value in zip(weight, got, strict=True):
        each = [roc_auc_score(label == c, p[:, c], sample_weight=w) for c in range(3)]
        assert value == pytest.approx(np.mean(each), abs=1e-12)


def test_the_convex_head_is_scikit_learns_at_the_chosen_penalty(runs, data):
    method = runs.Method("", grid={runs.PENALTY: (0.1, 0.01)}, solver="lbfgs")
    made = runs.runs_of(data, (0,))
    for run, (p, values) in zip(made, runs.train(method, data, made), strict=True):
        n, x, y = len(run.train), data.target["plain"], data.target["label"]
        # Softmax of two classes with |W|² is the logistic model with half the penalty.
        c = 2 / (values[runs.PENALTY] * n)
        model = LogisticRegression(C=c, tol=1e-8, max_iter=1000).fit(x[run.train], y[run.train])
        np.testing.assert_allclose(p, model.predict_proba(x[run.test]), atol=2e-3)


def test_whitening_leaves_out_what_dependent_columns_have_no_variance_in(runs, data):
    x = np.c_[data.target["plain"], data.target["plain"].sum(1)]
    target = {**data.target, "plain": x}
    made = runs.VIEWS["principal"](runs.DataSet("d", target, None, (0,)), target, True)
    train = made[target["split"] == "train"]
    assert made.shape == (100, 6)
    np.testing.assert_allclose(np.cov(train.T), np.eye(6), atol=1e-4)


@pytest.mark.parametrize("name", ["contrastive", "dann", "learned", "reweight", "l2_sp", "lp_ft"])
def test_one_program_trains_all_that_a_stage_has_as_the_trainer_does(
    runs, data, name, monkeypatch, tmp_path
):
    method = importlib.import_module("methods").METHODS[name]
    monkeypatch.setattr(runs, "STEPS", 5)
    experiment = runs._opened(method, data, tmp_path)
    part = np.where(data.target["split"] == "train", "train", "val")
    arm = runs.Arm(experiment, Split(part, 0, 1), 0, "method")
    values = {runs.PENALTY: 0.5, **({runs.LAMBDA: 3.0} if runs.LAMBDA in method.grid else {})}
    [together] = trainer.train_heads([arm], [Trial("a", values), Trial("b", values)]).probabilities
    alone = arm.with_trial(Trial("c", values)).validation_probabilities()
    np.testing.assert_allclose(together, np.stack([alone, alone]), atol=1e-5)


def test_every_entry_names_fields_of_the_config_and_as_many_settings_as_the_others(runs):
    methods = importlib.import_module("methods").METHODS
    for name, method in methods.items():
        config = configs.default()
        config.model.encoders.features = "linear"
        config.arm.method = configs.arm("weights", source_stage=False, joint=False)
        for values in (method.overrides, {path: v[0] for path, v in method.grid.items()}):
            with_values(config, values)
        assert np.prod([len(v) for v in method.grid.values()]) == 6, name
        assert method.view in runs.VIEWS
