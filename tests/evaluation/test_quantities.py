"""Metrics of a predicted number, alone and in resamples, and the analysis of arms that predict."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from medtl import cli
from medtl.errors import UserError
from medtl.evaluation import analysis, metrics, predictions
from medtl.evaluation.metrics import EvaluationSet, Options, QuantityScorer
from medtl.evaluation.predictions import Predictions
from medtl.evaluation.report import html


def direct_c_index(y, p, weight):
    """Count all pairs, one by one."""
    pairs = concordant = 0.0
    for i in range(len(y)):
        for j in range(i):
            if y[i] != y[j]:
                w = weight[i] * weight[j]
                pairs += w
                sign = (y[i] - y[j]) * (p[i] - p[j])
                concordant += w * (1.0 if sign > 0 else 0.5 if sign == 0 else 0.0)
    return concordant / pairs


@pytest.fixture(params=["different", "tied"])
def numbers(request):
    rng = np.random.default_rng(3)
    y = rng.normal(size=90) * 40 + 150
    p = 0.6 * y + rng.normal(size=90) * 30
    if request.param == "tied":
        y, p = np.round(y / 20), np.round(p / 20)
    return y, p


def score(y, p, weight=None, **options):
    data = EvaluationSet(y, p[:, None], np.arange(len(y)))
    scorer = QuantityScorer(data, options=Options(**options))
    row = scorer(np.ones((1, len(y))) if weight is None else weight[None])[0]
    return dict(zip(scorer.names, row, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_are_those_of_scikit_learn_and_of_a_direct_count(numbers, weighted):
    y, p = numbers
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, len(y)).astype(float) if weighted else np.ones(len(y))
    got = score(y, p, weight)
    line = np.polyfit(p, y, 1, w=np.sqrt(weight))
    expected = {
        "mae": sk.mean_absolute_error(y, p, sample_weight=weight),
        "rmse": sk.root_mean_squared_error(y, p, sample_weight=weight),
        "r2": sk.r2_score(y, p, sample_weight=weight),
        "c_index": direct_c_index(y, p, weight),
        "calibration_slope": line[0],
        "calibration_intercept": np.average(y - p, weights=weight),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_the_c_index_of_two_labels_is_the_auroc():
    rng = np.random.default_rng(1)
    label = rng.integers(0, 2, 200)
    p = np.round(rng.normal(size=200) + label, 1)
    assert score(label.astype(float), p)["c_index"] == pytest.approx(sk.roc_auc_score(label, p))


def test_the_order_and_the_unit_change_what_they_must(numbers):
    y, p = numbers
    one, order = score(y, p), np.random.default_rng(0).permutation(len(y))
    assert score(y[order], p[order]) == pytest.approx(one)
    scaled = score(1000 * y + 7, 1000 * p + 7)
    for name in ("mae", "rmse", "calibration_intercept"):
        assert scaled[name] == pytest.approx(1000 * one[name])
    for name in ("r2", "c_index", "calibration_slope"):
        assert scaled[name] == pytest.approx(one[name])


def test_what_is_undefined_is_nan_with_its_reason():
    entry = metrics.describe(np.array([2.0, 2.0]), np.array([[1.0], [1.0]]), classes=("x",))
    assert entry["n"] == 2 and entry["mae"] == 1
    assert {n for n, v in entry.items() if v != v} == {"r2", "c_index", "calibration_slope"}
    assert entry["undefined"]["c_index"] == "all labels are the same"
    assert entry["undefined"]["calibration_slope"] == "all predictions are the same"
    nothing = metrics.describe(np.array([np.nan]), np.array([[1.0]]), classes=("x",))
    assert nothing["n"] == 0 and nothing["undefined"]["mae"] == "there is no labelled example"


def test_numbers_are_no_labels_of_classes_and_a_diverged_model_has_no_metrics():
    with pytest.raises(UserError, match=r"labels of 2 classes are int\[N\]; float\[N\] is a"):
        metrics.describe(np.array([0.0, 1.0]), np.full((2, 2), 0.5), classes=("a", "b"))
    with pytest.raises(UserError, match="must be finite"):
        EvaluationSet(np.array([1.0]), np.array([[np.inf]]), np.array([0]))
    entry = metrics.describe(np.array([0.0, 1.0]), np.array([[np.nan], [1.0]]), classes=("x",))
    assert np.isnan(entry["mae"])
    assert entry["undefined"]["r2"] == "the prediction is no finite number in 1 of 2 examples"


def test_the_mae_ranks_checkpoints_where_the_metric_is_undefined():
    same, other = np.full(3, 5.0), np.array([1.0, 2.0, 3.0])
    assert metrics.criterion("r2", other, classes=("x",)) == metrics.Criterion("r2")
    chosen = metrics.criterion("r2", same, classes=("x",))
    assert chosen.metric == "mae" and "no defined r2" in chosen.note
    near, far = (chosen.score(same, same[:, None] + d, classes=("x",)) for d in (1, 2))
    assert near > far


def arms(n=60, seeds=(0, 1), patients=20):
    rng = np.random.default_rng(0)
    made = []
    for split in ("val", "test"):
        y = rng.normal(size=n) * 50 + 150
        ids = np.array([f"{split}{i}" for i in range(n)])
        patient = np.array([f"{split}{i % patients}" for i in range(n)])
        groups = {"subgroup_sex": rng.choice(["F", "M"], n)}
        for arm, noise in (("good", 10.0), ("target_only", 60.0)):
            for seed in seeds:
                p = (y + rng.normal(size=n) * noise)[:, None]
                one = Predictions(arm, split, ids, y, p, seed, patient=patient, groups=groups)
                made.append(one)
    return made


def test_predictions_are_read_back_as_they_were_written(tmp_path):
    rows = arms()
    rows[0].label[3] = np.nan
    predictions.write(tmp_path / "p.csv", rows, ("x",))
    assert (tmp_path / "p.csv").read_text().startswith("arm,split,id,y_true,prediction,patient_id")
    back, classes = predictions.read(tmp_path / "p.csv")
    assert classes == ("prediction",)
    for one, two in zip(rows, back, strict=True):
        assert one.model == two.model
        for name in ("id", "label", "probability", "patient"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm,id,y_true\nm,a,1\n", "line 1 has no column 'prediction'"),
        ("arm,id,prediction\nm,a,1\n", "line 1 has no column 'y_true'"),
        ("arm,id,y_true,prediction\nm,a,1,x\n", "line 2, column prediction: 'x' is not a number"),
        ("arm,id,y_true,prediction\nm,a,1,inf\n", "line 2, column prediction: it is no finite"),
        ("arm,id,y_true,prediction\nm,a,high,1\n", "line 2, column y_true: 'high' is no finite"),
        ("arm,id,y_true,prediction\nm,a,nan,1\n", "line 2, column y_true: 'nan' is no finite"),
        ("arm,id,y_true,prediction\nm,a,1,1\nn,a,2,1\n", "line 3, column y_true: 'a' has '2' here"),
        ("arm,id,y_true,prediction,prob_a\nm,a,1,1,1\n", "'prob_a' beside 'prediction'"),
    ],
)
def test_malformed_predictions_are_refused_by_line_and_column(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        predictions.read(tmp_path / "p.csv")


def test_arms_are_compared_in_the_mae_with_a_margin_in_its_unit():
    settings = analysis.Settings(metric="mae", resamples=200, margin=0.1)
    made = analysis.analyse(arms(), ("score",), settings, sources=["good"])
    reference = made["arms"]["target_only"]["metrics"]["mae"]["value"]
    assert made["verdict"]["kind"] == "better"
    assert made["verdict"]["headline"].startswith("good helps: MAE −")
    assert made["margin"] == pytest.approx(0.1 * reference)
    assert made["task"] == "regression" and made["design"]["unit"] == "patients"
    groups = made["arms"]["good"]["subgroups"]["subgroup_sex"]["groups"]
    assert groups["F"]["n"] + groups["M"]["n"] == made["n"] == 60
    agreement = made["arms"]["good"]["agreement"]
    assert agreement["low"] < agreement["mean_difference"] < agreement["high"]
    with pytest.raises(UserError, match="checkpoint.metric is 'auroc'"):
        analysis.analyse(arms(), ("score",))


def test_the_interval_of_the_mae_is_that_of_a_clustered_mean():
    """A percentile interval of a mean is close to t's with the variance over patients."""
    made = analysis.analyse(arms(600, (0,), 200), ("x",), analysis.Settings(metric="mae"))
    e = made["arms"]["target_only"]["metrics"]["mae"]
    (one,) = [p for p in arms(600, (0,), 200) if p.split == "test" and p.arm == "target_only"]
    error = np.abs(one.probability[:, 0] - one.label)
    by_patient = np.bincount(np.unique(one.patient, return_inverse=True)[1], error) / 3
    half = 1.972 * by_patient.std(ddof=1) / np.sqrt(200)
    assert (e["high"] - e["low"]) / 2 == pytest.approx(half, rel=0.08)


def test_the_report_shows_numbers_and_nothing_of_classes():
    made = analysis.analyse(arms(), ("score",), analysis.Settings(metric="mae", resamples=200))
    page = html.html(made, None)
    assert "Predicted against true: good" in page and "Limits of agreement" in page
    for word in ("ROC", "Confusion matrices", "operating threshold", "Prediction sets"):
        assert word not in page.split('id="checklists"')[0], word
    assert "undefined" not in html.markdown(made, None)


def test_other_tools_predictions_are_reported_without_any_setting(tmp_path, capsys):
    predictions.write(tmp_path / "p.csv", arms(), ("x",))
    report = f"--workdir={tmp_path / 'r'}"
    arguments = ["--mode=report", f"--predictions={tmp_path / 'p.csv'}", report]
    assert cli.run([*arguments, "--config.evaluation.resamples=200"]) == 0
    assert "good helps: MAE" in capsys.readouterr().out
    written = json.loads((tmp_path / "r/metrics.json").read_text())
    assert written["evaluation"]["metric"] == "mae"
    assert cli.run([*arguments, "--config.checkpoint.metric=f1_macro"]) == 2
    assert "config.checkpoint.metric is 'f1_macro'" in capsys.readouterr().err
