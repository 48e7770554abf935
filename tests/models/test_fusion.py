"""Fusion of inputs of which an example may lack some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medtl.models.fusion import Gated


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(6, d)).astype(np.float32) for d in (3, 5, 2)]


def fused(features, present):
    shown = [x if present is None else x * present[:, m, None] for m, x in enumerate(features)]
    variables = Gated().init(jax.random.key(0), features, None)
    return variables["params"], np.asarray(Gated().apply(variables, shown, present))


def test_a_gated_sum_is_that_of_the_paper(features):
    params, result = fused(features, None)
    seen = np.concatenate([*features, np.ones((6, 3))], axis=1)
    expected = 0.0
    for m, x in enumerate(features):
        gate, value = params[f"gate_{m}"], params[f"input_{m}"]
        z = 1 / (1 + np.exp(-(seen @ gate["kernel"] + gate["bias"])))
        expected = expected + z * np.tanh(x @ value["kernel"] + value["bias"])
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert result.shape == (6, 5)


def test_an_absent_input_adds_nothing_whatever_its_cells_hold(features):
    present = np.array([[1, 0, 1]] * 6, np.float32)
    _, result = fused(features, jnp.asarray(present))
    other = [features[0], features[1] + 7, features[2]]
    np.testing.assert_array_equal(fused(other, jnp.asarray(present))[1], result)
    none = jnp.zeros((6, 3))
    np.testing.assert_array_equal(fused(features, none)[1], np.zeros((6, 5)))
