"""Fine-tuning: rates by layer, what trains, mixed pairs, SAM and averages; against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from medtl.data.augment import Augmentation, normalize
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.losses import cross_entropy
from medtl.models.layers import BatchNorm
from medtl.models.model import Head, Model, Outputs, init_variables
from medtl.training import averages, mixing, optimizers, rates, trainable
from medtl.training.objective import Loss, Objective
from medtl.training.parallel import Parallel
from medtl.training.step import Step

SIZE, CLASSES = 3, 3
SPECS = {"image": jax.ShapeDtypeStruct((1, SIZE, SIZE, 1), jnp.float32)}


class Tiny(nn.Module):
    """One dense layer, and BatchNorm over a map of one pixel; it compiles in a second."""

    axis_name: str | None = None
    norm: bool = True

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Dense(4, name="dense")(x.reshape(len(x), 1, 1, -1))
        return BatchNorm(axis_name=self.axis_name, name="bn")(x, train, mask) if self.norm else x


def make_model(axis_name=None, **fields):
    head = functools.partial(Head, CLASSES)
    encoder = functools.partial(Tiny, axis_name=axis_name, **fields)
    return Model(
        {"image": encoder}, {"shared": head}, dict.fromkeys(("source", "target"), "shared")
    )


def make_batch(seed, n=13):
    rng = np.random.default_rng(seed)
    return {
        "target": {
            "image": rng.integers(0, 255, (n, SIZE, SIZE, 1), dtype=np.uint8),
            "label": rng.integers(0, CLASSES, n).astype(np.int32),
            "mask": np.ones(n, np.float32),
            "weight": rng.uniform(0.5, 1.5, n).astype(np.float32),
            "position": np.arange(n, dtype=np.int32),
        }
    }


def make_step(model, params, **fields):
    paths = frozenset(traverse_util.flatten_dict(params))
    trained, adapter = trainable.select(fields.pop("trainable", "all"), params, paths, key="k")
    return Step(
        model=model,
        objective=Objective((Loss("main", cross_entropy),)),
        optimizer=fields.pop("optimizer", optax.sgd(0.5)),
        trained=trained,
        augmentation=Augmentation(),
        normalization=NORMALIZATIONS["centered"].for_channels(1),
        axis_name=model.make_encoders["image"]().axis_name,
        adapter=adapter,
        **fields,
    )


def train(mode, devices, *, steps=5, model=None, **fields):
    """Return the step, and the host's state after each step."""
    parallel = Parallel.create(mode, tuple(jax.devices()[:devices]))
    model = model or make_model(parallel.axis_name)
    variables = init_variables(model, jax.random.key(0), SPECS)
    step = make_step(model, variables["params"], steps=steps, **fields)
    state = parallel.replicate(step.init(jax.random.key(1), variables))
    compiled, states = parallel.train(step), []
    for i in range(steps):
        state, _ = compiled(state, parallel.shard(make_batch(i), multiple=step.accumulate))
        states.append(jax.device_get(state))
    return step, states


MIXED = {"mix": mixing.mixup, "sam": 0.1, "swa": 0.4}


@pytest.fixture(scope="module")
def alone():
    return train("none", 1, **MIXED)


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_mixup_sam_and_swa_do_not_depend_on_devices_and_padding(mode, alone):
    """13 examples on 8 devices: three are padding, and partners are on other devices."""
    _, one = alone
    _, many = train(mode, 8, **MIXED)
    for name in ("params", "batch_stats", "ema"):
        same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
        jax.tree.map(same, getattr(one[-1], name), getattr(many[-1], name))


