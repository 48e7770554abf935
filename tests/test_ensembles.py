"""Ensembles of seeds and folds, views and label shift in a run and in --mode=predict."""

import csv

import jax
import numpy as np
import pytest
from clinical_run import clinical, write_clinical
from scipy import ndimage
from test_train import NORM, draw, make_model
from tiny_run import tiny

from medtl import data
from medtl.config import check
from medtl.data import augment, views
from medtl.errors import UserError
from medtl.evaluation import ensembles, label_shift, metrics, predictions
from medtl.evaluation.analysis import analyse
from medtl.evaluation.summary import summarize
from medtl.experiment import ensemble, experiment, inference
from medtl.training.evaluator import Evaluator
from medtl.training.parallel import Parallel

CLASSES = ("no", "yes")


def test_views_are_the_image_its_mirror_and_windows_of_it():
    image = np.random.default_rng(0).uniform(0, 255, (16, 16))
    made = [
        ndimage.affine_transform(image, *view, order=1, mode="nearest")
        for view in views.views(("flip",), 16, 16)
    ]
    np.testing.assert_allclose(made, [image, image[:, ::-1]], atol=1e-3)
    # 14 of 16 pixels a side, at the centre (from pixel 1 on) and in the corners (from 0, from 2).
    pixels = (np.arange(16) + 0.5) * 0.875 - 0.5
    windows = views.views(("crop",), 16, 16)[1:]
    firsts = [(1, 1), (0, 0), (0, 2), (2, 0), (2, 2)]
    for (matrix, offset), first in zip(windows, firsts, strict=True):
        for axis in (0, 1):
            mapped = matrix[axis, axis] * np.arange(16) + offset[axis]
            np.testing.assert_allclose(mapped, first[axis] + pixels, atol=1e-5)


