"""Cross-validation, nested selection and learning curves as whole runs: what they write, share, resume, and never look at."""

import csv
import dataclasses
import json
import logging

import jax
import numpy as np
import pytest
from tiny_run import tiny

from medtl.errors import UserError
from medtl.evaluation import to_json
from medtl.experiment import experiment, inference, splits
from medtl.experiment.arm import Run


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


def rows_of(folder):
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_arm_is_tested_on_every_example_once_a_repeat(finished):
    folder, _ = finished
    ids = set(experiment.load_data(crossed())["target"].id)
    rows = [r for r in rows_of(folder) if r["split"] == "test"]
    for arm in ("transfer", "target_only"):
        for repeat in "01":
            tested = [r["id"] for r in rows if (r["arm"], r["repeat"]) == (arm, repeat)]
            assert len(tested) == len(ids) and set(tested) == ids


def test_the_fold_ids_are_saved_and_are_those_of_the_predictions(finished):
    folder, _ = finished
    with (folder / "folds.csv").open() as file:
        saved = {
            (r["repeat"], r["fold"], r["id"]) for r in csv.DictReader(file) if r["split"] == "test"
        }
    assert saved == {
        (r["repeat"], r["fold"], r["id"]) for r in rows_of(folder) if r["split"] == "test"
    }


def test_the_source_is_trained_once_and_no_checkpoint_of_a_cell_stays(finished):
    folder, _ = finished
    logs = sorted(str(p.relative_to(folder).parent) for p in folder.glob("**/log.jsonl"))
    assert [p for p in logs if p.endswith("source")] == ["seed_0/transfer/source"]
    assert len([p for p in logs if p.endswith("target")]) == 2 * 4
    kept = [str(p.relative_to(folder)) for p in folder.glob("**/checkpoints")]
    assert kept == ["seed_0/transfer/source/checkpoints"]


def test_metrics_json_compares_the_arms_over_the_folds(finished):
    folder, returned = finished
    written = json.loads((folder / "metrics.json").read_text())
    found = written["evaluation"]
    assert found["design"]["kind"] == "cross_validation"
    assert (found["design"]["folds"], found["design"]["repeats"], found["design"]["cells"]) == (
        2,
        2,
        4,
    )
    assert len(written["cells"]) == 4 and "seeds" not in written
    (comparison,) = found["comparisons"]
    assert (comparison["arm"], comparison["reference"]) == ("transfer", "target_only")
    assert comparison["method"] == "corrected resampled t"
    differences = [
        cell["transfer"]["test"]["auroc"] - cell["target_only"]["test"]["auroc"]
        for cell in written["cells"].values()
    ]
    assert comparison["difference"]["value"] == pytest.approx(np.mean(differences), abs=1e-9)
    assert returned["arms"]["transfer"]["test"]["auroc"] == pytest.approx(
        found["arms"]["transfer"]["metrics"]["auroc"]["value"], abs=1e-9
    )
    for name in ("report.html", "report.md"):
        assert "transfer" in (folder / name).read_text(encoding="utf-8")


def test_the_same_command_again_trains_nothing_and_says_the_same(finished):
    folder, first = finished
    before = (folder / "predictions.csv").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("seed_*/**/done.json")}
    for again in (experiment.train, experiment.evaluate):
        assert to_json(again(crossed(), folder)["evaluation"]) == to_json(first["evaluation"])
    assert (folder / "predictions.csv").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in folder.glob("seed_*/**/done.json")} == stamps


def test_an_interrupted_run_goes_on_at_the_fold_and_arm_where_it_was(
    finished, tmp_path, monkeypatch
):
    folder, _ = finished
    outcome, calls = Run.outcome, []

    def interrupted(self, seed, arm):
        calls.append((self.cell.path, arm))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return outcome(self, seed, arm)

    monkeypatch.setattr(Run, "outcome", interrupted)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(crossed(), tmp_path / "run")
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("seed_*/**/done.json")}
    assert len(done) == 3
    monkeypatch.setattr(Run, "outcome", outcome)
    experiment.train(crossed(), tmp_path / "run")
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in done.items())
    assert (tmp_path / "run/predictions.csv").read_bytes() == (
        folder / "predictions.csv"
    ).read_bytes()


def test_a_cross_validated_run_has_no_model_to_predict_with(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "m.csv").write_text("image_path\n")
    with pytest.raises(UserError, match=r"no checkpoint in .*; a cross-validation keeps none"):
        inference.load_checkpoint(folder)


