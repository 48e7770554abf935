"""The learning curve: its law, the labels saved, and where an arm pays."""

import math

import numpy as np
import pytest

from medtl.evaluation import analysis, learning, to_json
from medtl.evaluation.predictions import Predictions

CLASSES = ("well", "ill")
SETTINGS = analysis.Settings(resamples=200, threshold="0.5")
SIZES = np.array([20.0, 50.0, 100.0, 400.0])


@pytest.mark.parametrize("law", [(0.08, 1.5, 0.6), (0.0, 0.9, 0.25), (0.2, 5.0, 1.2)])
def test_a_law_without_noise_is_found(law):
    a, b, c = law
    error = a + b * SIZES**-c
    fitted = learning.fit(SIZES, np.stack([error, error + 0.01]), np.array([1.0, 2, 3, 4]))
    np.testing.assert_allclose([fitted.a[0], fitted.b[0], fitted.c[0]], law, rtol=0.01, atol=2e-3)
    np.testing.assert_allclose(fitted.error(SIZES), [error, error + 0.01], atol=1e-4)


def test_the_fit_is_scipys_least_squares():
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(3)
    sizes, weight = np.array([20.0, 40, 80, 160, 320, 640]), np.array([1.0, 2, 4, 8, 16, 32])
    error = 0.1 + 1.2 * sizes**-0.6 + 0.004 * rng.normal(size=6)
    wanted, _ = curve_fit(
        lambda n, a, b, c: a + b * n**-c,
        sizes,
        error,
        p0=(0.1, 1.0, 0.5),
        sigma=weight**-0.5,
        bounds=(0, [1, 50, 3]),
    )
    fitted = learning.fit(sizes, error[None], weight)
    np.testing.assert_allclose([fitted.a[0], fitted.b[0], fitted.c[0]], wanted, rtol=0.01)


def test_a_curve_that_rises_or_falls_below_0_stays_within_bounds():
    rising = learning.fit(SIZES, np.array([[0.1, 0.2, 0.3, 0.4]]), np.ones(4))
    assert rising.b[0] == 0 and rising.a[0] == pytest.approx(0.25)
    steep = learning.fit(SIZES, np.array([[0.4, 0.25, 0.1, 0.0]]), np.ones(4))
    assert steep.a[0] == 0 and steep.b[0] > 0


def test_labels_at_an_equal_error_invert_the_law():
    law = learning.Law(np.array([0.1]), np.array([2.0]), np.array([0.5]))
    np.testing.assert_allclose(law.labels(law.error(SIZES))[0], SIZES)
    assert law.labels(np.array([[0.1, 0.05]]))[0].tolist() == [math.inf, math.inf]


