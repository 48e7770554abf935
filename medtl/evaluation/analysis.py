"""From predictions to everything the report shows: metrics with intervals, arms compared, calibration, subgroups, curves, verdict.

A *cell* is one model's predictions of one evaluation set: a seed on the test split, or a fold of a repeat. A metric is the mean
over the cells of its value within each, since the scores of different models are not comparable; intervals resample patients,
the same ones for all arms. Refuses arms that were not evaluated on the same examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError, nearest
from medtl.evaluation import (
    bootstrap,
    compare,
    curves,
    details,
    metrics,
    predictions,
    scores,
    subgroups,
)
from medtl.evaluation.details import Evaluated
from medtl.evaluation.predictions import Predictions

LEVEL = 0.95
_TWO_RULES = (
    "Accuracy, balanced accuracy, F1 and MCC take the class of the larger probability; sensitivity, specificity, PPV, NPV and the "
    "confusion matrix take the operating threshold."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How predictions are evaluated; see `evaluation` in `medtl.config.default`.

    Attributes:
      metric: in which the arms are compared; one of `metrics.NAMES`.
    """

    metric: str = "auroc"
    reference: str = ""
    positive: str = ""
    threshold: str = "youden"
    sensitivity: float = scores.Options.sensitivity
    specificity: float = scores.Options.specificity
    prevalence: float = scores.Options.prevalence
    ordinal: bool = scores.Options.ordinal
    coverage: float = 0.9
    resamples: int = scores.Options.resamples

    @classmethod
    def of(cls, section: Mapping[str, Any], *, metric: str) -> Settings:
        """From a config's section `evaluation`."""
        names = {field.name for field in dataclasses.fields(cls)} - {"metric"}
        return cls(metric=metric, **{name: section[name] for name in names})


def positive_class(name: str, classes: Sequence[str]) -> int:
    """The index of the class that counts as positive of two: the named one, else the second.

    Raises:
      UserError: there is no such class.
    """
    if name and name not in classes:
        raise UserError(f"config.evaluation.positive is {name!r}{nearest(name, classes)}")
    return list(classes).index(name) if name else len(classes) - 1


def analyse(
    said: Sequence[Predictions],
    classes: Sequence[str],
    settings: Settings | None = None,
    *,
    sources: Sequence[str] | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
    name: str = "predictions.csv",
) -> dict[str, Any]:
    """Evaluates every arm and compares them.

    The split that is reported is test, else val, else the one there is. Operating thresholds, calibration maps and conformal
    quantiles are fitted on val, where that is another split, cell by cell.

    Args:
      said: the predictions of every arm, split and cell.
      classes: the K names.
      settings: how; None: the defaults.
      sources: the arms that learn from the source, whose harm is called negative transfer; None: not known.
      errors: mistakes with images to show, see `results`; empty: the most confident ones are listed without.
      name: of the file, for errors.

    Returns:
      What `metrics.json` holds under "evaluation", made of what JSON has, NaN where something is undefined;
      docs/evaluation.md describes it.

    Raises:
      UserError: the arms were not evaluated on the same examples, or a class, arm or split is not there.
    """
    settings = settings or Settings()
    if settings.metric not in metrics.NAMES:
        raise UserError(
            f"config.checkpoint.metric is {settings.metric!r}{nearest(settings.metric, metrics.NAMES)}"
        )
    split = next(
        (s for s in ("test", "val") if any(p.split == s for p in said)),
        said[0].split if said else "test",
    )
    notes = predictions.check(said, classes, split=split, name=name)
    whole = details.whole(said)
    positive = positive_class(settings.positive, classes)
    options = scores.Options(
        positive=positive,
        specificity=settings.specificity,
        sensitivity=settings.sensitivity,
        prevalence=settings.prevalence,
        ordinal=settings.ordinal,
        level=LEVEL,
        resamples=settings.resamples,
    )
    evaluated = details.collect(whole, split, options, rule=settings.threshold)
    if not any(len(cell.label) for e in evaluated.values() for cell in e.cells):
        raise UserError(f"no example of split {split} has a label, so nothing can be evaluated")
    reference = _reference(settings.reference, list(evaluated))
    resampled = bootstrap.resample(
        {arm: e.cells for arm, e in evaluated.items()}, classes=classes, options=options
    )
    design = _design(evaluated, resampled, split)
    comparisons = _comparisons(evaluated, resampled, settings, reference, sources, design)
    first = next(iter(evaluated.values()))
    return {
        "task": first.task,
        "classes": list(classes),
        "positive": classes[positive] if first.task == "two_class" else None,
        "split": split,
        **first.counts(classes),
        "design": design,
        "settings": dataclasses.asdict(settings),
        "metric": settings.metric,
        "verdict": compare.headline([c.judged for c in comparisons]),
        "arms": _arms(evaluated, resampled, classes, settings, options),
        "reference": reference,
        "comparisons": [c.as_dict for c in comparisons],
        "learning_curve": _learning_curve(said, split, classes, settings, options, reference),
        "errors": list(errors) or details.mistakes(evaluated, classes),
        "notes": [
            *notes,
            *first.notes,
            *_notes(resampled, settings),
            *([_TWO_RULES] if first.task == "two_class" else []),
        ],
    }


