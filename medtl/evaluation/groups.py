"""The groups of a column (site, sex, scanner): their rows and counts, and which are too small.

Groups are resampled together, so that patients with examples in two of them count in both. Refuses
columns that do not fit the examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation import bootstrap
from medtl.evaluation.arm_results import Evaluated, estimate
from medtl.evaluation.bootstrap import Resampled
from medtl.evaluation.metrics import EvaluationSet, Options
from medtl.examples import is_quantity

SITE = "site"
MOST_SITES, MOST_GROUPS = 30, 12  # that are shown one by one
LEAST = 10  # patients of a group, and of each class in it
UNKNOWN, OTHER = "unknown", "other"


@dataclasses.dataclass(frozen=True)
class Group:
    """One group of a column.

    Attributes:
      index, name: its place and its name.
      rows: int64[n], its rows in each evaluation set.
      n: its examples.
      units: its patients; examples where patients are unknown.
      patients: None where they are unknown.
      too_few: why it has no metrics, else "".
      of_a_class: why it is not compared, though it may have metrics, else "".
    """

    index: int
    name: str
    rows: list[np.ndarray]
    n: int
    units: int
    patients: int | None
    too_few: str
    of_a_class: str

    @property
    def small(self) -> str:
        """Why it takes no part in comparisons, else ""."""
        return self.too_few or self.of_a_class


@dataclasses.dataclass(frozen=True)
class Grouped:
    """The groups of a column, and the metrics of every arm in each of them.

    Attributes:
      groups: sorted by name, "other" and "unknown" last.
      resampled: the metrics under `key`; None where every group has too few patients.
      metric: in which groups are compared.
      note: which values were joined, else "".
      disjoint: whether no patient is in two groups.
    """

    groups: list[Group]
    resampled: Resampled | None
    metric: str
    note: str
    disjoint: bool

    @staticmethod
    def key(arm: str, group: Group) -> str:
        """Return the name of an arm in a group, under which `resampled` has its metrics."""
        return f"{group.index} {arm}"

    def compared(self, arm: str) -> list[Group]:
        """Return the groups that are large enough and in which the metric is defined."""
        if self.resampled is None:
            return []
        m = self.resampled.names.index(self.metric)
        return [
            g
            for g in self.groups
            if not g.small and not math.isnan(self.resampled.value[self.key(arm, g)][m])
        ]

    def sample(self, arm: str, groups: Sequence[Group]) -> tuple[np.ndarray, ...]:
        """Return the metric's value f[G], draws f[R, G] and the patients that bear on it f[G]."""
        assert self.resampled is not None
        m, keys = self.resampled.names.index(self.metric), [self.key(arm, g) for g in groups]
        value = np.array([self.resampled.value[k][m] for k in keys])
        draws = np.stack([self.resampled.draws[k][:, m] for k in keys], axis=1)
        units = np.array([max(2.0, float(self.resampled.support[k][m])) for k in keys])
        return value, draws, units

    def estimates(self, arm: str, group: Group) -> dict[str, dict[str, Any]]:
        """Return every metric of an arm in a group; none where it has too few patients."""
        if self.resampled is None or group.too_few:
            return {}
        resampled, key = self.resampled, self.key(arm, group)
        # This group's patients bear on a metric, not those of all groups.
        units = np.where(resampled.is_share, resampled.support[key], group.units)
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


def of_columns(
    evaluated: Mapping[str, Evaluated], classes: Sequence[str], options: Options, metric: str
) -> dict[str, Grouped]:
    """Divide the arms' examples by each column of groups; see `grouped`."""
    first = next(iter(evaluated.values()))
    return {
        column: grouped(
            {arm: e.sets for arm, e in evaluated.items()},
            [p.groups[column] for p in first.predictions],
            classes=classes,
            options=options,
            metric=metric,
            once=first.once,
            unit="patients" if first.patients is not None else "examples",
            most=MOST_SITES if column == SITE else MOST_GROUPS,
        )
        for column in first.columns
    }


