"""Losses of a number, and of ordered grades."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from medtl import losses
from medtl.errors import UserError
from medtl.models.ordinal import CumulativeLinkHead, log_probabilities


def outputs(values):
    return SimpleNamespace(logits=jnp.asarray(values, jnp.float32)[:, None])


def test_losses_of_a_number_have_their_closed_forms():
    out, batch = outputs([0.0, 1.0, 5.0]), {"label": jnp.array([0.5, 1.0, 2.0])}
    squared = losses.mean_squared_error_regression(out, batch)
    np.testing.assert_allclose(squared, [0.25, 0.0, 9.0])
    np.testing.assert_allclose(losses.absolute_error(out, batch), [0.5, 0.0, 3.0])
    np.testing.assert_allclose(losses.huber(out, batch, delta=1.0), [0.125, 0.0, 2.5])
    np.testing.assert_allclose(losses.huber(out, batch, delta=1e6), squared / 2)
    small = losses.huber(out, batch, delta=1e-4) / 1e-4
    np.testing.assert_allclose(small, losses.absolute_error(out, batch), atol=1e-4)


@pytest.mark.parametrize("name", ["mean_squared_error_regression", "absolute_error", "huber"])
def test_gradients_are_finite_and_classes_are_refused(name):
    loss = getattr(losses, name)

    def total(x):
        return loss(SimpleNamespace(logits=x), {"label": jnp.array([0.0, 1e4])}).sum()

    assert np.isfinite(jax.grad(total)(jnp.array([[1e4], [1e4]]))).all()
    with pytest.raises(UserError, match="config.data.task='regression'"):
        loss(SimpleNamespace(logits=jnp.zeros((2, 3))), {"label": jnp.zeros(2)})
    with pytest.raises(UserError, match="label is int32"):
        loss(SimpleNamespace(logits=jnp.zeros((2, 1))), {"label": jnp.zeros(2, jnp.int32)})


def reference(latent, cutpoints):
    """The probabilities of the grades in float64, as differences of cumulative ones."""
    below = expit(np.asarray(cutpoints, np.float64)[None] - np.asarray(latent, np.float64)[:, None])
    ends = np.zeros((len(latent), 1)), np.ones((len(latent), 1))
    return np.diff(np.concatenate([ends[0], below, ends[1]], axis=1), axis=1)


def test_cumulative_link_is_the_log_likelihood_of_mccullagh():
    rng = np.random.default_rng(0)
    latent, cutpoints = rng.normal(size=50) * 3, np.array([-2.0, -0.5, 0.1, 2.5])
    label = rng.integers(0, 5, 50)
    log_p = log_probabilities(jnp.asarray(latent), jnp.asarray(cutpoints))
    np.testing.assert_allclose(jnp.exp(log_p), reference(latent, cutpoints), atol=1e-6)
    value = losses.cumulative_link(SimpleNamespace(logits=log_p), {"label": jnp.asarray(label)})
    p = reference(latent, cutpoints)[np.arange(50), label]
    np.testing.assert_allclose(value, -np.log(p), rtol=1e-5, atol=1e-6)


def test_far_from_the_cutpoints_it_neither_overflows_nor_loses_its_gradient():
    def total(latent):
        out = SimpleNamespace(logits=log_probabilities(latent, jnp.array([-1.0, 1.0])))
        return losses.cumulative_link(out, {"label": jnp.array([1, 1, 0, 2])}).sum()

    latent = jnp.array([-200.0, 200.0, 200.0, -200.0])
    assert total(latent) == pytest.approx(4 * 200 - 2 - 2 * np.log1p(-np.exp(-2)) + 0, rel=1e-2)
    np.testing.assert_allclose(jax.grad(total)(latent), [-1, 1, 1, -1], atol=1e-5)


def test_two_grades_are_logistic_regression():
    latent = jnp.linspace(-3, 3, 7)
    log_p = log_probabilities(latent, jnp.array([0.5]))
    np.testing.assert_allclose(log_p[:, 1], jax.nn.log_sigmoid(latent - 0.5), rtol=1e-5)


@pytest.mark.parametrize("prior", [None, (-2.0, -0.5, -1.5)])
@pytest.mark.parametrize("hidden", [(), (4,)])
def test_the_head_starts_at_the_prior_and_its_cutpoints_rise(prior, hidden):
    head = CumulativeLinkHead(3, hidden=hidden, prior=prior)
    variables = head.init(jax.random.key(0), jnp.ones((1, 2)))
    log_p = head.apply(variables, jnp.zeros((1, 2)))
    np.testing.assert_allclose(
        log_p[0], jax.nn.log_softmax(jnp.array(prior or (0.0,) * 3)), atol=1e-5
    )
    worn = jax.tree.map(lambda x: x - 5.0, variables)
    assert np.isfinite(head.apply(worn, jnp.ones((4, 2)))).all()
