"""Importance weights of the source against closed forms, scikit-learn and SciPy's solver."""

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.linear_model import LogisticRegression

from medtl.data import source_weights
from medtl.errors import UserError


def draw(n=300, m=200, d=2, shift=0.7, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + shift * (np.arange(d) == 0)


def rng():
    return np.random.default_rng(0)


def test_the_domain_classifier_finds_the_ratio_of_two_gaussians():
    x, t = draw(4000, 2000)
    w = source_weights.domain_classifier(x, t, rng(), clip=50.0)
    exact = stats.norm.pdf(x[:, 0], 0.7) / stats.norm.pdf(x[:, 0])
    assert w.mean() == pytest.approx(1)
    assert np.abs(np.log(w / exact)).mean() < 0.1
    # E_w[x] is the target's mean: the weighted source stands for the target.
    assert (w @ x[:, 0] / len(x)) == pytest.approx(0.7, abs=0.05)


def test_each_weight_is_of_a_model_that_has_not_seen_the_patient():
    """With features that only name the patient, a model that saw it would be sure."""
    patients = np.repeat(np.arange(40), 5)
    x = np.eye(80)[patients] * 9
    t = np.eye(80)[patients + 40] * 9
    names = patients.astype(str)
    seen = source_weights.domain_classifier(x, t, rng())
    held = source_weights.domain_classifier(x, t, rng(), patients=(names, names))
    model = LogisticRegression().fit(np.concatenate([x, t]), np.repeat([0, 1], 200))
    assert model.predict_proba(x)[:, 1].max() < 0.5
    assert np.allclose(held, 1, atol=0.05)
    assert seen.mean() == pytest.approx(1)


def test_the_ratio_is_clipped_before_it_is_normalised():
    x, t = draw(shift=2.0)
    w = source_weights.domain_classifier(x, t, rng(), clip=1.5)
    assert w.mean() == pytest.approx(1)
    assert np.isclose(w, w.max()).sum() > 1  # several reach the limit
    assert np.isfinite(w).all()
    assert source_weights.effective_size(w) < len(x)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_kernel_mean_matching_is_scipys_minimum_of_the_same_program(epsilon):
    x, t = draw(25, 15)
    w = source_weights.kernel_mean_matching(
        x, t, rng(), bound=3.0, epsilon=epsilon, bandwidth=1.0, steps=20_000
    )
    x, t = ((v - x.mean(0)) / x.std(0) for v in (x, t))

    def k(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 2)

    kernel, kappa = k(x, x), k(x, t).sum(1) * 25 / 15

    def value(w):
        return 0.5 * w @ kernel @ w - kappa @ w

    found = optimize.minimize(
        value, np.ones(25), jac=lambda w: kernel @ w - kappa, method="SLSQP",
        bounds=[(0, 3)] * 25, options={"ftol": 1e-12, "maxiter": 2000},
        constraints=[{"type": "ineq", "fun": lambda w: epsilon + 1e-12 - (w.mean() - 1)},
                     {"type": "ineq", "fun": lambda w: epsilon + 1e-12 + (w.mean() - 1)}],
    )  # fmt: skip
    assert found.success
    expected = found.x / found.x.mean()
    assert value(w * found.x.mean()) <= value(found.x) + 1e-6
    np.testing.assert_allclose(w, expected, atol=2e-2)


def test_the_order_of_the_examples_does_not_matter_to_matching():
    x, t = draw(40, 30)
    order = rng().permutation(40)
    w = source_weights.kernel_mean_matching(x, t, rng())
    again = source_weights.kernel_mean_matching(x[order], t[::-1], rng())
    np.testing.assert_allclose(again, w[order], atol=1e-5)


@pytest.mark.parametrize("values", [np.linspace(-3, 5, 9), np.zeros(5), np.full(4, 100.0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_the_projection_is_inside_and_no_inner_point_is_nearer(values, epsilon):
    p = source_weights._project(values, 3.0, epsilon)
    assert (p >= 0).all()
    assert (p <= 3).all()
    assert abs(p.mean() - 1) <= epsilon + 1e-9
    for _ in range(20):  # the obtuse angle at a projection onto a convex set
        other = np.clip(rng().dirichlet(np.ones(len(values))) * len(values), 0, 3)
        other = source_weights._project(other, 3.0, epsilon)
        assert (values - p) @ (other - p) <= 1e-6


def test_equal_domains_have_equal_weights_and_all_examples_count():
    x, _ = draw(200)
    w = source_weights.kernel_mean_matching(x, x, rng())
    np.testing.assert_allclose(w, 1, atol=1e-4)
    assert source_weights.effective_size(np.ones(7)) == 7
    assert source_weights.effective_size(np.array([5.0, 0, 0])) == 1


def test_options_that_cannot_be_are_refused():
    x, t = draw(30, 3)
    with pytest.raises(UserError, match="3 train examples, less than its 5 folds"):
        source_weights.domain_classifier(x, t, rng())
    with pytest.raises(UserError, match="clip is 0"):
        source_weights.domain_classifier(x, t, rng(), clip=0)
    with pytest.raises(UserError, match=r"bound is 0\.5"):
        source_weights.kernel_mean_matching(x, t, rng(), bound=0.5)
    with pytest.raises(UserError, match=r"10,001 source examples .* domain_classifier"):
        source_weights.kernel_mean_matching(np.zeros((10_001, 1)), t[:, :1], rng())
