"""Checkpoints of a frozen backbone hold the head alone, and are complete when they are read."""

import shutil

import numpy as np
import pytest
from opened import backbone_file, probabilities_of
from safetensors.numpy import load_file, save_file
from tiny_run import tiny

from medtl import weights as weight_files
from medtl.errors import UserError
from medtl.experiment import experiment, frozen, inference
from medtl.training.checkpoint import Store

STAGE = "seed_0/target_only/target"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("weights"))


def frozen_config(weights):
    config = tiny(arms=("target_only",), weights__path=weights, augment__flip=False)
    config.stages.target.update(freeze="backbone", batch_norm="frozen")
    return config


@pytest.fixture(scope="module")
def run(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen") / "run"
    experiment.train(frozen_config(weights), folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


def test_a_checkpoint_holds_what_trains_and_the_checksums_of_the_rest(run):
    with Store(run / STAGE) as store:
        record = store.record(store.last_step)
    names = record["tree"].keys()
    params = {n for n in names if n.startswith("params/")}
    assert len(params) == 2 and all(n.startswith("params/heads/") for n in params)
    assert record["shared"].keys() == load_file(run / frozen.FILE).keys()
    assert not names & record["shared"].keys()


def test_the_run_is_read_without_the_weight_file_and_gives_its_backbone(run, weights, tmp_path):
    stored = inference.load_checkpoint(run)
    loaded = load_file(weights)
    inference.export(run, tmp_path / "out.safetensors")
    exported = load_file(tmp_path / "out.safetensors")
    head = {"medtl_head.0.weight", "medtl_head.0.bias"}
    assert exported.keys() - head == {n for n in loaded if not n.startswith("medtl_head.")}
    assert all(np.array_equal(exported[n], loaded[n]) for n in exported.keys() - head)
    assert "image" in stored.variables["params"]["encoders"]


def test_without_the_copy_the_weight_file_serves_and_without_both_an_error_says_so(
    copy, weights, tmp_path, monkeypatch
):
    expected = inference.load_checkpoint(copy).variables
    (copy / frozen.FILE).unlink()
    found = inference.load_checkpoint(copy).variables
    same = [np.array_equal(a, b) for a, b in zip(*map(leaves, (expected, found)), strict=True)]
    assert all(same) and len(same) > 10

    moved = tmp_path / "elsewhere.safetensors"
    shutil.move(weights, moved)
    try:
        with pytest.raises(UserError, match=r"frozen_backbone.safetensors .*the weight file .*"):
            inference.load_checkpoint(copy)
    finally:
        shutil.move(moved, weights)


def test_another_backbone_is_refused(copy, weights, monkeypatch):
    arrays = load_file(copy / frozen.FILE)
    name = sorted(arrays)[0]
    save_file({**arrays, name: arrays[name] + 1}, copy / frozen.FILE)
    inference.load_checkpoint(copy)  # from the weight file, which is as it was
    monkeypatch.setattr(
        weight_files, "load", lambda *_, **__: (_ for _ in ()).throw(UserError("it is gone"))
    )
    with pytest.raises(UserError, match="it holds other arrays .*it is gone"):
        inference.load_checkpoint(copy)
    with (
        Store(copy / STAGE, load_file(copy / frozen.FILE)) as store,
        pytest.raises(UserError, match=f"1 arrays of the one at hand differ.*{name}"),
    ):
        store.arrays(store.last_step)


def test_evaluation_and_resumed_training_give_the_same(copy, weights):
    before = probabilities_of(copy)
    experiment.evaluate(frozen_config(weights), copy)
    assert np.array_equal(probabilities_of(copy), before)


def test_a_backbone_that_trains_is_in_its_checkpoints(tmp_path):
    experiment.train(tiny(arms=("scratch",)), tmp_path / "run")
    assert not (tmp_path / "run" / frozen.FILE).exists()
    with Store(tmp_path / "run/seed_0/scratch/target") as store:
        record = store.record(store.last_step)
    assert any(n.startswith("params/encoders/image/") for n in record["tree"])
    assert record["shared"] == {}


def leaves(tree):
    return (
        [leaf for value in tree.values() for leaf in leaves(value)]
        if isinstance(tree, dict)
        else [tree]
    )
