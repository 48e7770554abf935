"""From predictions to all that the report shows: metrics, comparisons, calibration, subgroups.

A metric is the mean over *splits* (the seeds on the test split, or the folds of each repeat) of its
value within each, since the scores of different models are not comparable; intervals resample
patients, the same ones for all arms. Refuses arms that were not evaluated on the same examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from medtl.errors import UserError, nearest
from medtl.evaluation import (
    arm_calibration,
    arm_classes,
    arm_curves,
    arm_quantities,
    arm_results,
    bootstrap,
    caveats,
    comparisons,
    consequences,
    flow,
    groups,
    learning,
    metrics,
    mistakes,
    operating,
    per_patient,
    predictions,
    sites,
    subgroups,
    verdict,
    wording,
)
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.predictions import Predictions
from medtl.examples import is_quantity

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Settings:
    """How predictions are evaluated; see `evaluation` in `medtl.config.default`.

    Attributes:
      metric: in which the arms are compared; one of `metrics.NAMES` or of `extra`.
      extra: name -> metric of the user's; see `metrics.from_config`.
    """

    metric: str = "auroc"
    reference: str = ""
    positive: str = ""
    threshold: str = operating.DEFAULT
    sensitivity: float = metrics.Options.sensitivity
    specificity: float = metrics.Options.specificity
    prevalence: float = metrics.Options.prevalence
    ordinal: bool = metrics.Options.ordinal
    coverage: float = 0.9
    patient_rule: str = "mean"
    resamples: int = metrics.Options.resamples
    margin: float = 0.02
    net_benefit_range: Sequence[float] = (0.05, 0.5)
    mistakes: str = "pictures"
    extra: Mapping[str, metrics.Metric] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        section: Mapping[str, Any],
        *,
        metric: str,
        extra: Mapping[str, metrics.Metric] | None = None,
    ) -> Settings:
        """Take the settings from a config's section `evaluation`.

        Args:
          section: the section.
          metric: in which the arms are compared.
          extra: the user's metrics; None: those that the section names.
        """
        extra = metrics.from_config(section) if extra is None else extra
        names = {field.name for field in dataclasses.fields(cls)} - {"metric", "extra"}
        return cls(metric=metric, extra=extra, **{name: section[name] for name in names})

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as metrics.json has them, with the names of the user's metrics."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"extra": list(self.extra)}

    def options(self, positive: int) -> metrics.Options:
        """Return the options of metrics and bootstrap, without the user's metrics."""
        return metrics.Options(
            positive=positive,
            specificity=self.specificity,
            sensitivity=self.sensitivity,
            prevalence=self.prevalence,
            ordinal=self.ordinal,
            level=LEVEL,
            resamples=self.resamples,
        )


def positive_class(name: str, classes: Sequence[str]) -> int:
    """Return the index of the class that counts as positive of two: the named one, else the second.

    Raises:
      UserError: there is no such class.

    >>> positive_class("", ("well", "ill")), positive_class("well", ("well", "ill"))
    (1, 0)
    """
    if name and name not in classes:
        raise UserError(f"config.evaluation.positive is {name!r}{nearest(name, classes)}")
    return list(classes).index(name) if name else len(classes) - 1


def analyse(
    rows: Sequence[Predictions],
    classes: Sequence[str],
    settings: Settings | None = None,
    *,
    sources: Sequence[str] | None = None,
    errors: Sequence[Mapping[str, Any]] = (),
    name: str = "predictions.csv",
) -> dict[str, Any]:
    """Evaluate every arm on test, else val, else the split there is, and compare them.

    Operating thresholds, calibration maps and conformal quantiles are fitted on val, where that is
    another split, model by model.

    Args:
      rows: the predictions of every arm, split and model.
      classes: the K names.
      settings: how; None: the defaults.
      sources: the arms that learn from the source, for "negative transfer"; None: unknown.
      errors: mistakes with images, see `results`; empty: the most confident ones without.
      name: of the file, for errors.

    Returns:
      The entry "evaluation" of `metrics.json`; docs/evaluation.md describes it.

    Raises:
      UserError: the arms' examples differ, a class, arm or split is absent, or a metric fails.
    """
    settings = settings or Settings()
    split = _split_of(rows)
    _check_metric(settings, is_number=any(is_quantity(p.label) for p in rows))
    notes = predictions.check(rows, classes, split=split, name=name)
    positive = positive_class(settings.positive, classes)
    options = settings.options(positive)
    evaluated = _collect(rows, split, options, settings.threshold)
    first = next(iter(evaluated.values()))
    resampled = bootstrap.resample(
        {arm: e.sets for arm, e in evaluated.items()},
        classes=classes,
        options=dataclasses.replace(options, extra=settings.extra),
    )
    design = _design(evaluated, resampled, split)
    is_two = first.task == "two_class"
    notes = [*flow.notes(rows, split), *notes, *first.notes, *_notes(resampled, settings)]
    return {
        "task": first.task,
        "classes": list(classes),
        "positive": classes[positive] if is_two else None,
        "split": split,
        **first.counts(classes),
        "flow": flow.of_predictions(rows, positive=positive if is_two else None),
        "design": design,
        "settings": settings.as_dict(),
        "metric": settings.metric,
        **_compare(evaluated, resampled, settings, sources, design["unit"]),
        **_arms_and_groups(evaluated, resampled, classes, settings, split),
        "learning_curve": _learning_curve(rows, split, classes, settings, evaluated),
        "errors": _mistakes(errors, evaluated, classes, settings.mistakes),
        "warnings": caveats.warnings(rows, evaluated, classes, split, settings.threshold),
        "planned": None,
        "notes": notes,
    }


