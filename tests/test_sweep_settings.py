"""A setting of a sweep gives what a run with its values gives."""

import logging

import jax
import numpy as np
import pytest
from opened import arms_of, backbone_file
from sklearn.linear_model import LogisticRegression
from swept import DECAY, LAMBDA, RATE, frozen, moving

from medtl.experiment.trials import with_values
from medtl.sweep import sweep, trainer


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("weights"))


def probabilities_of_runs(config, values, folder):
    """Train a run with these values; return its val probabilities for each seed and split."""
    outcomes = [arm.outcome() for arm in arms_of(with_values(config, values), folder)]
    return [p.probability for o in outcomes for p in o.predictions if p.split == "val"]


def largest_difference(trained):
    """Return how far the first and last settings are apart, at least, in a run."""
    return min(np.abs(of_run[0] - of_run[-1]).max() for of_run in trained.probabilities)


def compilations(caplog, name):
    return sum(f"Compiling jit({name})" in r.getMessage() for r in caplog.records)


CASES = {
    "own split": (
        {
            "seeds": (0, 3),
            "evaluation__times": 3,
            "data__target__train_size": 25,
            "model__prior_bias": True,
        },
        {LAMBDA: (0.0, 3.0), RATE: (1e-3, 1e-2), DECAY: (0.0, 0.5)},
    ),
    "folds after a source stage": (
        {
            "arms": ("transfer",),
            "arm__transfer__init": "weights",
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
        {LAMBDA: (0.5, 2.0), DECAY: (0.01, 0.3)},
    ),
    "class counts of folds": (
        {
            "evaluation__folds": 2,
            "evaluation__times": 1,
            "data__target__split": (0.6, 0.2, 0.2),
            "objective__losses__main__loss": "ldam(deferred=0.5, beta=0.9)",
            "objective__gradients": "pcgrad",
        },
        {LAMBDA: (0.5, 2.0), RATE: (1e-3, 1e-2)},
    ),
}


@pytest.mark.parametrize(
    "case", ["own split", *(pytest.param(c, marks=pytest.mark.slow) for c in list(CASES)[1:])]
)
def test_heads_that_one_program_trains_equal_those_of_runs(case, weights, tmp_path):
    fields, grid = CASES[case]
    config = frozen(weights, grid, **fields)
    arms, settings = arms_of(config, tmp_path / "sweep"), sweep.settings(config)
    assert trainer.trains_heads_alone(arms[0])
    trained = trainer.train(arms, settings)
    assert not list(tmp_path.glob("sweep/**/trial_*")), "each setting was trained by itself"
    chosen = (1, len(settings) - 2) if case == "own split" else (1,)
    for h in chosen:
        expected = probabilities_of_runs(config, settings[h].values, tmp_path / f"{h}")
        for of_run, values in zip(trained.probabilities, expected, strict=True):
            np.testing.assert_allclose(of_run[h], values, atol=1e-5)
    assert largest_difference(trained) > 1e-3


@pytest.mark.parametrize(
    ("grid", "fields", "programs"),
    [
        ({LAMBDA: (0.5, 2.0), RATE: (1e-2, 1e-1)}, {}, 1),
        pytest.param(
            {LAMBDA: (0.5, 2.0), RATE: (1e-2, 1e-1)},
            {"parallel": "mesh"},
            1,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {DECAY: (0.0, 0.5), RATE: (1e-2, 1e-1)},
            {"data__resident": "never"},
            1,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model.dropout": (0.0, 0.6), "stages.target.ema": (0.0, 0.5)},
            {},
            4,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_moving_model_equals_that_of_a_run_and_traced_values_share_one_program(
    grid, fields, programs, tmp_path, caplog
):
    """Up to rounding: XLA fuses a step in which the values are arguments in another way."""
    config = moving(grid, **fields)
    arms, settings = arms_of(config, tmp_path / "sweep"), sweep.settings(config)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        trained = trainer.train(arms, settings)
    assert compilations(caplog, "train_step") == programs
    expected = probabilities_of_runs(config, settings[1].values, tmp_path / "run")
    for of_run, values in zip(trained.probabilities, expected, strict=True):
        np.testing.assert_allclose(of_run[1], values, atol=1e-5, rtol=0)
    assert largest_difference(trained) > 1e-3


@pytest.mark.slow
def test_heads_on_varied_images_after_a_source_stage_that_trained_the_backbone(weights, tmp_path):
    """The source stage is trained once for all folds; each micro-batch has its own statistics."""
    config = frozen(
        weights,
        {LAMBDA: (0.5, 2.0), DECAY: (0.3,)},
        arms=("transfer",),
        arm__transfer__init="weights",
        augment__flip=True,
        stages__source__freeze="none",
        stages__source__batch_norm="batch",
        stages__target__batch_norm="batch",
        stages__target__batch_size=15,
        stages__target__accumulate=2,
        evaluation__folds=2,
        data__target__split=(0.6, 0.2, 0.2),
        checkpoint__select="last",
    )
    arms, settings = arms_of(config, tmp_path / "sweep"), sweep.settings(config)
    assert not trainer.trains_heads_alone(arms[0])
    trained = trainer.train(arms, settings)
    sources = list(tmp_path.glob("sweep/**/source/log.jsonl"))
    assert [p.parents[2].name for p in sources] == ["seed_0"]
    expected = probabilities_of_runs(config, settings[1].values, tmp_path / "run")
    for of_run, values in zip(trained.probabilities, expected, strict=True):
        np.testing.assert_allclose(of_run[1], values, atol=1e-5)


def test_devices_and_padding_change_nothing(weights, tmp_path):
    """Eight devices share three settings of one seed, or three seeds of one setting."""
    assert len(jax.devices()) == 8
    for seeds, lambdas in (((0,), (0.0, 1.0, 5.0)), ((0, 1, 2), (1.0,))):
        probabilities = []
        for parallel in ("none", "mesh"):
            config = frozen(
                weights, {LAMBDA: lambdas}, seeds=seeds, parallel=parallel, evaluation__times=3
            )
            arms = arms_of(config, tmp_path / parallel)
            probabilities.append(trainer.train(arms, sweep.settings(config)).probabilities)
        np.testing.assert_allclose(*probabilities, atol=1e-6)


def test_all_heads_are_one_program(weights, tmp_path, caplog):
    config = frozen(
        weights,
        {LAMBDA: (0.0, 1.0)},
        seeds=(0, 1),
        evaluation__times=4,
        stages__target__epochs=3,
    )
    arms = arms_of(config, tmp_path)
    steps = arms[0].experiment.steps("pooled", "target")
    assert steps % 4, "the last interval between evaluations should be shorter"
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        trainer.train(arms, sweep.settings(config))
    assert compilations(caplog, "advance") == 1


def test_lbfgs_minimizes_the_objective_of_the_trainer(weights, tmp_path):
    """The source's mean weighs 1 and the target's λ; scikit-learn sees the same features."""
    config = frozen(weights, {LAMBDA: (0.0, 2.0), DECAY: (0.05,)}, sweep__solver="lbfgs")
    [arm] = arms = arms_of(config, tmp_path)
    [probability] = trainer.minimize(arms, sweep.settings(config)).probabilities
    x, y, weight = [], [], []
    for domain, factor in (("source", 1.0), ("target", 2.0)):
        train = arm.examples[domain].indices("train")
        x.append(arm.experiment.frozen_features(domain)[train])
        y.append(arm.examples[domain].label[train])
        weight.append(np.full(len(train), factor / len(train)))
    model = LogisticRegression(C=1 / 0.05, tol=1e-10, max_iter=10_000)
    model.fit(
        np.concatenate(x).astype(np.float64),
        np.concatenate(y),
        sample_weight=np.concatenate(weight),
    )
    features = arm.experiment.frozen_features("target")[arm.examples["target"].indices("val")]
    np.testing.assert_allclose(probability[1], model.predict_proba(features), atol=1e-3)
