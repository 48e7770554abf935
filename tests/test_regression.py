"""A label that is a number, from the file to the report."""

import csv
import json

import numpy as np
import pytest
from regression_run import regression, write_diabetes
from tiny_run import changed, tiny

from medtl import cli, data
from medtl.config import arm, check, dataset, stage
from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.examples import Examples
from medtl.experiment import experiment, export, inference, inspection, splits
from medtl.experiment.preview import preview
from medtl.training.checkpoint import Store


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_diabetes(tmp_path_factory.mktemp("data") / "diabetes.csv")


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_diabetes_is_predicted_as_well_as_by_ridge_resumed_and_scored(tmp_path, table, capsys):
    summary = experiment.train(regression(table), tmp_path / "run")
    one, ridge = (summary["arms"][name]["test"] for name in ("linear", "ridge"))
    (compared,) = summary["evaluation"]["comparisons"]
    assert abs(one["r2"] - ridge["r2"]) < 0.03 and one["r2"] > 0.35
    assert compared["difference"]["low"] < 0 < compared["difference"]["high"]
    assert "progression 152" in capsys.readouterr().out
    assert experiment.train(regression(table), tmp_path / "run")["arms"] == summary["arms"]
    scored = inference.predict(tmp_path / "run", manifest=table)
    predicted = {row["id"]: float(row["prediction"]) for row in rows_of(scored)}
    truth = {row["id"]: float(row["progression"]) for row in rows_of(table)}
    reported = [r for r in rows_of(tmp_path / "run/predictions.csv") if r["arm"] == "linear"]
    assert len(predicted) == 442 and len(reported) == 134
    for row in reported:  # in the unit of the column
        assert predicted[row["id"]] == pytest.approx(float(row["prediction"]), rel=1e-5)
        assert float(row["y_true"]) == truth[row["id"]]
    first = (tmp_path / "run/report.html").read_text()
    assert cli.run(["--mode=report", f"--workdir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run/report.html").read_text() == first


def test_the_scale_is_that_of_train_and_in_the_record(tmp_path, table):
    config = regression(table, arms=("linear",), stages__target__epochs=1)
    experiment.train(config, tmp_path / "run")
    with Store(tmp_path / "run/seed_0/linear/target") as store:
        scale = store.record(store.chosen_step())["scale"]["target"]
    examples = experiment.load_data(config)["target"]
    train = examples.label[examples.indices("train")]
    assert scale == pytest.approx([train.mean(), train.std()])
    learned = examples.learned[examples.indices("train")]
    assert learned.dtype == np.float32
    assert [learned.mean(), learned.std()] == pytest.approx([0, 1], abs=1e-5)


def test_the_unit_of_the_column_changes_nothing_but_the_unit(tmp_path, table):
    text = table.read_text().splitlines()
    scaled = tmp_path / "scaled.csv"
    lines = [line.rsplit(",", 1) for line in text[1:]]
    scaled.write_text("\n".join([text[0], *(f"{a},{float(b) * 1024 + 4096}" for a, b in lines)]))
    found = {}
    for name, path in (("one", table), ("other", scaled)):
        config = regression(path, arms=("linear",), stages__target__epochs=3)
        found[name] = experiment.train(config, tmp_path / name)["arms"]["linear"]["test"]
    for metric in ("r2", "c_index", "calibration_slope"):
        assert found["other"][metric] == pytest.approx(found["one"][metric], abs=1e-4)
    assert found["other"]["mae"] == pytest.approx(1024 * found["one"]["mae"], rel=1e-4)


def test_folds_spread_the_label_evenly_and_keep_patients_together(tmp_path, table):
    examples = experiment.load_data(regression(table))["target"]
    patient = np.array([f"q{i // 2}" for i in range(len(examples))])
    fold = splits.folds(examples.label, n_folds=5, patient=patient)
    means = [examples.label[fold == i].mean() for i in range(5)]
    assert np.ptp(means) < 8  # of random folds about 20
    assert all(len(set(fold[patient == p])) == 1 for p in np.unique(patient))
    config = regression(table, evaluation__folds=3, stages__target__epochs=5)
    summary = experiment.train(config, tmp_path / "run")
    assert summary["evaluation"]["design"]["folds"] == 3
    assert summary["evaluation"]["n"] == 442
    assert experiment.train(config, tmp_path / "run")["arms"] == summary["arms"]


def test_a_source_in_another_unit_is_transferred_jointly_with_lambda(tmp_path, table):
    source = write_diabetes(tmp_path / "source.csv", slice(0, 300))
    target = write_diabetes(tmp_path / "target.csv", slice(300, None))
    lines = [line.rsplit(",", 1) for line in source.read_text().splitlines()]
    body = (f"s{a},{float(b) / 100}" for a, b in lines[1:])
    source.write_text("\n".join([",".join(lines[0]), *body]))
    config = regression(
        target,
        data__source=dataset("manifest", path=str(source), label="progression"),
        stages__source=stage(epochs=20, batch_size=32, learning_rate=3e-2),
        arms=("transfer", "target_only"),
        evaluation__tune={"objective": {"lambda_": (0.1, 1.0)}},
        objective__losses__main__loss="huber(delta=2.0)",
        checkpoint__metric="r2",
    )
    config.arm.target_only = arm("random", source_stage=False, joint=False)
    config.arm.transfer = arm("random", source_stage=True, joint=True)
    summary = experiment.train(config, tmp_path / "run")
    for name in ("transfer", "target_only"):
        assert summary["arms"][name]["test"]["r2"] > 0.2
        assert 20 < summary["arms"][name]["test"]["mae"] < 80
    assert summary["evaluation"]["metric"] == "r2"
    assert [t["objective.lambda_"] for t in summary["tuned"] if t["arm"] == "transfer"]


def test_the_plan_of_a_run_is_shown_without_training(table, capsys):
    preview(regression(table, evaluation__target_sizes=(50, "all")))
    assert "logits float32[B, 1]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "line 3, column progression: the cell is empty.*or leave the row out"),
        ("NA", "'NA' is no finite number.*write it as 12.5, or leave"),
        ("nan", "'nan' is no finite number"),
        ("inf", "'inf' is no finite number"),
        ("high", "'high' is no finite number"),
        ("3,5", "'3,5' is no finite number"),
        ("1_000", "'1_000' is no finite number"),
        ("1e999", "'1e999' is no finite number"),
    ],
)
def test_a_label_that_is_no_number_is_named_by_line(tmp_path, cell, message):
    path = tmp_path / "t.csv"
    path.write_text(f'id,x,progression\na,1,1.5\nb,2,"{cell}"\nc,3,2\n')
    with pytest.raises(UserError, match=message):
        check.check(regression(path))


