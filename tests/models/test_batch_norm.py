"""BatchNorm over the global batch: padding, devices, derivatives and hard numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables, relative_error

from medtl import models
from medtl.models import layers

NORM = layers.BatchNorm()


def norm_variables(channels, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: jnp.asarray(rng.uniform(low, high, channels), jnp.float32)  # noqa: E731
    return {
        "params": {"scale": draw(0.5, 2), "bias": draw(-1, 1)},
        "batch_stats": {"mean": draw(-1, 1), "var": draw(0.5, 2)},
    }


def images(batch, px=5, channels=3, seed=0):
    draw = np.random.default_rng(seed).normal(1.0, 2.0, (batch, px, px, channels))
    return draw.astype(np.float32)


def train(module, variables, x, mask=None):
    mask = mask if mask is None else jnp.asarray(mask)
    return module.apply(variables, jnp.asarray(x), True, mask=mask, mutable=["batch_stats"])


def assert_close(found, expected, rtol=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), found, expected
    )


def test_closed_form():
    x, variables = images(4), norm_variables(3)
    y, changed = train(NORM, variables, x)
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    params, old = variables["params"], variables["batch_stats"]
    assert_close(y, (wide - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"])
    assert_close(changed["batch_stats"]["mean"], 0.9 * old["mean"] + 0.1 * mean)
    assert_close(changed["batch_stats"]["var"], 0.9 * old["var"] + 0.1 * var * 100 / 99)


def test_a_large_mean_cancels_nothing():
    """With E[x^2] - E[x]^2 in float32 the variance here would be off by more than its own size."""
    x = images(8).astype(np.float64) + 1e4
    x = x.astype(np.float32)
    y, _ = train(NORM, NORM.init(jax.random.key(0), jnp.asarray(x), use_batch_stats=False), x)
    wide = x.astype(np.float64)
    # float32 holds x to 5e-4 and its mean no better, beside a deviation of 2.
    np.testing.assert_allclose(y, (wide - wide.mean((0, 1, 2))) / wide.std((0, 1, 2)), atol=1e-3)


def test_initialization_and_evaluation_leave_the_running_statistics():
    x = jnp.asarray(images(4))
    variables = NORM.init(jax.random.key(0), x, use_batch_stats=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1)
    _, changed = NORM.apply(variables, x, use_batch_stats=False, mutable=["batch_stats"])
    assert_close(dict(changed), {"batch_stats": variables["batch_stats"]}, rtol=0)


@pytest.mark.parametrize("garbage", [0.0, 1e6])
def test_padding_does_not_count(garbage):
    x, variables = images(5), norm_variables(3)
    padded = np.concatenate([x[:2], np.full((2, 5, 5, 3), garbage, np.float32), x[2:]])
    mask = np.array([1, 1, 0, 0, 1, 1, 1], np.float32)
    expected, expected_stats = train(NORM, variables, x)
    found, found_stats = train(NORM, variables, padded, mask)
    assert_close(found[mask > 0], expected)
    assert_close(found_stats, expected_stats)
    assert np.isfinite(found).all()


def test_padding_does_not_count_in_a_whole_backbone():
    module = models.backbone("cifar_resnet20", last_layer="layer2")()
    variables = random_variables(module, (12, 12, 3))
    x = images(6, px=12)
    mask = np.array([1, 1, 0, 1, 0, 1], np.float32)
    expected, expected_stats = train(module, variables, x[mask > 0])
    found, found_stats = train(module, variables, x, mask)
    assert relative_error(found[mask > 0], expected) < 1e-5
    assert_close(found_stats, expected_stats)


def test_a_batch_of_padding_changes_nothing():
    x, variables = images(3), norm_variables(3)
    y, changed = train(NORM, variables, x, np.zeros(3, np.float32))
    assert np.isfinite(y).all()
    assert_close(changed["batch_stats"], variables["batch_stats"], rtol=0)


def plain(params, x, mask):
    """The textbook formula, with gradients through the mean in every place."""
    weights = mask[:, None, None, None] * jnp.ones((1, *x.shape[1:3], 1))
    mean = (x * weights).sum((0, 1, 2)) / weights.sum()
    var = (jnp.square(x - mean) * weights).sum((0, 1, 2)) / weights.sum()
    return (x - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def test_first_and_second_derivatives():
    """The layer hides a `stop_gradient` of the mean; derivatives of both orders must not see it."""
    x, variables = images(4), norm_variables(3)
    mask = jnp.array([1.0, 0.0, 1.0, 1.0])
    real = mask[:, None, None, None]
    weights = images(4, seed=1)

    def ours(params, x):
        y, _ = train(NORM, variables | {"params": params}, x, mask)
        return (jnp.sin(y) * weights * real).sum()

    def theirs(params, x):
        return (jnp.sin(plain(params, x, mask)) * weights * real).sum()

    tangent = (norm_variables(3, seed=3)["params"], images(4, seed=2))
    for f in (lambda g: g, lambda g: lambda *at: jax.jvp(g, at, tangent)[1]):
        gradients = [
            jax.jit(f(jax.grad(loss, argnums=(0, 1))))(variables["params"], x)
            for loss in (ours, theirs)
        ]
        for found, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
            assert relative_error(found, expected) < 1e-5
        assert np.abs(gradients[0][1][1]).max() == 0  # the padded row


@pytest.mark.skipif(
    jax.device_count() < 8,
    reason="needs 8 devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)",
)
def test_eight_devices_equal_one():
    """13 examples on 8 devices, two each: the last has padding only, the one before one example."""
    x = images(16, px=12)
    mask = (np.arange(16) < 13).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((16, 6, 6, 32)).astype(np.float32)
    single = models.backbone("cifar_resnet20", last_layer="layer2")()
    several = models.backbone("cifar_resnet20", last_layer="layer2", axis_name="devices")()
    variables = random_variables(single, (12, 12, 3))

    def step(module, variables, x, mask, weights):
        def loss(params):
            y, changed = train(module, variables | {"params": params}, x, mask)
            return (y * weights * mask[:, None, None, None]).sum(), (y, changed)

        gradient, (y, changed) = jax.grad(loss, has_aux=True)(variables["params"])
        return gradient, y, changed

    def device_step(*args):
        gradient, y, changed = step(several, *args)
        return jax.lax.psum(gradient, "devices"), y, changed

    spread = lambda a: a.reshape(8, 2, *a.shape[1:])  # noqa: E731
    gradient, y, changed = jax.jit(step, static_argnums=0)(single, variables, x, mask, weights)
    run = jax.pmap(
        device_step, axis_name="devices", in_axes=(None, 0, 0, 0), out_axes=(None, 0, None)
    )
    device_gradient, device_y, device_changed = run(
        variables, spread(x), spread(mask), spread(weights)
    )

    assert np.isfinite(device_y).all()
    assert relative_error(np.reshape(device_y, y.shape)[:13], y[:13]) < 1e-5
    assert_close(device_changed, changed)
    for found, expected in zip(
        jax.tree.leaves(device_gradient), jax.tree.leaves(gradient), strict=True
    ):
        assert relative_error(found, expected) < 1e-4