def test_swa_is_the_mean_of_the_weights_after_its_start(alone):
    step, states = alone
    trained = [optimizers.split(s.params, step.trained)[0] for s in states]
    for path, mean in states[-1].ema.items():
        # The first 2 of 5 steps are before the start; the state after step 3 is the first in it.
        expected = np.mean([t[path].astype(np.float64) for t in trained[2:]], axis=0)
        np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    final, now = step.variables(states[-1], final=True), step.variables(states[-1])
    np.testing.assert_array_equal(
        final["params"]["heads"]["shared"]["logits"]["bias"],
        states[-1].ema["heads", "shared", "logits", "bias"],
    )
    assert now["params"] is states[-1].params


def test_a_sam_step_is_that_of_numpy():
    """A linear model has a closed gradient: at w + rho g/|g|, taken at w."""
    model = make_model(norm=False)
    variables = init_variables(model, jax.random.key(0), SPECS)
    names = [("kernel", 0), ("bias", 1)]
    head = [
        np.asarray(variables["params"]["heads"]["shared"]["logits"][n], float) for n, _ in names
    ]
    step = dataclasses.replace(
        make_step(model, variables["params"], sam=0.3),
        trained=frozenset(("heads", "shared", "logits", n) for n, _ in names),
    )
    batch = make_batch(0)
    rows = jax.tree.map(jnp.asarray, batch["target"])
    image = normalize(rows["image"], step.normalization)
    x = model.apply(variables, {"image": image, "mask": rows["mask"]}, method="encode")
    x, y = np.asarray(x, float), np.eye(CLASSES)[batch["target"]["label"]]
    weight = batch["target"]["weight"].astype(float)

    def gradient(kernel, bias):
        p = np.exp(x @ kernel + bias)
        slope = (p / p.sum(1, keepdims=True) - y) * weight[:, None] / len(x)
        return [x.T @ slope, slope.sum(0)]

    first = gradient(*head)
    norm = np.sqrt(sum(np.sum(g**2) for g in first))
    second = gradient(*(w + 0.3 * g / norm for w, g in zip(head, first, strict=True)))
    batch = jax.tree.map(jnp.asarray, batch)
    state, metrics = step(step.init(jax.random.key(1), variables), batch)
    for name, i in names:
        moved = state.params["heads"]["shared"]["logits"][name]
        np.testing.assert_allclose(moved, head[i] - 0.5 * second[i], atol=1e-5)
    expected = np.sqrt(sum(np.sum(g**2) for g in second))
    assert metrics["gradient_norm"] == pytest.approx(expected, rel=1e-4)


def test_a_mixed_loss_is_the_cross_entropy_of_mixed_labels_with_weights_of_both():
    rng = np.random.default_rng(0)
    logits, share = rng.normal(size=(6, CLASSES)), rng.uniform(size=6)
    a, b = rng.integers(0, CLASSES, (2, 6)).astype(np.int32)
    batch = {"label": a, "partner_label": b, "share": share, "mask": np.ones(6),
             "weight": np.ones(6), "partner_weight": np.ones(6)}  # fmt: skip
    batch = {k: jnp.asarray(v) for k, v in batch.items()}
    outputs = {"target": Outputs(jnp.asarray(logits), jnp.zeros((6, 1)))}
    objective = Objective((Loss("main", cross_entropy),))
    value, _ = objective(outputs, {"target": batch}, step=0, counts={"target": 6.0})
    soft = share[:, None] * np.eye(CLASSES)[a] + (1 - share[:, None]) * np.eye(CLASSES)[b]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert float(value) == pytest.approx(-np.mean(np.sum(soft * log_p, axis=1)), rel=1e-5)


def test_each_example_has_another_one_of_its_domain_as_its_partner():
    x = np.arange(8, dtype=np.float32)[:, None]
    mask = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    for step in range(6):
        inputs, batch = mixing.mixed(
            lambda key, a, b: (b, jnp.zeros(())),
            {"target": {"table": jnp.asarray(x), "mask": mask, "key": keys}},
            {"target": {"label": jnp.arange(8), "mask": mask}},
            key=jax.random.key(3), step=step, axis_name=None,
        )  # fmt: skip
        partner = np.asarray(inputs["target"]["table"])[:5, 0]
        assert sorted(partner) == [0, 1, 2, 3, 4]
        assert not np.any(partner == np.arange(5))
        np.testing.assert_array_equal(batch["target"]["partner_label"][:5], partner)


