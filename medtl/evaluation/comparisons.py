"""Every arm against the reference: the difference, the tests beside it, and the verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import arm_results, bootstrap, compare, differences, verdict
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.differences import Difference


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
    margin: float = 0.0,
) -> list[Compared]:
    """Compare every other arm with the reference; see `differences.of_arms`.

    Args:
      evaluated: the arms.
      resampled: their metrics.
      metric: in which they are compared.
      reference: with which arm; None: there is no second one.
      sources: the arms that learn from the source; None: unknown.
      unit: what was resampled, in the plural.
      margin: of equivalence, see `verdict.margin_of`.
    """
    if reference is None:
        return []
    other = evaluated[reference]
    names = [name for name in resampled.names if not name.startswith("calibration_")]
    # A metric without a better side is refused by the verdict.
    by_metric = {
        name: differences.of_arms(evaluated, resampled, reference, name)
        for name in dict.fromkeys([metric, *names])
    }
    value = resampled.value[reference][resampled.names.index(metric)]
    shared: dict[str, Any] = {
        "reference": reference,
        "metric": metric,
        "sample": sample_words(other, resampled.patients, unit),
        "margin": verdict.margin_of(metric, margin, float(value)),
        "level": resampled.level,
    }
    comparisons = []
    for arm, main in by_metric[metric].items():
        harm = sources is not None and arm in sources and reference not in sources
        is_one = differences.one_model(other) or differences.one_model(evaluated[arm])
        judged = verdict.judge(
            _measured(arm, main, negative_transfer=harm, one_model=is_one, **shared)
        )
        as_dict = _as_dict(judged, main, shared["margin"]) | {
            "tests": _tests(evaluated[arm], other, resampled, main, metric),
            "all_metrics": {name: as_estimate(by_metric[name][arm]) for name in names},
        }
        comparisons.append(Compared(judged, as_dict))
    return comparisons


def _measured(arm: str, main: Difference, **shared: Any) -> verdict.Measured:
    same = ("low", "high", "p", "p_adjusted", "undefined")
    numbers = {name: getattr(main, name) for name in same}
    return verdict.Measured(arm=arm, difference=main.value, **numbers, **shared)


def _as_dict(judged: verdict.Comparison, main: Difference, margin: float) -> dict[str, Any]:
    return {
        "arm": judged.arm,
        "reference": judged.reference,
        "metric": judged.metric,
        "difference": as_estimate(main),
        "p": main.p,
        "p_adjusted": main.p_adjusted,
        "method": main.method,
        "margin": margin,
        "verdict": judged.verdict,
        "sentence": judged.sentence,
    }


def sample_words(e: Evaluated, count: int, unit: str) -> str:
    """Write how much the comparison rests on: "118 patients and 3 seeds"."""
    words = f"{count:,} {unit}"
    if e.several_splits:
        return f"{words} in {len({(p.repeat, p.fold) for p in e.predictions})} splits"
    return words if differences.one_model(e) else f"{words} and {len(e.sets)} seeds"


def as_estimate(difference: Difference) -> dict[str, Any]:
    """Return a difference as metrics.json has estimates."""
    return arm_results.estimate(
        difference.value, difference.low, difference.high, reason=difference.undefined
    )


def _tests(
    a: Evaluated, b: Evaluated, resampled: bootstrap.Resampled, main: Difference, metric: str
) -> list[dict[str, Any]]:
    """Test one arm against the reference; the verdict follows the first test."""
    clustered, level = a.patients is not None, resampled.level
    note = main.undefined or main.note
    first = _row(main.method, main.value, main.low, main.high, main.p_adjusted, note)
    tests = [first | {"se": main.se, "df": main.df}]
    if metric == "auroc" and a.task == "two_class" and a.same_examples:
        tests.append(_delong(a, b, clustered=clustered, level=level))
    if a.task not in ("multi_label", "regression") and a.once:
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
    seeds = len(a.sets) > 1
    parts = ["clustered by patient"] * clustered + ["of these trained models"] * seeds
    note = t.undefined or ", ".join(parts)
    return _row("DeLong", t.difference, t.low, t.high, t.p, note)


def _mcnemar(a: Evaluated, b: Evaluated, *, clustered: bool, level: float) -> dict[str, Any]:
    """Test the accuracy on the models that together predict each example once."""
    right = [np.concatenate([e.called(i) == e.sets[i].label for i in a.once]) for e in (a, b)]
    units = np.concatenate([a.sets[i].patient for i in a.once]) if clustered else None
    t = compare.mcnemar(right[0], right[1], patient=units, level=level)
    kind = "clustered by patient" if clustered else "mid-p"
    only = f"{t.n10} right only with {a.arm}, {t.n01} only with {b.arm}"
    note = t.undefined or f"of the accuracy{a.once_words}, {kind}; {only}"
    return _row("McNemar", t.difference, t.low, t.high, t.p if clustered else t.p_mid, note)


def _row(
    name: str, difference: float, low: float, high: float, p: float, note: str
) -> dict[str, Any]:
    return {"name": name, "difference": difference, "low": low, "high": high, "p": p, "note": note}