def test_the_test_fold_is_never_looked_at(tmp_path):
    """With every label of the test fold wrong, nested selection, thresholds and predictions stay what they were."""
    config = crossed(
        arms=("target_only",),
        evaluation__tune__learning_rate=(1e-4, 3e-3),
        checkpoint__select="best",
        evaluation__times=2,
    )
    target = experiment.load_data(config)["target"]
    every = splits.cells(config, target, 0)
    found = []
    for name, flipped in (("as_is", False), ("flipped", True)):
        cell = every[0]
        label = target.label.copy()
        if flipped:
            tested = cell.split == "test"
            label[tested] = (label[tested] + 1) % len(target.classes)
        examples = {"target": dataclasses.replace(target, label=label)}
        run = Run.create(
            config, tmp_path / name, examples, training=True, train_size=splits.largest(every)
        ).at(cell)
        found.append(run.outcome(0, "target_only"))
    assert found[0].tuned == found[1].tuned and found[0].tuned["learning_rate"] in (1e-4, 3e-3)
    for a, b in zip(found[0].said, found[1].said, strict=True):
        np.testing.assert_array_equal(a.probability, b.probability)
    assert (found[0].said[1].label != found[1].said[1].label).all()


def test_nested_selection_takes_the_trial_that_is_best_on_val(tmp_path):
    """A learning rate of 0 leaves the head at its random start; the other is chosen wherever it is better on val."""
    config = crossed(
        arms=("transfer", "target_only"),
        evaluation__repeats=1,
        evaluation__tune__lambda_=(0.0, 4.0),
    )
    result = experiment.train(config, tmp_path)
    chosen = {entry["cell"]: entry["lambda_"] for entry in result["tuned"]}
    assert set(chosen) == {"repeat_0/fold_0", "repeat_0/fold_1"}  # λ is of the joint arm alone
    for cell, lambda_ in chosen.items():
        scores = {}
        for i, value in enumerate((0.0, 4.0)):
            log = (
                (tmp_path / f"seed_0/transfer/{cell}/trial_{i}/target/log.jsonl")
                .read_text()
                .splitlines()
            )
            scores[value] = json.loads(log[-1])["val"]["auroc"]
        assert scores[lambda_] == max(scores.values())


def test_trials_and_folds_of_other_sizes_are_one_program_and_each_is_what_a_run_with_its_values_gives(
    tmp_path, caplog
):
    fields = dict(
        arms=("transfer",),
        evaluation__repeats=1,
        objective__reduction="sum",
        data__target__split=(0.6, 0.21, 0.19),
    )
    grid = dict(lambda_=(0.5, 4.0), learning_rate=(1e-3, 1e-2), weight_decay=(0.0, 0.1))
    config = crossed(
        **fields, **{f"evaluation__tune__{name}": values for name, values in grid.items()}
    )
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        experiment.train(config, tmp_path / "tuned")
    compiled = [
        r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()
    ]
    assert (
        sum("train_step" in message for message in compiled) == 2
    )  # of the source stage, and of the target stage
    target = experiment.load_data(config)["target"]
    every = splits.cells(config, target, 0)
    sizes = {int(np.sum(cell.split == "train")) for cell in every}
    assert len(sizes) == 2

    own = crossed(
        **fields,
        objective__lambda_=4.0,
        stages__target__learning_rate=1e-2,
        stages__target__weight_decay=0.1,
    )
    experiment.train(own, tmp_path / "own")
    for cell in every:
        logs = [
            tmp_path / "tuned/seed_0/transfer" / cell.path / "trial_7",
            tmp_path / "own/seed_0/transfer" / cell.path,
        ]
        tuned, alone = (
            [json.loads(line) for line in (f / "target/log.jsonl").read_text().splitlines()]
            for f in logs
        )
        assert len(tuned) == len(alone) > 2
        for a, b in zip(tuned, alone, strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() & {"loss", "learning_rate", "lambda"}:
                assert a[name] == pytest.approx(b[name], rel=1e-4), (name, a["step"])


def test_a_learning_curve_has_every_size_and_trains_each_as_long(tmp_path):
    config = tiny(
        arms=("transfer", "target_only"),
        seeds=(0, 1),
        evaluation__target_sizes=(9, 18, "all"),
        evaluation__resamples=100,
        evaluation__times=1,
        model__prior_bias=True,
    )
    result = experiment.train(config, tmp_path)
    curve = result["evaluation"]["learning_curve"]
    assert [point["size"] for point in curve["arms"]["transfer"]] == curve["sizes"]
    assert curve["sizes"][:2] == [9, 18] and curve["sizes"][2] == 35
    assert curve["differences"].keys() == {"transfer"}
    whole = [r for r in rows_of(tmp_path) if r["size"] == "35"]
    assert len(whole) * 3 == len(rows_of(tmp_path))
    steps = {
        path.parent: json.loads(path.read_text().splitlines()[-1])["step"]
        for path in tmp_path.glob("seed_0/target_only/**/log.jsonl")
    }
    assert len(steps) == 3 and len(set(steps.values())) == 1
    assert result["seeds"].keys() == {"0", "1"}
