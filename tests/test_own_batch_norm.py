"""BatchNorm of each domain's own, and statistics re-estimated on the target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from test_train import NORM, draw, make_batch, make_model, make_step
from tiny_run import tiny

from medtl.config import check
from medtl.data.augment import Augmentation
from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.experiment import experiment, inference
from medtl.training import adabn, batch_norm, optimizers
from medtl.training.parallel import Parallel
from medtl.training.step import prepare

flat = traverse_util.flatten_dict


def other_norms(variables, rng):
    """Return the variables with a BatchNorm of the source that differs from the target's."""
    made = batch_norm.with_source(variables, key="key")
    for part in ("params", "batch_stats"):
        made[part]["norms"] = jax.tree.map(
            lambda x: x + rng.uniform(0.1, 0.5, x.shape).astype(np.float32), made[part]["norms"]
        )
    return made


def test_each_domain_is_normalized_by_itself_with_its_own_affine_map():
    model = make_model()
    variables = other_norms(draw(model), np.random.default_rng(0))
    batch = jax.tree.map(jnp.asarray, make_batch(0, 9, 5))
    inputs = prepare(batch, normalization=NORM)
    outputs, new = batch_norm.apply(model, variables, inputs, "domain")
    own = flat(variables["params"]["encoders"]) | flat(variables["params"]["norms"])
    by_hand = {
        "source": {**variables["params"], "encoders": traverse_util.unflatten_dict(own)},
        "target": variables["params"],
    }
    for domain, name in (("source", "norms"), ("target", "encoders")):
        statistics = {"encoders": variables["batch_stats"][name]}
        expected, changed = model.apply(
            {"params": by_hand[domain], "batch_stats": statistics}, {domain: inputs[domain]}, True,
            mutable=["batch_stats"],
        )  # fmt: skip
        np.testing.assert_allclose(
            outputs[domain].logits, expected[domain].logits, rtol=1e-5, atol=1e-5
        )
        for path, value in flat(changed["batch_stats"]["encoders"]).items():
            np.testing.assert_allclose(flat(new[name])[path], value, rtol=1e-5, atol=1e-6)


def trained(mode, devices, **fields):
    parallel = Parallel.create(mode, tuple(jax.devices()[:devices]))
    model = make_model(parallel.axis_name)
    variables = batch_norm.with_source(draw(model), key="key")
    step = make_step(
        model, variables["params"], batch_norm="domain", augmentation=Augmentation(), **fields
    )
    state = parallel.replicate(step.init(jax.random.key(1), variables))
    compiled = parallel.train(step)
    for i in range(3):
        state, _ = compiled(state, parallel.put(parallel.shard(make_batch(i))))
    return jax.device_get(state), variables


def test_the_norms_train_apart_and_the_same_on_eight_devices():
    state, start = trained("none", 1)
    again, _ = trained("pmap", 8)
    for part in ("params", "batch_stats"):
        one, eight = flat(getattr(state, part)), flat(getattr(again, part))
        for path, value in one.items():
            np.testing.assert_allclose(eight[path], value, rtol=2e-4, atol=2e-5)
    norms, encoders = flat(state.params["norms"]), flat(state.params["encoders"])
    assert all((norms[path] != encoders[path]).any() for path in norms)
    assert set(norms) == {
        p for p in flat(start["params"]["encoders"]) if p[-1] in ("scale", "bias")
    }
    means = flat(state.batch_stats["norms"])
    assert any((means[p] != flat(state.batch_stats["encoders"])[p]).any() for p in means)


def test_the_sources_norms_rest_where_the_layer_is_frozen():
    model = make_model()
    params = batch_norm.with_source(draw(model), key="key")["params"]
    groups = model.make_encoders["image"]().groups()
    for freeze, expected in (("backbone", 0), ("stem", 1)):
        paths = optimizers.trained_paths(params, freeze=freeze, groups=groups, heads={"shared"})
        norms = {path[1:] for path in paths if path[0] == "norms"}
        assert bool(norms) == bool(expected)
        assert norms <= {path[1:] for path in paths if path[0] == "encoders"}


def batches(images, size):
    for start in range(0, len(images), size):
        part = images[start : start + size]
        missing = size - len(part)
        padded = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
        yield {"image": padded, "mask": (np.arange(size) < len(part)).astype(np.float32)}


