"""Every loss that medtl brings: its gradient, its dtypes, and that an example is alone."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medtl import losses
from medtl.config.tasks import QUANTITY_LOSSES

COUNTS = {"class_counts": (9, 5, 2)}
OPTIONS = {
    "balanced_softmax": COUNTS,
    "class_weighted": COUNTS,
    "logit_adjusted": COUNTS,
    "ldam": {**COUNTS, "progress": 0.9},
}


@pytest.fixture(params=losses.__all__)
def loss(request):
    """Return the function logits f32[7, K] -> f32[7] of some rows, and the logits."""
    function, rng = getattr(losses, request.param), np.random.default_rng(0)
    is_quantity = request.param in QUANTITY_LOSSES
    logits = rng.normal(0, 2, (7, 1 if is_quantity else 3)).astype(np.float32)
    label = rng.normal(0, 2, 7).astype(np.float32) if is_quantity else np.array([0, 1, 2] * 2 + [1])

    def values(logits, rows=slice(None)):
        logits = jnp.asarray(logits)
        if request.param == "cumulative_link":  # whose head gives log probabilities
            logits = jax.nn.log_softmax(logits)
        batch = {"label": jnp.asarray(label[rows])}
        return function(SimpleNamespace(logits=logits), batch, **OPTIONS.get(request.param, {}))

    return values, jnp.asarray(logits)


def test_the_gradient_is_that_of_finite_differences(loss):
    values, logits = loss
    check_grads(values, (logits,), 1, "rev", atol=5e-3, rtol=5e-3, eps=1e-2)


def test_bfloat16_is_close_and_the_result_is_float32(loss):
    values, logits = loss
    low = values(logits.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, values(logits), rtol=0.05, atol=0.03)


def test_an_example_depends_on_no_other(loss):
    values, logits = loss
    rows = np.array([4, 0, 6])
    np.testing.assert_allclose(values(logits)[rows], values(logits[rows], rows), rtol=1e-6)