def _split_of(rows: Sequence[Predictions]) -> str:
    """Return the split that is reported."""
    chosen = (s for s in ("test", "val") if any(p.split == s for p in rows))
    return next(chosen, rows[0].split if rows else "test")


def _collect(
    rows: Sequence[Predictions], split: str, options: metrics.Options, rule: str
) -> dict[str, Evaluated]:
    """Collect the models that were trained on all labels."""
    evaluated = arm_results.collect(arm_results.of_all_labels(rows), split, options, rule=rule)
    if not any(len(data.label) for e in evaluated.values() for data in e.sets):
        raise UserError(f"no example of split {split} has a label, so nothing can be evaluated")
    return evaluated


def _check_metric(settings: Settings, *, is_number: bool) -> None:
    names = metrics.QUANTITY_CRITERIA if is_number else metrics.NAMES
    choices = (*names, *settings.extra)
    if settings.metric not in choices:
        hint = nearest(settings.metric, choices)
        raise UserError(f"config.checkpoint.metric is {settings.metric!r}{hint}")


def _compare(
    evaluated: Mapping[str, Evaluated],
    resampled: bootstrap.Resampled,
    settings: Settings,
    sources: Sequence[str] | None,
    unit: str,
) -> dict[str, Any]:
    """Compare the arms with the reference: the entries verdict, margin, reference, comparisons."""
    metric, reference = settings.metric, _reference(settings.reference, list(evaluated))
    arm, e = next(iter(evaluated.items()))
    value = resampled.value[reference or arm][resampled.names.index(metric)]
    made = {
        "reference": reference,
        "margin": verdict.margin_of(metric, settings.margin, float(value)),
    }
    if reference is None:
        estimates, sample = arm_results.estimates(resampled, arm), f"{resampled.patients:,} {unit}"
        single = verdict.single(arm, estimates, task=e.task, metric=metric, sample=sample)
        return {"verdict": single, **made, "comparisons": []}
    compared = comparisons.with_reference(
        evaluated,
        resampled,
        metric,
        reference,
        sources=sources,
        unit=unit,
        margin=settings.margin,
    )
    decided = {
        c.judged.arm: consequences.compare(
            evaluated[c.judged.arm],
            evaluated[reference],
            bounds=settings.net_benefit_range,
            prevalence=settings.prevalence,
            level=LEVEL,
        )
        for c in (compared if e.task != "regression" else ())
    }
    return {
        "verdict": verdict.headline([c.judged for c in compared]),
        **made,
        "comparisons": [c.as_dict | decided.get(c.judged.arm, {}) for c in compared],
    }


def _learning_curve(
    rows: Sequence[Predictions],
    split: str,
    classes: Sequence[str],
    settings: Settings,
    evaluated: Mapping[str, Evaluated],
) -> dict[str, Any] | None:
    options = settings.options(next(iter(evaluated.values())).positive)
    return learning.curve(
        rows,
        split,
        classes,
        metric=settings.metric,
        options=_only_main(options, settings),
        rule=settings.threshold,
        margin=settings.margin,
        reference=_reference(settings.reference, list(evaluated)),
    )


def _mistakes(
    errors: Sequence[Mapping[str, Any]],
    evaluated: Mapping[str, Evaluated],
    classes: Sequence[str],
    shown: str,
) -> list[dict[str, Any]]:
    """Return the mistakes to show: with "pictures", with "ids" alone, or "none"."""
    if shown == "none" or next(iter(evaluated.values())).task == "regression":
        return []
    listed = [dict(e) for e in errors] or mistakes.of_first_arm(evaluated, classes)
    return listed if shown == "pictures" else mistakes.without_pictures(listed)


def _only_main(options: metrics.Options, settings: Settings) -> metrics.Options:
    """Add the user's metric only if the arms are compared in it: each costs a call per resample."""
    extra = {name: m for name, m in settings.extra.items() if name == settings.metric}
    return dataclasses.replace(options, extra=extra)


