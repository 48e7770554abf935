"""The solver of a sweep's linear heads finds the minima that scikit-learn finds."""

import dataclasses

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medtl.training import logistic


def problem(kind, classes, *, n=200, d=6, missing=0.0, seed=0):
    """Return a problem with two domains, two sets of rows and three λ."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    x = (rng.normal(size=(n, d)) + 0.7 * label[:, None] * rng.normal(size=d) + 3).astype(np.float32)
    target = np.eye(classes, dtype=np.float32)[label]
    if kind == "sigmoid":
        target = (rng.random((n, classes)) < 0.4).astype(np.float32)
        target[rng.random(target.shape) < missing] = np.nan
    part = (np.arange(n) >= n // 2).astype(int)
    rows = (rng.random((2, n)) < 0.8) * rng.uniform(0.5, 2, n)
    lambdas = np.array([0.0, 0.5, 20.0])
    scale = np.stack([np.ones(3), lambdas], axis=1)[:, None] / (n / 2) * np.ones((3, 2, 1))
    return logistic.Problem(x, target, kind, part, rows, scale, np.array([0.02, 0.01, 0.5]))


def fitted(inverse_penalty, x, y, weight):
    model = LogisticRegression(C=inverse_penalty, tol=1e-10, max_iter=10_000)
    return model.fit(x.astype(np.float64), y, sample_weight=weight)


@pytest.mark.parametrize("classes", [2, 4])
def test_softmax_heads_are_those_of_scikit_learn(classes):
    p = problem("softmax", classes)
    solution = logistic.solve(p)
    for h, r in np.ndindex(3, 2):
        weight = (p.rows[r] * p.scale[h, r][p.part]).astype(np.float64)
        used = weight > 0
        # For two classes scikit-learn has one column: w = W_1 - W_0 with W_0 = -W_1, so that
        # |W|² = |w|² / 2.
        c = (2 if classes == 2 else 1) / p.penalty[h]
        expected = fitted(c, p.features[used], p.target[used].argmax(axis=1), weight[used])
        kernel, bias = solution.kernel[h, r].T, solution.bias[h, r]
        if classes == 2:
            kernel, bias = kernel[1:] - kernel[:1], bias[1:] - bias[:1]
        # The curvature is at least the penalty and the gradient at most the tolerance; that bounds
        # the error of a coefficient.
        np.testing.assert_allclose(kernel, expected.coef_, atol=2e-3, rtol=1e-3)
        expected_bias = expected.intercept_ - expected.intercept_.mean()
        np.testing.assert_allclose(bias - bias.mean(), expected_bias, atol=5e-3, rtol=1e-3)
        assert solution.gradient[h, r] <= 1e-5


def test_sigmoid_heads_are_a_regression_for_each_label():
    """A known label counts 1 / (the number of known labels in its row)."""
    p = problem("sigmoid", 3, missing=0.3)
    solution = logistic.solve(p)
    is_known = ~np.isnan(p.target)
    for h, r, k in np.ndindex(3, 2, 3):
        weight = p.rows[r] * p.scale[h, r][p.part] / np.maximum(is_known.sum(axis=1), 1)
        used = is_known[:, k] & (weight > 0)
        expected = fitted(1 / p.penalty[h], p.features[used], p.target[used, k], weight[used])
        kernel = solution.kernel[h, r, :, k]
        np.testing.assert_allclose(kernel, expected.coef_[0], atol=2e-3, rtol=1e-3)


def test_the_loss_is_the_objective_and_no_neighbor_is_lower():
    p = problem("softmax", 3)
    solution = logistic.solve(p)

    def objective(h, r, kernel, bias):
        z = p.features.astype(np.float64) @ kernel + bias
        z -= z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        loss = -np.sum(p.target * log_p, axis=1)
        weight = p.rows[r] * p.scale[h, r][p.part]
        return np.sum(weight * loss) + p.penalty[h] / 2 * np.sum(kernel**2)

    rng = np.random.default_rng(1)
    for h, r in np.ndindex(3, 2):
        kernel, bias = (a[h, r].astype(np.float64) for a in (solution.kernel, solution.bias))
        least = objective(h, r, kernel, bias)
        assert solution.loss[h, r] == pytest.approx(least, rel=1e-5)
        for _ in range(5):
            step = 0.02 * rng.normal(size=kernel.shape)
            assert objective(h, r, kernel + step, bias) > least * (1 - 1e-6)


def test_devices_blocks_and_neighbors_change_no_minimum(monkeypatch):
    p = problem("softmax", 2)
    one = logistic.solve(p)
    spread = logistic.solve(p, devices=jax.devices())
    monkeypatch.setattr(logistic, "_FLOATS", 1)
    one_by_one = logistic.solve(p)
    for other in (spread, one_by_one):
        np.testing.assert_allclose(one.kernel, other.kernel, atol=2e-3)
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)


def test_a_problem_without_weight_has_no_kernel():
    p = problem("softmax", 2)
    solution = logistic.solve(dataclasses.replace(p, scale=p.scale * np.array([0, 1])))
    for values in (solution.kernel, solution.bias, solution.loss):
        assert np.all(values[0] == 0)
    assert np.all(np.isfinite(solution.kernel))


def test_only_convex_losses_are_solved():
    p = problem("softmax", 2)
    with pytest.raises(ValueError, match="kind is 'hinge'; it can be softmax, sigmoid"):
        logistic.solve(dataclasses.replace(p, kind="hinge"))


def test_few_rows_of_many_features_have_the_minimum_of_all_of_them():
    """Of 40 rows with 300 features each set uses some 15: it is solved on no more features."""
    p = problem("softmax", 3, n=40, d=300)
    rows = np.where(np.arange(40) % 2 == 0, p.rows, 0.0).astype(np.float32)
    p = dataclasses.replace(p, rows=rows, penalty=np.array([2.0, 3.0, 5.0]))
    solution = logistic.solve(p)
    assert solution.kernel.shape == (3, 2, 300, 3)
    for h, r in np.ndindex(3, 2):
        weight = (rows[r] * p.scale[h, r][p.part]).astype(np.float64)
        used = weight > 0
        y = p.target[used].argmax(axis=1)
        expected = fitted(1 / p.penalty[h], p.features[used], y, weight[used])
        logits = p.features @ solution.kernel[h, r] + solution.bias[h, r]
        np.testing.assert_allclose(
            logits - logits.mean(axis=1, keepdims=True),
            expected.decision_function(p.features.astype(np.float64)),
            atol=2e-2,
        )
        np.testing.assert_allclose(solution.kernel[h, r].T, expected.coef_, atol=1e-3)


def test_a_large_lambda_leaves_the_minimum_exact():
    """λ = 1000 makes the penalty small beside the weights, to which the tolerance is relative."""
    p = problem("softmax", 2)
    scale = np.broadcast_to(np.array([1.0, 1000.0]) / 100, (1, 1, 2))
    p = dataclasses.replace(p, rows=p.rows[:1], scale=scale, penalty=np.ones(1))
    solution = logistic.solve(p)
    weight = (p.rows[0] * scale[0, 0][p.part]).astype(np.float64)
    used = weight > 0
    expected = fitted(2, p.features[used], p.target[used].argmax(axis=1), weight[used])
    logits = p.features @ solution.kernel[0, 0] + solution.bias[0, 0]
    exact = expected.decision_function(p.features.astype(np.float64))
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], exact, atol=1e-4 * np.abs(exact).max())
    assert solution.gradient[0, 0] <= 1e-6
