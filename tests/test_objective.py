"""The objective against sums written out by hand: masks, weights, losses, parts that add up."""

import jax.numpy as jnp
import numpy as np
import pytest

from medtl.errors import UserError
from medtl.training.objective import Loss, Objective


def value_of(outputs, batch):
    return batch["value"]


def twice(outputs, batch):
    return 2 * batch["value"]


def part(values, mask, weight=None):
    found = {"value": jnp.array(values, jnp.float32), "mask": jnp.array(mask, jnp.float32)}
    return found if weight is None else {**found, "weight": jnp.array(weight, jnp.float32)}


OUTPUTS = {"source": None, "target": None}


def test_masked_weighted_means_of_two_terms():
    """(1·1 + 2·3) / 2 and 4; losses 1·ℓ + 0.5·2ℓ; λ = 3. A padded row may be infinite."""
    batch = {
        "source": part([1, 3, np.inf], [1, 1, 0], [1, 2, 5]),
        "target": part([4, np.nan], [1, 0]),
    }
    objective = Objective((Loss("a", value_of), Loss("b", twice, 0.5)), 3.0)
    loss, parts = objective(OUTPUTS, batch, step=0, counts=objective.counts(batch))
    assert float(parts["a/source"]) == pytest.approx(3.5)
    assert float(parts["b/source"]) == pytest.approx(7.0)
    assert float(parts["source"]) == pytest.approx(7.0)
    assert float(parts["target"]) == pytest.approx(8.0)
    assert float(loss) == float(parts["loss"]) == pytest.approx(7.0 + 3 * 8.0)


def test_parts_of_a_batch_add_up():
    whole = {"target": part([1, 2, 3, 4, 5], [1, 1, 0, 1, 1])}
    objective = Objective((Loss("a", value_of),), 2.0)
    counts = objective.counts(whole)
    cut = [
        {"target": {k: v[rows] for k, v in whole["target"].items()}}
        for rows in (slice(0, 2), slice(2, 5))
    ]
    total = sum(float(objective(OUTPUTS, piece, step=0, counts=counts)[0]) for piece in cut)
    assert (
        total
        == pytest.approx(float(objective(OUTPUTS, whole, step=0, counts=counts)[0]))
        == pytest.approx(3.0)
    )


def test_alone_a_domain_is_not_scaled_by_lambda():
    objective = Objective((Loss("a", value_of),), 5.0)
    for domain in ("source", "target"):
        batch = {domain: part([2.0], [1])}
        assert float(objective(OUTPUTS, batch, step=0, counts=objective.counts(batch))[0]) == 2.0


def test_the_sum_form_is_the_sum_over_the_data():
    """A batch that is the whole data: Σ_source ℓ + λ Σ_target ℓ."""
    batch = {"source": part([1, 2, 3], [1, 1, 1]), "target": part([4, 5], [1, 1])}
    objective = Objective((Loss("a", value_of),), 0.5, "sum", {"source": 3, "target": 2})
    assert float(
        objective(OUTPUTS, batch, step=0, counts=objective.counts(batch))[0]
    ) == pytest.approx(6 + 0.5 * 9)


def test_a_loss_that_reduces_by_itself_is_refused():
    batch = {"target": part([1, 2], [1, 1])}
    objective = Objective((Loss("mine", lambda outputs, batch: jnp.mean(batch["value"])),))
    with pytest.raises(UserError, match="'mine' returns shape"):
        objective(OUTPUTS, batch, step=0, counts=objective.counts(batch))
