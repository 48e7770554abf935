"""λ that chooses itself: against closed forms, finite differences and gradients one by one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train import NORM, draw, make_batch, make_model, make_step
from test_weighted_source import features
from tiny_run import tiny

from medtl.config import check, dataset
from medtl.data.augment import Augmentation
from medtl.errors import UserError
from medtl.examples import Examples
from medtl.experiment import experiment
from medtl.losses import cross_entropy
from medtl.training import balance, optimizers
from medtl.training.checkpoint import Store
from medtl.training.objective import Loss, Objective
from medtl.training.parallel import Parallel
from medtl.training.step import prepare

LAMBDA, RATE = 0.5, 0.05
HELD = np.array([0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1], np.float32)


def test_the_minimum_of_the_uncertainty_is_the_ratio_of_the_losses():
    objective = Objective((Loss("main", cross_entropy),), LAMBDA)
    of = {"source": 0.3, "target": 1.2}

    def value(own):
        made, added = balance.weighted(objective, "uncertainty", {"terms": {"balance": own}})
        return made.source_factor * of["source"] + made.lambda_at(0) * of["target"] + added

    start = balance.initial("uncertainty", LAMBDA)
    params = {"terms": {"balance": start}}
    assert float(balance.lambda_of("uncertainty", params)) == pytest.approx(LAMBDA)
    best = {d: jnp.log(2 * x) for d, x in of.items()}
    for slope in jax.grad(value)(best).values():
        assert float(slope) == pytest.approx(0, abs=1e-6)
    found = balance.lambda_of("uncertainty", {"terms": {"balance": best}})
    assert float(found) == pytest.approx(of["source"] / of["target"])
    # It begins with the objective of the fixed λ, but for the constant (a + b) / 2.
    constant = float(start["source"] + start["target"]) / 2
    assert float(value(start)) == pytest.approx(0.3 + LAMBDA * 1.2 + constant)


def with_balance(mode, axis_name=None):
    model = make_model(axis_name)
    variables = draw(model)
    if own := balance.initial(mode, LAMBDA):
        variables["params"]["terms"] = {"balance": own}
    step = make_step(
        model, variables["params"], lambda_=LAMBDA, optimizer=optax.sgd(1.0), balance=mode,
        augmentation=Augmentation(), rate=lambda step: RATE,
    )  # fmt: skip
    names = optimizers.trained_paths(
        variables["params"], freeze="none", groups={}, heads={"shared"}, terms={"balance"}
    )
    return dataclasses.replace(step, trained=names), variables


def batch_of(seed=0):
    batch = make_batch(seed)
    for part in batch.values():
        part["index"] = np.arange(13, dtype=np.int32)
    return batch


def taken(step, variables, batch):
    """Return a step's gradient: that of SGD with the rate 1; and its metrics."""
    state = step.init(jax.random.key(1), variables, {"held_out": HELD})
    new, metrics = jax.jit(step)(state, batch)
    before, after = (optimizers.split(p, step.trained)[0] for p in (state.params, new.params))
    return {p: np.asarray(before[p] - after[p]) for p in before}, metrics


@pytest.fixture(scope="module")
def by_hand():
    """The losses of a batch by plain calls: (θ, weights of source rows, of target rows) -> loss."""
    step, variables = with_balance("fixed")
    batch = jax.tree.map(jnp.asarray, batch_of())
    training = {d: dict(part) for d, part in batch.items()}
    training["target"]["mask"] = batch["target"]["mask"] * (1 - HELD)

    def forward(trained, part):
        own = {**variables, "params": optimizers.merge(trained, {})}
        inputs = prepare(part, normalization=NORM)
        return step.model.apply(own, inputs, True, mutable=["batch_stats"])[0]

    def values(trained, part):
        outputs = forward(trained, part)
        return {d: part[d]["weight"] * cross_entropy(outputs[d], part[d]) for d in part}

    def source(trained):
        return values(trained, training)["source"]

    def target(trained):
        return jnp.sum(values(trained, training)["target"] * (1 - HELD)) / (13 - HELD.sum())

    def held(trained):
        part = {"target": batch["target"]}
        return jnp.sum(values(trained, part)["target"] * HELD) / HELD.sum()

    flat = optimizers.split(variables["params"], step.trained)[0]
    of_source = jax.jit(jax.jacrev(source))(flat)  # one backward pass an example
    return (
        batch,
        flat,
        of_source,
        jax.jit(jax.grad(target))(flat),
        jax.jit(jax.value_and_grad(held)),
    )


def dot(a, b):
    return sum(float(np.sum(np.asarray(a[p], np.float64) * b[p])) for p in b)


def test_the_gradient_of_lambda_is_that_through_one_differentiable_step(by_hand):
    batch, flat, of_source, g_t, held = by_hand
    step, variables = with_balance("learned")
    gradient, metrics = taken(step, variables, batch)
    assert float(metrics["lambda"]) == pytest.approx(LAMBDA)
    g_s = {p: x.mean(0) for p, x in of_source.items()}
    # It begins with the gradient of the fixed λ.
    for path, value in g_t.items():
        np.testing.assert_allclose(gradient[path], g_s[path] + LAMBDA * value, atol=2e-5)

    def after(logit):
        pi = jax.nn.sigmoid(logit)
        one, two = (1 + LAMBDA) * (1 - pi), (1 + LAMBDA) * pi
        moved = {p: x - RATE * (one * g_s[p] + two * g_t[p]) for p, x in flat.items()}
        return held(moved)[0] / RATE

    slope = jax.grad(after)(jnp.log(LAMBDA))
    found = float(gradient["terms", "balance", "logit"])
    assert found == pytest.approx(float(slope), rel=2e-3)
    # By finite differences, which the kinks of the ReLUs blur.
    ends = [float(after(np.log(LAMBDA) + h)) for h in (0.1, -0.1)]
    assert found == pytest.approx((ends[0] - ends[1]) / 0.2, rel=0.2)


