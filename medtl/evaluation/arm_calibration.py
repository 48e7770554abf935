"""One arm's calibration: as trained and after maps fitted on val, as a curve, and per class.

Probabilities are on one scale, so that the examples of all folds, repeats and seeds are put
together; intervals resample the patients. Refuses nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import bootstrap, calibration
from medtl.evaluation.arm_results import NO_VAL, Evaluated, chosen_classes, class_column, estimate
from medtl.evaluation.metrics import EvaluationSet, Options, Scorer, kernels
from medtl.evaluation.smooth import Smooth, expected_ici, smooth

LINE = ("calibration_slope", "calibration_intercept")
CALIBRATED = ("loss", "brier", "ece", *LINE)
_EDGES = np.linspace(0, 1, 21)
_SIMULATED = 2e6  # examples x draws of labels


def calibration_of(
    e: Evaluated,
    classes: Sequence[str],
    options: Options,
    lines: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Measure calibration.

    Args:
      e: the arm.
      classes: the K names.
      options: of the metrics.
      lines: class -> slope and intercept, of `arm_classes.of_classes`; empty for two classes.

    Returns:
      "before" and each kind of map -> the metrics of `CALIBRATED`, the mean over the models, slope
      and intercept of two classes of all examples together; "ece_if_calibrated" is the ECE that
      chance alone gives. "smooth" and "histogram": a list with an entry per class; "o_e" and "ici":
      of the positive class of two, for more the mean ICI; "per_class": slope, intercept, O:E and
      ICI of each of more than two.
    """
    measured = {"before": _measure(e.sets, classes, options), **_after_maps(e, classes, options)}
    drawn: dict[str, list[dict[str, Any]]] = {"smooth": [], "histogram": []}
    summaries: dict[str, dict[str, Any]] = {}
    for k in chosen_classes(e, classes):
        columns = [class_column(data, k) for data in e.sets]
        label, p, patient = (np.concatenate(part) for part in zip(*columns, strict=True))
        once = np.concatenate([columns[i][1] for i in e.once])
        curve = smooth(label, p, patient, level=options.level)
        summaries[classes[k]] = _summary(curve, once)
        if isinstance(curve, Smooth):
            sides = {side: getattr(curve, side).tolist() for side in ("x", "y", "low", "high")}
            drawn["smooth"].append({"name": classes[k], **sides})
        share = len(e.once) / len(e.sets)
        of_outcome = {
            side: (np.histogram(p[rows], _EDGES)[0] * share).tolist()
            for side, rows in (("positive", label), ("negative", ~label))
        }
        drawn["histogram"].append({"name": classes[k], "edges": _EDGES.tolist(), **of_outcome})
    if e.task == "two_class":
        (of_all,) = summaries.values()
        return measured | drawn | of_all
    nan = float("nan")
    reason = "O:E of several classes is under per_class: a mean over them would cancel"
    values = [s["ici"]["value"] for s in summaries.values()]
    mean = estimate(
        float(np.mean(values)), nan, nan, reason="the mean over classes has no interval"
    )
    per_class = {name: {**lines.get(name, {}), **summaries[name]} for name in classes}
    of_all = {"o_e": estimate(nan, nan, nan, reason=reason), "ici": mean}
    return measured | drawn | of_all | {"per_class": per_class}


def _summary(curve: Smooth | str, once: np.ndarray) -> dict[str, Any]:
    if isinstance(curve, str):
        nothing = estimate(*(float("nan"),) * 3, reason=curve)
        return {"o_e": nothing, "ici": dict(nothing)}
    ici = estimate(*curve.ici) | {"if_calibrated": expected_ici(once)}
    return {"o_e": estimate(*curve.o_e), "ici": ici}


def _after_maps(e: Evaluated, classes: Sequence[str], options: Options) -> dict[str, Any]:
    """Measure what each map, fitted on the val of the same model, gives."""
    measured: dict[str, Any] = {}
    for kind in calibration.kinds(e.sets[0].label.ndim == 2, len(classes)):
        maps: list[calibration.Calibrator] = []
        reasons = []
        for v in e.val:
            fitted: calibration.Calibrator | str = NO_VAL
            if v is not None:
                fitted = calibration.fit(kind, v.label, v.probability, classes=classes)
            if isinstance(fitted, str):
                reasons.append(fitted)
            else:
                maps.append(fitted)
        if reasons:
            where = f"in {len(reasons)} of {len(e.val)} splits " if len(e.val) > 1 else ""
            measured[kind] = {"undefined": where + reasons[0]}
            continue
        after = [
            dataclasses.replace(data, probability=m(data.probability))
            for data, m in zip(e.sets, maps, strict=True)
        ]
        measured[kind] = _measure(after, classes, options)
        if len(maps) == 1:
            measured[kind]["parameters"] = dict(maps[0].parameters)
        left = sorted({f"{name}: {reason}" for m in maps for name, reason in m.undefined.items()})
        if left:
            measured[kind]["left_as_it_was"] = left
    return measured


def _measure(
    sets: Sequence[EvaluationSet], classes: Sequence[str], options: Options
) -> dict[str, float]:
    """Return the metrics of `CALIBRATED` that the task has, and the ECE of perfect calibration."""
    options = dataclasses.replace(options, extra={})
    table = []
    for data in sets:
        scorer = Scorer(data, classes=classes, options=options, names=("loss", "brier", "ece"))
        table.append(scorer(np.ones((1, scorer.units)))[0])
    with np.errstate(invalid="ignore"):
        means = kernels.mean_of_defined(np.array(table), axis=0)
    values = dict(zip(scorer.names, means.tolist(), strict=True))
    values["ece_if_calibrated"] = float(np.mean([expected_ece(data, options) for data in sets]))
    line = Scorer(bootstrap.pool(sets), classes=classes, options=options, names=LINE)
    if line.names:
        of_all = line(np.ones((1, line.units)))[0].tolist()
        values |= dict(zip(line.names, of_all, strict=True))
    return values


def expected_ece(data: EvaluationSet, options: Options, *, seed: int = 0) -> float:
    """Return the mean ECE of labels drawn from the probabilities themselves: what chance gives.

    Args:
      data: the probabilities; the labels matter only in that unknown ones are left out.
      options: the bins and the positive class.
      seed: of the draws.
    """
    p = data.probability
    if data.label.ndim == 2:
        columns = [p[~np.isnan(data.label[:, k]), k] for k in range(p.shape[1])]
        with np.errstate(invalid="ignore"):
            each = [_expected_ece(column, options.bins, seed) for column in columns]
            return float(kernels.mean_of_defined(np.array(each), axis=0))
    top = p[:, options.positive] if p.shape[1] == 2 else p.max(axis=1)
    return _expected_ece(top, options.bins, seed)


def _expected_ece(p: np.ndarray, most: int, seed: int) -> float:
    if not len(p):
        return float("nan")
    rng, bins = np.random.default_rng(seed), kernels.number_of_bins(len(p), most)
    column = kernels.equal_mass_bins(p, bins)
    n = np.bincount(column, minlength=bins)
    predicted = np.bincount(column, p, minlength=bins)
    values = []
    for _ in range(int(np.clip(_SIMULATED / len(p), 10, 200))):
        positive = np.bincount(column[rng.random(len(p)) < p], minlength=bins)
        values.append(kernels.expected_calibration_error(n, positive, predicted))
    return float(np.mean(values))