def _notes(resampled: bootstrap.Resampled, settings: Settings) -> list[str]:
    """What a reader must know of the intervals."""
    found = []
    if resampled.resamples < settings.resamples:
        found.append(
            f"Of {settings.resamples:,} resamples {resampled.resamples:,} were drawn, as there are many predictions: the ends of an "
            "interval would move by up to a fifth of a standard error with another seed."
        )
    for arm, of_metric in resampled.notes.items():
        by_note: dict[str, list[str]] = {}
        for name, note in of_metric.items():
            by_note.setdefault(note, []).append(name)
        found += [f"{arm}: {', '.join(names)}: {note}." for note, names in by_note.items()]
    return found


def _reference(wanted: str, arms: Sequence[str]) -> str | None:
    """With which arm the others are compared."""
    if wanted and wanted not in arms:
        raise UserError(f"config.evaluation.reference is {wanted!r}{nearest(wanted, arms)}")
    if len(arms) < 2:
        return None
    return wanted or next((name for name in ("target_only", "scratch") if name in arms), arms[-1])


def _design(
    evaluated: Mapping[str, Evaluated], resampled: bootstrap.Resampled, split: str
) -> dict[str, Any]:
    """How it was evaluated, also in words."""
    first = next(iter(evaluated.values()))
    folds, repeats = first.number("fold"), first.number("repeat")
    seeds = sorted({p.seed for p in first.said if p.seed is not None})
    unit = "patients" if first.patients is not None else "examples"
    if folds:
        words = f"{folds}-fold cross-validation" + (
            f", repeated {repeats} times" if repeats > 1 else ""
        )
        if unit == "patients" and first.grouped:
            words += (
                f", grouped by patient: each of the {first.n:,} examples is tested on once a repeat"
            )
    elif repeats > 1:
        words = f"{repeats} splits of the same examples, {first.n:,} tested on in all"
    else:
        words = f"the {split} split: {first.n:,} examples"
    words += f"; {len(seeds)} seeds" if len(seeds) > 1 else ""
    words += (
        f"; intervals from {resampled.resamples:,} resamples of the {resampled.patients:,} {unit}"
    )
    return {
        "kind": "cross_validation" if folds else "split",
        "folds": folds,
        "repeats": repeats,
        "seeds": seeds,
        "cells": len(first.cells),
        "resamples": resampled.resamples,
        "level": LEVEL,
        "unit": unit,
        "words": f"{words[0].upper()}{words[1:]}.",
    }


@dataclasses.dataclass(frozen=True)
class _Compared:
    judged: compare.Comparison
    as_dict: dict[str, Any]


