"""From config to model and variables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from medtl.errors import UserError
from medtl.experiment import experiment
from medtl.training import factory
from medtl.training.step import prepare


def test_prior_bias_makes_an_untrained_head_predict_the_frequencies():
    """softmax(log p) = p; of several diagnoses an example, sigmoid(log odds) = p."""
    config = tiny(model__prior_bias=True)
    target = experiment.load_data(config)["target"]
    label = target.label[target.indices("train")]
    frequencies = np.bincount(label, minlength=3) / len(label)
    np.testing.assert_allclose(
        jax.nn.softmax(jnp.array(factory.prior(target))), frequencies, rtol=1e-6
    )
    several = dataclasses.replace(target, label=np.eye(3, dtype=np.float32)[target.label])
    np.testing.assert_allclose(
        jax.nn.sigmoid(jnp.array(factory.prior(several))), frequencies, rtol=1e-5
    )
    model = factory.model(
        config, {"target": target.classes}, priors={"target": factory.prior(target)}
    )
    bias = factory.variables(model, config, 0, None)["params"]["heads"]["shared"]["logits"]["bias"]
    np.testing.assert_allclose(bias, np.log(frequencies), rtol=1e-6)


def test_heads_are_shared_where_the_classes_are_the_same():
    same = {"source": ("a", "b"), "target": ("a", "b")}
    other = {"source": ("a", "b"), "target": ("b", "c", "d")}
    assert factory.model(tiny(), same).head_of == {"source": "shared", "target": "shared"}
    assert factory.model(tiny(), other).head_of == {"source": "source", "target": "target"}
    assert factory.model(tiny(model__heads="separate"), same).head_of == {
        "source": "source",
        "target": "target",
    }
    with pytest.raises(
        UserError, match=r"config\.model\.heads is 'shared', but the classes differ"
    ):
        factory.model(tiny(model__heads="shared"), other)


def test_variables_are_a_function_of_the_seed():
    model = factory.model(tiny(), {"target": ("a", "b")})
    first, again, other = (factory.variables(model, tiny(), seed, None) for seed in (0, 0, 1))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)
    )
    kernel = first["params"]["backbone"]["conv1"]["kernel"]
    assert not np.array_equal(kernel, other["params"]["backbone"]["conv1"]["kernel"])


def test_domains_share_the_batch_statistics_of_one_forward_pass():
    """With BatchNorm in batch mode a joint step is not two steps: the statistics are those of the concatenated batch."""
    model = factory.model(tiny(), {"source": ("a", "b"), "target": ("a", "b")})
    variables = factory.variables(model, tiny(), 0, None)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (6, 16, 16, 1), dtype=np.uint8)
    norm = factory.normalization(tiny(), None)

    def batch(rows):
        return {"image": images[rows], "mask": np.ones(len(images[rows]), np.float32)}

    joint = prepare(
        {"source": batch(slice(0, 4)), "target": batch(slice(4, 6))}, normalization=norm
    )
    outputs, stats = model.apply(variables, joint, train=True)
    whole, whole_stats = model.apply(
        variables, prepare({"target": batch(slice(0, 6))}, normalization=norm), train=True
    )
    found = np.concatenate([outputs["source"].logits, outputs["target"].logits])
    np.testing.assert_allclose(found, whole["target"].logits, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, whole_stats)
