"""The losses against closed forms, scikit-learn, and their derivatives in pencil and paper."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from medtl import losses
from medtl.errors import UserError


@dataclasses.dataclass
class Outputs:
    logits: jax.Array


def value_and_gradient(loss, logits, label, **options):
    """f32[B], and the gradient of its sum by the logits, which holds that of each example."""
    values = loss(Outputs(logits), {"label": label}, **options)
    gradient = jax.grad(lambda x: loss(Outputs(x), {"label": label}, **options).sum())(logits)
    return np.asarray(values), np.asarray(gradient)


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(0, 3, (7, 4)), jnp.float32)


@pytest.fixture
def label():
    return jnp.asarray([0, 1, 2, 3, 3, 0, 2], jnp.int32)


def test_cross_entropy_is_the_log_loss_of_each_example(logits, label):
    values, gradient = value_and_gradient(losses.cross_entropy, logits, label)
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    p /= p.sum(axis=1, keepdims=True)
    for i in range(7):
        assert values[i] == pytest.approx(
            log_loss([label[i]], p[i : i + 1], labels=range(4)), rel=1e-5
        )
    np.testing.assert_allclose(gradient, p - np.eye(4)[label], atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_of_integers_and_of_distributions_agree(logits, label, smoothing):
    integers = losses.cross_entropy(Outputs(logits), {"label": label}, label_smoothing=smoothing)
    soft = jnp.asarray((1 - smoothing) * np.eye(4)[label] + smoothing / 4, jnp.float32)
    np.testing.assert_allclose(
        integers, losses.cross_entropy(Outputs(logits), {"label": soft}), rtol=1e-6
    )


def test_equal_logits_have_the_cross_entropy_log_k():
    outputs = Outputs(jnp.full((2, 5), 7.0))
    for smoothing in (0.0, 0.3):
        values = losses.cross_entropy(
            outputs, {"label": jnp.array([0, 4])}, label_smoothing=smoothing
        )
        np.testing.assert_allclose(values, np.log(5), rtol=1e-6)


def test_mean_squared_error_is_the_brier_score_over_k(logits, label):
    values = losses.mean_squared_error(Outputs(logits), {"label": label})
    p = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(values, ((p - np.eye(4)[label]) ** 2).mean(axis=1), rtol=1e-5)
    two = jnp.asarray([[0.3, -0.2], [2.0, 1.0], [0.0, 5.0]])
    values = losses.mean_squared_error(Outputs(two), {"label": jnp.array([0, 1, 1])})
    assert values.mean() == pytest.approx(
        brier_score_loss([0, 1, 1], jax.nn.softmax(two)[:, 1]), rel=1e-5
    )


def test_mean_squared_error_on_logits(logits, label):
    values, gradient = value_and_gradient(losses.mean_squared_error, logits, label, on="logits")
    error = np.asarray(logits) - np.eye(4)[label]
    np.testing.assert_allclose(values, (error**2).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(gradient, 2 * error / 4, rtol=1e-5)


def test_sigmoid_binary_cross_entropy_is_the_mean_log_loss_of_the_known_labels(logits):
    label = np.random.default_rng(1).choice([0.0, 1.0, np.nan], (7, 4)).astype(np.float32)
    label[3] = np.nan
    label[4] = [0, 1, 1, 0]
    values, gradient = value_and_gradient(
        losses.sigmoid_binary_cross_entropy, logits, jnp.asarray(label)
    )
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    for i in range(7):
        known = ~np.isnan(label[i])
        expected = log_loss(label[i, known], p[i, known], labels=[0, 1]) if known.any() else 0.0
        assert values[i] == pytest.approx(expected, rel=1e-5)
        slope = np.where(known, p[i] - np.where(known, label[i], 0), 0) / max(known.sum(), 1)
        np.testing.assert_allclose(gradient[i], slope, atol=1e-6)


def test_sigmoid_binary_cross_entropy_takes_integers_as_one_hot(logits, label):
    one_hot = jnp.eye(4)[label]
    np.testing.assert_array_equal(
        losses.sigmoid_binary_cross_entropy(Outputs(logits), {"label": label}),
        losses.sigmoid_binary_cross_entropy(Outputs(logits), {"label": one_hot}),
    )


LOSSES = [
    (losses.cross_entropy, {}),
    (losses.cross_entropy, {"label_smoothing": 0.1}),
    (losses.mean_squared_error, {}),
    (losses.mean_squared_error, {"on": "logits"}),
    (losses.sigmoid_binary_cross_entropy, {}),
]


@pytest.mark.parametrize("loss, options", LOSSES)
def test_extreme_logits_have_finite_values_and_gradients(loss, options):
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [88.0, -104.0, 1e-30]])
    values, gradient = value_and_gradient(loss, logits, jnp.array([1, 0, 2]), **options)
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("loss, options", LOSSES)
def test_bfloat16_logits_are_worked_on_in_float32(loss, options, logits, label):
    low = logits.astype(jnp.bfloat16)
    values = loss(Outputs(low), {"label": label}, **options)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(
        values, loss(Outputs(low.astype(jnp.float32)), {"label": label}, **options)
    )


@pytest.mark.parametrize("loss, options", LOSSES)
def test_an_example_does_not_depend_on_the_others(loss, options, logits, label):
    values = loss(Outputs(logits), {"label": label}, **options)
    order = jnp.array([3, 1, 6])
    np.testing.assert_allclose(
        values[order], loss(Outputs(logits[order]), {"label": label[order]}, **options), rtol=1e-6
    )


@pytest.mark.parametrize(
    "loss", [losses.cross_entropy, losses.mean_squared_error, losses.sigmoid_binary_cross_entropy]
)
@pytest.mark.parametrize(
    "wrong", [jnp.zeros((7, 1)), jnp.zeros((7, 3)), jnp.zeros((7,)), jnp.zeros((7, 4), jnp.int32)]
)
def test_a_label_that_would_broadcast_is_refused(loss, wrong, logits):
    with pytest.raises(UserError, match=r"int\[7\] of class indices or float\[7, 4\]"):
        loss(Outputs(logits), {"label": wrong})


def test_options_out_of_range_are_refused(logits, label):
    with pytest.raises(UserError, match=r"label_smoothing is 1\.5"):
        losses.cross_entropy(Outputs(logits), {"label": label}, label_smoothing=1.5)
    with pytest.raises(UserError, match="did you mean 'logits'"):
        losses.mean_squared_error(Outputs(logits), {"label": label}, on="logit")
