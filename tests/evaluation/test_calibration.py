"""Calibration maps against statsmodels, scikit-learn and scipy, the truth of simulated data, and
what they must not change."""

import json

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from medtl.errors import UserError
from medtl.evaluation import calibration

NAMES = ("a", "b", "c", "d", "e")


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def simulated(n, k, *, weight=1.0, bias=0.0, seed=0):
    """A model's probabilities, and labels drawn from softmax(weight * z + bias) of its centred
    logits z."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (n, k))
    z -= z.mean(axis=1, keepdims=True)
    true = softmax(weight * z + bias)
    label = (rng.uniform(size=(n, 1)) > true.cumsum(axis=1)).sum(axis=1).clip(max=k - 1)
    return label, softmax(z)


def fit(kind, label, p):
    found = calibration.fit(kind, label, p, classes=NAMES[: p.shape[1]])
    assert isinstance(found, calibration.Calibrator), found
    return found


@pytest.mark.parametrize("k", [2, 3, 5])
def test_temperature_is_the_least_log_loss_of_a_search(k):
    label, p = simulated(300, k, weight=0.5)
    temperature = fit("temperature", label, p).parameters["temperature"]

    def slope(
        inverse,
    ):  # of the log loss in 1 / T: the mean logit under the model less that of the label
        z = np.log(p)
        return np.mean((softmax(inverse * z) * z).sum(axis=1) - z[np.arange(len(z)), label])

    wanted = optimize.brentq(slope, 1e-3, 1e3, xtol=1e-15, rtol=1e-15)
    assert 1 / temperature == pytest.approx(wanted, rel=1e-9)


def test_platt_scaling_is_logistic_regression_on_the_logit():
    label, p = simulated(400, 2, weight=0.6, bias=np.array([0.0, 1.0]))
    logit = np.log(p[:, 1] / p[:, 0])
    known = sm.Logit(label, sm.add_constant(logit)).fit(
        disp=0, method="newton", tol=1e-14, maxiter=100
    )
    calibrator = fit("platt", label, p)
    weight, bias = calibrator.parameters["weight"], calibrator.parameters["bias"]
    assert weight[0] == weight[1] == pytest.approx(known.params[1], rel=1e-9)
    assert bias[1] - bias[0] == pytest.approx(known.params[0], rel=1e-9) and sum(
        bias
    ) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(calibrator(p)[:, 1], known.predict(), rtol=1e-9)
    # scikit-learn's own optimum is less exact
    sk = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:, None], label)
    np.testing.assert_allclose(calibrator(p), sk.predict_proba(logit[:, None]), atol=1e-5)


@pytest.mark.parametrize("k", [3, 4])
def test_vector_scaling_of_more_classes_is_the_least_log_loss_of_a_search(k):
    label, p = simulated(500, k, weight=np.linspace(0.5, 1.5, k), bias=np.linspace(-1, 1, k))
    z = np.log(p) - np.log(p).mean(axis=1, keepdims=True)

    def loss(x):
        logits = x[:k] * z + x[k:]
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(z)), label])

    search = optimize.minimize(
        loss, np.r_[np.ones(k), np.zeros(k)], method="BFGS", options={"gtol": 1e-8}
    )
    found = fit("vector", label, p).parameters
    best = loss(np.r_[found["weight"], found["bias"]])
    assert best == pytest.approx(search.fun, abs=1e-9)
    bias = search.x[k:] - search.x[k:].mean()
    np.testing.assert_allclose(
        np.r_[found["weight"], found["bias"]], np.r_[search.x[:k], bias], atol=1e-4
    )
    gradient = optimize.approx_fprime(np.r_[found["weight"], found["bias"]], loss, 1e-7)
    assert np.abs(gradient).max() < 1e-6


def scaling(k):
    """The kind with a weight and a bias."""
    return calibration.kinds(False, k)[1]


@pytest.mark.parametrize("k", [2, 4])
def test_the_truth_is_recovered_from_many_examples(k):
    label, p = simulated(100_000, k, weight=1 / 2.5, seed=1)
    assert fit("temperature", label, p).parameters["temperature"] == pytest.approx(2.5, rel=0.03)
    weight, bias = np.linspace(0.5, 1.2, k), np.linspace(-0.5, 0.5, k)
    label, p = simulated(100_000, k, weight=weight if k > 2 else 0.7, bias=bias, seed=2)
    found = fit(scaling(k), label, p).parameters
    np.testing.assert_allclose(found["weight"], weight if k > 2 else [0.7, 0.7], atol=0.03)
    np.testing.assert_allclose(found["bias"], bias, atol=0.03)


@pytest.mark.parametrize("k", [2, 3])
def test_probabilities_that_are_right_are_left_nearly_alone(k):
    label, p = simulated(50_000, k, seed=3)
    for kind, tolerance in (("temperature", 0.01), (scaling(k), 0.02), ("isotonic", 0.02)):
        assert np.abs(fit(kind, label, p)(p) - p).mean() < tolerance


@pytest.mark.parametrize(
    ("kind", "k"), [(kind, k) for k in (2, 3, 5) for kind in calibration.kinds(False, k)]
)
def test_rows_sum_to_one_and_the_log_loss_on_val_is_no_worse(kind, k):
    for seed in range(5):
        label, p = simulated(
            200, k, weight=3.0 if seed % 2 else 0.3, bias=np.arange(k) / k, seed=seed
        )
        q = fit(kind, label, p)(p)
        np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-12)
        if kind == "isotonic":
            assert (q > 0).all() and (q < 1).all()
        else:  # the probabilities as they were are among the maps that were searched
            assert log_loss(label, q) <= log_loss(label, p) + 1e-12


def test_temperature_keeps_the_order():
    label, p = simulated(300, 2, weight=0.3)
    q = fit("temperature", label, p)(p)
    assert roc_auc_score(label, q[:, 1]) == roc_auc_score(label, p[:, 1])
    label, p = simulated(300, 5, weight=0.3)
    q = fit("temperature", label, p)(p)
    assert np.array_equal(np.argsort(q, axis=1), np.argsort(p, axis=1))


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_two_class_maps_do_not_fall(kind):
    label, p = simulated(300, 2, weight=0.5)
    grid = np.linspace(0, 1, 501)
    q = fit(kind, label, p)(np.stack([1 - grid, grid], axis=1))
    assert (np.diff(q[:, 1]) >= -1e-12).all() and (q > 0).all() and (q < 1).all()


def test_isotonic_agrees_with_scikit_learn_between_the_bounds():
    label, p = simulated(400, 2, weight=0.5)
    grid = np.linspace(0.001, 0.999, 301)
    q = fit("isotonic", label, p)(np.stack([1 - grid, grid], axis=1))
    wanted = IsotonicRegression(out_of_bounds="clip").fit(p[:, 1], label).predict(grid)
    zeros, ones = np.sum(label == 0), np.sum(label == 1)
    inside = (q[:, 1] > 1 / (zeros + 2) + 1e-9) & (q[:, 1] < (ones + 1) / (ones + 2) - 1e-9)
    assert inside.sum() > 100
    # a block that touches the bound only at one corner differs along the line from there: compare
    # at the examples
    at = fit("isotonic", label, p)(p)[:, 1]
    expected = np.clip(
        IsotonicRegression().fit_transform(p[:, 1], label), 1 / (zeros + 2), (ones + 1) / (ones + 2)
    )
    np.testing.assert_allclose(at, expected, atol=1e-12)
    np.testing.assert_allclose(q[inside, 1], wanted[inside], atol=0.01)


def test_isotonic_of_more_classes_is_one_against_the_rest_divided_by_the_sum():
    label, p = simulated(400, 3, weight=0.5)
    parts = []
    for k in range(3):
        own = label == k
        low, high = 1 / (np.sum(~own) + 2), (own.sum() + 1) / (own.sum() + 2)
        parts.append(np.clip(IsotonicRegression().fit_transform(p[:, k], own), low, high))
    wanted = np.stack(parts, axis=1)
    np.testing.assert_allclose(
        fit("isotonic", label, p)(p),
        wanted / wanted.sum(axis=1, keepdims=True),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("kind", calibration.kinds(True, 2))
def test_each_of_several_labels_is_a_two_class_task_over_its_known_examples(kind):
    rng = np.random.default_rng(4)
    columns = [
        simulated(200, 2, weight=w, bias=np.array([0, b]), seed=s)
        for s, (w, b) in enumerate([(0.5, 1), (2, 0)])
    ]
    label = np.stack([y for y, _ in columns], axis=1).astype(float)
    p = np.stack([q[:, 1] for _, q in columns], axis=1)
    label[rng.uniform(size=label.shape) < 0.2] = np.nan
    q = fit(kind, label, p)(p)
    for k in range(2):
        known = ~np.isnan(label[:, k])
        two = np.stack([1 - p[:, k], p[:, k]], axis=1)
        np.testing.assert_allclose(
            q[:, k], fit(kind, label[known, k].astype(int), two[known])(two)[:, 1], atol=1e-12
        )


def test_a_label_that_cannot_be_fitted_is_left_as_it_was_and_named():
    label, p = simulated(100, 2)
    both = np.stack([label, np.zeros(100)], axis=1).astype(float)
    found = calibration.fit(
        "platt", both, np.stack([p[:, 1], p[:, 0]], axis=1), classes=["edema", "mass"]
    )
    assert found.undefined == {"mass": "every labelled example of val is 'not mass'"}
    assert np.array_equal(found(p)[:, 1], p[:, 1]) and found.parameters["weight"][1] is None
    reason = calibration.fit("platt", np.zeros((100, 2)), p, classes=["edema", "mass"])
    assert isinstance(reason, str) and "edema" in reason and "mass" in reason


@pytest.mark.parametrize("kind", calibration.kinds(False, 3))
def test_parameters_are_json_and_unknown_labels_are_left_out(kind):
    label, p = simulated(100, 3)
    with_unknown = fit(kind, np.r_[label, -1, -1], np.r_[p, np.full((2, 3), 1 / 3)])
    assert with_unknown.parameters == fit(kind, label, p).parameters
    assert json.loads(json.dumps(with_unknown.parameters)) == with_unknown.parameters


@pytest.mark.parametrize("weight", [0.01, 30.0])
def test_extreme_temperatures_and_saturated_probabilities_converge(weight):
    rng = np.random.default_rng(5)
    logit = rng.normal(0, 8, 2000) / max(weight, 1)
    label = (rng.uniform(size=2000) < 1 / (1 + np.exp(-weight * logit))).astype(int)
    p = 1 / (1 + np.exp(-logit))
    found = fit("platt", label, np.stack([1 - p, p], axis=1)).parameters
    eps = np.finfo(np.float32).eps
    x = np.log(np.clip(p, eps, 1 - eps)) - np.log(np.clip(1 - p, eps, 1 - eps))
    known = sm.Logit(label, sm.add_constant(x)).fit(disp=0, method="newton", tol=1e-14, maxiter=100)
    assert found["weight"][1] == pytest.approx(known.params[1], rel=1e-9)
    assert 2 * found["bias"][1] == pytest.approx(known.params[0], rel=1e-9, abs=1e-11)


def reason(kind, label, p):
    found = calibration.fit(kind, label, p, classes=NAMES[: p.shape[1]])
    assert isinstance(found, str), found
    return found


def test_what_cannot_be_fitted_is_a_reason():
    label, p = simulated(200, 2)
    for kind in calibration.kinds(False, 2):
        assert "19 labelled examples" in reason(kind, label[:19], p[:19])
        assert "every labelled example of val is 'b'" in reason(kind, np.ones(200, int), p)
    rare = np.r_[np.zeros(196, int), np.ones(4, int)]
    assert "4 examples of 'b'" in reason("platt", rare, p) and "4 examples of 'b'" in reason(
        "isotonic", rare, p
    )
    for kind in ("temperature", "platt"):
        assert "separate" in reason(kind, p.argmax(axis=1), p)
        assert "do not vary" in reason(kind, label, np.full((200, 2), 0.5))
        assert "rise" in reason(kind, 1 - label, p)


def test_labels_that_touch_in_one_example_are_separated_for_temperature_and_platt():
    p = np.r_[np.linspace(0.1, 0.5, 30), np.linspace(0.5, 0.9, 30)]
    label = np.repeat([0, 1], 30)
    for kind in ("temperature", "platt"):
        assert "separate" in reason(kind, label, np.stack([1 - p, p], axis=1))


def test_one_class_of_three_that_is_separated_is_found():
    label, p = simulated(300, 3)
    p[label == 2], p[label != 2, 2] = [0.005, 0.005, 0.99], 1e-3
    assert "separate" in reason("vector", label, p / p.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("kind", "label", "p", "words"),
    [
        ("vector", np.zeros(3, int), np.full((3, 2), 0.5), "temperature, platt, isotonic"),
        ("platt", np.zeros(3, int), np.full((3, 3), 0.5), "[3, 2]"),
        ("platt", np.array([0, 2, 1]), np.full((3, 2), 0.5), "0..1"),
        (
            "platt",
            np.zeros(3, int),
            np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]]),
            "probability[1]",
        ),
        (
            "platt",
            np.zeros(3, int),
            np.array([[0.5, 0.5], [0.5, 0.5], [3.0, -1.0]]),
            "probability[2]",
        ),
    ],
)
def test_mistakes_are_named(kind, label, p, words):
    with pytest.raises(UserError) as error:
        calibration.fit(kind, label, p, classes=("a", "b"))
    assert words in str(error.value)
