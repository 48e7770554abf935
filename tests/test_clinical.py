"""Clinical tables from the file to the report, alone and beside images and texts."""

import csv
import html
import json

import numpy as np
import pytest
from clinical_run import clinical, scores, write_clinical

from medtl import cli
from medtl.config import arm, check, dataset, stage
from medtl.errors import UserError
from medtl.experiment import domains, experiment, inference
from medtl.experiment.preview import preview
from medtl.training.checkpoint import Store


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_clinical(tmp_path_factory.mktemp("here"))


def test_a_table_is_trained_resumed_and_predicted_with_the_same_preprocessing(tmp_path, table):
    config = clinical(table)
    summary = experiment.train(config, tmp_path / "run")
    assert summary["arms"]["own"]["test"]["auroc"] > 0.6
    assert experiment.train(config, tmp_path / "run")["arms"] == summary["arms"]
    with pytest.raises(UserError, match="no image encoder to export"):
        inference.export(tmp_path / "run", tmp_path / "x.safetensors")
    arguments = [f"--workdir={tmp_path / 'run'}", f"--manifest={table}"]
    assert cli.run(["--mode=predict", *arguments]) == 0
    scored = tmp_path / "run" / "scored.csv"
    predicted, reported = scores(scored), scores(tmp_path / "run" / "predictions.csv")
    for name, p in reported.items():
        assert predicted[name] == pytest.approx(p, abs=1e-6)


def test_a_table_to_score_may_lack_columns_and_hold_others(tmp_path, table, capsys):
    experiment.train(clinical(table), tmp_path / "run")
    (tmp_path / "new.csv").write_text("id,sex,room\na,F,7\nb,unheard of,8\n")
    scored = inference.predict(tmp_path / "run", manifest=tmp_path / "new.csv")
    assert "lacks crp: missing there" in capsys.readouterr().out
    assert set(scores(scored)) == {"a", "b"}


def without(path, name, *, keeps_column):
    """Write the table without a column, or with empty cells in it, and return its path."""
    with open(path, newline="") as file:
        rows = [row | {name: ""} for row in csv.DictReader(file)]
    names = [column for column in rows[0] if column != name or keeps_column]
    other = path.with_name(f"{name}_{keeps_column}.csv")
    with open(other, "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return other


def test_rows_are_scored_where_none_has_an_image(tmp_path, capsys):
    path = write_clinical(tmp_path / "data", 60, lacks=0.3)
    config = clinical(path, data__inputs=("image", "table"), stages__target__epochs=1)
    config.data.allow = ("rows_without_inputs",)
    experiment.train(config, tmp_path / "run")
    reported = scores(tmp_path / "run" / "predictions.csv")
    with open(path, newline="") as file:
        lack_image = {row["id"] for row in csv.DictReader(file) if not row["image_path"]}
    assert lack_image & set(reported)
    for keeps_column in (True, False):
        manifest = without(path, "image_path", keeps_column=keeps_column)
        inference.predict(tmp_path / "run", manifest=manifest)
        assert "lacks image_path: missing there" in capsys.readouterr().out
        scored = scores(tmp_path / "run" / "scored.csv")
        assert len(scored) == 60
        for name in lack_image & set(reported):
            assert scored[name] == pytest.approx(reported[name], abs=1e-6)


def test_a_column_of_images_without_any_is_refused_or_left_out(tmp_path):
    path = without(write_clinical(tmp_path / "data"), "image_path", keeps_column=True)
    with pytest.raises(UserError, match="column image_path: every cell is empty; leave 'image'"):
        domains.load(clinical(path, data__inputs=("image", "table")), "target")
    examples = domains.load(clinical(path, data__inputs=("auto",)), "target")
    assert set(examples.present) == {"table", "text"}


@pytest.mark.parametrize("inputs", [("image", "table"), ("image",)])
def test_images_and_ids_under_other_names_are_scored_as_in_training(tmp_path, inputs, capsys):
    path = write_clinical(tmp_path / "data", 60)
    path.write_text(path.read_text().replace("image_path", "xray", 1).replace("id,", "case,", 1))
    config = clinical(path, data__inputs=inputs, stages__target__epochs=1)
    config.data.target.columns = ("xray=image", "case=id")
    if "table" not in inputs:
        del config.model.encoders.table
    experiment.train(config, tmp_path / "run")
    assert cli.run(["--mode=predict", f"--workdir={tmp_path / 'run'}", f"--manifest={path}"]) == 0
    assert "missing there" not in capsys.readouterr().out
    scored, reported = (scores(tmp_path / "run" / f"{n}.csv") for n in ("scored", "predictions"))
    assert set(reported) < set(scored)
    for name, p in reported.items():
        assert scored[name] == pytest.approx(p, abs=1e-6)
    lacking = without(path, "xray", keeps_column=False)
    if inputs == ("image",):
        with pytest.raises(UserError, match="the row has none of the inputs image"):
            inference.predict(tmp_path / "run", manifest=lacking)
    else:
        inference.predict(tmp_path / "run", manifest=lacking)
        assert "lacks xray: missing there" in capsys.readouterr().out


def test_an_arm_of_images_alone_scores_beside_one_of_several_inputs(tmp_path):
    path = write_clinical(tmp_path / "data", 60)
    config = clinical(path, data__inputs=("image", "table"), stages__target__epochs=1)
    config.arms = ("own", "image")
    experiment.train(config, tmp_path / "run")
    stage_folder = tmp_path / "run" / "seed_0" / "image" / "target"
    scored = scores(inference.predict(tmp_path / "run", manifest=path, checkpoint=stage_folder))
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "image"]
    assert rows
    for row in rows:
        assert scored[row["id"]] == pytest.approx(float(row["prob_ill"]), abs=1e-6)