def test_the_mean_over_views_is_that_of_the_images_mirrored_by_hand():
    config = tiny(evaluation__test_time=("flip",), evaluation__batch_size=8)
    examples = data.load(
        config.data.target, image_size=config.data.image_size, channels=1, resize="squash",
        cache="memory", cache_dir="", key="config.data.target",
    )  # fmt: skip
    model = make_model()
    variables, rows = draw(model), np.arange(13)
    parallel = Parallel.create("none")
    evaluator = Evaluator(config, parallel, model, NORM, None)
    variables = parallel.replicate(variables)
    found = evaluator.mean_over_views(variables, "target", examples, rows, multi_label=False)
    plain = evaluator.probabilities(variables, "target", examples, rows)
    mirrored = {"image": np.ascontiguousarray(np.asarray(examples.image[:13])[:, :, ::-1])}
    batch = {**mirrored, "mask": np.ones(13, np.float32)}
    outputs = jax.jit(
        lambda v, b: model.apply(v, {"target": {**b, "image": augment.normalize(b["image"], NORM)}},
                                 False)["target"].logits
    )(variables, batch)  # fmt: skip
    other = predictions.probabilities(np.asarray(outputs), multi_label=False)
    np.testing.assert_allclose(found, (plain + other) / 2, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    path = write_clinical(folder / "a", 120, images=False)
    config = clinical(path, seeds=(0, 1), checkpoint__keep_folds=True)
    config.evaluation.folds = 2
    config.evaluation.ensembles = True
    config.evaluation.label_shift = ("em",)
    summary = experiment.train(config, folder / "run")
    return folder, summary


def test_derived_arms_are_in_the_report_with_what_they_assume(run):
    _, summary = run
    arms = summary["evaluation"]["arms"]
    both = ("own", "own (ensemble of 2 seeds)")
    assert set(arms) == {*both, *(f"{name}+em" for name in both)}
    assert set(summary["arms"]) == set(arms)
    shifts = summary["evaluation"]["label_shift"]
    assert len(shifts) == 2 * 2 * 2  # arms, seeds, folds
    for shift in shifts:
        assert sum(shift["value"]) == pytest.approx(1)
        low, value, high = (np.array(shift[k]) for k in ("low", "value", "high"))
        assert (low <= value).all()
        assert (value <= high).all()
    assert any("differ in their frequency alone" in n for n in summary["evaluation"]["notes"])


def test_an_ensemble_of_seeds_is_one_model_and_has_no_spread_over_seeds():
    rng = np.random.default_rng(0)
    label, ids = np.arange(40) % 2, np.arange(40).astype(str)
    rows = [
        predictions.Predictions("a", "test", ids, label, rng.dirichlet((1, 1), 40), seed)
        for seed in range(3)
    ]
    rows += ensembles.of_seeds(rows)
    by_seed = {
        seed: {
            p.arm: {"test": metrics.describe(p.label, p.probability, classes=CLASSES)}
            for p in rows
            if p.seed == seed
        }
        for seed in range(3)
    }
    summary = summarize(by_seed)
    name = "a (ensemble of 3 seeds)"
    mean = np.mean([p.probability for p in rows[:3]], axis=0)
    assert summary["arms"][name]["test"] == metrics.describe(label, mean, classes=CLASSES)
    assert all(np.isnan(v) for v in summary["std"][name]["test"].values())
    assert summary["std"]["a"]["test"]["auroc"] > 0
    made = analyse(rows, CLASSES)["arms"]
    assert "std" in made["a"]["metrics"]["auroc"]
    assert made[name]["metrics"]["auroc"].keys() == {"value", "low", "high"}


def test_predict_takes_the_mean_of_the_kept_models_of_all_folds_and_seeds(run):
    folder, _ = run
    stages = sorted(folder.glob("run/seed_*/own/repeat_0/fold_*/target"))
    assert len(stages) == 4
    assert sorted(ensemble.members(folder / "run", None)) == stages
    new = write_clinical(folder / "b", 20, seed=1, images=False)
    written = inference.predict(folder / "run", manifest=new)
    with written.open() as file:
        rows = list(csv.DictReader(file))
    name = "own (ensemble of 4 models)"
    assert {row["arm"] for row in rows} == {name, "own+em (ensemble of 4 models)"}
    single, val = [], []
    for stage in stages:
        out = folder / "one.csv"
        inference.predict(folder / "run", manifest=new, checkpoint=stage, output=out)
        read, _ = predictions.read(out)
        single.append(next(p for p in read if p.arm == "own").probability)
        fold = int(stage.parent.name[-1])
        seed = int(stage.parents[3].name[-1])
        val.append(ensemble.val_of(folder / "run", str(stage), "own", seed))
        assert (val[-1].fold, val[-1].seed) == (fold, seed)
    read, _ = predictions.read(written)
    of = {p.arm: p.probability for p in read}
    np.testing.assert_allclose(of[name], np.mean(single, axis=0), atol=1e-6)
    adjusted = []
    for p, v in zip(single, val, strict=True):
        prior = np.bincount(v.label, minlength=2) / len(v.label)
        adjusted.append(label_shift.adjusted(p, prior, label_shift.em(p, prior)))
    np.testing.assert_allclose(
        of["own+em (ensemble of 4 models)"], np.mean(adjusted, axis=0), atol=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluation__ensembles": True}, "at least 2 seeds"),
        ({"evaluation__label_shift": ("mle",)}, "of em, bbse"),
        ({"evaluation__test_time": ("rotate",)}, "of flip, crop"),
        ({"evaluation__test_time": ("flip",), "data__inputs": ("table",)}, "has no image"),
        ({"checkpoint__keep_folds": True}, "there are no folds"),
        (
            {"evaluation__label_shift": ("em",), "data__target__multi_label": True,
             "objective__losses__main__loss": "sigmoid_binary_cross_entropy",
             "arms": ("scratch",)},
            "one diagnosis an example",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_refused_at_the_start(fields, message):
    with pytest.raises(UserError, match=message):
        check.check(tiny(**fields))