def test_mixup_and_cutmix_say_which_share_of_an_example_is_left():
    a, b = jnp.zeros((5, 7, 2)), jnp.ones((5, 7, 2))
    shares = {mixing.mixup: [], mixing.cutmix: []}
    for i in range(40):
        for mix, of_mix in shares.items():
            mixed, share = mix(jax.random.key(i), a, b, alpha=1.0)
            of_mix.append(float(share))
            assert float(1 - mixed.mean()) == pytest.approx(float(share), abs=1e-6)
            if mix is mixing.cutmix:
                inside = np.asarray(mixed[..., 0])
                assert set(np.unique(inside)) <= {0.0, 1.0}
                rows, columns = inside.any(1), inside.any(0)
                np.testing.assert_array_equal(inside, rows[:, None] & columns)
    assert np.mean(shares[mixing.mixup]) == pytest.approx(0.5, abs=0.15)
    assert np.mean(shares[mixing.cutmix]) > 0.5  # the border cuts boxes


def test_rates_by_layer_follow_their_formulas():
    layers = [{"a"}, {"b"}, {"c"}]
    params = {name: jnp.full((2,), float(i + 1)) for i, name in enumerate("abc")}
    gradients = {name: jnp.array([3.0, 4.0]) / (i + 1) for i, name in enumerate("abc")}

    def norms_of_steps(optimizer, steps):
        state, norms = optimizer.init(params), []
        for _ in range(steps):
            updates, state = optimizer.update(gradients, state, params)
            norms.append(
                [float(jnp.linalg.norm(updates[n])) * (i + 1) for i, n in enumerate("abc")]
            )
        return norms

    wrap = functools.partial(rates.wrap, optimizer=optax.sgd(1.0), layers=layers, steps=10, key="k")
    np.testing.assert_allclose(norms_of_steps(wrap("layerwise(decay=0.7)"), 1), [[2.45, 3.5, 5]])
    expected = [[5 * (t >= 4), 5 * (t >= 2), 5] for t in range(6)]
    np.testing.assert_allclose(norms_of_steps(wrap("gradual(share=0.2)"), 6), expected)
    ratio = np.array([5 / (i + 1) / (np.sqrt(2) * (i + 1)) for i in range(3)])
    np.testing.assert_allclose(
        norms_of_steps(wrap("auto_rgn(average=0.5)"), 3), [5 * ratio / ratio.max()] * 3, rtol=1e-5
    )
    for text in ("layerwise(decay=0.0)", "gradual(share=0.5)", "auto_rgn(average=1.0)"):
        with pytest.raises(UserError, match=r"; (it|with 3 layers it) must be"):
            wrap(text)


def test_layers_go_from_the_input_to_the_head():
    names = ("image/conv1/kernel", "image/layer1_0/kernel", "image/layer10/kernel", "table/kernel")
    paths = [("encoders", *name.split("/")) for name in names]
    adapter = ("adapters", "encoders", "image", "layer1_0", "kernel", "a")
    head = ("heads", "shared", "kernel")
    found = rates.layers(
        [*paths, adapter, head], {"stem": ("conv1",), "layer1": ("layer1_0",), "none": ("x",)}
    )
    assert found == ({paths[0]}, {paths[1], adapter}, {paths[2], paths[3]}, {head})


