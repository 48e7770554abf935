"""The paragraph on statistics tells what the analysis did, of real analyses and made-up ones."""

import analysis_example
import numpy as np
import pytest
from record_example import record

from medtl import __version__
from medtl.evaluation import analysis
from medtl.evaluation.predictions import Predictions
from medtl.evaluation.report.statement import statement

EXAMPLES = ("two_class", "multi_class", "multi_label", "minimal")


def model(arm, split, rng, *, skill, n=60, first=0, patients=True, **cell):
    """Return the predictions of one model; two images a patient, "ill" and "well" in turn."""
    number = np.arange(first, first + n)
    label = (number // 2) % 2
    score = 1 / (1 + np.exp(-(skill * (2 * label - 1) + rng.normal(size=n))))
    return Predictions(
        arm,
        split,
        np.array([f"{split}{i}" for i in number]),
        label,
        np.stack([1 - score, score], axis=1),
        patient=np.array([f"{split}{i // 2}" for i in number]) if patients else None,
        **cell,
    )


def written(rows, **settings):
    """Return the paragraph of an analysis of these rows."""
    chosen = analysis.Settings(**{"positive": "ill", "resamples": 200, **settings})
    return statement(analysis.analyse(rows, ("well", "ill"), chosen), None)


def split_rows(seeds, **options):
    rng = np.random.default_rng(0)
    return [
        model(arm, split, rng, skill=skill, seed=seed, **options)
        for seed in seeds
        for arm, skill in (("transfer", 1.5), ("scratch", 0.5))
        for split in ("val", "test")
    ]


def test_several_seeds_on_a_split():
    text = written(split_rows((0, 1, 2)), threshold="sensitivity=0.9")
    for part in (
        "evaluated on 60 images of 30 patients on the test split.",
        "Every model was trained with each of 3 seeds.",
        "with ill as the positive class.",
        "computed for each of the 3 models of an arm and averaged.",
        "95 % confidence intervals were computed from 200 bootstrap resamples of the patients, ",
        "The arm transfer was compared with scratch by a t-test whose standard error combines the "
        "bootstrap of the patients with the variance of the difference between seeds",
        "DeLong's and McNemar's tests were also computed.",
        "was chosen for a sensitivity of 0.9 on the validation split",
        f"medtl {__version__}.",
    ):
        assert part in text, part
    assert "max-t" not in text
    assert "cross-validation" not in text


def test_one_seed_is_about_these_trained_models():
    text = written(split_rows((0,)), threshold="0.3")
    assert "each arm was trained once, so that the result is about these trained models." in text
    assert "seeds" not in text
    assert "The operating threshold was fixed at 0.3 beforehand." in text


def test_unknown_patients_are_told():
    text = written(split_rows((0,), patients=False))
    assert "patients" not in text
    assert "resamples of the examples, as it was unknown which images were of one patient" in text


def test_a_cross_validation():
    rng = np.random.default_rng(1)
    rows = [
        model(arm, "test", rng, skill=skill, n=20, first=20 * fold, repeat=repeat, fold=fold)
        for repeat in range(2)
        for fold in range(3)
        for arm, skill in (("transfer", 1.5), ("pooled", 1.0), ("target_only", 0.5))
    ]
    text = written(rows)
    assert "in a 3-fold cross-validation, repeated 2 times, stratified by class and " in text
    assert "for each of the 6 models of an arm" in text
    assert (
        "The arms transfer and pooled were each compared with target_only by the corrected " in text
    )
    assert "(max-t)" in text
    assert "The operating threshold was 0.5." in text
    assert "scaling" not in text  # there is no val to fit it on


def test_a_single_model_is_compared_with_none():
    rows = [row for row in split_rows((0,)) if row.arm == "transfer"]
    text = written(rows, prevalence=0.02)
    assert "compared" not in text
    assert "equivalent" not in text
    assert "PPV and NPV were computed for a prevalence of 2 %, with intervals by MOVER-R." in text


def test_several_classes_have_no_operating_threshold():
    text = statement(analysis_example.multi_class(), record())
    assert "averaged over the classes, each against the rest." in text
    assert "The class of the largest probability was predicted." in text
    assert "threshold" not in text
    assert "positive class" not in text
    assert "(Python 3.13.1, JAX 0.12.0)." in text


def test_what_was_not_done_is_not_told():
    text = statement(analysis_example.minimal(), None)
    for word in ("interval", "compared", "Calibration", "Conformal", "benefit", "group", "labels"):
        assert word not in text
    shown = analysis_example.two_class()
    shown["comparisons"] = [{**c, "p": None} for c in shown["comparisons"]]
    assert "compared" not in statement(shown, None)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"margin": 0.02}, "equivalent if the interval of the difference was within ±0.02 AUROC."),
        ({"flow": {"unlabelled": 14}}, "14 images without a label were left out."),
        ({"flow": {"unlabelled": 1}}, "1 image without a label was left out."),
        ({"planned": {"changed": []}}, "and margin were stated before training."),
        (
            {"planned": {"changed": ["metric was auprc"]}},
            "Changed after results were seen: metric was auprc.",
        ),
        (
            {"sites": {"arms": {"transfer": {"pooled": {"value": 0.8}}}}},
            "pooled by a random-effects meta-analysis",
        ),
        ({"per_patient": {"rule": "max"}}, "took the max probability of a patient's images."),
        (
            {"subgroups": {"site": {}}},
            "in the groups of site and sex and tested for heterogeneity.",
        ),
    ],
)
def test_each_entry_adds_its_sentence(entry, sentence):
    shown = analysis_example.two_class()
    assert sentence not in statement(shown, None)
    assert sentence in statement({**shown, **entry}, None)


def test_sites_that_are_too_few_to_pool_are_not_pooled():
    sites = {"arms": {"transfer": {"pooled": {"value": None, "undefined": "two sites"}}}}
    text = statement({**analysis_example.two_class(), "sites": sites}, None)
    assert "meta-analysis" not in text


def test_a_smooth_calibration_curve_is_named():
    shown = analysis_example.two_class()
    assert "intercept of logistic recalibration and calibration curves." in statement(shown, None)
    shown["arms"]["transfer"]["calibration"]["smooth"] = [{"name": "covid", "x": [0.1]}]
    assert "a curve by logistic regression on a spline, O:E and ICI." in statement(shown, None)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_paragraph_is_made_of_sentences(name):
    text = statement(getattr(analysis_example, name)(), record())
    assert "\n" not in text
    assert "  " not in text
    assert ".." not in text
    assert "None" not in text
    assert "nan" not in text
    assert all(sentence[0].isupper() or sentence[0].isdigit() for sentence in text.split(". "))
