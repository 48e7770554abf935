"""The settings that nested selection and sweeps try."""

import dataclasses

import numpy as np
import pytest
from opened import arms_of
from tiny_run import tiny

from medtl import config as configs
from medtl.experiment.trials import Trial, trials, with_values

LAMBDA, RATE = "objective.lambda_", "stages.target.learning_rate"
GRID = configs.grid({LAMBDA: (0.5, 2.0), RATE: (0.1,), "model.dropout": ()})


def test_trials_are_all_combinations_and_an_arm_without_lambda_tries_the_rest():
    assert [dict(t.values) for t in trials(GRID, joint=True)] == [
        {LAMBDA: 0.5, RATE: 0.1},
        {LAMBDA: 2.0, RATE: 0.1},
    ]
    [trial] = trials(GRID, joint=False)
    assert (trial.name, trial.values) == ("trial_0", {RATE: 0.1})
    assert trials(configs.grid({LAMBDA: (1.0,)}), joint=False) == []
    assert trials(configs.grid({}), joint=True) == []


@pytest.mark.parametrize(
    ("values", "is_traced", "shares_source"),
    [
        ({LAMBDA: 1.0, RATE: 0.1, "stages.target.weight_decay": 0.0}, True, True),
        ({"stages.target.freeze": "layer1"}, False, True),
        ({"stages.source.learning_rate": 0.1}, False, False),
        ({"model.dropout": 0.5}, False, False),
    ],
)
def test_a_trial_shares_the_step_and_the_source_stage_where_its_values_allow(
    values, is_traced, shares_source
):
    trial = Trial("trial_0", values)
    assert trial.is_traced == is_traced
    assert trial.shares_source == shares_source


def test_the_state_carries_float32_by_its_own_names():
    traced = Trial("trial_0", {LAMBDA: 1, RATE: 0.1, "model.dropout": 0.5}).traced
    assert traced == {"objective.lambda_": np.float32(1), "learning_rate": np.float32(0.1)}
    assert all(type(value) is np.float32 for value in traced.values())


def test_values_replace_fields_of_a_copy_and_keep_their_types():
    config = tiny().lock()
    changed = with_values(config, {LAMBDA: 2, "model.hidden": (8,), "stages.target.ema": 0.5})
    assert (changed.objective.lambda_, type(changed.objective.lambda_)) == (2.0, float)
    assert changed.model.hidden == (8,)
    assert changed.stages.target.ema == 0.5
    assert config.to_dict() == tiny().to_dict()
    assert with_values(config, {}).to_dict() == config.to_dict()


def test_arms_with_and_without_lambda_get_the_values_of_their_trials(tmp_path):
    """An arm without λ numbers its trials differently: they are told apart by their values."""
    config = tiny(arms=("transfer", "scratch"))
    grid = {"objective.lambda_": (0.1, 1.0), "model.dropout": (0.0, 0.5)}
    config.evaluation.tune = configs.grid(grid)
    dropouts = {}
    [first] = arms_of(config, tmp_path)
    for arm in (first, dataclasses.replace(first, name="scratch")):
        for trial in trials(config.evaluation.tune, joint=arm.section.joint):
            made = arm.with_trial(trial)
            head = next(iter(made.experiment.model.make_heads.values()))()
            dropouts[arm.name, trial.name] = (head.dropout, trial.values["model.dropout"])
    assert len(dropouts) == 4 + 2
    assert all(made == asked for made, asked in dropouts.values())
