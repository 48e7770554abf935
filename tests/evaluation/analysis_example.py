"""Analyses and run records as `analysis.analyse` makes them, for tests of the report.

The numbers are made up: of a realistic size, with intervals from a rule of thumb.
"""

import base64
import io
import math

import numpy as np
from PIL import Image

from medtl.evaluation import metrics
from medtl.evaluation.arm_calibration import CALIBRATED

ARMS = ("transfer", "pooled", "target_only", "scratch")
SHIFT = {"transfer": 1.9, "pooled": 1.35, "target_only": 1.6, "scratch": 0.7}
METRICS = [
    name for name in metrics.ALL_NAMES if name != "kappa_quadratic"
]  # of classes that are no grades
NAN = float("nan")


def estimate(value, half, *, std=None):
    found = {"value": float(value), "low": float(value - half), "high": float(value + half)}
    return found | ({"std": std} if std is not None else {})


def undefined(reason):
    return {"value": NAN, "low": NAN, "high": NAN, "undefined": reason}


def two_class():
    """Four arms, 5 folds x 3 repeats, all sections."""
    rng = np.random.default_rng(0)
    n, classes = 543, ["other", "covid"]
    label = (rng.uniform(size=n) < 0.47).astype(int)
    score = {
        arm: 1 / (1 + np.exp(-(rng.normal(size=n) + shift * (label - 0.5))))
        for arm, shift in SHIFT.items()
    }
    arms = {arm: _arm(rng, label, score[arm], classes, i) for i, arm in enumerate(ARMS)}
    area = {arm: result["metrics"]["auroc"]["value"] for arm, result in arms.items()}
    arms["scratch"]["metrics"]["calibration_slope"] = undefined(
        "repeat 2, fold 3: the probabilities separate the labels"
    )
    arms["scratch"]["calibration"] = {
        "undefined": "val has 3 examples of covid; temperature scaling wants 5"
    }
    return {
        "task": "two_class",
        "classes": classes,
        "positive": "covid",
        "split": "test",
        "n": n,
        "patients": 216,
        "class_counts": {"other": int(np.sum(label == 0)), "covid": int(label.sum())},
        "design": {
            "kind": "cross_validation",
            "folds": 5,
            "repeats": 3,
            "seeds": [0],
            "models": 15,
            "resamples": 2000,
            "level": 0.95,
            "unit": "patients",
            "words": (
                "5-fold cross-validation grouped by patient and stratified by class, "
                "repeated 3 times; one seed."
            ),
        },
        "settings": {"metric": "auroc", "sensitivity": 0.9, "specificity": 0.9, "prevalence": 0.1},
        "metric": "auroc",
        "verdict": {
            "kind": "better",
            "headline": (
                f"Transfer helps: AUROC rises from {area['target_only']:.3f} to "
                f"{area['transfer']:.3f} on the target."
            ),
            "sentences": [
                f"Pooling with the source hurts: AUROC falls to {area['pooled']:.3f} "
                f"(negative transfer)."
            ],
        },
        "arms": arms,
        "reference": "target_only",
        "comparisons": [
            _comparison(arms, "transfer", 0.019, 0.0004, 0.0012, "better"),
            _comparison(arms, "pooled", 0.028, 0.004, 0.008, "worse"),
            _comparison(arms, "scratch", 0.25, 0.08, 0.08, "inconclusive"),
        ],
        "learning_curve": _learning_curve(),
        "errors": [_error(rng, i) for i in range(6)],
        "notes": ["12 examples with the same image as another of the same patient were left out."],
    }


def multi_class(classes=("no", "mild", "moderate", "severe", "proliferative")):
    """Two arms on one test split; grades."""
    rng = np.random.default_rng(1)
    analysis = two_class()
    k = len(classes)
    analysis |= {
        "task": "multi_class",
        "classes": list(classes),
        "positive": None,
        "n": 900,
        "errors": [],
    }
    analysis["class_counts"] = {
        name: int(c) for name, c in zip(classes, rng.integers(40, 400, k), strict=True)
    }
    analysis["design"] |= {
        "kind": "split",
        "folds": 1,
        "repeats": 1,
        "models": 1,
        "words": "One test split, one seed.",
    }
    analysis["arms"] = {arm: analysis["arms"][arm] for arm in ("transfer", "target_only")}
    analysis["comparisons"] = analysis["comparisons"][:1]
    analysis["learning_curve"] = None
    for arm in analysis["arms"].values():
        arm["metrics"]["kappa_quadratic"] = estimate(0.71, 0.06)
        arm["threshold"] = None
        for sets in arm["conformal"].values():
            sets["by_class"] = dict.fromkeys(classes, sets["by_class"]["covid"])
        arm["confusion"] = (rng.integers(0, 20, (k, k)) + 90 * np.eye(k, dtype=int)).tolist()
        curves = arm["curves"]
        arm["curves"] = {
            kind: [{**curves[kind][0], "name": name} for name in classes]
            for kind in ("roc", "pr", "reliability")
        } | {"decision": None}
        for result in arm["metrics"].values():
            result.pop("std", None)
    return analysis