def _comparisons(
    evaluated: Mapping[str, Evaluated],
    resampled: bootstrap.Resampled,
    settings: Settings,
    reference: str | None,
    sources: Sequence[str] | None,
    design: Mapping[str, Any],
) -> list[_Compared]:
    """Every other arm against the reference, with Holm's correction over them."""
    if reference is None:
        return []
    others = [arm for arm in evaluated if arm != reference]
    tests = {
        arm: _tests(evaluated[arm], evaluated[reference], resampled, settings.metric)
        for arm in others
    }
    holm = compare.holm([tests[arm][0]["p"] for arm in others])
    names = [name for name in resampled.names if not name.startswith("calibration_")]
    found = []
    for arm, p_holm in zip(others, holm.tolist(), strict=True):
        main = tests[arm][0]
        judged = compare.judge(
            arm,
            reference,
            settings.metric,
            difference=main["difference"],
            low=main["low"],
            high=main["high"],
            p=main["p"],
            p_holm=p_holm,
            n=resampled.patients,
            standard_error=main["se"],
            unit=design["unit"],
            lower_is_better=settings.metric in scores.LOWER_IS_BETTER,
            negative_transfer=sources is not None and arm in sources and reference not in sources,
            level=LEVEL,
            undefined=main["note"],
        )
        as_dict = {
            "arm": arm,
            "reference": reference,
            "metric": settings.metric,
            "difference": details.estimate(
                main["difference"], main["low"], main["high"], reason=main["note"]
            ),
            "p": main["p"],
            "p_holm": p_holm,
            "method": main["name"],
            "verdict": judged.verdict,
            "sentence": judged.sentence,
            "needed": judged.needed,
            "n_unit": design["unit"],
            "tests": tests[arm],
            "all_metrics": {name: _difference(resampled, arm, reference, name) for name in names},
        }
        found.append(_Compared(judged, as_dict))
    return found


def _difference(
    resampled: bootstrap.Resampled, arm: str, reference: str, name: str
) -> dict[str, Any]:
    """The estimate of a paired difference in one metric."""
    m = resampled.names.index(name)
    value, low, high, _ = resampled.difference(arm, reference)
    reason = next(
        (resampled.undefined[a][name] for a in (arm, reference) if name in resampled.undefined[a]),
        "",
    )
    return details.estimate(value[m], low[m], high[m], reason=reason)


def _tests(
    a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, metric: str
) -> list[dict[str, Any]]:
    """The tests of one arm against the reference; the first is the one that the verdict follows."""
    m = resampled.names.index(metric)
    draws = resampled.draws[a.arm][:, m] - resampled.draws[b.arm][:, m]
    found = _difference(resampled, a.arm, b.arm, metric)
    unit = "patient" if a.patients is not None else "example"
    tests = [
        {
            "name": f"{unit} bootstrap",
            **{name: found[name] for name in ("low", "high")},
            "difference": found["value"],
            "se": float(np.nanstd(draws, ddof=1)) if np.isfinite(draws).any() else math.nan,
            "p": compare.bootstrap_p(draws) if np.isfinite(found["value"]) else math.nan,
            "note": found.get("undefined", ""),
        }
    ]
    if a.several_splits:
        tests.insert(0, _over_folds(a, b, resampled, m))
        tests[1]["note"] = (
            tests[1]["note"]
            or "of the models trained here: leaves out what other training sets would change"
        )
    patient = a.units if a.patients is not None else None
    if metric == "auroc" and a.task == "two_class" and a.same_examples:
        positive = a.cells[0].label == a.positive
        one, two = ([cell.probability[:, e.positive] for cell in e.cells] for e in (a, b))
        t = compare.delong(positive, np.stack(one), np.stack(two), patient=patient, level=LEVEL)
        tests.append(
            _row(
                "DeLong",
                t.difference,
                t.low,
                t.high,
                t.p,
                t.undefined or ("clustered by patient" if patient is not None else ""),
            )
        )
    once = a.once
    if a.task != "multi_label" and once:
        right = [
            np.concatenate([e.cells[i].probability.argmax(1) == e.cells[i].label for i in once])
            for e in (a, b)
        ]
        units = np.concatenate([a.cells[i].patient for i in once]) if patient is not None else None
        n = compare.mcnemar(right[0], right[1], patient=units, level=LEVEL)
        kind = "clustered by patient" if patient is not None else "mid-p"
        only = f"{n.n10} right only with {a.arm}, {n.n01} only with {b.arm}"
        note = n.undefined or f"of the accuracy{a.once_words}, {kind}; {only}"
        tests.append(
            _row(
                "McNemar",
                n.difference,
                n.low,
                n.high,
                n.p if patient is not None else n.p_mid,
                note,
            )
        )
    return tests


