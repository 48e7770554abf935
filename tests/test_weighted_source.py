"""Importance weights in a run: from train alone, once a split, printed and in the report."""

import re

import numpy as np
import pytest
from tiny_run import tiny

from medtl.config import check, dataset
from medtl.errors import UserError
from medtl.experiment import experiment
from medtl.experiment.arm import Arm


def features(path, n, shift, seed):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    x = rng.normal(size=(n, 3)) + label[:, None] + shift
    np.savez(path, features=x.astype(np.float32), labels=np.array(["ill", "well"])[label])
    return str(path)


def config_of(tmp_path, **fields):
    c = tiny(
        data__inputs=("features",),
        objective__source_weights="domain_classifier(clip=5)",
        arms=("transfer", "target_only"),
        **fields,
    )
    for domain, n, shift in (("source", 120, 0.0), ("target", 80, 0.5)):
        path = features(tmp_path / f"{domain}.npz", n, shift, n)
        c.data[domain] = dataset("features", path=path, split=(0.6, 0.2, 0.2))
    return c


def test_weights_are_of_train_alone_and_stand_in_the_report(tmp_path, capsys):
    config = config_of(tmp_path, evaluation__folds=2)
    summary = experiment.train(config, tmp_path / "run")
    text = capsys.readouterr().out
    printed = re.findall(r"fold (\d): Source weights .* effective sample size (\d+) of 72", text)
    assert [fold for fold, _ in printed] == ["0", "1"]
    [note] = [n for n in summary["evaluation"]["notes"] if n.startswith("Source weights")]
    for _, size in printed:
        assert size in note
    # The source stage sees the target by its weights, so that each fold has its own.
    assert len(list((tmp_path / "run").glob("seed_0/transfer/**/source/log.jsonl"))) == 2
    opened, by_seed = experiment.open_experiment(config, tmp_path / "run", training=False)
    arms = [Arm(opened, split, 0, name) for split in by_seed[0] for name in config.arms]
    plain = opened.examples["source"]
    held = plain.split != "train"
    weights = [arm.examples["source"].weight for arm in arms]
    for transfer, alone in (weights[:2], weights[2:]):
        assert (alone == 1).all()
        assert (transfer[held] == 1).all()
        assert transfer[~held].mean() == pytest.approx(1, abs=1e-5)
        # The target lies at larger values of each feature.
        assert np.corrcoef(transfer[~held], plain.inputs["features"][~held].sum(1))[0, 1] > 0.5
    assert np.abs(weights[0] - weights[2]).max() > 0.01
    again = Arm(opened, by_seed[0][0], 0, "transfer").examples["source"].weight
    assert again is weights[0]  # computed once


def test_what_cannot_be_weighted_is_refused_at_the_start(tmp_path):
    with pytest.raises(UserError, match="none of the arms scratch learns from the source"):
        check.check(tiny(objective__source_weights="domain_classifier", arms=("scratch",)))
    with pytest.raises(UserError, match=r"domain_clasifier.*did you mean 'domain_classifier'"):
        check.check(tiny(objective__source_weights="domain_clasifier"))
    config = tiny(objective__source_weights="kernel_mean_matching")
    with pytest.raises(UserError, match=r"features of a pretrained backbone, but config\.weights"):
        experiment.open_experiment(config, tmp_path, training=True)
    plugin = tmp_path / "own.py"
    plugin.write_text("def ones(source, target, rng):\n    return -source[:, 0] ** 2\n")
    config = config_of(tmp_path)
    config.objective.source_weights = f"{plugin}:ones"
    opened, by_seed = experiment.open_experiment(config, tmp_path / "run", training=True)
    with pytest.raises(UserError, match="a finite weight of at least 0 for each"):
        assert Arm(opened, by_seed[0][0], 0, "transfer").examples