def test_each_fold_is_preprocessed_by_its_own_train_part(tmp_path, table):
    config = clinical(table, evaluation__folds=3)
    experiment.train(config, tmp_path / "run")
    means = []
    for done in sorted((tmp_path / "run").glob("seed_0/own/repeat_0/fold_*/done.json")):
        record = json.loads(done.read_text())["record"]
        means.append(record["preprocessing"]["fitted"]["target"]["mean"][0])
    with open(tmp_path / "run" / "folds.csv", newline="") as file:
        parts = [row for row in csv.DictReader(file) if row["split"] == "train"]
    with open(table, newline="") as file:
        crp = {row["id"]: float(row["crp"]) for row in csv.DictReader(file)}
    expected = [np.mean([crp[r["id"]] for r in parts if r["fold"] == str(i)]) for i in range(3)]
    np.testing.assert_allclose(means, expected, rtol=1e-6)
    assert len(set(means)) == 3


def test_the_schema_is_shown_before_training(table, capsys, monkeypatch):
    monkeypatch.setattr(Store, "save", lambda *_, **__: pytest.fail("a checkpoint was saved"))
    preview(clinical(table))
    output = capsys.readouterr().out
    assert "crp         numeric      numbers" in output
    assert "input table: float32[B, 3]" in output


def test_a_column_that_the_source_lacks_is_missing_there(tmp_path, table, capsys):
    there = write_clinical(tmp_path / "there", seed=1, images=False, shift=5.0)
    there.write_text(there.read_text().replace("crp", "another"))
    config = clinical(table, there, arms=("transfer",))
    experiment.train(config, tmp_path / "run")
    output = capsys.readouterr().out
    assert "source clinical lacks crp: missing there" in output
    assert "target clinical lacks another: missing there" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fusion", "lacks"), [("concat", 0), ("concat", 1 / 3), ("late", 1 / 3), ("gated", 1 / 3)]
)
def test_fusion_beats_each_modality_also_where_some_are_missing(tmp_path, fusion, lacks):
    path = write_clinical(tmp_path / "data", 800, lacks=lacks)
    config = clinical(
        path,
        data__inputs=("image", "table", "text"),
        data__target=dataset("manifest", path=str(path), split=(0.5, 0.1, 0.4)),
        data__preprocessing__text_features=512,
        model__fusion=fusion,
        model__modality_dropout=0.2,
        arms=("own", "image", "table", "text"),
        stages__target=stage(epochs=15, batch_size=16, learning_rate=3e-3, weight_decay=0.1),
    )
    summary = experiment.train(config, tmp_path / "run")
    auroc = {name: entry["test"]["auroc"] for name, entry in summary["arms"].items()}
    for name in ("image", "table", "text"):
        assert auroc["own"] > auroc[name] + 0.05, auroc