def rows_of(curves, seeds=(0, 1, 2), sizes=(20, 50, 100, 400), n=400, repeats=(None,), noise=0.05):
    """Scores whose AUROC follows a law: d' with Φ(d' / √2) = AUROC, the same cases at all sizes."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    label, ids = np.arange(n) % 2, np.array([f"i{i}" for i in range(n)])
    case = rng.normal(size=n)
    rows = []
    for size in sizes:
        for seed in seeds:
            for repeat in repeats if size != max(sizes) else (None,):
                for arm, auroc in curves.items():
                    d = math.sqrt(2) * norm.ppf(auroc(size)) + noise * rng.normal()
                    p = 1 / (1 + np.exp(-(d * (label - 0.5) + case)))
                    model = {"seed": seed, "size": size, "repeat": repeat}
                    rows.append(Predictions(arm, "test", ids, label, np.c_[1 - p, p], **model))
    return rows


def better(n):
    return 0.95 - 0.6 * n**-0.4


def worse(n):
    """As `better` with a quarter of the labels."""
    return 0.95 - 0.6 * (n / 4) ** -0.4


def test_labels_saved_are_those_of_the_laws():
    report = analysis.analyse(rows_of({"good": better, "scratch": worse}), CLASSES, SETTINGS)
    curve = report["learning_curve"]
    fit, saved = curve["fit"]["good"], curve["labels_saved"]["good"]
    assert fit["x"][0] == 20 and fit["x"][-1] == pytest.approx(400)
    at = [np.interp(n, fit["x"], fit["y"]) for n in (20, 400)]
    np.testing.assert_allclose(at, [better(20), better(400)], atol=0.04)
    assert all(a <= b <= c for a, b, c in zip(fit["low"], fit["y"], fit["high"], strict=True))
    assert saved["sizes"] == [20, 50, 100, 400]
    assert saved["low"][0] < 80 < saved["high"][0] and 40 < saved["labels"][0] < 160
    assert saved["labels"][-1] == math.inf  # 1,600 labels were not tried
    assert any(
        s.startswith("scratch needs") and s.endswith("of good with 20, by the fitted laws.")
        for s in curve["sentences"]
    )
    assert '"Infinity"' in to_json(report)


def test_the_band_holds_the_variance_of_seeds():
    curves = {"good": better, "scratch": worse}
    narrow, wide = (
        analysis.analyse(rows_of(curves, noise=noise), CLASSES, SETTINGS)["learning_curve"]
        for noise in (0.01, 0.5)
    )

    def width(curve):
        fit = curve["fit"]["good"]
        return np.mean(np.array(fit["high"]) - fit["low"])

    assert width(wide) > 1.5 * width(narrow)


def test_what_has_no_law_says_why():
    two = analysis.analyse(
        rows_of({"good": better, "scratch": worse}, sizes=(20, 50)), CLASSES, SETTINGS
    )["learning_curve"]
    assert two["fit"]["good"] == {"undefined": "2 numbers of labels do not tell it; 3 do"}
    assert two["labels_saved"]["good"]["undefined"] == two["fit"]["good"]["undefined"]
    alone = analysis.analyse(rows_of({"good": better}), CLASSES, SETTINGS)["learning_curve"]
    assert "b" in alone["fit"]["good"] and alone["labels_saved"] == {}


def test_repeated_subsets_are_trainings_of_one_split():
    """The difference's variance over seeds is that of each seed's mean over its subsets."""
    rows = rows_of({"good": better, "scratch": worse}, repeats=(0, 1), noise=0.3)
    curve = analysis.analyse(rows, CLASSES, SETTINGS)["learning_curve"]
    assert curve["sizes"] == [20, 50, 100, 400]
    from sklearn.metrics import roc_auc_score

    by_seed = [
        np.mean(
            [
                sign * 2 * roc_auc_score(p.label, p.probability[:, 1])
                for arm, sign in (("good", 1), ("scratch", -1))
                for p in rows
                if (p.arm, p.size, p.seed) == (arm, 20, seed)
            ]
        )
        for seed in range(3)
    ]
    point = curve["differences"]["good"][0]
    assert point["value"] == pytest.approx(np.mean(by_seed))
    trained = np.std(by_seed, ddof=1) / math.sqrt(3)
    assert point["high"] - point["value"] > 1.96 * trained


def points(kinds, values=(0.05, 0.05, 0.05)):
    return [
        {"size": n, "value": v, "verdict": k}
        for n, v, k in zip((25, 50, 1000), values, kinds, strict=True)
    ]


PAYS, HURTS, SAME, UNKNOWN = "better", "worse", "equivalent", "inconclusive"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            points([PAYS] * 3),
            "transfer pays at every size from 25 to 1,000 labels (+0.050 with 25), {by}.",
        ),
        (
            points([PAYS, UNKNOWN, UNKNOWN]),
            "transfer pays with 25 labels (+0.050 with 25), {by}; {rest}.",
        ),
        (
            points([PAYS, PAYS, UNKNOWN], (0.05, 0.08, 0.01)),
            "transfer pays up to 50 labels (+0.080 with 50), {by}; {rest}.",
        ),
        (
            points([UNKNOWN, PAYS, PAYS]),
            "transfer pays from 50 labels on (+0.050 with 50), {by}; {rest}.",
        ),
        (
            points([PAYS, UNKNOWN, PAYS]),
            "transfer pays with 25 and 1,000 labels (+0.050 with 25), {by}; {rest}.",
        ),
        (
            points([PAYS, SAME, HURTS], (0.05, 0.0, -0.05)),
            "transfer pays with 25 labels (+0.050 with 25), hurts with 1,000 labels (−0.050 with "
            "1,000) and is equivalent within the margin with 50 labels, {by}.",
        ),
        (
            points([UNKNOWN] * 3, [math.nan] * 3),
            "Inconclusive: no difference of transfer is shown at any size from 25 to 1,000 "
            "labels, {by}.",
        ),
    ],
)
def test_a_learning_curve_says_where_the_arm_pays(made, words):
    text = learning.sentence("transfer", "target_only", "auroc", points=made)
    by = "in AUROC against target_only, by the 95 % interval at each size"
    assert text == words.format(by=by, rest="inconclusive at the other sizes")


def test_a_learning_curve_of_a_loss_or_of_one_size():
    options = {"arm": "transfer", "reference": "scratch", "metric": "loss"}
    one = [{"size": 40, "value": -0.05, "verdict": PAYS}]
    assert learning.sentence(**options, points=one).startswith(
        "transfer pays with 40 labels (−0.050 with 40), in log loss against scratch"
    )
    one[0]["verdict"] = UNKNOWN
    assert learning.sentence(**options, points=one).startswith(
        "Inconclusive: no difference of transfer is shown with 40 labels, in log loss"
    )