def statistics(images, size, mode="none", devices=1):
    parallel = Parallel.create(mode, tuple(jax.devices()[:devices]))
    model = make_model(parallel.axis_name)
    variables = draw(model)
    made = adabn.adapted(
        model, variables, batches(images, size), normalization=NORM, parallel=parallel
    )
    return model, variables, made


def test_the_statistics_are_those_of_all_images_whatever_the_batches_and_devices():
    images = np.random.default_rng(0).integers(0, 160, (24, 8, 8, 1), dtype=np.uint8)
    model, variables, whole = statistics(images, 24)
    first = ("image", "bn1")
    # The first layer sees the images alone: its statistics are those of the convolution.
    x = (images.astype(np.float64) - NORM.mean[0]) / NORM.std[0]
    kernel = variables["params"]["encoders"]["image"]["conv1"]["kernel"]
    y = jax.lax.conv_general_dilated(
        jnp.asarray(x, jnp.float32), kernel, (1, 1), [(1, 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    y = np.asarray(y, np.float64).reshape(-1, y.shape[-1])
    for size, tolerance in ((24, 1e-3), (8, 5e-3), (16, 5e-3)):
        found = flat(statistics(images, size)[2]["batch_stats"]["encoders"])
        np.testing.assert_allclose(found[*first, "mean"], y.mean(0), rtol=tolerance, atol=1e-4)
        np.testing.assert_allclose(found[*first, "var"], y.var(0), rtol=tolerance, atol=1e-4)
    eight = statistics(images, 24, "pmap", 8)[2]
    padded = adabn.adapted(
        model, variables, batches(images, 29), normalization=NORM, parallel=Parallel.create("none")
    )
    for other in (eight, padded):
        for path, value in flat(whole["batch_stats"]).items():
            np.testing.assert_allclose(
                flat(other["batch_stats"])[path], value, rtol=2e-3, atol=1e-4
            )
    # Evaluation then gives what training on this batch gave.
    batch = jax.tree.map(jnp.asarray, next(batches(images, 24)))
    inputs = prepare({"target": batch}, normalization=NORM)
    train, _ = model.apply(variables, inputs, True, mutable=["batch_stats"])
    test = model.apply(whole, inputs, False)
    np.testing.assert_allclose(test["target"].logits, train["target"].logits, rtol=5e-3, atol=5e-3)


def test_a_run_with_both_keeps_its_statistics_for_prediction(tmp_path):
    config = tiny(
        arms=("transfer",), stages__target__batch_norm="domain", stages__target__epochs=1,
        stages__target__adapt_batch_norm=True, evaluation__test_time=("flip",),
    )  # fmt: skip
    config.arm.transfer.source_stage = False
    experiment.train(config, tmp_path)
    before = predictions.read(tmp_path / "predictions.csv")[0]
    assert {p.arm for p in before} == {"transfer", "transfer+tta"}
    stored = inference.load_checkpoint(tmp_path)
    assert set(stored.variables["params"]) >= {"encoders", "norms"}
    kept = adabn.read(tmp_path / "seed_0/transfer/target")
    for path, value in flat(kept).items():
        np.testing.assert_array_equal(flat(stored.variables["batch_stats"])[path], value)
    experiment.evaluate(config, tmp_path)
    after = predictions.read(tmp_path / "predictions.csv")[0]
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.probability, two.probability)
    (tmp_path / "seed_0/transfer/target" / adabn.FILE).unlink()
    with pytest.raises(UserError, match="run the training command again"):
        inference.load_checkpoint(tmp_path)


def test_what_cannot_have_its_own_is_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match="none of the arms scratch is joint"):
        check.check(tiny(stages__target__batch_norm="domain", arms=("scratch",)))
    with pytest.raises(UserError, match="that stage has one domain"):
        check.check(tiny(stages__source__batch_norm="domain"))
    with pytest.raises(UserError, match="no encoder has BatchNorm"):
        batch_norm.with_source({"params": {}, "batch_stats": {}}, key="key")
    config = tiny(stages__target__adapt_batch_norm=True, evaluation__target_sizes=(20, "all"))
    with pytest.raises(UserError, match=r"the target has 20 train images in size_20; .* 32"):
        experiment.open_experiment(config, tmp_path, training=True)