def test_classifiers_of_scikit_learn_are_arms_on_the_same_folds(tmp_path, table):
    config = clinical(table, arms=("own", "trees"), evaluation__folds=3, stages__target__epochs=1)
    estimator = "sklearn.ensemble:HistGradientBoostingClassifier(max_iter=20)"
    config.arm.trees = arm("random", source_stage=False, joint=False, estimator=estimator)
    summary = experiment.train(config, tmp_path / "run")
    with open(tmp_path / "run/predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    ids = {name: [r["id"] for r in rows if r["arm"] == name] for name in ("own", "trees")}
    assert sorted(ids["own"]) == sorted(ids["trees"])
    assert len(set(ids["own"])) == 120
    assert experiment.train(config, tmp_path / "run")["arms"] == summary["arms"]
    config.arm.trees.estimator = "sklearn.svm:LinearSVC"
    with pytest.raises(UserError, match="must be a classifier with fit and predict_proba"):
        preview(config)


def test_a_linear_model_is_at_the_minimum_of_scikit_learn(tmp_path, table):
    """A stage without steps is logistic regression on the columns."""
    probe = "LinearProbe(C=0.3)"
    config = clinical(table, stages__target__epochs=0, stages__target__head_start=probe)
    config.arm.logistic = arm(
        "random",
        source_stage=False,
        joint=False,
        estimator="sklearn.linear_model:LogisticRegression(C=0.3, tol=1e-10)",
    )
    config.arms = ("own", "logistic")
    experiment.train(config, tmp_path)
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own, logistic = (
        {r["id"]: float(r["prob_ill"]) for r in rows if r["arm"] == name} for name in config.arms
    )
    assert own.keys() == logistic.keys() and np.std(list(own.values())) > 0.1
    for name, p in own.items():
        assert p == pytest.approx(logistic[name], abs=5e-4)


def test_arms_of_one_modality_run_beside_the_fused_one(tmp_path):
    path = write_clinical(tmp_path / "data", lacks=1 / 3)
    config = clinical(path, data__inputs=("auto",), arms=("own", "text"), stages__target__epochs=1)
    summary = experiment.train(config, tmp_path / "run")
    assert set(summary["arms"]) == {"own", "text"}
    assert summary["config"]["data"]["inputs"] == ("image", "table", "text")
    stored = inference.load_checkpoint(tmp_path / "run", tmp_path / "run/seed_0/text/target")
    assert set(stored.variables["params"]["encoders"]) == {"text"}
    scored = inference.predict(tmp_path / "run", manifest=path)
    reported = scores(tmp_path / "run" / "predictions.csv")
    assert {n: scores(scored)[n] for n in reported}.keys() == reported.keys()


def test_a_row_without_any_input_is_refused_or_kept_by_name(tmp_path):
    path = write_clinical(tmp_path / "data", 30, images=False)
    lines = path.read_text().splitlines()
    lines.insert(3, "nobody,,,,ill")
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"line 4: the row has none of the inputs table \(1 rows"):
        check.check(clinical(path))
    config = clinical(path, data__allow=("rows_without_inputs",))
    check.check(config)
    examples = domains.load(config, "target")
    assert "nobody" in examples.id
    assert examples.notes[0].endswith("(allowed: rows_without_inputs)")


def test_a_column_that_is_allowed_is_in_the_run_and_both_reports(tmp_path):
    path = write_clinical(tmp_path / "data", images=False)
    head, *rows = path.read_text().splitlines()
    rows = [f"{row},{float(row.endswith('ill')) + i / 1000}" for i, row in enumerate(rows)]
    path.write_text("\n".join([f"{head},ward_score", *rows]) + "\n")
    with pytest.raises(UserError, match="values of 'ward_score' predict 'well' with AUROC 1.000"):
        preview(clinical(path))
    config = clinical(path, data__allow_columns=("ward_score",), stages__target__epochs=1)
    result = experiment.train(config, tmp_path / "run")
    assert result["data"]["target"]["allowed"] == ["column: ward_score"]
    finding = "the values of 'ward_score' predict 'well' with AUROC 1.000"
    note = f"Accepted by config.data.allow_columns: target clinical: {finding}."
    assert note in result["evaluation"]["notes"]
    for name in ("report.md", "report.html"):
        content = html.unescape((tmp_path / "run" / name).read_text())
        assert "Accepted by config.data.allow" in content and "predict 'well'" in content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__inputs": ("tables",)}, "config.data.inputs"),
        ({"data__inputs": ("table", "auto")}, "'auto' alone"),
        ({"data__inputs": ("image", "table")}, "no column 'image_path'"),
        ({"arm__own__inputs": ("text",)}, "config.arm.own.inputs is 'text'"),
        ({"weights__path": "resnet.npz"}, "config.data.inputs has no image"),
        ({"data__target__kind": "npz"}, "'npz' reads image alone"),
        ({"data__target__columns": ("crp=ignore", "sex=ignore")}, "no numeric or categorical"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, fields, message):
    path = write_clinical(tmp_path / "data", 30, images=False)
    with pytest.raises(UserError, match=message):
        check.check(clinical(path, **fields))