def multi_label():
    """Three diagnoses an example, one of which nobody has."""
    analysis = multi_class(("effusion", "nodule", "hernia"))
    analysis |= {"task": "multi_label", "patients": None}
    analysis["design"] |= {"unit": "examples"}
    for arm in analysis["arms"].values():
        arm["confusion"] = [[[700, 40], [60, 100]], [[800, 20], [50, 30]], [[900, 0], [0, 0]]]
        arm["conformal"] = {"undefined": "conformal sets are for one diagnosis an example"}
        arm["metrics"]["mcc"] = undefined("hernia: there is no positive example")
    return analysis


def minimal():
    """One arm of another tool, without patients or intervals."""
    metrics = {
        "accuracy": {"value": 0.8, "low": None, "high": None},
        "auroc": undefined("only covid is in the labels"),
    }
    return {
        "task": "two_class",
        "classes": ["other", "covid"],
        "positive": "covid",
        "split": "test",
        "n": 5,
        "patients": None,
        "class_counts": {"other": 0, "covid": 5},
        "design": {
            "kind": "split",
            "seeds": [0],
            "models": 1,
            "resamples": 2000,
            "level": 0.95,
            "unit": "examples",
            "words": "",
        },
        "metric": "auroc",
        "verdict": {
            "kind": "no_comparison",
            "headline": "One arm: there is nothing to compare it with.",
            "sentences": [],
        },
        "arms": {"net": {"metrics": metrics, "threshold": None, "confusion": [[0, 0], [1, 4]]}},
        "reference": None,
        "comparisons": [],
        "learning_curve": None,
        "errors": [],
        "notes": [],
    }