def test_a_split_with_one_value_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"p{i},{i},{'test' if i > 7 else 'train'},{min(i, 8)}" for i in range(12)]
    path.write_text("\n".join(["id,x,split,progression", *rows]))
    with pytest.raises(UserError, match="split test has 4 example.* all of the value 8"):
        check.check(regression(path))


def test_a_column_that_orders_the_label_is_refused(tmp_path, table):
    lines = [line.rsplit(",", 1) for line in table.read_text().splitlines()]
    copied = [f"{a},{'copy' if i == 0 else float(b) * 2 + 1},{b}" for i, (a, b) in enumerate(lines)]
    path = tmp_path / "leak.csv"
    path.write_text("\n".join(copied))
    config = regression(path, arms=("ridge",))
    with pytest.raises(UserError, match="'copy' predict 'above the median' with AUROC 1.000"):
        experiment.train(config, tmp_path / "run")


def test_one_error_names_all_that_regression_needs(table):
    config = regression(
        table,
        objective__losses__main__loss="focal",
        checkpoint__metric="auroc",
        stages__target__sampler="balanced",
        evaluation__ordinal=True,
        model__prior_bias=True,
        evaluation__prevalence=0.2,
    )
    with pytest.raises(UserError) as error:
        check.check(config)
    for change in (
        "config.objective.losses.main.loss=mean_squared_error_regression (or huber",
        "config.checkpoint.metric=mae (or rmse",
        "config.stages.target.sampler='shuffled'",
        "config.evaluation.ordinal=False",
        "config.model.prior_bias=False",
        "config.evaluation.prevalence=0.0",
    ):
        assert change in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__target__multi_label": True}, "have neither an order nor a value"),
        ({"data__grades": ("a", "b")}, "config.data.grades orders labels, but"),
        ({"data__task": "classification"}, "'mean_squared_error_regression', which takes a number"),
        ({"evaluation__metrics": {"r2": "x.py:y"}}, "metrics.r2: medtl has a metric of that name"),
        ({"arm__ridge__estimator": "sklearn.linear_model:LogisticRegression"}, "be a regressor"),
        ({"data__target__kind": "npz"}, "kind 'npz' reads"),
        ({"objective__terms": {"x": {"term": "soft_f1", "weight": 1.0}}}, "compares classes"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_start(table, fields, message):
    config = regression(table, **fields)
    with pytest.raises(UserError, match=message):
        _start(config)


def _start(config):
    check.check(config)
    preview(config)


def test_a_sweep_is_refused_and_points_to_nested_selection(table):
    config = regression(table, sweep__grid={"stages": {"target": {"weight_decay": (0.0, 0.1)}}})
    with pytest.raises(UserError, match=r"config.evaluation.tune tries settings there"):
        check.check_sweep(config)


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_features_are_read_with_numbers_as_labels(tmp_path, kind):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)), rng.normal(size=40)
    path = tmp_path / f"f.{kind}"
    if kind == "npz":
        np.savez(path, features=x, labels=y)
    else:
        rows = [",".join(map(str, (*row, value))) for row, value in zip(x, y, strict=True)]
        path.write_text("\n".join(["f_0,f_1,f_2,progression", *rows]))
    spec = dataset("features", path=str(path), label="progression")
    config = regression(path, data__inputs=("features",), data__target=spec)
    config.model.encoders.features = "linear"
    del config.model.encoders["table"]
    examples = experiment.load_data(config)["target"]
    np.testing.assert_array_equal(examples.label, y)
    assert examples.is_quantity and len(examples.classes) == 1


