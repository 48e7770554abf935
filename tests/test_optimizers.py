"""The optimizer: its schedule, its decoupled weight decay, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medtl.config import stage
from medtl.errors import UserError
from medtl.training import optimizers

KERNEL, BIAS = ("heads", "shared", "logits", "kernel"), ("heads", "shared", "logits", "bias")


def params():
    return {KERNEL: jnp.full((2, 2), 3.0), BIAS: jnp.full((2,), 3.0)}


def run(config, gradients, steps):
    optimizer, _ = optimizers.optimizer(config, steps=steps, key="config.stages.target")
    p = params()
    state = optimizer.init(p)
    for g in gradients:
        updates, state = optimizer.update(
            {KERNEL: jnp.full((2, 2), g), BIAS: jnp.full((2,), g)}, state, p
        )
        p = optax.apply_updates(p, updates)
    return float(p[KERNEL][0, 0]), float(p[BIAS][0])


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", 0.0, [1, (1 + np.cos(np.pi / 4)) / 2, 0.5, (1 - np.cos(np.pi / 4)) / 2, 0]),
        ("constant", 0.5, [0, 0.5, 1, 1, 1]),
        (
            "exponential_decay(transition_steps=1, decay_rate=0.5)",
            0.0,
            [1, 0.5, 0.25, 0.125, 0.0625],
        ),
    ],
)
def test_learning_rate_follows_its_formula(schedule, warmup, expected):
    rate = optimizers.learning_rate(2.0, schedule, warmup=warmup, steps=4, key="k")
    np.testing.assert_allclose([rate(i) for i in range(5)], 2.0 * np.array(expected), atol=1e-6)


def test_decoupled_weight_decay_is_what_adamw_does():
    """Adam with our decay and Optax's AdamW take the same steps; biases do not shrink."""
    gradients = [1.0, -2.0, 0.5]
    ours = run(
        stage(optimizer="adam", learning_rate=0.1, weight_decay=0.3, schedule="linear"),
        gradients,
        5,
    )
    adamw = run(
        stage(optimizer="adamw", learning_rate=0.1, weight_decay=0.3, schedule="linear"),
        gradients,
        5,
    )
    plain = run(stage(optimizer="adam", learning_rate=0.1, schedule="linear"), gradients, 5)
    np.testing.assert_allclose(ours, adamw, rtol=1e-6)
    assert ours[1] == plain[1]
    assert ours[0] < plain[0] - 0.1


def test_sgd_with_decay_in_closed_form():
    """p <- p - rate (g + wd p) for the kernel, p - rate g for the bias."""
    kernel, bias = run(stage(optimizer="sgd", learning_rate=0.1, weight_decay=0.5), [1.0], 1)
    assert kernel == pytest.approx(3 - 0.1 * (1 + 0.5 * 3))
    assert bias == pytest.approx(3 - 0.1)


def test_clipping_is_by_the_global_norm():
    kernel, _ = run(stage(optimizer="sgd", learning_rate=1.0, clip_norm=1.0), [5.0], 1)
    assert kernel == pytest.approx(3 - 5 / (5 * np.sqrt(6)))


def test_options_reach_the_optimizer():
    once = run(stage(optimizer="sgd(momentum=0.9)", learning_rate=0.1), [1.0, 1.0], 2)[0]
    assert once == pytest.approx(3 - 0.1 - 0.19)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamm"}, r"config\.stages\.target\.optimizer.*did you mean 'adam"),
        ({"optimizer": "sgd(momentun=0.9)"}, "momentum"),
        (
            {"schedule": "exponential_decay(transition_steps=1)"},
            r"config\.stages\.target\.schedule",
        ),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        optimizers.optimizer(stage(**fields), steps=3, key="config.stages.target")


def test_norms_and_biases_do_not_shrink_whoever_gives_the_decay():
    kernel, bias = run(stage(optimizer="adamw(weight_decay=0.5)", learning_rate=1.0), [0.0], 1)
    assert kernel == pytest.approx(1.5)
    assert bias == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamw(weight_decay=0.5)", "weight_decay": 0.5}, "given twice"),
        ({"optimizer": "sgd(0.1)"}, "by name"),
        ({"optimizer": "polyak_sgd"}, "does not make an Optax optimizer"),
    ],
)
def test_what_would_do_something_else_than_it_says_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        optimizers.optimizer(stage(**fields), steps=3, key="config.stages.target")


def test_every_parameter_trains_unless_something_freezes_it_by_name():
    params = {
        "encoders": {
            "image": {"conv1": {"kernel": 0}, "layer1_0": {"kernel": 0}},
            "table": {"w": 0},
        },
        "heads": {"shared": {"b": 0}, "source": {"b": 0}},
        "terms": {"dann": {"w": 0}, "other": {"w": 0}},
        "anything": {"else": 0},
    }
    groups = {"stem": ("conv1",), "layer1": ("layer1_0",)}

    def trained(freeze):
        paths = optimizers.trained_paths(
            params, freeze=freeze, groups=groups, heads={"shared"}, terms={"dann"}
        )
        return {"/".join(path) for path in paths}

    always = {"encoders/table/w", "heads/shared/b", "terms/dann/w", "anything/else"}
    image = {"encoders/image/conv1/kernel", "encoders/image/layer1_0/kernel"}
    assert trained("none") == always | image
    assert trained("backbone") == always
    assert trained("stem") == always | {"encoders/image/layer1_0/kernel"}
    assert trained("layer1") == always
    with pytest.raises(UserError, match="did you mean 'layer1'"):
        trained("layer2")
