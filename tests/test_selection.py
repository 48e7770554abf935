"""Checkpoints and settings are ranked by something defined, also where val lacks a class."""

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss, recall_score, roc_auc_score
from tiny_run import tiny

from medtl import config as configs
from medtl.errors import UserError
from medtl.evaluation import metrics
from medtl.examples import class_counts
from medtl.experiment import experiment
from medtl.sweep import sweep
from medtl.training.checkpoint import Store

CLASSES = ("a", "b", "c")
LABEL = np.array([0, 1, 0, 1, 1, 0])


def rare_val(folder, counts=(40, 12, 24)):
    """Write images whose brightness is their class; val lacks the last of three classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        label = np.arange(n) % (2 if split == "val" else 3)
        bright = 60 * (1 + label[:, None, None])
        noise = rng.normal(0, 25, (n, 16, 16))
        arrays[f"{split}_images"] = np.clip(bright + noise, 0, 255).astype(np.uint8)
        arrays[f"{split}_labels"] = label.astype(np.uint8)[:, None]
    np.savez(folder / "rare.npz", **arrays)
    return configs.dataset("npz", path=str(folder / "rare.npz"))


def rare_run(folder, **fields):
    config = tiny(arms=("scratch",), evaluation__times=5, **fields)
    config.data.target = rare_val(folder)
    config.stages.target.epochs = 10
    return config


def test_a_later_checkpoint_is_chosen_where_val_lacks_a_class(tmp_path, capsys):
    """All examples are called one class at first: with NaN for a score the first would be kept."""
    config = rare_run(tmp_path, checkpoint__metric="balanced_accuracy")
    summary = experiment.train(config, tmp_path / "run")
    stage = tmp_path / "run/seed_0/scratch/target"
    with Store(stage) as store:
        chosen, last = store.chosen_step(), store.last_step
        score = store.record(chosen)["ranked"]["score"]
    lines = [json.loads(line) for line in (stage / "log.jsonl").read_text().splitlines()]
    val = {line["step"]: line["val"] for line in lines if "val" in line}
    assert len(val) == 5
    assert all(v["balanced_accuracy"] is None for v in val.values())
    assert min(val) < chosen <= last
    assert score > 0.5
    assert summary["arms"]["scratch"]["test"]["accuracy"] > 0.5
    words = "val has no '2'; checkpoints and settings are ranked by balanced_accuracy over the"
    [note] = [n for n in summary["evaluation"]["notes"] if words in n]
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "run/report.md").read_text().replace("\\", "")


GRID = {"stages.target.learning_rate": (1e-7, 1e-3)}  # the first does not learn


def test_nested_selection_ranks_settings_where_val_lacks_a_class(tmp_path):
    config = rare_run(tmp_path, checkpoint__metric="balanced_accuracy")
    config.evaluation.tune = configs.grid(GRID)
    [tuned] = experiment.train(config, tmp_path / "run")["tuned"]
    assert tuned["stages.target.learning_rate"] == 1e-3


def test_a_sweep_ranks_settings_where_val_lacks_a_class(tmp_path):
    config = rare_run(tmp_path, checkpoint__metric="balanced_accuracy")
    config.sweep.grid = configs.grid(GRID)
    result = sweep.sweep(config, tmp_path / "run")
    assert result["metric"] == "balanced_accuracy"
    assert result["chosen"] == {"stages.target.learning_rate": 1e-3}
    assert any("Val has no '2'" in note for note in result["notes"])


def test_a_fold_without_a_class_is_refused_before_training(tmp_path):
    config = rare_run(tmp_path)
    with np.load(tmp_path / "rare.npz") as file:
        arrays = dict(file)
    for split, n in (("train", 2), ("val", 0), ("test", 0)):  # two examples of the third class
        label = arrays[f"{split}_labels"]
        label[label == 2] = 0
        label[:n] = 2
    np.savez(tmp_path / "rare.npz", **arrays)
    config.evaluation.folds = 4
    with pytest.raises(UserError, match="has no '2' to test on, so auroc would be undefined"):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_metric_over_the_classes_present_is_scikit_learns():
    p = np.random.default_rng(3).dirichlet(np.ones(3), len(LABEL))
    auroc = metrics.criterion("auroc", LABEL, classes=CLASSES)
    assert auroc.present_only
    expected = np.mean([roc_auc_score(k == LABEL, p[:, k]) for k in (0, 1)])
    assert auroc.score(LABEL, p, classes=CLASSES) == pytest.approx(expected)
    balanced = metrics.criterion("balanced_accuracy", LABEL, classes=CLASSES)
    expected = recall_score(LABEL, p.argmax(axis=1), labels=[0, 1], average="macro")
    assert balanced.score(LABEL, p, classes=CLASSES) == pytest.approx(expected)


def test_the_metric_itself_is_taken_where_it_is_defined():
    complete = np.append(LABEL, 2)
    assert metrics.criterion("auroc", complete, classes=CLASSES) == metrics.Criterion("auroc")
    assert metrics.criterion("accuracy", LABEL, classes=CLASSES) == metrics.Criterion("accuracy")
    one = np.zeros(5, int)
    loss = metrics.criterion("auroc", one, classes=CLASSES)
    p = np.random.default_rng(0).dirichlet(np.ones(3), 5)
    assert loss.metric == "loss" and class_counts(one, CLASSES)["a"] == 5
    expected = log_loss(one, p, labels=[0, 1, 2])
    assert loss.score(one, p, classes=CLASSES) == pytest.approx(-expected)
    unlabelled = metrics.criterion("auroc", np.full(3, -1), classes=CLASSES)
    assert unlabelled.note == "no label; the last checkpoint is taken"


def test_a_metric_of_the_users_that_is_nan_gives_way_to_the_loss():
    extra = {"never": lambda y_true, y_prob, weight: float("nan")}
    chosen = metrics.criterion("never", LABEL, classes=CLASSES, extra=extra)
    assert (chosen.metric, "no defined never" in chosen.note) == ("loss", False)


def test_of_equal_aurocs_the_lower_loss_is_better():
    label = np.array([0, 0, 1, 1])
    unsure, sure = (np.array([1 - p, 1 - p, p, p]) for p in (0.51, 0.9))
    score = metrics.criterion("auroc", label, classes=("a", "b")).score
    scores = []
    for p in (unsure, sure):
        positive = np.where(label == 1, p, 1 - np.flip(p))
        both = np.stack([1 - positive, positive], axis=1)
        scores.append(score(label, both, classes=("a", "b")))
    assert scores == pytest.approx([1, 1], abs=1e-8)
    assert scores[1] > scores[0]