def grouped(
    arms: Mapping[str, Sequence[EvaluationSet]],
    values: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    options: Options,
    metric: str,
    once: Sequence[int] | None = None,
    unit: str = "patients",
    most: int | None = MOST_GROUPS,
) -> Grouped:
    """Divide the evaluation sets by a column and resample the metrics of every arm in each group.

    An empty value is the group "unknown". Of more than `most` values those with most examples are
    kept ("unknown" too, where it occurs) and the others joined into "other". A group of fewer than
    10 patients has no metrics; one with fewer than 10 patients of each class is not compared.

    Args:
      arms: name -> its evaluation sets; set i of all arms has the same examples in the same order.
      values: str[N] for each set, the column.
      classes: the K names.
      options: of the metrics and the bootstrap.
      metric: in which groups are compared.
      once: the indices of the sets that together hold each example once (one seed and repeat),
        over which examples and patients are counted; None: all sets.
      unit: "patients", or "examples" where patients are unknown and each example of a set is
        numbered as its own.
      most: groups; None: as many as there are values.

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
    groups, note = _groups(first, values, classes=classes, once=once, unit=unit, most=most)
    parts = {
        Grouped.key(arm, g): _part(sets, g)
        for arm, sets in arms.items()
        for g in groups
        if not g.too_few
    }
    resampled = bootstrap.resample(parts, classes=classes, options=options) if parts else None
    if resampled and metric not in resampled.names:
        raise UserError(
            f"groups cannot be compared in {metric!r}; it can be {', '.join(resampled.names)}"
        )
    patients = len(np.unique(np.concatenate([first[i].patient for i in once])))
    disjoint = sum(g.units for g in groups) == patients
    return Grouped(groups, resampled, metric, note, disjoint)


def _groups(
    sets: Sequence[EvaluationSet],
    values: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    once: Sequence[int],
    unit: str,
    most: int | None,
) -> tuple[list[Group], str]:
    """Return the groups in their order, and a note on joined ones."""
    names, code = _encode(values)
    name, note = _joined(
        names, np.sum([np.bincount(code[i], minlength=len(names)) for i in once], axis=0), most
    )
    order = sorted(set(name), key=lambda g: (g == UNKNOWN, g == OTHER, g))
    number = np.array([order.index(g) for g in name], np.int64)
    group_of = [number[c] for c in code]
    groups = []
    for g, title in enumerate(order):
        rows = [np.flatnonzero(of == g) for of in group_of]
        label = np.concatenate([sets[i].label[rows[i]] for i in once])
        patient = np.concatenate([sets[i].patient[rows[i]] for i in once])
        units = len(np.unique(patient))
        few = f"{units} {unit}, fewer than {LEAST}" if units < LEAST else ""
        patients = units if unit == "patients" else None
        of_a_class = _few_of_a_class(label, patient, classes, unit)
        groups.append(Group(g, title, rows, len(label), units, patients, few, of_a_class))
    return groups, note


def _few_of_a_class(
    label: np.ndarray, patient: np.ndarray, classes: Sequence[str], unit: str
) -> str:
    """Say which class has fewer than 10 patients, or with several labels lacks 10 without it."""
    total = len(np.unique(patient))
    if is_quantity(label):
        return ""
    if label.ndim == 1:
        count = {
            f"are {name!r}": len(np.unique(patient[label == k])) for k, name in enumerate(classes)
        }
        seen = np.unique(label)
        if len(seen) == 1:
            return f"every example is {classes[int(seen[0])]!r}"
    else:
        count = {
            f"are {'' if side else 'not '}{name!r}": len(np.unique(patient[label[:, k] == side]))
            for k, name in enumerate(classes)
            for side in (1, 0)
        }
    words, fewest = min(count.items(), key=lambda item: item[1])
    return f"{fewest} of {total} {unit} {words}, fewer than {LEAST}" if fewest < LEAST else ""


def _encode(values: Sequence[np.ndarray]) -> tuple[list[str], list[np.ndarray]]:
    """Return the distinct values of all sets, "" as "unknown", and int64[N] into them for each."""
    index: dict[str, int] = {}
    code = []
    for column in values:
        distinct, inverse = np.unique(np.asarray(column, str), return_inverse=True)
        codes = [index.setdefault(str(v) or UNKNOWN, len(index)) for v in distinct]
        code.append(np.array(codes, np.int64)[inverse])
    return list(index), code


def _joined(names: Sequence[str], count: np.ndarray, most: int | None) -> tuple[list[str], str]:
    """Return the name of each value's group, and a sentence where values were joined."""
    if most is None or len(names) <= most:
        return list(names), ""
    ranking = sorted(range(len(names)), key=lambda i: (names[i] != UNKNOWN, -count[i], names[i]))
    joined = sorted(names[i] for i in ranking[most - 1 :])
    away = set(joined)
    more = f" and {len(joined) - 5} more" if len(joined) > 5 else ""
    note = (
        f"{len(names)} values; the {len(joined)} with fewest examples are joined into {OTHER!r}: "
        f"{', '.join(map(repr, joined[:5]))}{more}"
    )
    return [OTHER if name in away else name for name in names], note


def _part(sets: Sequence[EvaluationSet], group: Group) -> list[EvaluationSet]:
    return [
        EvaluationSet(d.label[rows], d.probability[rows], d.patient[rows], d.threshold)
        for d, rows in zip(sets, group.rows, strict=True)
    ]
