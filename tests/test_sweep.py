"""A sweep is what the runs of its points would be, and its solver what scikit-learn's is; nothing of it sees test."""

import dataclasses
import json
import logging
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from tiny_run import tiny

from medtl.config import arm
from medtl.errors import UserError
from medtl.experiment import experiment, inference, splits
from medtl.experiment.arm import Run
from medtl.sweep import logistic, sweep, trainer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone file, as a run exports it."""
    folder = tmp_path_factory.mktemp("weights")
    config = tiny(arms=("scratch",))
    config.stages.target.epochs = 0
    experiment.train(config, folder / "run")
    inference.export(folder / "run", folder / "backbone.safetensors")
    return str(folder / "backbone.safetensors")


def frozen(weights, **fields):
    """Arms whose heads train on the features of a frozen backbone."""
    config = tiny(weights__path=weights, augment__flip=False, checkpoint__metric="loss")
    config.arm.pooled = arm("weights", source_stage=False, joint=True)
    config.arms = ("pooled",)
    for stage in config.stages.values():
        stage.update(freeze="backbone", batch_norm="frozen", learning_rate=3e-3)
    for name, value in fields.items():
        node, *_, last = config, *name.split("__")
        for part in name.split("__")[:-1]:
            node = node[part]
        node[last] = value
    return config


def moving(**fields):
    """A joint arm whose model is random at first and moves as a whole, with all that makes a step depend on its place and time."""
    c = tiny(arms=("joint",), seeds=(0, 3), checkpoint__metric="loss", data__image_size=8)
    c.arm.joint = arm("random", source_stage=False, joint=True)
    c.model.update(hidden=(8,), dropout=0.3)
    c.augment.update(rotation=10.0, contrast=0.2)
    # Adam's first steps divide by gradients that may be rounding alone: two orders of summation would part.
    c.stages.target.update(
        batch_size=15, source_batch_size=8, ema=0.5, schedule="cosine", warmup=0.2
    )
    c.stages.target.optimizer = "sgd(momentum=0.9)"
    c.evaluation.update(times=3, batch_size=16)
    c.sweep.update(lambda_=(0.5, 2.0), learning_rate=(1e-2, 1e-1))
    for name, value in fields.items():
        c.update_from_flattened_dict({name.replace("__", "."): value})
    return c


def with_values(config, grid, h):
    """The config of a run at a point."""
    own = config.copy_and_resolve_references()
    for field, values in grid.items():
        section = own.objective if field == "lambda_" else own.stages.target
        section[field] = float(values[h])
    return own


def run_of(config, folder):
    examples = experiment.load_data(config)
    every = splits.cells(config, examples["target"], config.seeds[0])
    largest = splits.largest(every)
    run = Run.create(config, folder, examples, training=True, train_size=largest)
    return [(seed, run.at(cell)) for seed in config.seeds for cell in every]


CASES = {
    "own split": (
        {
            "seeds": (0, 3),
            "evaluation__times": 3,
            "data__target__train_size": 25,
            "model__prior_bias": True,
        },
        {"lambda_": [0.0, 3.0], "learning_rate": [1e-3, 1e-2], "weight_decay": [0.0, 0.5]},
    ),
    "folds after a source stage": (
        {
            "arms": ("transfer",),
            "evaluation__folds": 2,
            "evaluation__times": 1,
            "data__target__split": (0.6, 0.2, 0.2),
            "objective__reduction": "sum",
            "checkpoint__select": "last",
            "stages__target__optimizer": "adamw",
            "stages__target__schedule": "cosine",
            "stages__target__warmup": 0.2,
            "stages__target__clip_norm": 1.0,
            "stages__target__ema": 0.5,
            "stages__target__accumulate": 2,
            "stages__target__source_batch_size": 24,
            "model__hidden": (8,),
            "model__dropout": 0.3,
        },
        {"lambda_": [0.5, 2.0], "weight_decay": [0.01, 0.3]},
    ),
}


@pytest.mark.parametrize(
    "case", ["own split", pytest.param("folds after a source stage", marks=pytest.mark.slow)]
)
def test_a_point_gives_what_a_run_with_its_values_gives(case, weights, tmp_path):
    fields, asked = CASES[case]
    config = frozen(weights, **fields)
    for name, values in asked.items():
        config.sweep[name] = tuple(values)
    grid = sweep.grid_of(config)
    name = config.arms[0]
    places = run_of(config, tmp_path / "sweep")
    found, _ = trainer.trained(places, name, grid)
    for h in (1, len(grid["lambda_"]) - 2)[: 2 if config.arms[0] == "pooled" else 1]:
        own = with_values(config, grid, h)
        for (seed, at), probability in zip(places, found, strict=True):
            tuned = {field: float(values[h]) for field, values in grid.items()}
            launched = dataclasses.replace(at, config=own, folder=tmp_path / f"{h}", tuned=tuned)
            [said] = [p for p in launched.outcome(seed, name).said if p.split == "val"]
            np.testing.assert_allclose(probability[h], said.probability, atol=1e-5)
    assert max(np.abs(of_place[0] - of_place[-1]).max() for of_place in found) > 1e-2


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A point, and the probabilities of val that a run with its values gives, for each seed."""
    config, h = moving(), 1
    own = with_values(config, sweep.grid_of(config), h)
    said = []
    for seed, run in run_of(own, tmp_path_factory.mktemp("launched")):
        said += [p.probability for p in run.outcome(seed, "joint").said if p.split == "val"]
    return h, said


