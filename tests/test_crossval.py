"""Cross-validation, nested selection and learning curves: what they write, share and resume."""

import csv
import dataclasses
import hashlib
import json
import logging

import jax
import numpy as np
import pytest
from opened import rows_of
from tiny_run import tiny

from medtl import config as configs
from medtl.errors import UserError
from medtl.evaluation import to_json
from medtl.experiment import experiment, inference, splits
from medtl.experiment.arm import Arm
from medtl.experiment.setup import Experiment
from medtl.training.checkpoint import Store
from medtl.training.factory import Components

LAMBDA, RATE, DECAY = (
    "objective.lambda_",
    "stages.target.learning_rate",
    "stages.target.weight_decay",
)


def crossed(**fields):
    settings = dict(
        evaluation__folds=2,
        evaluation__repeats=2,
        evaluation__resamples=100,
        evaluation__times=1,
        arms=("transfer", "target_only"),
        data__target__split=(0.6, 0.2, 0.2),
    )
    return tiny(**(settings | fields))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossed")
    return folder, experiment.train(crossed(), folder)


def splits_of(config, seed=0):
    target = experiment.load_data(config)["target"]
    return splits.splits_of(config, target, seed)


def done_times(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.glob("seed_*/**/done.json")}


def log_of(folder):
    return [json.loads(line) for line in (folder / "target/log.jsonl").read_text().splitlines()]


def test_every_arm_is_tested_on_every_example_once_a_repeat(finished):
    folder, _ = finished
    ids = set(experiment.load_data(crossed())["target"].id)
    rows = [r for r in rows_of(folder) if r["split"] == "test"]
    for arm in ("transfer", "target_only"):
        for repeat in "01":
            tested = [r["id"] for r in rows if (r["arm"], r["repeat"]) == (arm, repeat)]
            assert len(tested) == len(ids)
            assert set(tested) == ids