@pytest.mark.parametrize("shape", [(5, 6), (3, 3, 4, 5), (8, 2, 4), (2, 4, 8)])
def test_lora_is_a_low_rank_change_with_the_gradient_of_its_product(shape):
    path = ("encoders", "x", "kernel")
    adapter = trainable.lora({path: jnp.zeros(shape), ("x", "bias"): 0}, rank=2, alpha=6.0)
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params = traverse_util.unflatten_dict({path: w})
    pair = adapter.init(jax.random.key(0))["encoders"]["x"]["kernel"]
    assert pair["a"].shape[0] in (shape[0], np.prod(shape[:-1]))
    start = adapter.merged({**params, "adapters": adapter.init(jax.random.key(0))})
    np.testing.assert_array_equal(start["encoders"]["x"]["kernel"], w)
    pair = {**pair, "b": jax.random.normal(jax.random.key(1), pair["b"].shape)}
    direction = np.random.default_rng(1).normal(size=shape)

    def value(pair):
        adapters = traverse_util.unflatten_dict({(*path, k): v for k, v in pair.items()})
        merged = adapter.merged({**params, "adapters": adapters})
        return jnp.sum(merged["encoders"]["x"]["kernel"] * direction)

    a, b = (np.asarray(pair[k], float) for k in "ab")
    assert float(value(pair)) == pytest.approx(
        np.sum((w + 3 * (a @ b).reshape(shape)) * direction), rel=1e-4
    )
    slope, g = jax.grad(value)(pair), direction.reshape(len(a), -1)
    np.testing.assert_allclose(slope["a"], 3 * g @ b.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope["b"], 3 * a.T @ g, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "moves"),
    [
        ("norms", {"bn/scale", "bn/bias"}),
        ("biases", {"bn/bias", "dense/bias"}),
        ("lora(rank=1)", {"dense/kernel"}),
    ],
)
def test_what_is_trainable_moves_and_nothing_else_does(text, moves):
    model = make_model()
    variables = init_variables(model, jax.random.key(0), SPECS)
    step = make_step(model, variables["params"], trainable=text)
    state = step.init(jax.random.key(1), variables)
    for i in range(2):  # B of a LoRA starts at 0, and so does the gradient of A
        state, _ = step(state, jax.tree.map(jnp.asarray, make_batch(i)))
    before, after = (
        traverse_util.flatten_dict(v["params"]["encoders"]["image"], sep="/")
        for v in (variables, step.variables(state))
    )
    assert {n for n in before if not np.array_equal(before[n], after[n])} == moves
    assert "adapters" not in step.variables(state)["params"]


def test_statistics_are_the_plain_mean_over_the_batches():
    layer = BatchNorm()
    x = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (3, 16, 1, 1, 4)), jnp.float32)
    drawn = layer.init(jax.random.key(0), x[0], True, None)

    def update(statistics, batch):
        variables = {"params": drawn["params"], "batch_stats": statistics}
        return layer.apply(variables, batch, True, None, mutable=["batch_stats"])[1]["batch_stats"]

    found = averages.batch_statistics(drawn["batch_stats"], update, x)
    rows = np.asarray(x, np.float64).reshape(3, 16, 4)
    np.testing.assert_allclose(found["mean"], rows.mean(axis=(0, 1)), rtol=1e-4)
    variance = rows.var(axis=1, ddof=1).mean(axis=0)  # running ones are unbiased, as in PyTorch
    np.testing.assert_allclose(found["var"], variance, rtol=1e-4)


def test_wise_takes_the_best_share_and_among_equals_the_largest():
    start, tuned = {"w": np.zeros(2, np.float32)}, {"w": np.full(2, 4.0, np.float32)}
    rank = functools.partial(lambda v, wanted: -abs(v["w"][0] - wanted), wanted=1.0)
    share, variables = averages.best_between(start, tuned, (0.0, 0.25, 1.0), rank)
    assert share == 0.25
    np.testing.assert_array_equal(variables["w"], [1.0, 1.0])
    assert averages.best_between(start, tuned, (0.0, 0.5, 1.0), lambda v: 0)[0] == 1.0
    assert averages.between(start, tuned, 1.0)["w"].tolist() == tuned["w"].tolist()
