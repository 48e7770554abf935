"""The smooth calibration curve, O:E and the ICI: against known curves, closed forms, simulation."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, logit

from medtl.evaluation.binned import binned
from medtl.evaluation.smooth import Basis, expected_ici, smooth


def simulated(n, seed=0, *, slope=1.0, shift=0.0, images=1):
    """Probabilities whose true risk is expit(shift + slope logit p); `images` alike per patient."""
    rng = np.random.default_rng(seed)
    x = rng.normal(-0.5, 1.5, n)
    label = rng.random(n) < expit(shift + slope * x)
    unit = np.repeat(np.arange(n), images)
    return np.repeat(label, images), np.repeat(expit(x), images), unit


@pytest.mark.parametrize(("slope", "shift"), [(1, 0), (0.5, 0), (1, 1), (1.7, -0.5)])
def test_the_curve_is_the_true_risk_for_many_examples(slope, shift):
    label, p, unit = simulated(50_000, slope=slope, shift=shift)
    curve = smooth(label, p, unit)
    truth = expit(shift + slope * logit(curve.x))
    np.testing.assert_allclose(curve.y, truth, atol=0.02)
    assert np.mean((curve.low <= truth) & (truth <= curve.high)) > 0.8
    assert curve.ici[0] == pytest.approx(
        np.mean(np.abs(expit(shift + slope * logit(p)) - p)), abs=0.005
    )
    assert curve.o_e[0] == pytest.approx(label.sum() / p.sum(), rel=1e-9)


def test_a_curve_that_bends_is_followed_where_a_line_is_not():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.02, 0.98, 20_000)
    truth = 0.25 + 0.5 * (p > 0.5) * (p - 0.5) * 2
    curve = smooth(rng.random(len(p)) < truth, p, np.arange(len(p)))
    expected = 0.25 + 0.5 * (curve.x > 0.5) * (curve.x - 0.5) * 2
    assert np.abs(curve.y - expected).max() < 0.06


def test_few_examples_give_the_logistic_line_of_statsmodels():
    label, p, unit = simulated(40, seed=3)
    assert min(label.sum(), (~label).sum()) < 20
    curve = smooth(label, p, unit)
    x = logit(p)
    line = sm.Logit(label.astype(float), sm.add_constant(x)).fit(disp=0).params
    np.testing.assert_allclose(curve.y, expit(line[0] + line[1] * logit(curve.x)), atol=0.01)


def test_the_spline_is_harrells():
    label, p, unit = simulated(3000)
    table = binned(label, logit(p), unit, units=3000, bins=400, draws=0)
    basis = Basis.of(table)
    n = table.counts.sum(axis=0)
    design = basis(table.score)
    np.testing.assert_allclose((design * n[:, None]).T @ design / n.sum(), np.eye(4), atol=1e-9)
    # Beyond the outer knots a natural spline is straight.
    for ends in (basis.knots[0] - np.arange(3.0), basis.knots[-1] + np.arange(3.0)):
        np.testing.assert_allclose(np.diff(basis(ends), 2, axis=0), 0, atol=1e-8)


def test_intervals_hold_the_truth_and_follow_the_patients():
    inside, o_e = [], []
    for seed in range(80):
        label, p, unit = simulated(300, seed)
        curve = smooth(label, p, unit)
        inside.append(np.mean((curve.low <= curve.x) & (curve.x <= curve.high)))
        o_e.append(curve.o_e[1] <= 1 <= curve.o_e[2])
    assert 0.9 < np.mean(inside) < 0.99 and np.mean(o_e) > 0.88
    one, four = (smooth(*simulated(300, 0, images=m)) for m in (1, 4))
    np.testing.assert_allclose(four.high - four.low, one.high - one.low, rtol=0.15)


def test_the_ici_of_perfect_calibration_is_the_mean_of_simulated_ones():
    found = [smooth(*simulated(200, seed)).ici[0] for seed in range(60)]
    expected = np.mean([expected_ici(simulated(200, seed)[1]) for seed in range(20)])
    assert expected == pytest.approx(np.mean(found), rel=0.15)


@pytest.mark.filterwarnings("error")
def test_separated_equal_and_absent_labels():
    label = np.repeat([False, True], 30)
    curve = smooth(
        label, np.where(label, 0.99, 0.01) + np.linspace(-0.005, 0.005, 60), np.arange(60)
    )
    assert np.isfinite(curve.y).all() and curve.ici[0] < 0.02
    flat = smooth(label, np.full(60, 0.3), np.arange(60))
    np.testing.assert_allclose(flat.y, 0.5, atol=1e-3)
    assert flat.o_e[0] == pytest.approx(0.5 / 0.3) and flat.ici[0] == pytest.approx(0.2, abs=1e-3)
    assert smooth(label[:30], np.full(30, 0.3), np.arange(30)) == "every example is negative"
    assert smooth(label[:0], np.empty(0), np.arange(0)) == "there is no labelled example"