def test_folds_csv_names_the_examples_that_the_predictions_are_for(finished):
    folder, _ = finished
    with (folder / "folds.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == "test"]
    saved = {(r["repeat"], r["fold"], r["id"]) for r in rows}
    tested = [r for r in rows_of(folder) if r["split"] == "test"]
    assert saved == {(r["repeat"], r["fold"], r["id"]) for r in tested}


def test_the_source_is_trained_once_and_no_checkpoint_of_a_fold_is_kept(finished):
    folder, _ = finished
    logs = sorted(str(p.relative_to(folder).parent) for p in folder.glob("**/log.jsonl"))
    assert [p for p in logs if p.endswith("source")] == ["seed_0/transfer/source"]
    assert len([p for p in logs if p.endswith("target")]) == 2 * 4
    kept = [str(p.relative_to(folder)) for p in folder.glob("**/checkpoints")]
    assert kept == ["seed_0/transfer/source/checkpoints"]


def test_metrics_json_compares_the_arms_over_the_folds(finished):
    folder, returned = finished
    written = json.loads((folder / "metrics.json").read_text())
    evaluation = written["evaluation"]
    design = evaluation["design"]
    assert design["kind"] == "cross_validation"
    assert (design["folds"], design["repeats"], design["models"]) == (2, 2, 4)
    assert len(written["splits"]) == 4
    assert "seeds" not in written
    (comparison,) = evaluation["comparisons"]
    assert (comparison["arm"], comparison["reference"]) == ("transfer", "target_only")
    assert comparison["method"] == "corrected resampled t"
    differences = [
        arms["transfer"]["test"]["auroc"] - arms["target_only"]["test"]["auroc"]
        for arms in written["splits"].values()
    ]
    assert comparison["difference"]["value"] == pytest.approx(np.mean(differences), abs=1e-9)
    assert returned["arms"]["transfer"]["test"]["auroc"] == pytest.approx(
        evaluation["arms"]["transfer"]["metrics"]["auroc"]["value"], abs=1e-9
    )
    for name in ("report.html", "report.md"):
        assert "transfer" in (folder / name).read_text(encoding="utf-8")


def test_the_same_command_again_trains_nothing_and_reports_the_same(finished):
    folder, first = finished
    before, times = (folder / "predictions.csv").read_bytes(), done_times(folder)
    for again in (experiment.train, experiment.evaluate):
        assert to_json(again(crossed(), folder)["evaluation"]) == to_json(first["evaluation"])
    assert (folder / "predictions.csv").read_bytes() == before
    assert done_times(folder) == times


def test_an_interrupted_run_resumes_at_the_fold_and_arm_where_it_was(
    finished, tmp_path, monkeypatch
):
    folder, _ = finished
    outcome, calls = Arm.outcome, []

    def interrupted(self):
        calls.append((self.split.path, self.name))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return outcome(self)

    with monkeypatch.context() as patch:
        patch.setattr(Arm, "outcome", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.train(crossed(), tmp_path / "run")
    times = done_times(tmp_path / "run")
    assert len(times) == 3
    experiment.train(crossed(), tmp_path / "run")
    assert times.items() <= done_times(tmp_path / "run").items()
    again, first = ((f / "predictions.csv").read_bytes() for f in (tmp_path / "run", folder))
    assert again == first


def test_checkpoints_that_a_killed_run_left_behind_a_finished_fold_are_deleted(tmp_path):
    config = crossed(arms=("target_only",), evaluation__repeats=1)
    experiment.train(config, tmp_path)
    fold = tmp_path / "seed_0/target_only/repeat_0/fold_0"
    assert (fold / "done.json").exists()
    (fold / "target/checkpoints/6/state").mkdir(parents=True)
    before = (tmp_path / "predictions.csv").read_bytes()
    experiment.train(config, tmp_path)
    assert not list(tmp_path.glob("**/target/checkpoints"))
    assert (tmp_path / "predictions.csv").read_bytes() == before
    # A flipped bit in what is left of the fold is noticed, and it is trained again on request.
    content = bytearray((fold / "predictions.csv").read_bytes())
    content[-4] ^= 1
    (fold / "predictions.csv").write_bytes(content)
    message = r"fold_0 is damaged; delete done\.json there.*has changed since it was written"
    with pytest.raises(UserError, match=message):
        experiment.train(config, tmp_path)
    content[-4] ^= 1
    (fold / "predictions.csv").write_bytes(content)
    done = (fold / "done.json").read_text()
    for old, new in (('"digest"', '"dhgest"'), ('"tuned": {}', '"tuned": {"a": 1}')):
        assert old in done
        (fold / "done.json").write_text(done.replace(old, new))
        with pytest.raises(UserError, match="fold_0 is damaged"):
            experiment.train(config, tmp_path)
    # An older version kept the digest of the predictions alone.
    older = {name: value for name, value in json.loads(done).items() if name != "digest"}
    older["sha256"] = hashlib.sha256(content).hexdigest()
    (fold / "done.json").write_text(json.dumps(older))
    experiment.train(config, tmp_path)
    (fold / "done.json").write_text(json.dumps({**older, "sha256": "0"}))
    with pytest.raises(UserError, match="fold_0 is damaged"):
        experiment.train(config, tmp_path)
    (fold / "done.json").write_text("[]")
    with pytest.raises(UserError, match="fold_0 is damaged"):
        experiment.train(config, tmp_path)
    (fold / "done.json").unlink()
    experiment.train(config, tmp_path)
    assert (tmp_path / "predictions.csv").read_bytes() == before


def test_a_subset_of_a_finished_fold_resumes_from_its_last_checkpoint(tmp_path, monkeypatch):
    config = crossed(
        arms=("target_only",),
        evaluation__repeats=1,
        evaluation__target_sizes=(9, "all"),
        checkpoint__every_steps=1,
    )
    save, first_steps = Store.save, []

    def stopped(self, step, *args, **options):
        save(self, step, *args, **options)
        if "size_9" in str(self.folder):
            first_steps.append(step)
            if len(first_steps) == 2:
                self.wait()
                raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(config, tmp_path)
    experiment.train(config, tmp_path)
    assert first_steps[:3] == [1, 2, 3]


def test_a_cross_validated_run_has_no_model_to_predict_with(finished):
    folder, _ = finished
    with pytest.raises(UserError, match=r"no checkpoint in .*; a cross-validation keeps none"):
        inference.load_checkpoint(folder)


def test_labels_of_the_test_fold_change_no_choice_and_no_prediction(tmp_path):
    """Every label of the test fold is wrong; nested selection and predictions stay the same."""
    config = crossed(
        arms=("target_only",),
        evaluation__tune=configs.grid({RATE: (1e-4, 3e-3)}),
        checkpoint__select="best",
        evaluation__times=2,
    )
    target = experiment.load_data(config)["target"]
    first = splits_of(config)[0]
    is_tested = first.part == "test"
    wrong = np.where(is_tested, (target.label + 1) % len(target.classes), target.label)
    outcomes = []
    for name, label in (("as_is", target.label), ("wrong", wrong)):
        opened = Experiment.create(
            config,
            tmp_path / name,
            Components.create(config),
            {"target": dataclasses.replace(target, label=label)},
            training=True,
            train_size=int(np.sum(first.part == "train")),
        )
        outcomes.append(Arm(opened, first, 0, "target_only").outcome())
    as_is, other = outcomes
    assert as_is.tuned == other.tuned
    assert as_is.tuned[RATE] in (1e-4, 3e-3)
    for a, b in zip(as_is.predictions, other.predictions, strict=True):
        np.testing.assert_array_equal(a.probability, b.probability)
    assert (as_is.predictions[1].label != other.predictions[1].label).all()


def test_nested_selection_takes_the_trial_that_is_best_on_val(tmp_path):
    config = crossed(evaluation__repeats=1, evaluation__tune=configs.grid({LAMBDA: (0.0, 4.0)}))
    result = experiment.train(config, tmp_path)
    chosen = {entry["split"]: entry[LAMBDA] for entry in result["tuned"]}
    # One value for each fold of the joint arm; the other arm has no λ.
    assert set(chosen) == {"repeat_0/fold_0", "repeat_0/fold_1"}
    for split, value in chosen.items():
        trials = tmp_path / "seed_0/transfer" / split
        scores = {
            tried: log_of(trials / f"trial_{i}")[-1]["val"]["auroc"]
            for i, tried in enumerate((0.0, 4.0))
        }
        assert scores[value] == max(scores.values())


def test_an_interrupted_nested_selection_resumes_at_its_trial(tmp_path, monkeypatch):
    """The trials share a source stage, which does not depend on their values."""
    config = tiny(arms=("transfer",), evaluation__tune=configs.grid({LAMBDA: (0.5, 4.0)}))
    first = experiment.train(config, tmp_path / "first")
    rank, calls = Arm._rank, []

    def interrupted(self, weights):
        calls.append(self.trial.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rank(self, weights)

    with monkeypatch.context() as patch:
        patch.setattr(Arm, "_rank", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.train(config, tmp_path / "again")
    assert experiment.train(config, tmp_path / "again")["arms"] == first["arms"]
    logs = [p.relative_to(tmp_path / "again") for p in (tmp_path / "again").glob("**/log.jsonl")]
    trials = [f"seed_0/transfer/trial_{i}/target/log.jsonl" for i in range(2)]
    assert sorted(map(str, logs)) == ["seed_0/transfer/source/log.jsonl", *trials]


def test_trials_and_folds_share_one_program_and_equal_runs_with_their_values(tmp_path, caplog):
    """The folds differ in size, which the sum form and the program take as numbers, too."""
    fields = dict(
        arms=("transfer",),
        evaluation__repeats=1,
        objective__reduction="sum",
        data__target__split=(0.6, 0.21, 0.19),
    )
    grid = {LAMBDA: (0.5, 4.0), RATE: (1e-3, 1e-2), DECAY: (0.0, 0.1)}
    config = crossed(**fields, evaluation__tune=configs.grid(grid))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        experiment.train(config, tmp_path / "tuned")
    messages = [r.getMessage() for r in caplog.records]
    compiled = [m for m in messages if "Finished XLA compilation" in m and "train_step" in m]
    assert len(compiled) == 2  # one for the source stage, one for the target stage
    all_splits = splits_of(config)
    assert len({int(np.sum(s.part == "train")) for s in all_splits}) == 2

    values = dict(stages__target__learning_rate=1e-2, stages__target__weight_decay=0.1)
    experiment.train(crossed(**fields, **values, objective__lambda_=4.0), tmp_path / "alone")
    for split in all_splits:
        trial = log_of(tmp_path / "tuned/seed_0/transfer" / split.path / "trial_7")
        run = log_of(tmp_path / "alone/seed_0/transfer" / split.path)
        assert len(trial) == len(run) > 2
        for a, b in zip(trial, run, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() & {"loss", "learning_rate", "lambda"}:
                assert a[name] == pytest.approx(b[name], rel=1e-4), (name, a["step"])


def test_a_learning_curve_has_every_size_and_trains_each_as_long(tmp_path):
    config = tiny(
        arms=("transfer", "target_only"),
        seeds=(0, 1),
        evaluation__target_sizes=(9, 18, "all"),
        evaluation__size_repeats=2,
        evaluation__resamples=100,
        evaluation__times=1,
        model__prior_bias=True,
    )
    result = experiment.train(config, tmp_path)
    curve = result["evaluation"]["learning_curve"]
    assert [point["size"] for point in curve["arms"]["transfer"]] == curve["sizes"]
    assert curve["sizes"] == [9, 18, 35]
    assert curve["differences"].keys() == curve["labels_saved"].keys() == {"transfer"}
    assert len(curve["fit"]["transfer"]["x"]) == 41
    rows = rows_of(tmp_path)
    # Two subsets of each smaller size, and all labels once.
    assert 5 * len([r for r in rows if r["size"] == "35"]) == len(rows)
    assert {(r["size"], r["repeat"]) for r in rows} == {
        ("35", ""),
        *((size, repeat) for size in ("9", "18") for repeat in ("0", "1")),
    }
    logs = tmp_path.glob("seed_0/target_only/**/log.jsonl")
    steps = [json.loads(path.read_text().splitlines()[-1])["step"] for path in logs]
    assert len(steps) == 5
    assert len(set(steps)) == 1
    assert result["seeds"].keys() == {"0", "1"}
