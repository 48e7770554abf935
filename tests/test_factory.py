"""From config to model and variables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from medtl.errors import UserError
from medtl.experiment import experiment
from medtl.training import factory, initial
from medtl.training.inputs import prepare
from medtl.training.parallel import Parallel


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
    examples = {"target": target}
    bias = draw(config, factory.model(config, examples, Parallel.create("none"), None), examples)[
        "params"
    ]["heads"]["shared"]
    np.testing.assert_allclose(bias["logits"]["bias"], np.log(frequencies), rtol=1e-6)


def draw(config, model, examples, seed=0):
    inputs = {"image": jax.ShapeDtypeStruct((1, *factory.image_shape(config)), jnp.float32)}
    components = factory.Components.create(config)
    return initial.variables(model, inputs, components, examples, seed, None)


def test_heads_are_shared_where_the_classes_are_the_same():
    same = {"source": ("a", "b"), "target": ("a", "b")}
    other = {"source": ("a", "b"), "target": ("b", "c", "d")}
    assert factory.model_for(tiny(), same).head_of == {"source": "shared", "target": "shared"}
    assert factory.model_for(tiny(), other).head_of == {"source": "source", "target": "target"}
    assert factory.model_for(tiny(model__heads="separate"), same).head_of == {
        "source": "source",
        "target": "target",
    }
    with pytest.raises(
        UserError, match=r"config\.model\.heads is 'shared', but the classes differ"
    ):
        factory.model_for(tiny(model__heads="shared"), other)


def test_variables_are_a_function_of_the_seed():
    model = factory.model_for(tiny(), {"target": ("a", "b")})
    first, again, other = (draw(tiny(), model, {}, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["params"]["encoders"]["image"]["conv1"]["kernel"]
    assert not np.array_equal(kernel, other["params"]["encoders"]["image"]["conv1"]["kernel"])


def test_domains_share_the_batch_statistics_of_one_forward_pass():
    """A joint step takes the BatchNorm statistics of the concatenated batch."""
    model = factory.model_for(tiny(), {"source": ("a", "b"), "target": ("a", "b")})
    variables = jax.tree.map(jnp.asarray, draw(tiny(), model, {}))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (6, 16, 16, 1), dtype=np.uint8)
    norm = factory.normalization(tiny(), None)

    def outputs(**rows):
        batch = {
            domain: {"image": jnp.asarray(images[r]), "mask": jnp.ones(len(images[r]))}
            for domain, r in rows.items()
        }
        inputs = prepare(batch, normalization=norm)
        return model.apply(variables, inputs, True, mutable=["batch_stats"])

    joint, stats = outputs(source=slice(0, 4), target=slice(4, 6))
    together, same_stats = outputs(target=slice(0, 6))
    logits = np.concatenate([joint["source"].logits, joint["target"].logits])
    np.testing.assert_allclose(logits, together["target"].logits, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, stats, same_stats)
