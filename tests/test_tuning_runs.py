"""Fine-tuning in whole runs: probes as arms and as stages, resuming, what is refused."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict
from opened import arms_of, assert_arms_agree, backbone_file
from test_resume import train_until
from tiny_run import tiny

from medtl.config import arm, check
from medtl.errors import UserError
from medtl.experiment import experiment, inference, preflight
from medtl.experiment.setup import Experiment
from medtl.experiment.stage import Stage
from medtl.training.factory import Components

PROBE = "LinearProbe(C=0.5)"
FROZEN = {"stages__target__freeze": "backbone", "stages__target__batch_norm": "frozen"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("backbone"))


def test_a_stage_of_no_steps_is_the_probe_that_an_arm_is_in_each_fold(tmp_path, weights):
    """The same minimum on the same features, with C chosen within each fold's train part."""
    cv = "LinearProbe(C='cv', grid=(0.01, 1.0), folds=3)"
    config = tiny(
        arms=("target_only", "probe"),
        weights__path=weights,
        stages__target__epochs=0,
        stages__target__head_start=cv,
        evaluation__folds=2,
        checkpoint__select="last",
        augment__flip=False,
        **FROZEN,
    )
    config.arm.probe = arm("weights", source_stage=False, joint=False, estimator=cv)
    experiment.train(config, tmp_path)
    assert_arms_agree(tmp_path, *config.arms, atol=1e-4)


@pytest.mark.slow
def test_a_run_with_averages_resumes_bit_for_bit_and_hands_on_what_it_predicts_with(
    tmp_path, weights, monkeypatch
):
    config = tiny(
        arms=("target_only",),
        weights__path=weights,
        checkpoint__every_steps=2,
        stages__target__head_start=PROBE,
        stages__target__swa=0.5,
        stages__target__wise=(0.5, 1.0),
        augment__mix="mixup(alpha=0.4)",
    )
    experiment.train(config, tmp_path / "straight")
    train_until(2, config, tmp_path / "stopped", monkeypatch)
    with pytest.raises(UserError, match="is not finished: its weights are merged or averaged"):
        inference.load_checkpoint(tmp_path / "stopped")
    experiment.train(config, tmp_path / "stopped")
    for name in ("predictions.csv", "seed_0/target_only/target/log.jsonl"):
        stopped, straight = (tmp_path / folder / name for folder in ("stopped", "straight"))
        assert stopped.read_bytes() == straight.read_bytes()
    stored = inference.load_checkpoint(tmp_path / "straight")
    assert stored.record["wise"] in (0.5, 1.0)
    [made] = arms_of(config, tmp_path / "straight")
    again = Stage(made, "target", made.initial()).train()
    for name in ("params", "batch_stats"):
        kernel = again.variables[name]["encoders"]["image"]["bn1"]
        for part, values in kernel.items():
            np.testing.assert_array_equal(
                stored.variables[name]["encoders"]["image"]["bn1"][part], values
            )


def test_a_random_backbone_takes_no_part(tmp_path):
    fields = {"head_start": PROBE, "trainable": "norms", "rates": "layerwise(decay=0.5)"}
    config = tiny(arms=("scratch",), **{f"stages__target__{k}": v for k, v in fields.items()})
    [made] = arms_of(config, tmp_path)
    stage = Stage(made, "target", made.initial())
    assert stage.begun is stage.start.variables
    plain = [arms_of(tiny(arms=("scratch",)), tmp_path / "plain")][0][0]
    assert stage.make_step().trained == Stage(plain, "target", plain.initial()).make_step().trained


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"head_start": PROBE, "model__hidden": (4,)},
            "one layer, but config.model.hidden is",
        ),
        ({"wise": (0.5,)}, "wise goes back to .* head is random; set head_start"),
        ({"wise": (0.5, 2.0)}, "wise .* must be"),
        ({"swa": 0.5, "ema": 0.9}, "swa and ema are two averages"),
        ({"trainable": "norms", "freeze": "backbone"}, "freeze is 'backbone', which leaves noth"),
        ({"trainable": "lora(rank=2)"}, "batch_norm is 'batch', which moves its statistics"),
        ({"trainable": "norm"}, "did you mean 'norms'"),
    ],
)
def test_what_cannot_be_combined_is_refused_without_jax(fields, message):
    named = {k if "__" in k else f"stages__target__{k}": v for k, v in fields.items()}
    with pytest.raises(UserError, match=message):
        check.check(tiny(arms=("target_only",), **named))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages__target__head_start": "LinearProbe(C=-1)"}, "C is -1; it must be a number above"),
        ({"stages__target__head_start": "linear"}, "has no 'linear'"),
        ({"stages__target__rates": "gradual(share=0.6)"}, "gradual: share is 0.6; with 3 layers"),
        ({"stages__target__rates": "layerwise(decai=0.6)"}, "did you mean 'decay'"),
        ({"stages__target__trainable": "lora(rank=0)"}, "lora: rank is 0"),
        ({"augment__mix": "mixup(alpha=0.2)"}, "terms.x reads labels, but config.augment.mix"),
    ],
)
def test_wrong_options_are_one_clear_error_at_the_start(fields, message, tmp_path, weights):
    config = tiny(arms=("target_only",), weights__path=weights, **FROZEN, **fields)
    config.stages.target.freeze = "none"
    config.objective.terms.x = ConfigDict({"term": "soft_f1", "weight": 1.0})
    with pytest.raises(UserError, match=message):
        experiment.train(config, tmp_path)


def test_a_probe_whose_folds_would_lack_a_class_is_refused_at_the_start(tmp_path, weights):
    config = tiny(arms=("target_only",), weights__path=weights)
    config.stages.target.head_start = "LinearProbe(C='cv')"
    examples = dict(experiment.load_data(config))
    target = examples["target"]
    patient = np.where(target.label == 1, "one", target.patient)
    examples["target"] = dataclasses.replace(target, patient=patient)
    made = Experiment.create(
        config, tmp_path, Components.create(config), examples, training=True, train_size=30
    )
    with pytest.raises(UserError, match=r"head_start: LinearProbe.* class 1 has .* one patient"):
        preflight.check(made, config.arms, [], [made.split])


def test_heads_that_begin_elsewhere_are_not_swept_as_one_program(weights):
    config = tiny(arms=("target_only",), weights__path=weights, augment__flip=False, **FROZEN)
    assert not check.moving_parts(config, "target_only")
    config.stages.target.head_start = PROBE
    assert check.moving_parts(config, "target_only") == [
        f"config.stages.target.head_start is {PROBE!r}"
    ]
