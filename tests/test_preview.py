"""`--mode=check`: what a config will train, without training it."""

import jax
import numpy as np
import pytest
from opened import backbone_file
from tiny_run import tiny

from medtl.errors import UserError
from medtl.experiment import experiment, inference
from medtl.experiment.preview import preview
from medtl.experiment.setup import Experiment
from medtl.training.checkpoint import Store


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("weights"))


def test_a_preview_agrees_with_the_run_and_trains_nothing(tmp_path, monkeypatch, capsys):
    config = tiny()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", lambda *_, **__: pytest.fail("a checkpoint was saved"))
        stages = preview(config)
    output = capsys.readouterr().out
    assert "input image: float32[B, 16, 16, 1]" in output
    assert "head of target: shared, logits float32[B, 3]" in output
    assert "Nothing was trained." in output
    assert [(s["arm"], s["stage"]) for s in stages] == [
        ("transfer", "source"),
        ("transfer", "target"),
        ("scratch", "target"),
    ]
    experiment.train(config, tmp_path / "run")
    for stage in stages:
        folder = tmp_path / "run/seed_0" / stage["arm"] / stage["stage"]
        assert stage["steps"] == Store(folder).last_step
        params = inference.load_checkpoint(tmp_path / "run", folder).variables["params"]
        assert stage["parameters"] == sum(map(np.size, jax.tree.leaves(params)))
        assert stage["trained"] == stage["parameters"]
        assert stage["memory"] is None or stage["memory"] > 4 * stage["parameters"]
        assert stage["seconds"] > 0


def test_a_frozen_backbone_leaves_the_head_to_train(weights):
    config = tiny(arms=("target_only",), weights__path=weights, augment__flip=False)
    config.stages.target.update(freeze="backbone", batch_norm="frozen")
    [stage] = preview(config)
    assert stage["trained"] == 16 * 3 + 3
    assert stage["parameters"] > 10 * stage["trained"]


def test_a_backbone_that_the_source_stage_trains_has_no_features_to_keep(weights, monkeypatch):
    """The frozen backbone of the target stage is then another one than the file's."""
    config = tiny(arms=("transfer",), weights__path=weights, augment__flip=False)
    config.arm.transfer.init = "weights"
    config.stages.target.update(freeze="backbone", batch_norm="frozen")
    monkeypatch.setattr(Experiment, "frozen_features", lambda *_: pytest.fail("it keeps features"))
    source, target = preview(config)
    assert source["trained"] == source["parameters"]
    assert target["trained"] == 16 * 3 + 3


def test_a_preview_refuses_what_a_run_refuses():
    with pytest.raises(UserError, match="did you mean 'adam"):
        preview(tiny(stages__target__optimizer="adamm"))