def _over_folds(
    a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, m: int
) -> dict[str, Any]:
    """Nadeau and Bengio's test over folds, of the means over seeds in each."""
    difference = resampled.by_cell[a.arm][:, m] - resampled.by_cell[b.arm][:, m]
    folds: dict[Any, list[float]] = {}
    for p, value in zip(a.said, difference, strict=True):
        folds.setdefault((p.repeat, p.fold), []).append(float(value))
    t = compare.corrected_resampled_t(
        np.array([np.mean(values) for values in folds.values()]),
        test_share=a.test_share,
        level=LEVEL,
    )
    note = t.undefined or f"over {len(folds)} folds, n_test / n_train = {a.test_share:.2f}"
    row = _row("corrected resampled t", t.mean, t.low, t.high, t.p, note)
    return {**row, "se": abs(t.mean / t.t) if t.t else math.nan}


def _row(
    name: str, difference: float, low: float, high: float, p: float, note: str
) -> dict[str, Any]:
    return {"name": name, "difference": difference, "low": low, "high": high, "p": p, "note": note}


def _arms(
    evaluated: Mapping[str, Evaluated],
    resampled: bootstrap.Resampled,
    classes: Sequence[str],
    settings: Settings,
    options: scores.Options,
) -> dict[str, Any]:
    first = next(iter(evaluated.values()))
    groups = {
        column: subgroups.subgroups(
            {arm: e.cells for arm, e in evaluated.items()},
            [p.groups[column] for p in first.said],
            classes=classes,
            options=options,
            metric=settings.metric,
            once=first.once,
            unit="patients" if first.patients is not None else "examples",
        )
        for column in first.columns
    }
    return {
        arm: {
            "metrics": details.estimates(resampled, arm),
            "threshold": e.threshold_card(settings.threshold),
            "confusion": e.confusion(),
            "curves": details.drawn(e, classes, options),
            "calibration": details.calibrated(e, classes, options),
            "conformal": details.conformal_sets(e, classes, level=settings.coverage),
            "subgroups": {column: found[arm] for column, found in groups.items()},
        }
        for arm, e in evaluated.items()
    }


def _learning_curve(
    said: Sequence[Predictions],
    split: str,
    classes: Sequence[str],
    settings: Settings,
    options: scores.Options,
    reference: str | None,
) -> dict[str, Any] | None:
    """The metric and the differences at each number of target labels; the whole train split is the last."""
    sizes = sorted({p.size for p in said if p.size is not None})
    if not sizes:
        return None
    untold = any(p.size is None for p in said)
    arms: dict[str, list[dict[str, Any]]] = {}
    differences: dict[str, list[dict[str, Any]]] = {}
    shown: list[int] = []
    for size in [*sizes, *([None] if untold else [])]:
        evaluated = details.collect(
            [p for p in said if p.size == size], split, options, rule=settings.threshold
        )
        resampled = bootstrap.resample(
            {arm: e.cells for arm, e in evaluated.items()}, classes=classes, options=options
        )
        at = size if size is not None else next(iter(evaluated.values())).train_size
        shown.append(at)
        for arm in evaluated:
            found = details.estimates(resampled, arm)[settings.metric]
            arms.setdefault(arm, []).append({"size": at, **found})
            if reference is not None and arm != reference:
                d = _difference(resampled, arm, reference, settings.metric)
                lower = settings.metric in scores.LOWER_IS_BETTER
                verdict = compare.direction(d["low"], d["high"], lower_is_better=lower)
                differences.setdefault(arm, []).append({"size": at, **d, "verdict": verdict})
    sentences = [
        curves.learning_curve_sentence(
            arm,
            reference or "",
            settings.metric,
            sizes=[d["size"] for d in found],
            differences=[(d["value"], d["low"], d["high"]) for d in found],
            lower_is_better=settings.metric in scores.LOWER_IS_BETTER,
        )
        for arm, found in differences.items()
    ]
    return {
        "metric": settings.metric,
        "sizes": shown,
        "arms": arms,
        "differences": differences,
        "sentences": sentences,
    }