OWN = """
import dataclasses
import numpy as np
from medtl.data import load
from medtl.config import dataset

def grey(spec, *, image_size, channels, resize):
    phantom = dataset("phantom(size=90, scanner='a', split=(0.6, 0.2, 0.2))")
    e = load(phantom, image_size=image_size, channels=channels, resize=resize,
             cache="memory", cache_dir="", key="x")
    mean = np.asarray(e.inputs["image"]).mean(axis=(1, 2, 3))
    return dataclasses.replace(e, label=mean.astype(np.float64), classes=("grey",))
"""


@pytest.mark.slow
def test_images_of_a_users_function_are_regressed_by_a_network(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    config = tiny(
        arms=("scratch",),
        data__task="regression",
        objective__losses__main__loss="absolute_error",
        checkpoint__metric="c_index",
        stages__target__epochs=4,
    )
    config.data.target = dataset(f"{tmp_path / 'own.py'}:grey")
    summary = experiment.train(config, tmp_path / "run")
    assert summary["arms"]["scratch"]["test"]["c_index"] > 0.6
    config = changed(config, data__task="classification", checkpoint__metric="auroc")
    config.objective.losses.main.loss = "cross_entropy"
    with pytest.raises(UserError, match="returned numbers, but config.data.task is"):
        experiment.train(config, tmp_path / "other")


def test_a_metric_of_the_users_gets_labels_and_numbers(tmp_path, table):
    (tmp_path / "own.py").write_text(
        "import numpy as np\ndef worst(y, p, w):\n    return np.max(abs(y - p[:, 0]) * (w > 0))\n"
    )
    config = regression(table, arms=("ridge",))
    config.evaluation.metrics = {"worst": f"{tmp_path / 'own.py'}:worst"}
    summary = experiment.train(config, tmp_path / "run")
    (one,) = [p for p in predictions.read(tmp_path / "run/predictions.csv")[0] if p.split == "test"]
    worst = np.abs(one.label - one.probability[:, 0]).max()
    assert summary["arms"]["ridge"]["test"]["worst"] == pytest.approx(worst)


def test_labels_of_a_quantity_are_no_classes():
    numbers = {"label": np.array([1.0, 3.0]), "split": np.array(["train", "test"])}
    fields = dict.fromkeys(("name", "fingerprint", "split_hash"), "")
    one = Examples(
        inputs={}, id=np.array(["a", "b"]), patient=None, weight=np.ones(2), classes=("x",),
        **numbers, **fields,
    )  # fmt: skip
    assert one.scale == (1.0, 1.0) and one.learned.tolist() == [0.0, 2.0]
    assert data.FileRules().task == "classification"
    assert json.dumps(one.scale)


def test_the_data_are_looked_at_before_training_and_not_exported_as_classes(tmp_path, table):
    config = regression(table)
    inspection.inspect(config, tmp_path / "look")
    (page,) = (tmp_path / "look").glob("*.html")
    assert "progression by split" in page.read_text() and "152.1" in page.read_text()
    with pytest.raises(UserError, match="export_tfds writes classes"):
        export.export(config, tmp_path / "tfds")