def _per_1000(e: Evaluated, estimates: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the entry per_1000; two classes only."""
    if e.task != "two_class":
        return {}
    prevalence = consequences.prevalence_of(e, settings.prevalence)
    return {"per_1000": consequences.per_1000(estimates, prevalence)}


def _notes(resampled: bootstrap.Resampled, settings: Settings) -> list[str]:
    """Return remarks on the intervals."""
    notes = []
    if resampled.resamples < settings.resamples:
        notes.append(
            f"{resampled.resamples:,} of {settings.resamples:,} resamples were drawn, as there are "
            "many predictions: with another seed the ends of an interval would move by up to a "
            "fifth of a standard error."
        )
    for arm, of_metric in resampled.notes.items():
        by_note: dict[str, list[str]] = {}
        for name, note in of_metric.items():
            by_note.setdefault(note, []).append(name)
        notes += [f"{arm}: {', '.join(names)}: {note}." for note, names in by_note.items()]
    return notes


def _reference(wanted: str, arms: Sequence[str]) -> str | None:
    """Return the arm with which the others are compared."""
    if wanted and wanted not in arms:
        raise UserError(f"config.evaluation.reference is {wanted!r}{nearest(wanted, arms)}")
    if len(arms) < 2:
        return None
    return wanted or next((name for name in ("target_only", "scratch") if name in arms), arms[-1])


def _design(
    evaluated: Mapping[str, Evaluated], resampled: bootstrap.Resampled, split: str
) -> dict[str, Any]:
    """Describe the evaluation's design, also in words."""
    first = next(iter(evaluated.values()))
    folds, repeats = first.number("fold"), first.number("repeat")
    seeds = sorted({p.seed for p in first.predictions if p.seed is not None})
    unit = "patients" if first.patients is not None else "examples"
    column = sites.left_out(first)
    if folds:
        words = f"{folds}-fold cross-validation"
        if column:
            words = f"cross-validation that leaves out one of {folds} values of "
            words += f"{wording.column(column)} at a time"
        words += f", repeated {repeats} times" if repeats > 1 else ""
        if unit == "patients" and first.grouped:
            words += f", grouped by patient: each of the {first.n:,} examples is tested on once"
            words += " a repeat"
    elif first.several_splits:
        words = f"{repeats} splits of the same examples, {first.n:,} tested on in all"
    else:
        words = f"the {split} split: {first.n:,} examples"
    words += f"; {len(seeds)} seeds" if len(seeds) > 1 else ""
    words += f"; intervals from {resampled.resamples:,} resamples of"
    words += f" the {resampled.patients:,} {unit}"
    return {
        "kind": "cross_validation" if folds else "split",
        "folds": folds,
        "left_out": column or None,
        "repeats": repeats,
        "seeds": seeds,
        "models": len(first.sets),
        "resamples": resampled.resamples,
        "level": LEVEL,
        "unit": unit,
        "words": f"{words[0].upper()}{words[1:]}.",
    }


def _arms_and_groups(
    evaluated: Mapping[str, Evaluated],
    resampled: bootstrap.Resampled,
    classes: Sequence[str],
    settings: Settings,
    split: str,
) -> dict[str, Any]:
    """Return the entries "arms", "subgroups", "sites" and "per_patient"."""
    first = next(iter(evaluated.values()))
    options = settings.options(first.positive)
    reference = _reference(settings.reference, list(evaluated))
    main = _only_main(options, settings)
    columns = groups.of_columns(evaluated, classes, main, settings.metric)
    if first.task == "regression":
        arms = {arm: _of_quantity(e, arm, resampled, columns) for arm, e in evaluated.items()}
        of_groups = sites.subgroups_and_sites(columns, evaluated, reference)
        return {"arms": arms, **of_groups, "per_patient": None}
    return {
        "arms": _arms(evaluated, resampled, classes, settings, options, columns),
        **sites.subgroups_and_sites(columns, evaluated, reference),
        "per_patient": per_patient.per_patient(
            evaluated,
            classes,
            main,
            split=split,
            threshold=settings.threshold,
            metric=settings.metric,
            reference=reference,
            rule=settings.patient_rule,
        ),
    }


def _of_quantity(
    e: Evaluated, arm: str, resampled: bootstrap.Resampled, columns: Mapping[str, groups.Grouped]
) -> dict[str, Any]:
    """Return an arm's entry where a number is predicted: what depends on classes is left out."""
    return {
        "metrics": arm_results.estimates(resampled, arm),
        "agreement": arm_quantities.agreement_of(e),
        "subgroups": {column: subgroups.of_arm(of, arm) for column, of in columns.items()},
    }


def _arms(
    evaluated: Mapping[str, Evaluated],
    resampled: bootstrap.Resampled,
    classes: Sequence[str],
    settings: Settings,
    options: metrics.Options,
    columns: Mapping[str, groups.Grouped],
) -> dict[str, Any]:
    by_class = arm_classes.of_classes(evaluated, classes, options)
    arms: dict[str, Any] = {
        arm: {
            "metrics": (estimates := arm_results.estimates(resampled, arm)),
            **_per_1000(e, estimates, settings),
            "threshold": e.threshold_card(settings.threshold),
            "confusion": e.confusion(),
            "curves": arm_curves.curves_of(e, classes, options),
            "per_class": by_class[arm][0],
            "calibration": arm_calibration.calibration_of(e, classes, options, by_class[arm][1]),
            "conformal": arm_results.conformal_sets(e, classes, level=settings.coverage),
            "subgroups": {column: subgroups.of_arm(of, arm) for column, of in columns.items()},
        }
        for arm, e in evaluated.items()
    }
    for results in arms.values():
        by_chance = results["calibration"]["before"]["ece_if_calibrated"]
        results["metrics"]["ece"]["if_calibrated"] = by_chance
    return arms
