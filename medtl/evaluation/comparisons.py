"""Every arm against the reference: the paired tests, their correction, and the verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import arm_results, bootstrap, compare, metrics, verdict
from medtl.evaluation.arm_results import Evaluated


@dataclasses.dataclass(frozen=True)
class Compared:
    """A comparison for the verdict, and as metrics.json has it."""

    judged: verdict.Comparison
    as_dict: dict[str, Any]


def with_reference(
    evaluated: Mapping[str, Evaluated],
    resampled: bootstrap.Resampled,
    metric: str,
    reference: str | None,
    *,
    sources: Sequence[str] | None,
    unit: str,
) -> list[Compared]:
    """Compare every other arm with the reference, with Holm's correction over them.

    Args:
      evaluated: the arms.
      resampled: their metrics.
      metric: in which they are compared.
      reference: with which arm; None: there is no second one.
      sources: the arms that learn from the source; None: unknown.
      unit: what was resampled, in the plural.
    """
    if reference is None:
        return []
    other, level = evaluated[reference], resampled.level
    tests = {
        arm: _tests(e, other, resampled, metric) for arm, e in evaluated.items() if arm != reference
    }
    holm = compare.holm([rows[0]["p"] for rows in tests.values()])
    names = [name for name in resampled.names if not name.startswith("calibration_")]
    comparisons = []
    for (arm, rows), p_holm in zip(tests.items(), holm.tolist(), strict=True):
        main = rows[0]
        judged = verdict.judge(
            arm,
            reference,
            metric,
            difference=main["difference"],
            low=main["low"],
            high=main["high"],
            p=main["p"],
            p_holm=p_holm,
            n=resampled.patients,
            standard_error=main["se"],
            unit=unit,
            lower_is_better=metric in metrics.LOWER_IS_BETTER,
            negative_transfer=sources is not None and arm in sources and reference not in sources,
            level=level,
            undefined=main["note"],
        )
        as_dict = {
            "arm": arm,
            "reference": reference,
            "metric": metric,
            "difference": arm_results.estimate(
                main["difference"], main["low"], main["high"], reason=main["note"]
            ),
            "p": main["p"],
            "p_holm": p_holm,
            "method": main["name"],
            "verdict": judged.verdict,
            "sentence": judged.sentence,
            "needed": judged.needed,
            "n_unit": unit,
            "tests": rows,
            "all_metrics": {name: difference(resampled, arm, reference, name) for name in names},
        }
        comparisons.append(Compared(judged, as_dict))
    return comparisons


def difference(
    resampled: bootstrap.Resampled, arm: str, reference: str, name: str
) -> dict[str, Any]:
    """Return the estimate of a paired difference in one metric."""
    m = resampled.names.index(name)
    value, low, high, _ = resampled.difference(arm, reference)
    reasons = (resampled.undefined[a].get(name, "") for a in (arm, reference))
    reason = next(filter(None, reasons), "")
    return arm_results.estimate(value[m], low[m], high[m], reason=reason)


def _tests(
    a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, metric: str
) -> list[dict[str, Any]]:
    """Test one arm against the reference; the verdict follows the first test."""
    m, level = resampled.names.index(metric), resampled.level
    draws = resampled.draws[a.arm][:, m] - resampled.draws[b.arm][:, m]
    estimate = difference(resampled, a.arm, b.arm, metric)
    clustered = a.patients is not None
    row = _row(
        f"{'patient' if clustered else 'example'} bootstrap",
        estimate["value"],
        estimate["low"],
        estimate["high"],
        compare.bootstrap_p(draws) if np.isfinite(estimate["value"]) else math.nan,
        estimate.get("undefined", ""),
    )
    row["se"] = float(np.nanstd(draws, ddof=1)) if np.isfinite(draws).any() else math.nan
    tests = [row]
    if a.several_splits:
        tests.insert(0, _over_folds(a, b, resampled, m))
        row["note"] = row["note"] or (
            "of the models trained here: leaves out what other training sets would change"
        )
    if metric == "auroc" and a.task == "two_class" and a.same_examples:
        tests.append(_delong(a, b, clustered=clustered, level=level))
    if a.task != "multi_label" and a.once:
        tests.append(_mcnemar(a, b, clustered=clustered, level=level))
    return tests


def _delong(a: Evaluated, b: Evaluated, *, clustered: bool, level: float) -> dict[str, Any]:
    first = a.sets[0]
    one, two = ([data.probability[:, e.positive] for data in e.sets] for e in (a, b))
    t = compare.delong(
        first.label == a.positive,
        np.stack(one),
        np.stack(two),
        patient=first.patient if clustered else None,
        level=level,
    )
    note = t.undefined or ("clustered by patient" if clustered else "")
    return _row("DeLong", t.difference, t.low, t.high, t.p, note)


def _mcnemar(a: Evaluated, b: Evaluated, *, clustered: bool, level: float) -> dict[str, Any]:
    """Test the accuracy on the models that together predict each example once."""
    right = [
        np.concatenate([e.sets[i].probability.argmax(1) == e.sets[i].label for i in a.once])
        for e in (a, b)
    ]
    units = np.concatenate([a.sets[i].patient for i in a.once]) if clustered else None
    t = compare.mcnemar(right[0], right[1], patient=units, level=level)
    kind = "clustered by patient" if clustered else "mid-p"
    only = f"{t.n10} right only with {a.arm}, {t.n01} only with {b.arm}"
    note = t.undefined or f"of the accuracy{a.once_words}, {kind}; {only}"
    return _row("McNemar", t.difference, t.low, t.high, t.p if clustered else t.p_mid, note)


def _over_folds(
    a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, m: int
) -> dict[str, Any]:
    """Apply Nadeau and Bengio's test over folds to the means over seeds in each."""
    difference = resampled.by_split[a.arm][:, m] - resampled.by_split[b.arm][:, m]
    folds: dict[Any, list[float]] = {}
    for p, value in zip(a.predictions, difference, strict=True):
        folds.setdefault((p.repeat, p.fold), []).append(float(value))
    means = np.array([np.mean(values) for values in folds.values()])
    t = compare.corrected_resampled_t(means, test_share=a.test_share, level=resampled.level)
    note = t.undefined or f"over {len(folds)} folds, n_test / n_train = {a.test_share:.2f}"
    row = _row("corrected resampled t", t.mean, t.low, t.high, t.p, note)
    return {**row, "se": abs(t.mean / t.t) if t.t else math.nan}


def _row(
    name: str, difference: float, low: float, high: float, p: float, note: str
) -> dict[str, Any]:
    return {"name": name, "difference": difference, "low": low, "high": high, "p": p, "note": note}
