"""A paragraph for "Statistical analysis" of a paper, from what an analysis really did.

A sentence whose method was not used is left out. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medtl import __version__
from medtl.evaluation import wording

Part = Mapping[str, Any]
_TESTS = {
    "corrected resampled t": (
        "the corrected resampled t-test over the folds (Nadeau and Bengio), which allows for "
        "training sets that overlap"
    ),
    "bootstrap and seeds": (
        "a t-test whose standard error combines the bootstrap of the {unit} with the variance of "
        "the difference between seeds (degrees of freedom by Satterthwaite)"
    ),
    "bootstrap": (
        "a t-test with the standard error of the bootstrap of the {unit}; each arm was trained "
        "once, so that the result is about these trained models"
    ),
}
_SCALINGS = {
    "temperature": "temperature",
    "vector": "vector",
    "platt": "Platt",
    "isotonic": "isotonic",
}


def statement(analysis: Part, record: Part | None) -> str:
    """Write the paragraph, in the past tense, as plain text.

    Args:
      analysis: of `analysis.analyse`, or "evaluation" of metrics.json; entries of newer versions
        may be missing.
      record: as in `html.html`; None where the predictions are another tool's.

    Returns:
      Sentences joined by spaces. The page shows them in one element with the heading "Statistical
      analysis", to be copied; names of arms and classes are text of strangers and not escaped.
    """
    parts = (_data, _metric, _intervals, _comparison, _threshold, _calibration, _further, _planned)
    sentences = [sentence for part in parts for sentence in part(analysis)]
    return " ".join([*sentences, _software(record)])


def _data(a: Part) -> Iterator[str]:
    """Say what was evaluated: the examples, the split, the models."""
    design, n = a["design"], wording.count(a["n"])
    who = f"{n} image{'s' if a['n'] != 1 else ''}"
    if a.get("patients") is not None:
        who += f" of {wording.count(a['patients'])} patients"
    left_out = (design.get("left_out") or "").removeprefix("subgroup_")
    seeds = len(design.get("seeds") or ())
    trained = f" with each of {seeds} seeds" if seeds > 1 else ""
    if left_out:
        how = f"in a cross-validation that left out one {left_out} at a time"
    elif design["kind"] == "cross_validation":
        how = f"in a {design['folds']}-fold cross-validation"
        how += f", repeated {design['repeats']} times" if design.get("repeats", 1) > 1 else ""
        strata = "tenths of the label" if a["task"] == "regression" else "class"
        how += f", stratified by {strata} and grouped by patient" if a.get("patients") else ""
    else:
        how = f"on the {a['split']} split"
    yield f"The models were evaluated on {who} {how}."
    if trained:
        yield f"Every model was trained{trained}."
    unlabelled = (a.get("flow") or {}).get("unlabelled")
    if unlabelled:
        what = "image without a label was" if unlabelled == 1 else "images without a label were"
        yield f"{wording.count(unlabelled)} {what} left out."


def _metric(a: Part) -> Iterator[str]:
    name = wording.metric_in_a_sentence(a["metric"])
    primary = f"The primary metric was the {name}"
    if a["metric"] == "auroc":
        primary = "The primary metric was the area under the ROC curve (AUROC)"
    if a["task"] == "two_class":
        primary += f", with {a['positive']} as the positive class"
    elif a["metric"] in ("auroc", "auprc"):
        primary += ", averaged over the classes, each against the rest"
    yield f"{primary}."
    others = [wording.metric_in_a_sentence(m) for m in wording.main_metrics(a) if m != a["metric"]]
    if others:
        yield f"Secondary metrics were {wording.listed(others)}."
    models = a["design"].get("models", 1)
    if models > 1:
        yield f"Metrics were computed for each of the {models} models of an arm and averaged."


def _intervals(a: Part) -> Iterator[str]:
    design, first = a["design"], next(iter(a["arms"].values()))
    if not any(wording.is_known(m.get("low")) for m in first["metrics"].values()):
        return
    unit = design["unit"]
    text = f"{wording.percent(design['level'])} confidence intervals were computed from "
    text += f"{wording.count(design['resamples'])} bootstrap resamples of the {unit}"
    if unit == "patients":
        text += ", whose images stayed together"
    else:
        text += ", as it was unknown which images were of one patient"
    yield f"{text}, with percentiles or, for proportions, with Wilson's interval."


def _comparison(a: Part) -> Iterator[str]:
    compared = [c for c in a.get("comparisons") or () if wording.is_known(c.get("p"))]
    if not compared:
        return
    method, unit = compared[0].get("method") or "", a["design"]["unit"]
    test = next((words for name, words in _TESTS.items() if name in method), method)
    arms = wording.listed([c["arm"] for c in compared])
    who = f"The arm {arms} was" if len(compared) == 1 else f"The arms {arms} were each"
    if test:
        yield f"{who} compared with {a['reference']} by {test.format(unit=unit)}."
    if len(compared) > 1:
        yield (
            "Intervals and p values of these comparisons were simultaneous, by the distribution of "
            "the largest statistic (max-t)."
        )
    margin = a.get("margin")
    if margin:
        name = wording.metric_in_a_sentence(a["metric"])
        yield (
            f"Arms were called equivalent if the interval of the difference was within "
            f"±{margin:g} {name}."
        )
    beside = [t["name"] for t in compared[0].get("tests") or () if t["name"] != method]
    known = [name for name in ("DeLong", "McNemar") if name in beside]
    if known:
        names = [f"{name}'s" for name in known]
        tests = "test was" if len(known) == 1 else "tests were"
        yield f"{wording.listed(names)} {tests} also computed."


def _threshold(a: Part) -> Iterator[str]:
    if a["task"] == "multi_class":
        yield "The class of the largest probability was predicted."
    first = next(iter(a["arms"].values()))
    card = first.get("threshold")
    if not card:
        return
    rule, number = card["rule"], card["rule"].replace(".", "", 1).isdigit()
    goal = "by Youden's index" if rule == "youden" else f"for a {rule.replace('=', ' of ')}"
    if number:
        yield f"The operating threshold was fixed at {rule} beforehand."
    elif card.get("chosen_on"):
        text = f"The operating threshold was chosen {goal} on the validation split"
        yield f"{text} of the same model, and then fixed."
    else:
        yield "The operating threshold was 0.5."
    prevalence = (a.get("settings") or {}).get("prevalence")
    if prevalence and "ppv" in first["metrics"]:
        yield (
            f"PPV and NPV were computed for a prevalence of {wording.percent(prevalence)}, with "
            "intervals by MOVER-R."
        )


def _calibration(a: Part) -> Iterator[str]:
    first = next(iter(a["arms"].values()))
    names = {
        "calibration_slope": "the slope",
        "calibration_intercept": "the intercept of logistic recalibration",
    }
    if a["task"] == "regression":
        names = {
            "calibration_slope": "the slope of the labels on the predictions",
            "calibration_intercept": "the mean difference of labels and predictions",
            "mae": "limits of agreement (Bland and Altman)",
        }
    measured = [words for name, words in names.items() if _is_defined(first["metrics"].get(name))]
    parts = first.get("calibration") or {}
    if parts.get("smooth"):
        measured += ["a curve by logistic regression on a spline", "O:E", "ICI"]
    elif (first.get("curves") or {}).get("reliability"):
        measured.append("calibration curves")
    if measured:
        yield f"Calibration was assessed by {wording.listed(measured)}."
    fitted = [
        words
        for kind, words in _SCALINGS.items()
        if kind in parts and "undefined" not in parts[kind]
    ]
    if fitted:
        yield (
            f"It was measured again after {wording.listed(fitted)} scaling, fitted on the "
            "validation split."
        )


def _is_defined(estimate: Part | None) -> bool:
    return bool(estimate) and wording.is_known((estimate or {}).get("value"))


def _further(a: Part) -> Iterator[str]:
    """Name further analyses: utility, prediction sets, groups, sites, label numbers."""
    first = next(iter(a["arms"].values()))
    if (first.get("curves") or {}).get("decision"):
        yield "Clinical utility was assessed by net benefit (decision curves)."
    sets = first.get("conformal") or {}
    level = next((s.get("level") for s in sets.values() if isinstance(s, Mapping)), None)
    if level:
        yield (
            f"Conformal prediction sets for a coverage of {wording.percent(level)} were fitted on "
            "the validation split."
        )
    columns = [c.removeprefix("subgroup_") for c in first.get("subgroups") or ()]
    if columns:
        tested = " and tested for heterogeneity" if a.get("subgroups") else ""
        yield f"Metrics were computed in the groups of {wording.listed(columns)}{tested}."
    pooled = ((a.get("sites") or {}).get("arms") or {}).values()
    if any(_is_defined(arm.get("pooled")) for arm in pooled):
        yield (
            "Sites were pooled by a random-effects meta-analysis with a prediction interval for a "
            "new site."
        )
    if a.get("per_patient"):
        rule = a["per_patient"].get("rule", "mean")
        yield f"Metrics per patient took the {rule} probability of a patient's images."
    sizes = (a.get("learning_curve") or {}).get("sizes")
    if sizes:
        counts = wording.listed([wording.count(size) for size in sizes])
        yield f"The models were also trained on {counts} labelled images."


def _planned(a: Part) -> Iterator[str]:
    planned = a.get("planned")
    if not planned:
        return
    changed = list(planned.get("changed") or ())
    if changed:
        yield f"Changed after results were seen: {'; '.join(changed)}."
    else:
        yield (
            "Metric, reference, threshold rule, positive class and margin were stated before "
            "training."
        )


def _software(record: Part | None) -> str:
    versions = (record or {}).get("versions") or {}
    names = {"python": "Python", "numpy": "NumPy", "scipy": "SciPy", "jax": "JAX"}
    used = [f"{words} {versions[name]}" for name, words in names.items() if name in versions]
    with_which = f" ({', '.join(used)})" if used else ""
    return f"Analyses were done with medtl {versions.get('medtl', __version__)}{with_which}."