def renamed(value, names):
    """The same with other names, wherever one of `names` is a key or a whole string."""
    if isinstance(value, dict):
        return {names.get(k, k): renamed(v, names) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [renamed(v, names) for v in value]
    return names.get(value, value) if isinstance(value, str) else value


def _arm(rng, label, score, classes, i):
    spread = 0.02
    area = _auroc(label, score)
    values = {name: area - rng.uniform(0.02, 0.12) for name in METRICS} | {
        "auroc": area,
        "calibration_slope": 1.12 - 0.1 * i,
    }
    values |= {
        "calibration_intercept": -0.03 * i,
        "brier": 0.12 + 0.02 * i,
        "loss": 0.38 + 0.05 * i,
        "ece": 0.03 + 0.01 * i,
    }
    before = {name: values[name] for name in CALIBRATED}
    better = before | {"ece": 0.02, "calibration_slope": 1.01, "calibration_intercept": 0.004}
    coverage = {"coverage": 0.905, "low": 0.872, "high": 0.931, "n": 543, "size": 1.21 + 0.1 * i}
    by_class = {
        name: {k: coverage[k] for k in ("coverage", "low", "high", "n", "size")} for name in classes
    }
    groups = {
        name: _group(rng, values, n)
        for name, n in (("Wuhan", 301), ("São Paulo", 190), ("Lyon", 52))
    }
    groups["Lyon"]["small"] = "Lyon has 52 examples of 9 patients: too few to tell"
    return {
        "metrics": {
            name: estimate(v, 0.02 if name in metrics.LOWER_IS_BETTER else 0.03, std=spread)
            for name, v in values.items()
        },
        "threshold": {
            "rule": "youden",
            "value": 0.43,
            "chosen_on": "val",
            "words": "youden, chosen on val; from 0.380 to 0.470 over 15 models",
        },
        "confusion": [[240.0 - 12 * i, 49.0 + 12 * i], [31.0 + 9 * i, 223.0 - 9 * i]],
        "curves": _curves(label, score),
        "calibration": {
            "before": before,
            "temperature": better | {"parameters": {"temperature": 1.43}},
            "platt": {"undefined": "in 2 of 15 splits val has fewer than 20 examples"},
            "isotonic": better | {"loss": NAN, "undefined": "fold 2: an example has probability 0"},
        },
        "conformal": {
            "split": {"level": 0.9, "by_class": by_class, **coverage},
            "class_conditional": {"level": 0.9, "by_class": by_class, **coverage},
        },
        "subgroups": {
            "site": {
                "groups": groups,
                "worst": {"group": "Lyon", "value": groups["Lyon"]["metrics"]["auroc"]["value"]},
                "gap": estimate(0.09, 0.05) | {"between": ["Wuhan", "Lyon"]},
            },
            "sex": {
                "groups": {"F": _group(rng, values, 260), "M": _group(rng, values, 283)},
                "worst": None,
                "gap": None,
            },
        },
    }


def _group(rng, values, n):
    half = 1.1 / math.sqrt(n)
    metrics = {name: estimate(v + rng.normal() * half / 2, half) for name, v in values.items()}
    return {"n": n, "patients": n // 3, "metrics": metrics}


def _curves(label, score):
    order = np.argsort(-score)
    hit = np.append(0, np.cumsum(label[order])) / label.sum()
    false = np.append(0, np.cumsum(1 - label[order])) / np.sum(1 - label)
    share = label.mean()
    precision = np.append(1, (hit * share)[1:] / (hit * share + false * (1 - share))[1:])
    bins = np.array_split(np.argsort(score), 10)
    observed = [float(label[b].mean()) for b in bins]
    t = np.linspace(0.01, 0.99, 99)
    benefit = [float(np.mean((score >= x) * (label - (1 - label) * x / (1 - x)))) for x in t]
    everyone = (share - (1 - share) * t / (1 - t)).tolist()
    low, high = np.maximum(hit - 0.05, 0).tolist(), np.minimum(hit + 0.05, 1).tolist()
    reliability = {
        "name": "covid",
        "predicted": [float(score[b].mean()) for b in bins],
        "observed": observed,
    }
    reliability |= {
        "low": [max(o - 0.12, 0) for o in observed],
        "high": [min(o + 0.12, 1) for o in observed],
        "n": [54] * 10,
    }
    decision = {"threshold": t.tolist(), "model": benefit, "all": everyone, "none": [0.0] * len(t)}
    decision |= {"low": [b - 0.03 for b in benefit], "high": [b + 0.03 for b in benefit]}
    return {
        "roc": [
            {"name": "covid", "x": false.tolist(), "y": hit.tolist(), "low": low, "high": high}
        ],
        "pr": [
            {
                "name": "covid",
                "x": hit.tolist(),
                "y": precision.tolist(),
                "prevalence": float(share),
            }
        ],
        "reliability": [reliability],
        "decision": decision,
    }


def _auroc(label, score):
    return float(np.mean(score[label == 1][:, None] > score[label == 0][None, :]))


def _comparison(arms, arm, half, p, p_adjusted, verdict):
    pair = [
        {name: e["value"] for name, e in arms[a]["metrics"].items()} for a in (arm, "target_only")
    ]
    difference = {name: estimate(pair[0][name] - pair[1][name], half) for name in pair[0]}
    for name, found in difference.items():
        if math.isnan(found["value"]):
            difference[name] = undefined("it is undefined for scratch")
    main = difference["auroc"]
    sides = {"low": main["low"], "high": main["high"], "difference": main["value"]}
    words = {
        "better": "is better than",
        "worse": "is worse than",
        "inconclusive": "cannot be distinguished from",
    }[verdict]
    return {
        "arm": arm,
        "reference": "target_only",
        "metric": "auroc",
        "difference": main,
        "p": p,
        "p_adjusted": p_adjusted,
        "method": "patient bootstrap",
        "verdict": verdict,
        "sentence": f"{arm} {words} target_only in AUROC with 216 patients.",
        "tests": [
            {"name": "patient bootstrap", **sides, "p": p, "note": ""},
            {"name": "DeLong", **sides, "p": p * 1.1, "note": "scores averaged over the repeats"},
            {
                "name": "McNemar",
                "difference": 0.02,
                "low": -0.01,
                "high": 0.05,
                "p": 0.2,
                "note": "on accuracy",
            },
            {"name": "corrected resampled t", **sides, "p": p * 2, "note": "15 differences"},
        ],
        "all_metrics": difference,
    }


def _learning_curve():
    sizes = [25, 50, 100, 380]
    level = {
        "transfer": (0.82, 0.85, 0.88, 0.91),
        "target_only": (0.70, 0.79, 0.85, 0.87),
        "scratch": (0.55, 0.6, 0.64, 0.69),
    }
    points = {
        arm: [
            {"size": s, **estimate(v, 0.5 / math.sqrt(s))}
            for s, v in zip(sizes, values, strict=True)
        ]
        for arm, values in level.items()
    }
    differences = [
        {"size": s, "verdict": "better", **estimate(a - b, 0.3 / math.sqrt(s))}
        for s, a, b in zip(sizes, level["transfer"], level["target_only"], strict=True)
    ]
    sentences = ["Transfer with 50 target labels does about as well as the target alone with 100."]
    return {
        "metric": "auroc",
        "sizes": sizes,
        "arms": points,
        "differences": {"transfer": differences},
        "sentences": sentences,
    }


def _error(rng, i):
    grey = np.clip(
        110 + 60 * np.sin(np.linspace(0, 6, 96))[:, None] + rng.normal(size=(96, 96)) * 9, 0, 255
    ).astype(np.uint8)
    warm = np.stack([grey, grey // 2, grey // 3], axis=-1)
    found = {
        "arm": ARMS[i % 4],
        "id": f"patient_{i:03d}/slice_{i}.png",
        "label": "covid",
        "predicted": "other",
    }
    found |= {"probability": 0.99 - 0.01 * i, "patient": f"p{i}", "image": png(grey)}
    return found | ({"saliency": png(warm), "method": "Grad-CAM"} if i < 4 else {})


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