@pytest.mark.parametrize(
    ("path", "parallel", "most"),
    [
        ("in turn", "none", 1e-6),
        pytest.param("places together", "none", 1e-5, marks=pytest.mark.slow),
        pytest.param("in turn on each device", "mesh", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_a_model_that_moves_is_what_a_run_gives_and_all_are_one_program(
    path, parallel, most, launched, tmp_path, monkeypatch, caplog
):
    """Up to rounding: XLA fuses a step otherwise whose values are arguments, and a mapped convolution is another one."""
    config = moving(parallel=parallel)
    grid = sweep.grid_of(config)
    if path == "places together":
        monkeypatch.setattr(trainer, "together", lambda places, points, **_: (places, 1))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        found, _ = trainer.trained(run_of(config, tmp_path), "joint", grid)
    assert sum("Compiling jit(advance)" in r.getMessage() for r in caplog.records) == 1
    h, said = launched
    for probability, expected in zip(found, said, strict=True):
        np.testing.assert_allclose(probability[h], expected, atol=most, rtol=0)
    assert all(np.abs(of_place[0] - of_place[-1]).max() > 1e-3 for of_place in found)


@pytest.mark.slow
def test_heads_on_images_that_vary_after_a_source_stage_that_moved(weights, tmp_path):
    """From what the source stage learned, once for all folds; by parts of a batch, of which each has statistics of its own."""
    fields = {
        "arms": ("transfer",),
        "augment__flip": True,
        "stages__source__freeze": "none",
        "stages__source__batch_norm": "batch",
        "stages__target__batch_norm": "batch",
        "stages__target__batch_size": 15,
        "stages__target__accumulate": 2,
        "evaluation__folds": 2,
        "data__target__split": (0.6, 0.2, 0.2),
        "sweep__lambda_": (0.5, 2.0),
        "sweep__weight_decay": (0.3,),
        "checkpoint__select": "last",
    }
    config = frozen(weights, **fields)
    grid = sweep.grid_of(config)
    places = run_of(config, tmp_path / "sweep")
    assert not trainer.frozen(places[0][1], "transfer")
    found, _ = trainer.trained(places, "transfer", grid)
    own = with_values(config, grid, 1)
    tuned = {field: float(values[1]) for field, values in grid.items()}
    for (seed, at), probability in zip(places, found, strict=True):
        ran = dataclasses.replace(at, config=own, trial="trial_1", tuned=tuned).outcome(
            seed, "transfer"
        )
        [said] = [p for p in ran.said if p.split == "val"]
        np.testing.assert_allclose(probability[1], said.probability, atol=1e-6)


def test_what_trains_at_once():
    """All heads; the places of a point on a GPU, of a small backbone; else one model after the other."""
    assert trainer.together(5, 9, parameters=0, backend="cpu") == (5, 9)
    assert trainer.together(5, 9, parameters=270_000, backend="cpu") == (1, 1)
    assert trainer.together(5, 9, parameters=270_000, backend="gpu") == (5, 1)
    assert trainer.together(5, 9, parameters=23_500_000, backend="gpu") == (1, 1)


def test_images_that_are_streamed_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    config = moving()

    class Stream:
        def __len__(self):
            return 90

        def __getitem__(self, row):
            raise AssertionError("not to be read")

    load_data = experiment.load_data

    def streamed(config):
        examples = load_data(config)
        return examples | {"target": dataclasses.replace(examples["target"], image=Stream())}

    monkeypatch.setattr(experiment, "load_data", streamed)
    with pytest.raises(
        UserError, match="keeps the images of target on the device .* use 'memory' or 'disk'"
    ):
        sweep.sweep(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_devices_and_padding_change_nothing(weights, tmp_path):
    """Three points on eight devices, or three seeds; and the heads are one program, whatever the length of the last part."""
    for seeds, lambdas in (((0,), (0.0, 1.0, 5.0)), ((0, 1, 2), (1.0,))):
        found = {}
        for parallel in ("none", "mesh"):
            config = frozen(
                weights, seeds=seeds, parallel=parallel, sweep__lambda_=lambdas, evaluation__times=3
            )
            grid = sweep.grid_of(config)
            found[parallel], _ = trainer.trained(
                run_of(config, tmp_path / parallel), "pooled", grid
            )
        np.testing.assert_allclose(found["none"], found["mesh"], atol=1e-6)
    assert len(jax.devices()) == 8


def test_all_heads_are_one_program(weights, tmp_path, caplog):
    config = frozen(
        weights,
        seeds=(0, 1),
        sweep__lambda_=(0.0, 1.0),
        evaluation__times=4,
        stages__target__epochs=3,
    )
    places = run_of(config, tmp_path)
    assert places[0][1].steps("pooled", "target") % 4, "the last part should be shorter"
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        trainer.trained(places, "pooled", sweep.grid_of(config))
    assert sum("Compiling jit(advance)" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("solver", ["train", "lbfgs"])
def test_a_sweep_compares_on_val_alone_and_says_what_to_launch(solver, weights, tmp_path, capsys):
    fields = dict(
        sweep__lambda_=(3.0, 0.0), sweep__solver=solver, stages__target__weight_decay=0.01
    )
    config = frozen(weights, **fields, evaluation__folds=2, data__target__split=(0.6, 0.2, 0.2))
    command = "python launch.py --mode=sweep --config=c.py --workdir runs/x --config.sweep.lambda_=[3,0] --config.seeds=0"
    result = sweep.sweep(config, tmp_path / "first", command=command)
    said = capsys.readouterr().out
    written = json.loads((tmp_path / "first/sweep.json").read_text())
    assert (
        [p["lambda_"] for p in written["points"]]
        == [0.0, 3.0]
        == [p["lambda_"] for p in written["curve"]]
    )
    scores = [p["value"] for p in result["points"]]
    assert all(
        p["low"] < p["value"] < p["high"] and len(p["by_cell"]) == 2 for p in result["points"]
    )
    assert result["best"] == int(np.argmin(scores))  # the metric is the loss
    launched = f"python launch.py --config=c.py --config.seeds=0 --workdir={tmp_path}/first_chosen "
    launched += f"--config.objective.lambda_={3.0 * result['best']}"
    assert written["command"] == launched and said.rstrip().endswith(launched)
    assert "<svg" in (tmp_path / "first/sweep.html").read_text()


def test_labels_of_test_change_nothing(weights, tmp_path, monkeypatch):
    config = frozen(weights, sweep__lambda_=(0.0, 3.0))
    first = sweep.sweep(config, tmp_path / "first")

    load_data = experiment.load_data

    def spoiled(config):
        examples = load_data(config)
        e = examples["target"]
        return examples | {
            "target": dataclasses.replace(e, label=np.where(e.split == "test", 0, e.label))
        }

    monkeypatch.setattr(experiment, "load_data", spoiled)
    again = sweep.sweep(config, tmp_path / "second")
    assert again["points"] == first["points"] and again["command"] is None


def test_a_point_that_diverges_is_undefined_and_not_chosen(weights, tmp_path):
    fields = dict(stages__target__optimizer="sgd", sweep__learning_rate=(0.01, 1e38))
    result = sweep.sweep(frozen(weights, **fields), tmp_path / "one")
    assert "diverged" in result["points"][1]["undefined"] and np.isnan(result["points"][1]["value"])
    assert result["best"] == 0 and "undefined" in sweep.table(result)
    with pytest.raises(UserError, match="every point of the sweep diverged"):
        sweep.sweep(frozen(weights, **fields | {"sweep__learning_rate": (1e38,)}), tmp_path / "all")


def test_of_equal_points_the_smaller_lambda_is_chosen(weights, tmp_path):
    """With a learning rate of 0 all λ are equal."""
    config = frozen(weights, sweep__lambda_=(2.0, 0.5, 1.0), sweep__learning_rate=(0.0,))
    assert sweep.sweep(config, tmp_path)["chosen"]["objective.lambda_"] == 0.5


def test_without_val_there_is_nothing_to_compare(weights, tmp_path):
    config = frozen(
        weights,
        sweep__lambda_=(1.0,),
        data__target__split=(0.5, 0.0, 0.5),
        checkpoint__select="last",
    )
    with pytest.raises(UserError, match="has no val part"):
        sweep.sweep(config, tmp_path)


def test_the_command_to_launch_keeps_what_the_sweep_did_not_set():
    command = (
        "python launch.py --mode sweep --config c.py -config.seeds 0,1 --config.sweep.solver=lbfgs --workdir=runs/x "
        "--config.objective.lambda_ 7 --config.name='a b' --noconfig.augment.flip"
    )
    chosen = {"objective.lambda_": 0.1, "stages.target.weight_decay": 1e-5}
    found = sweep.launch_command(command, chosen, Path("runs/x"))
    assert shlex.split(found)[2:] == [
        *(
            "--config",
            "c.py",
            "-config.seeds",
            "0,1",
            "--config.name=a b",
            "--noconfig.augment.flip",
        ),
        "--workdir=runs/x_chosen",
        *("--config.objective.lambda_=0.1", "--config.stages.target.weight_decay=1e-05"),
    ]


# ---- the solver


def problem(kind, classes, *, n=200, d=6, missing=0.0, seed=0):
    """Two domains, two sets of rows, three λ."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n)
    x = (rng.normal(size=(n, d)) + 0.7 * label[:, None] * rng.normal(size=d) + 3).astype(np.float32)
    target = np.eye(classes, dtype=np.float32)[label]
    if kind == "sigmoid":
        target = (rng.random((n, classes)) < 0.4).astype(np.float32)
        target[rng.random(target.shape) < missing] = np.nan
    part = (np.arange(n) >= n // 2).astype(int)
    rows = (rng.random((2, n)) < 0.8) * rng.uniform(0.5, 2, n)
    strength = np.array([0.0, 0.5, 20.0])
    scale = (
        np.stack([np.ones(3), strength], axis=1)[:, None]
        / np.array([n / 2, n / 2])
        * np.ones((3, 2, 1))
    )
    return logistic.Problem(x, target, kind, part, rows, scale, np.array([0.02, 0.01, 0.5]))


@pytest.mark.parametrize("classes", [2, 4])
def test_softmax_heads_are_scikit_learns(classes):
    p = problem("softmax", classes)
    found = logistic.solve(p)
    for h, r in np.ndindex(3, 2):
        weight = (p.rows[r] * p.scale[h, r][p.part]).astype(np.float64)
        used = weight > 0
        # Of two classes scikit-learn has one column: w = W_1 - W_0 with W_0 = -W_1, so |W|² = |w|² / 2.
        c = (2 if classes == 2 else 1) / p.penalty[h]
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
        x, y = p.features[used].astype(np.float64), p.target[used].argmax(axis=1)
        theirs.fit(x, y, sample_weight=weight[used])
        kernel, bias = found.kernel[h, r].T, found.bias[h, r]
        if classes == 2:
            kernel, bias = kernel[1:] - kernel[:1], bias[1:] - bias[:1]
        # The curvature is at least the penalty, and the gradient at most the tolerance: that is how far a coefficient can be.
        np.testing.assert_allclose(kernel, theirs.coef_, atol=2e-3, rtol=1e-3)
        np.testing.assert_allclose(
            bias - bias.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=5e-3, rtol=1e-3
        )
        assert found.gradient[h, r] <= 1e-5


def test_sigmoid_heads_are_a_regression_for_each_label():
    """Each known label is a question of its own, which counts 1 / (the number of known ones of its row)."""
    p = problem("sigmoid", 3, missing=0.3)
    found = logistic.solve(p)
    known = ~np.isnan(p.target)
    for h, r, k in np.ndindex(3, 2, 3):
        weight = p.rows[r] * p.scale[h, r][p.part] / np.maximum(known.sum(axis=1), 1)
        used = known[:, k] & (weight > 0)
        theirs = LogisticRegression(C=1 / p.penalty[h], tol=1e-10, max_iter=10_000)
        theirs.fit(
            p.features[used].astype(np.float64), p.target[used, k], sample_weight=weight[used]
        )
        np.testing.assert_allclose(found.kernel[h, r, :, k], theirs.coef_[0], atol=2e-3, rtol=1e-3)


def test_the_loss_that_is_given_is_the_objective_and_no_neighbour_is_lower():
    p = problem("softmax", 3)
    found = logistic.solve(p)

    def objective(h, r, kernel, bias):
        z = p.features.astype(np.float64) @ kernel + bias
        log_p = (
            z
            - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
            - z.max(1, keepdims=True)
        )
        weight = p.rows[r] * p.scale[h, r][p.part]
        return -np.sum(weight * np.sum(p.target * log_p, axis=1)) + p.penalty[h] / 2 * np.sum(
            kernel**2
        )

    rng = np.random.default_rng(1)
    for h, r in np.ndindex(3, 2):
        kernel, bias = found.kernel[h, r].astype(np.float64), found.bias[h, r].astype(np.float64)
        least = objective(h, r, kernel, bias)
        assert found.loss[h, r] == pytest.approx(least, rel=1e-5)
        for _ in range(5):
            step = 0.02 * rng.normal(size=kernel.shape)
            assert objective(h, r, kernel + step, bias) > least * (1 - 1e-6)


def test_devices_blocks_and_neighbours_change_no_minimum(monkeypatch):
    p = problem("softmax", 2)
    one = logistic.solve(p)
    spread = logistic.solve(p, devices=jax.devices())
    monkeypatch.setattr(logistic, "_FLOATS", 1)
    alone = logistic.solve(p)
    for other in (spread, alone):
        np.testing.assert_allclose(one.kernel, other.kernel, atol=2e-3)
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)


def test_a_problem_without_weight_has_no_kernel():
    p = problem("softmax", 2)
    found = logistic.solve(dataclasses.replace(p, scale=p.scale * np.array([0, 1])))
    assert (
        np.all(found.kernel[0] == 0) and np.all(found.bias[0] == 0) and np.all(found.loss[0] == 0)
    )
    assert np.all(np.isfinite(found.kernel))


def test_a_sweep_by_lbfgs_minimises_the_objective_of_the_trainer(weights, tmp_path):
    """λ weighs the mean over the target's train part, the source's weighs 1; against scikit-learn on the same features."""
    config = frozen(
        weights, sweep__lambda_=(0.0, 2.0), sweep__weight_decay=(0.05,), sweep__solver="lbfgs"
    )
    [(_, run)] = places = run_of(config, tmp_path)
    [found], _ = trainer.minimised(places, "pooled", sweep.grid_of(config))
    x, y, weight = [], [], []
    for domain, strength in (("source", 1.0), ("target", 2.0)):
        train = run.examples[domain].indices("train")
        x.append(run.frozen_features(domain)[train])
        y.append(run.examples[domain].label[train])
        weight.append(np.full(len(train), strength / len(train)))
    theirs = LogisticRegression(C=1 / 0.05, tol=1e-10, max_iter=10_000)
    theirs.fit(
        np.concatenate(x).astype(np.float64),
        np.concatenate(y),
        sample_weight=np.concatenate(weight),
    )
    val = run.examples["target"].indices("val")
    np.testing.assert_allclose(
        found[1], theirs.predict_proba(run.frozen_features("target")[val]), atol=1e-3
    )
