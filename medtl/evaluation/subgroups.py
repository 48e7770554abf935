"""Every metric in each group of a column (site, sex, scanner), the group that is served worst, and the gap.

Refuses to rank groups that are too small to be told apart: they are counted, and said to be small.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation import bootstrap, details
from medtl.evaluation.bootstrap import LOWER_IS_BETTER, PROPORTIONS, Cell, Options, Resampled

MOST_GROUPS = 12
UNKNOWN, OTHER = "unknown", "other"


@dataclasses.dataclass(frozen=True)
class _Group:
    """One group: its place and name, its rows in each cell, how many it has, and why it is small."""

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
    arms: Mapping[str, Sequence[Cell]],
    values: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    options: Options,
    metric: str,
    min_patients: int = 10,
    once: Sequence[int] | None = None,
    unit: str = "patients",
) -> dict[str, dict[str, Any]]:
    """The metrics of every arm in each group of one column, with intervals from resampled patients.

    An empty value is the group "unknown". Of more than 12 values the 11 with most examples are kept ("unknown" too, where
    it occurs) and the others joined into "other"; "note" says which.

    A group of fewer than `min_patients` patients has no metrics, and one whose examples are all of one class has those
    that are defined; both carry "small", the reason, and take no part in "worst" and "gap". Nor does a group in which
    `metric` is undefined.

    The gap is the metric's difference between the best and the worst group, at least 0. The largest difference among
    noisy groups is too large on average, even where all groups are the same, and the more so the more and the smaller the
    groups. Its interval is that of the difference between these two named groups, as if they had been named beforehand:
    one that excludes 0 is a hint to be checked on new patients, not a test. Groups are resampled together, so that
    patients with examples in both are taken into account.

    Args:
      arms: name -> its cells; cell i of all arms is of the same examples in the same order.
      values: str[N] for each cell, the column.
      classes: the K names.
      options: of the metrics and the bootstrap.
      metric: in which groups are compared, one of `bootstrap.NAMES`.
      min_patients: below which a group is small.
      once: the indices of the cells that together hold each example once (one seed and repeat), over which examples and
        patients are counted; None: all cells.
      unit: "patients", or "examples" where patients are not known and each example of a cell is numbered as its own.

    Returns:
      arm -> {"groups": {name: {"n", "patients", "metrics": {metric: estimate}, "small"}}, "worst": {"group", "value"} or
      None, "gap": {"value", "low", "high", "between": [best, worst]} or None, "note"}. "patients" is None where they are
      not known; "small" and "note" are there only if there is something to say. Groups are sorted by name, "other" and
      "unknown" last.

    Raises:
      UserError: there are not as many values as examples, or the metric is unknown.
    """
    first = next(iter(arms.values()))
    if [np.shape(v) for v in values] != [(len(cell.label),) for cell in first]:
        found, wanted = [list(np.shape(v)) for v in values], [[len(cell.label)] for cell in first]
        raise UserError(
            f"the column of groups has the shapes {found} over the cells; the examples want {wanted}"
        )
    once = range(len(first)) if once is None else once
    groups, note = _groups(first, values, classes=classes, least=min_patients, once=once, unit=unit)
    large = [group for group in groups if not group.too_few]
    of_groups = {_key(arm, g): _part(cells, g) for arm, cells in arms.items() for g in large}
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
    key = _key(arm, group)
    share = np.array([name in PROPORTIONS for name in resampled.names])
    # What `Resampled.interval` does, but with this group's patients, not those of all groups.
    units = np.where(share, resampled.support[key], group.units)
    value, draws = resampled.value[key], resampled.draws[key]
    low, high = bootstrap.interval(
        value, draws, level=resampled.level, units=units, proportion=share
    )
    found = {}
    for m, name in enumerate(resampled.names):
        cells = resampled.by_cell[key][:, m]
        cells = cells[~np.isnan(cells)]
        std = float(cells.std(ddof=1)) if len(cells) > 1 else None
        reason = resampled.undefined[key].get(name) or resampled.notes[key].get(name, "")
        found[name] = details.estimate(value[m], low[m], high[m], std=std, reason=reason)
    return found


def _gap(
    resampled: Resampled, arm: str, best: _Group, worst: _Group, metric: str, sign: float
) -> dict[str, Any]:
    m, (a, b) = resampled.names.index(metric), (_key(arm, best), _key(arm, worst))
    value = sign * (resampled.value[a][m] - resampled.value[b][m])
    draws = sign * (resampled.draws[a][:, m] - resampled.draws[b][:, m])
    low, high = bootstrap.interval(
        value, draws, level=resampled.level, units=min(best.units, worst.units)
    )
    return details.estimate(value, float(low), float(high)) | {"between": [best.name, worst.name]}


def _groups(
    cells: Sequence[Cell],
    values: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    least: int,
    once: Sequence[int],
    unit: str,
) -> tuple[list[_Group], str]:
    """The groups in their order, and what is to be said about them."""
    names, code = _encode(values)
    name, note = _joined(
        names, np.sum([np.bincount(code[i], minlength=len(names)) for i in once], axis=0)
    )
    order = sorted(set(name), key=lambda g: (g == UNKNOWN, g == OTHER, g))
    number = np.array([order.index(g) for g in name], np.int64)
    group_of = [number[c] for c in code]
    found = []
    for g, title in enumerate(order):
        rows = [np.flatnonzero(own == g) for own in group_of]
        units = len(np.unique(np.concatenate([cells[i].patient[rows[i]] for i in once])))
        few = f"{units} {unit}, fewer than {least}" if units < least else ""
        labels = [cells[i].label[rows[i]] for i in once if cells[i].label.ndim == 1]
        seen = np.unique(np.concatenate(labels)) if labels else np.empty(0, np.int64)
        alone = f"every example is {classes[int(seen[0])]!r}" if len(seen) == 1 else ""
        n, patients = sum(len(rows[i]) for i in once), units if unit == "patients" else None
        found.append(_Group(g, title, rows, n, units, patients, few, alone))
    return found, note


def _encode(values: Sequence[np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """The distinct values of all cells, "" as "unknown", and int64[N] into them for each cell."""
    index: dict[str, int] = {}
    code = []
    for own in values:
        distinct, inverse = np.unique(np.asarray(own, str), return_inverse=True)
        code.append(
            np.array([index.setdefault(str(v) or UNKNOWN, len(index)) for v in distinct], np.int64)[
                inverse
            ]
        )
    return list(index), code


def _joined(names: Sequence[str], count: np.ndarray) -> tuple[list[str], str]:
    """For each value the name of its group, and a sentence where values were joined."""
    if len(names) <= MOST_GROUPS:
        return list(names), ""
    ranking = sorted(range(len(names)), key=lambda i: (names[i] != UNKNOWN, -count[i], names[i]))
    joined = sorted(names[i] for i in ranking[MOST_GROUPS - 1 :])
    away = set(joined)
    listed = ", ".join(map(repr, joined[:5])) + (
        f" and {len(joined) - 5} more" if len(joined) > 5 else ""
    )
    note = f"{len(names)} values; the {len(joined)} with fewest examples are joined into {OTHER!r}: {listed}"
    return [OTHER if name in away else name for name in names], note


def _part(cells: Sequence[Cell], group: _Group) -> list[Cell]:
    return [
        dataclasses.replace(
            cell,
            label=cell.label[rows],
            probability=cell.probability[rows],
            patient=cell.patient[rows],
        )
        for cell, rows in zip(cells, group.rows, strict=True)
    ]


def _key(arm: str, group: _Group) -> str:
    return f"{group.index} {arm}"
