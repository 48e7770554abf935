"""The training step: the joint gradient, equality over devices, frozen and trained parameters."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from medtl import models
from medtl.data.augment import Augmentation
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS
from medtl.losses import cross_entropy
from medtl.models.model import Head, Model, init_variables
from medtl.training import optimizers
from medtl.training.inputs import prepare
from medtl.training.loop import Resident, Streamed, make_loop
from medtl.training.objective import Loss, Objective
from medtl.training.parallel import Parallel
from medtl.training.step import Step

SIZE = 8
NORM = NORMALIZATIONS["centered"].for_channels(1)
AUGMENTATION = Augmentation(flip=True, noise=0.02)


def make_model(axis_name=None, dropout=0.0, separate=False, last_layer="layer1"):
    heads = {
        name: functools.partial(Head, 3, hidden=(8,), dropout=dropout)
        for name in (("source", "target") if separate else ("shared",))
    }
    head_of = {domain: domain if separate else "shared" for domain in ("source", "target")}
    backbone = models.backbone("cifar_resnet20", last_layer=last_layer, axis_name=axis_name)
    return Model({"image": backbone}, heads, head_of)


def draw(model):
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 1), jnp.float32)
    return init_variables(model, jax.random.key(0), {"image": image})


def make_batch(seed, n_source=13, n_target=13):
    rng = np.random.default_rng(seed)
    return {
        domain: {
            "image": rng.integers(0, 160, (n, SIZE, SIZE, 1), dtype=np.uint8),
            "label": rng.integers(0, 3, n).astype(np.int32),
            "mask": np.ones(n, np.float32),
            "weight": rng.uniform(0.5, 1.5, n).astype(np.float32),
            "position": np.arange(n, dtype=np.int32),
        }
        for domain, n in (("source", n_source), ("target", n_target))
        if n
    }


def make_step(model, params, *, freeze="none", lambda_=0.5, optimizer=None, **fields):
    return Step(
        model=model,
        objective=Objective(
            (Loss("main", cross_entropy),),
            lambda_,
            fields.pop("reduction", "mean"),
            {"source": 26, "target": 52},
        ),
        optimizer=optimizer or optax.sgd(0.05, momentum=0.9),
        trained=optimizers.trained_paths(
            params,
            freeze=freeze,
            groups=model.make_encoders["image"]().groups(),
            heads=set(model.make_heads),
        ),
        augmentation=fields.pop("augmentation", AUGMENTATION),
        normalization=NORM,
        axis_name=model.make_encoders["image"]().axis_name,
        **fields,
    )


def train(mode, devices, *, steps=10, dropout=0.3, **fields):
    parallel = Parallel.create(mode, tuple(jax.devices()[:devices]))
    model = make_model(parallel.axis_name, dropout)
    variables = draw(model)
    step = make_step(model, variables["params"], **fields)
    state = parallel.replicate(step.init(jax.random.key(1), variables))
    compiled = parallel.train(step)
    losses = []
    for i in range(steps):
        state, metrics = compiled(state, parallel.shard(make_batch(i), multiple=step.accumulate))
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.device_get(
        {"params": state.params, "batch_stats": state.batch_stats}
    )


def assert_same(a, b, *, rtol=1e-5):
    """Leaves agree to `rtol` of their largest entry: devices change the order of a sum."""
    for path, leaf in traverse_util.flatten_dict(a).items():
        other = traverse_util.flatten_dict(b)[path]
        np.testing.assert_allclose(
            leaf, other, rtol=rtol, atol=rtol * np.abs(leaf).max(), err_msg="/".join(path)
        )


@pytest.fixture(scope="module")
def one_device():
    return train("none", 1)


@pytest.mark.parametrize(("mode", "devices"), [("pmap", 8), ("mesh", 8), ("pmap", 1)])
def test_ten_steps_are_the_same_on_one_device_and_on_eight(one_device, mode, devices):
    """Batch 13, BatchNorm in batch mode, augmentation and dropout: padding, statistics and keys.

    With SGD: Adam's first steps are the sign of the gradient, which rounding decides near 0.
    """
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    losses, variables = train(mode, devices)
    np.testing.assert_allclose(losses, one_device[0], rtol=1e-5)
    assert_same(variables, one_device[1])


@pytest.mark.parametrize(("mode", "devices"), [("none", 1), ("pmap", 8), ("mesh", 8)])
def test_steps_of_one_dispatch_are_the_steps_one_by_one(mode, devices):
    """Data on the device, rows by index, dispatches of 1 to 4 steps, augmentation and dropout."""
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    parallel = Parallel.create(mode, tuple(jax.devices()[:devices]))
    model = make_model(parallel.axis_name, dropout=0.3)
    variables = draw(model)
    step = make_step(model, variables["params"])
    data = make_batch(0, 40, 30)
    rng = np.random.default_rng(1)
    rows = [
        {
            d: {
                "index": rng.integers(0, len(part["mask"]), 13).astype(np.int32),
                "mask": np.ones(13, np.float32),
                "position": np.arange(13, dtype=np.int32),
            }
            for d, part in data.items()
        }
        for _ in range(7)
    ]
    one = parallel.replicate(step.init(jax.random.key(1), variables))
    compiled, losses = parallel.train(step), []
    for row in rows:
        batch = {
            d: {**{k: data[d][k][r["index"]] for k in ("image", "label", "weight")}, **r}
            for d, r in row.items()
        }
        one, metrics = compiled(one, parallel.shard(batch))
        losses.append(float(metrics["loss"]))
    states, logs = [], []
    for cut in ([7], [4, 1, 2]):
        many = parallel.replicate(step.init(jax.random.key(1), variables))
        feed = Resident(
            parallel.loop(make_loop(step)),
            parallel.replicate(
                {d: {k: part[k] for k in ("image", "label", "weight")} for d, part in data.items()}
            ),
            ((parallel.shard(row), 26) for row in rows),
            parallel.stack,
        )
        found = []
        for most in cut:
            taken = feed(many, most)
            many = taken.state
            assert (taken.steps, taken.examples) == (most, 26 * most)
            found += np.asarray(taken.metrics["loss"])[: taken.steps].tolist()
        states.append(jax.device_get(many))
        logs.append(found)
    np.testing.assert_allclose(logs[0], losses, rtol=1e-5)
    assert_same(states[0].params, jax.device_get(one).params)
    # Where a run is cut into dispatches does not show in a single bit.
    assert logs[0] == logs[1]
    for a, b in zip(jax.tree.leaves(states[0]), jax.tree.leaves(states[1]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mode", ["pmap", "mesh", "none"])
def test_a_batch_put_on_the_devices_ahead_is_the_batch(mode):
    parallel = Parallel.create(mode, tuple(jax.devices()))
    cut = parallel.shard({"target": make_batch(3)["target"]})
    add = parallel.evaluate(lambda _, batch: batch["target"]["label"] + 1)
    put = parallel.put(cut)
    for name, value in cut["target"].items():
        np.testing.assert_array_equal(put["target"][name], value)
        assert len(put["target"][name].sharding.device_set) == len(parallel.devices)
    np.testing.assert_array_equal(add(None, make_batch(3)), make_batch(3)["target"]["label"] + 1)


class Result:
    """A metric on its way."""

    def __init__(self, ready):
        self._ready = ready

    def is_ready(self):
        return self._ready


@pytest.mark.parametrize("busy", [False, True])
def test_only_time_in_which_the_devices_had_nothing_to_do_counts_as_waiting(busy):
    def slowly():
        while True:
            time.sleep(0.02)
            yield {}, 4

    waited = []
    feed = Streamed(
        lambda state, batch: (state, {"loss": Result(not busy)}), slowly(), waited.append
    )
    for _ in range(4):
        taken = feed(None, 9)
        assert (taken.steps, taken.examples) == (1, 4)
    assert len(waited) == (1 if busy else 4)
    assert min(waited) >= 0.02


def test_accumulated_gradient_is_the_whole_batch_gradient():
    """With frozen statistics, accumulation changes nothing but the order of a sum."""
    whole = train("none", 1, steps=3, batch_norm="frozen", dropout=0.3)
    parts = train("none", 1, steps=3, batch_norm="frozen", dropout=0.3, accumulate=4)
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
    # Sums of JAX 0.10 without LLVM's optimizations differ by 4e-5 in a bias that begins at 0.
    assert_same(whole[1], parts[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("lambda_", "step"),
    [(0.0, 0), (0.3, 0), (1.0, 0), (10.0, 0), (optax.linear_schedule(0.0, 2.0, 10), 7)],
    ids=["0", "0.3", "1", "10", "schedule"],
)
def test_joint_gradient_is_source_plus_lambda_target(lambda_, step):
    """∇L = ∇source + λ ∇target, from one forward pass with BatchNorm over both domains."""
    model = make_model()
    variables = draw(model)
    batch = jax.tree.map(jnp.asarray, make_batch(0, 8, 5))

    def parts(params):
        outputs, _ = model.apply(
            {**variables, "params": params},
            prepare(batch, normalization=NORM),
            True,
            mutable=["batch_stats"],
        )
        objective = Objective((Loss("main", cross_entropy),), lambda_)
        loss, _ = objective(outputs, batch, step=step, counts=objective.counts(batch))
        means = {
            d: jnp.mean(
                batch[d]["weight"]
                * optax.softmax_cross_entropy_with_integer_labels(
                    outputs[d].logits, batch[d]["label"]
                )
            )
            for d in batch
        }
        return jnp.stack([loss, means["source"], means["target"]])

    jacobian = jax.jit(jax.jacrev(parts))(variables["params"])
    factor = 1.4 if callable(lambda_) else lambda_
    joint, source, target = (
        np.concatenate(
            [np.asarray(leaf[i], np.float64).ravel() for leaf in jax.tree.leaves(jacobian)]
        )
        for i in range(3)
    )
    expected = source + factor * target
    assert np.linalg.norm(joint - expected) < 1e-6 * np.linalg.norm(expected)


def test_sum_form_is_the_mean_form_with_lambda_times_the_ratio_of_sizes():
    """n_s mean_s + λ n_t mean_t = n_s (mean_s + λ n_t/n_s mean_t), with n_s = 26 and n_t = 52."""
    model = make_model()
    variables = draw(model)
    batch = jax.tree.map(jnp.asarray, make_batch(3, 8, 8))
    outputs = model.apply(variables, prepare(batch, normalization=NORM), False)
    values = []
    for lambda_, reduction in ((0.25, "sum"), (0.5, "mean")):
        objective = Objective(
            (Loss("main", cross_entropy),), lambda_, reduction, {"source": 26, "target": 52}
        )
        values.append(float(objective(outputs, batch, step=0, counts=objective.counts(batch))[0]))
    np.testing.assert_allclose(values[0], 26 * values[1], rtol=1e-6)


@pytest.mark.parametrize("freeze", ["backbone", "layer1"])
def test_frozen_parameters_rest_and_the_others_move(freeze):
    model = make_model(separate=True, last_layer="layer2")
    variables = draw(model)
    step = make_step(
        model, variables["params"], freeze=freeze, optimizer=optax.adamw(1e-2), batch_norm="frozen"
    )
    state, _ = jax.jit(step)(step.init(jax.random.key(0), variables), make_batch(0))
    before, after = (
        traverse_util.flatten_dict(v) for v in (variables["params"], jax.device_get(state.params))
    )
    for path in before:
        is_low = path[2] in ("conv1", "bn1") or path[2].startswith("layer1")
        rests = path[0] == "encoders" and (freeze == "backbone" or is_low)
        assert np.array_equal(before[path], after[path]) == rests, path
    np.testing.assert_array_equal(
        *(
            jax.tree.leaves(v)[0]
            for v in (variables["batch_stats"], jax.device_get(state.batch_stats))
        )
    )


def test_a_head_that_is_not_in_use_does_not_decay():
    model = make_model(separate=True)
    variables = draw(model)
    step = make_step(model, variables["params"], optimizer=optax.adamw(1e-2, weight_decay=1.0))
    used = optimizers.trained_paths(variables["params"], freeze="none", groups={}, heads={"target"})
    step = dataclasses.replace(step, trained=used)
    state, _ = jax.jit(step)(step.init(jax.random.key(0), variables), make_batch(0, 0, 8))
    np.testing.assert_array_equal(
        state.params["heads"]["source"]["logits"]["kernel"],
        variables["params"]["heads"]["source"]["logits"]["kernel"],
    )


def test_moving_average_is_the_recursion():
    model = make_model()
    variables = draw(model)
    step = make_step(model, variables["params"], optimizer=optax.sgd(0.1), ema=0.9)
    state = step.init(jax.random.key(0), variables)
    expected = variables["params"]["heads"]["shared"]["logits"]["bias"]
    for i in range(3):
        state, _ = jax.jit(step)(state, make_batch(i))
        expected = 0.9 * expected + 0.1 * np.asarray(
            state.params["heads"]["shared"]["logits"]["bias"]
        )
    got = step.variables(state)["params"]["heads"]["shared"]["logits"]["bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_batch_smaller_than_the_devices_is_refused():
    parallel = Parallel("pmap", tuple(jax.devices()))
    with pytest.raises(UserError, match=r"config\.stages\.source\.batch_size is 0, less than"):
        parallel.check_batch(0, "config.stages.source.batch_size")


@pytest.mark.parametrize("lambda_", [-0.1, float("nan")])
def test_a_negative_lambda_is_refused(lambda_):
    with pytest.raises(UserError, match="at least 0"):
        Objective((), lambda_)


def test_parts_of_a_batch_need_the_memory_of_one():
    """Also where they are unrolled, as on CPUs: a part begins when the one before it has ended."""
    if jax.__version_info__ < (0, 11):
        pytest.skip("the XLA of JAX 0.10 drops the barrier before it plans memory")
    parallel = Parallel.create("none")
    model = make_model(None, 0.0)
    variables = draw(model)
    batch = parallel.shard(make_batch(0, 0, 256), multiple=4)
    needed = {}
    for parts in (1, 4):
        step = make_step(model, variables["params"], accumulate=parts)
        compiled = (
            parallel.train(step).lower(step.init(jax.random.key(1), variables), batch).compile()
        )
        needed[parts] = compiled.memory_analysis().temp_size_in_bytes
    assert needed[4] < 0.5 * needed[1], needed
