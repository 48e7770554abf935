"""Every metric in each group of a column (site, sex, scanner), the worst group, and the gap.

Refuses to rank groups that are too small to be compared: they are counted and marked as small.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation import bootstrap
from medtl.evaluation.arm_results import estimate
from medtl.evaluation.bootstrap import Resampled
from medtl.evaluation.intervals import interval
from medtl.evaluation.metrics import LOWER_IS_BETTER, EvaluationSet, Options

MOST_GROUPS = 12
UNKNOWN, OTHER = "unknown", "other"


@dataclasses.dataclass(frozen=True)
class _Group:
    """One group: its index and name, its rows in each set, its counts, and why it is small."""

    index: int
    name: str
    rows: list[np.ndarray]
    n: int
    units: int
    patients: int | None
    too_few: str
    one_class: str

    @property
    def small(self) -> str:
        return self.too_few or self.one_class


def subgroups(
    arms: Mapping[str, Sequence[EvaluationSet]],
    values: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    options: Options,
    metric: str,
    min_patients: int = 10,
    once: Sequence[int] | None = None,
    unit: str = "patients",
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of every arm in each group of one column, with bootstrap intervals.

    An empty value is the group "unknown". Of more than 12 values the 11 with most examples are kept
    ("unknown" too, where it occurs) and the others joined into "other"; "note" says which.

    A group of fewer than `min_patients` patients has no metrics, and one whose examples are all of
    one class has those that are defined; both carry "small", the reason, and take no part in
    "worst" and "gap". Nor does a group in which `metric` is undefined.

    The gap is the metric's difference between the best and the worst group, at least 0. The largest
    difference among noisy groups is too large on average, even where all groups are the same, and
    the more so the more and the smaller the groups. Its interval is that of the difference between
    these two named groups, as if they had been named beforehand: one that excludes 0 is a hint to
    be checked on new patients, not a test. Groups are resampled together, so that patients with
    examples in both are taken into account.

    Args:
      arms: name -> its evaluation sets; set i of all arms has the same examples in the same order.
      values: str[N] for each set, the column.
      classes: the K names.
      options: of the metrics and the bootstrap.
      metric: in which groups are compared.
      min_patients: below which a group is small.
      once: the indices of the sets that together hold each example once (one seed and repeat),
        over which examples and patients are counted; None: all sets.
      unit: "patients", or "examples" where patients are unknown and each example of a set is
        numbered as its own.

    Returns:
      arm -> {"groups": {name: {"n", "patients", "metrics": {metric: estimate}, "small"}}, "worst":
      {"group", "value"} or None, "gap": {"value", "low", "high", "between": [best, worst]} or None,
      "note"}. "patients" is None where they are not known; "small" and "note" are there only if
      there is something to say. Groups are sorted by name, "other" and "unknown" last.

    Raises:
      UserError: there are not as many values as examples, or the metric is unknown.
    """
    first = next(iter(arms.values()))
    if [np.shape(v) for v in values] != [(len(data.label),) for data in first]:
        shapes, wanted = [list(np.shape(v)) for v in values], [[len(d.label)] for d in first]
        raise UserError(
            f"the column of groups has the shapes {shapes} over the splits; "
            f"the examples want {wanted}"
        )
    once = range(len(first)) if once is None else once
    groups, note = _groups(first, values, classes=classes, least=min_patients, once=once, unit=unit)
    large = [group for group in groups if not group.too_few]
    of_groups = {_key(arm, g): _part(sets, g) for arm, sets in arms.items() for g in large}
    resampled = (
        bootstrap.resample(of_groups, classes=classes, options=options) if of_groups else None
    )
    if resampled and metric not in resampled.names:
        raise UserError(
            f"groups cannot be compared in {metric!r}; it can be {', '.join(resampled.names)}"
        )
    return {arm: _of_arm(arm, groups, resampled, metric, note) for arm in arms}


def _of_arm(
    arm: str, groups: Sequence[_Group], resampled: Resampled | None, metric: str, note: str
) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    ranked = []
    for group in groups:
        metrics = {} if resampled is None or group.too_few else _estimates(resampled, arm, group)
        entries[group.name] = {"n": group.n, "patients": group.patients, "metrics": metrics}
        if group.small:
            entries[group.name]["small"] = group.small
        elif not math.isnan(metrics[metric]["value"]):
            ranked.append(group)
    worst, gap = None, None
    if resampled is not None and len(ranked) > 1:
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        ranked.sort(key=lambda g: sign * entries[g.name]["metrics"][metric]["value"])
        worst = {
            "group": ranked[0].name,
            "value": entries[ranked[0].name]["metrics"][metric]["value"],
        }
        gap = _gap(resampled, arm, ranked[-1], ranked[0], metric, sign)
    return {"groups": entries, "worst": worst, "gap": gap} | ({"note": note} if note else {})


