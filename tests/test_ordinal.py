"""Ordered grades, from the file to the report."""

import numpy as np
import pytest
from ordinal_run import CUTPOINTS, NAMES, WEIGHTS, ordinal, write_grades
from statsmodels.miscmodels.ordinal_model import OrderedModel

from medtl.config import check, dataset, stage
from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.experiment import experiment, inference
from medtl.training.checkpoint import Store


def head_of(folder):
    """Return the cutpoints and the weights of the standardized columns."""
    head = inference.load_checkpoint(folder).variables["params"]["heads"]["shared"]
    first, gaps = head["first_cutpoint"], np.exp(head["log_gaps"])
    weights = head["latent"]["logits"]["kernel"][:, 0]
    return np.concatenate([first, first + np.cumsum(gaps)]), weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 4,000 examples, nearly all of them to train on."""
    folder = tmp_path_factory.mktemp("ordinal")
    path, x, grade = write_grades(folder / "g.csv", 4000)
    split = dataset("manifest", path=str(path), label="grade", split=(0.9, 0.05, 0.05))
    config = ordinal(
        path,
        data__target=split,
        stages__target=stage(epochs=30, batch_size=256, learning_rate=0.1, weight_decay=0.0),
    )
    config.stages.target.schedule, config.checkpoint.select = "cosine", "last"
    summary = experiment.train(config, folder / "run")
    examples = experiment.load_data(config)["target"]
    return folder / "run", summary, x, grade, examples.indices("train")


def test_it_is_the_maximum_likelihood_of_statsmodels_and_recovers_the_truth(trained):
    folder, _, x, grade, rows = trained
    cutpoints, weights = head_of(folder)
    mean, deviation = x[rows].mean(axis=0), x[rows].std(axis=0)
    slope = weights / deviation
    moved = cutpoints + slope @ mean  # in the columns' own units
    fit = OrderedModel(grade[rows], x[rows], distr="logit").fit(method="bfgs", disp=False)
    gaps = np.exp(fit.params[4:])
    theirs = np.concatenate([fit.params[3:4], fit.params[3] + np.cumsum(gaps)])
    np.testing.assert_allclose(slope, fit.params[:3], atol=0.05)
    np.testing.assert_allclose(moved, theirs, atol=0.05)
    np.testing.assert_allclose(slope, WEIGHTS, atol=4 * fit.bse[:3].max())
    np.testing.assert_allclose(moved, CUTPOINTS, atol=0.25)


def test_where_labels_are_few_grades_are_nearer_than_by_softmax(tmp_path):
    """The mean distance of five trainings on 60 labels each; softmax has 20 parameters, not 7."""
    path, *_ = write_grades(tmp_path / "g.csv", 1000)
    split = dataset("manifest", path=str(path), label="grade", split=(0.4, 0.1, 0.5))
    off = {}
    for task in ("ordinal", "classification"):
        config = ordinal(
            path,
            data__task=task,
            data__target=split,
            evaluation__target_sizes=(60,),
            evaluation__size_repeats=5,
            stages__target=stage(epochs=30, batch_size=60, learning_rate=0.05),
        )
        experiment.train(config, tmp_path / task)
        made, _ = predictions.read(tmp_path / task / "predictions.csv")
        few = [p for p in made if p.split == "test" and p.size == 60]
        assert len(few) == 5
        off[task] = np.mean([np.abs(p.probability.argmax(axis=1) - p.label).mean() for p in few])
    assert off["ordinal"] < off["classification"] - 0.01, off


def test_the_report_has_the_metrics_of_grades_beside_those_of_classes(trained):
    folder, summary, *_ = trained
    found = summary["evaluation"]["arms"]["own"]["metrics"]
    (one,) = [p for p in predictions.read(folder / "predictions.csv")[0] if p.split == "test"]
    off = np.abs(one.probability.argmax(axis=1) - one.label).mean()
    assert found["grade_mae"]["value"] == pytest.approx(off, abs=1e-12)
    assert found["kappa_quadratic"]["value"] > 0.6
    assert found["auroc"]["value"] > 0.7 and found["ece"]["value"] < 0.2
    assert "Grades off, mean" in (folder / "report.html").read_text()


def test_names_take_the_order_that_the_config_gives(tmp_path):
    path, _, grade = write_grades(tmp_path / "g.csv", 120, names=NAMES)
    config = ordinal(path, data__grades=NAMES, stages__target__epochs=2)
    config.objective.losses.main.loss = "cumulative_link"
    examples = experiment.load_data(config)["target"]
    assert examples.classes == NAMES
    np.testing.assert_array_equal(examples.label, grade)
    experiment.train(config, tmp_path / "run")
    scored = inference.predict(tmp_path / "run", manifest=path)
    header = scored.read_text().splitlines()[0]
    assert header == "arm,split,id,label," + ",".join(f"prob_{name}" for name in NAMES)
    with Store(tmp_path / "run/seed_0/own/target") as store:
        assert store.record(store.chosen_step())["classes"]["target"] == list(NAMES)


def test_numbers_are_in_numeric_order_however_written(tmp_path):
    path, _, grade = write_grades(tmp_path / "g.csv", names=("2", "9.0", "10", "11", "100"))
    examples = experiment.load_data(ordinal(path))["target"]
    assert examples.classes == ("2", "9", "10", "11", "100")
    np.testing.assert_array_equal(examples.label, grade)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"the label 'mild', no number; config.data.grades gives the order, such as \('mild'"),
        ({"data__grades": NAMES[:4]}, "config.data.grades lacks 'very severe'"),
        ({"data__task": "classification", "data__grades": NAMES}, "grades orders labels, but"),
        (
            {
                "data__task": "classification",
                "objective__losses__main__loss": "cumulative_link",
            },
            "takes ordered grades",
        ),
        (
            {"data__grades": NAMES, "data__target__multi_label": True},
            "neither an order nor a value",
        ),
    ],
)
def test_what_has_no_order_is_refused(tmp_path, fields, message):
    path, *_ = write_grades(tmp_path / "g.csv", 60, names=NAMES)
    with pytest.raises(UserError, match=message):
        check.check(ordinal(path, **fields))


def test_a_head_of_grades_is_not_solved_as_one_of_classes(tmp_path):
    path, *_ = write_grades(tmp_path / "g.csv", 60)
    config = ordinal(path, sweep__solver="lbfgs")
    config.sweep.grid = {"stages": {"target": {"weight_decay": (0.0, 0.1)}}}
    with pytest.raises(UserError, match="trains linear heads of classes, but"):
        check.check_sweep(config)