def test_an_example_counts_by_how_much_it_helps_the_held_out_loss(by_hand):
    batch, flat, of_source, g_t, held = by_hand
    step, variables = with_balance("reweight")
    gradient, metrics = taken(step, variables, batch)
    g_v = held(flat)[1]
    helps = np.array(
        [max(0.0, dot({p: x[i] for p, x in of_source.items()}, g_v)) for i in range(13)]
    )
    assert 0 < np.sum(helps > 0) < 13
    weights = helps / helps.mean()
    for path, value in g_t.items():
        expected = np.tensordot(weights, of_source[path], axes=1) / 13 + LAMBDA * value
        np.testing.assert_allclose(gradient[path], expected, atol=1e-4)
    assert float(metrics["balance/helping"]) == pytest.approx(np.mean(helps > 0))
    effective = helps.sum() ** 2 / np.sum(helps**2) / 13
    assert float(metrics["balance/effective"]) == pytest.approx(effective, rel=1e-3)
    assert float(metrics["lambda"]) == LAMBDA


@pytest.mark.parametrize("mode", ["learned", "reweight"])
def test_eight_devices_with_padding_take_the_same_step(mode):
    batch = batch_of(3)
    states = []
    for name, devices in (("none", 1), ("pmap", 8)):
        parallel = Parallel.create(name, tuple(jax.devices()[:devices]))
        step, variables = with_balance(mode, parallel.axis_name)
        state = parallel.replicate(step.init(jax.random.key(1), variables, {"held_out": HELD}))
        state, _ = parallel.train(step)(state, parallel.put(parallel.shard(batch)))
        states.append(optimizers.split(jax.device_get(state.params), step.trained)[0])
    for path, value in states[0].items():
        np.testing.assert_allclose(states[1][path], value, rtol=1e-3, atol=1e-4)


def test_no_example_that_helps_and_no_held_out_example_are_safe():
    mask = jnp.array([1.0, 1.0, 0.0])
    apart = {"x": jnp.array([1.0, 0.0])}

    def weights(held):
        return balance.example_weights(
            lambda t, f: -jnp.sum(f) * t["x"][0], held, apart, mask, lambda tree: tree
        )

    against, found = weights(lambda t: t["x"][0])
    assert np.array_equal(against, [0, 0, 0])
    assert float(found["balance/effective"]) == 0
    none, _ = weights(lambda t: 0.0 * t["x"][0])
    assert np.array_equal(none, [0, 0, 0])
    alike, found = weights(lambda t: -t["x"][0])
    assert np.array_equal(alike, [1, 1, 0])
    assert float(found["balance/helping"]) == 1


def test_the_held_out_part_is_of_train_alone_and_keeps_patients_together():
    n = 400
    patient = np.repeat(np.arange(200), 2).astype(str)
    split = np.where(np.arange(n) < 300, "train", "test")
    made = Examples(
        name="x", inputs={}, label=(np.arange(n) // 2 % 2).astype(np.int32), id=patient,
        weight=np.ones(n, np.float32), split=split, patient=patient, classes=("a", "b"),
        fingerprint="", split_hash="",
    )  # fmt: skip
    held = balance.held_out(made, 0)
    assert held[300:].sum() == 0
    assert held[:300].mean() == pytest.approx(0.2, abs=0.02)
    assert np.array_equal(held[::2], held[1::2])
    for k in (0, 1):
        assert held[:300][made.label[:300] == k].mean() == pytest.approx(0.2, abs=0.03)
    assert np.array_equal(held, balance.held_out(made, 0))


def config_of(tmp_path, mode):
    config = tiny(
        data__inputs=("features",), objective__balance=mode, arms=("transfer",),
        stages__target__epochs=4, stages__target__learning_rate=0.05, checkpoint__every_steps=3,
    )  # fmt: skip
    config.arm.transfer.source_stage = False
    for domain, n, shift in (("source", 120, 0.0), ("target", 80, 0.5)):
        path = features(tmp_path / f"{domain}.npz", n, shift, n)
        config.data[domain] = dataset("features", path=path, split=(0.6, 0.2, 0.2))
    return config


def test_a_run_learns_and_logs_lambda_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    config = config_of(tmp_path, "learned")
    experiment.train(config, tmp_path / "whole")
    name = "seed_0/transfer/target/log.jsonl"
    log = (tmp_path / "whole" / name).read_text()
    values = [line["lambda"] for line in map(json.loads, log.splitlines()) if "lambda" in line]
    assert values[0] == pytest.approx(1)
    assert abs(np.log(values[-1])) > 0.05
    save, calls = Store.save, []

    def killed(self, step, *args, **kwargs):
        save(self, step, *args, **kwargs)
        calls.append(step)
        if len(calls) == 2:
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(config, tmp_path / "killed")
    monkeypatch.setattr(Store, "save", save)
    experiment.train(config, tmp_path / "killed")
    for file in (name, "predictions.csv"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": ("scratch",)}, "none of the arms scratch is joint"),
        ({"objective__lambda_": 0.0}, r"lambda_, at which it begins, is 0\.0"),
        ({"objective__gradients": "pcgrad"}, "gradients is 'pcgrad'"),
        ({"objective__reduction": "sum"}, "reduction is 'sum'"),
        ({"objective__lambda_schedule": "constant_schedule(1.0)"}, "lambda_schedule is"),
        ({"stages__target__accumulate": 2}, "accumulate is 2"),
    ],
)
def test_options_that_cannot_work_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        check.check(tiny(objective__balance="learned", **fields))