def _estimates(resampled: Resampled, arm: str, group: _Group) -> dict[str, dict[str, Any]]:
    key, share = _key(arm, group), resampled.is_share
    # This group's patients bear on a metric, not those of all groups.
    units = np.where(share, resampled.support[key], group.units)
    value = resampled.value[key]
    low, high = resampled.interval(key, units)
    estimates = {}
    for m, name in enumerate(resampled.names):
        splits = resampled.by_split[key][:, m]
        splits = splits[~np.isnan(splits)]
        std = float(splits.std(ddof=1)) if len(splits) > 1 else None
        reason = resampled.undefined[key].get(name) or resampled.notes[key].get(name, "")
        estimates[name] = estimate(value[m], low[m], high[m], std=std, reason=reason)
    return estimates


def _gap(
    resampled: Resampled, arm: str, best: _Group, worst: _Group, metric: str, sign: float
) -> dict[str, Any]:
    m, (a, b) = resampled.names.index(metric), (_key(arm, best), _key(arm, worst))
    value = sign * (resampled.value[a][m] - resampled.value[b][m])
    draws = sign * (resampled.draws[a][:, m] - resampled.draws[b][:, m])
    low, high = interval(value, draws, level=resampled.level, units=min(best.units, worst.units))
    return estimate(value, float(low), float(high)) | {"between": [best.name, worst.name]}


def _groups(
    sets: Sequence[EvaluationSet],
    values: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    least: int,
    once: Sequence[int],
    unit: str,
) -> tuple[list[_Group], str]:
    """Return the groups in their order, and a note on joined ones."""
    names, code = _encode(values)
    name, note = _joined(
        names, np.sum([np.bincount(code[i], minlength=len(names)) for i in once], axis=0)
    )
    order = sorted(set(name), key=lambda g: (g == UNKNOWN, g == OTHER, g))
    number = np.array([order.index(g) for g in name], np.int64)
    group_of = [number[c] for c in code]
    groups = []
    for g, title in enumerate(order):
        rows = [np.flatnonzero(of == g) for of in group_of]
        units = len(np.unique(np.concatenate([sets[i].patient[rows[i]] for i in once])))
        few = f"{units} {unit}, fewer than {least}" if units < least else ""
        labels = [sets[i].label[rows[i]] for i in once if sets[i].label.ndim == 1]
        seen = np.unique(np.concatenate(labels)) if labels else np.empty(0, np.int64)
        alone = f"every example is {classes[int(seen[0])]!r}" if len(seen) == 1 else ""
        n, patients = sum(len(rows[i]) for i in once), units if unit == "patients" else None
        groups.append(_Group(g, title, rows, n, units, patients, few, alone))
    return groups, note


def _encode(values: Sequence[np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """Return the distinct values of all sets, "" as "unknown", and int64[N] into them for each."""
    index: dict[str, int] = {}
    code = []
    for column in values:
        distinct, inverse = np.unique(np.asarray(column, str), return_inverse=True)
        codes = [index.setdefault(str(v) or UNKNOWN, len(index)) for v in distinct]
        code.append(np.array(codes, np.int64)[inverse])
    return list(index), code


def _joined(names: Sequence[str], count: np.ndarray) -> tuple[list[str], str]:
    """Return the name of each value's group, and a sentence where values were joined."""
    if len(names) <= MOST_GROUPS:
        return list(names), ""
    ranking = sorted(range(len(names)), key=lambda i: (names[i] != UNKNOWN, -count[i], names[i]))
    joined = sorted(names[i] for i in ranking[MOST_GROUPS - 1 :])
    away = set(joined)
    more = f" and {len(joined) - 5} more" if len(joined) > 5 else ""
    note = (
        f"{len(names)} values; the {len(joined)} with fewest examples are joined into {OTHER!r}: "
        f"{', '.join(map(repr, joined[:5]))}{more}"
    )
    return [OTHER if name in away else name for name in names], note


def _part(sets: Sequence[EvaluationSet], group: _Group) -> list[EvaluationSet]:
    return [
        EvaluationSet(d.label[rows], d.probability[rows], d.patient[rows], d.threshold)
        for d, rows in zip(sets, group.rows, strict=True)
    ]


def _key(arm: str, group: _Group) -> str:
    return f"{group.index} {arm}"
