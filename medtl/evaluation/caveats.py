"""What a reader must know before the numbers: the warnings at the top of a report.

Refuses nothing. Each is one or two sentences, the finding first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import operating
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.predictions import Predictions

FEW_PATIENTS = 20
FEW_OF_A_CLASS = 10
_MEASURED_BELOW = 15
_SMALL = 0.1  # a standard deviation of labels
# `python benchmarks/interval_coverage.py --first-table`: the metrics of the report's first table.
COVERAGE = (87, 100)


def warnings(
    rows: Sequence[Predictions],
    evaluated: Mapping[str, Evaluated],
    classes: Sequence[str],
    split: str,
    rule: str,
) -> list[str]:
    """Return the warnings about an evaluation's sample and threshold, the gravest first.

    Args:
      rows: all predictions, also those without a label.
      evaluated: the arms.
      classes: the K names.
      split: that is evaluated.
      rule: of the operating threshold.
    """
    first = next(iter(evaluated.values()))
    return [
        *_few(first, classes),
        *_unknown_patients(first),
        *_unlabelled(rows, split),
        *_default_threshold(first, rule),
        *_small_unit(first),
    ]


def best_on_val(split: str, *, val_chooses: bool) -> list[str]:
    """Return the warning that the split of a run is also what chose its checkpoints or settings.

    Args:
      split: that is evaluated.
      val_chooses: whether checkpoints or settings are ranked on val.
    """
    if split != "val" or not val_chooses:
        return []
    return [
        "Scores are optimistic: val chose the checkpoint and is also evaluated; use a test split."
    ]


def accepted(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a note for each finding about the data that the config accepts.

    Args:
      cards: the data cards; a note of an accepted finding ends in "(allowed: NAME)", where NAME is
        that of a check, or "allow_columns" for a column that may give the label away.

    >>> accepted([{"notes": ["a.csv: 2 images have a copy: 'x' = 'y' (allowed: copies)"]}])
    ['Accepted by config.data.allow: a.csv: 2 images have a copy.']
    """
    made = []
    for note in (note for card in cards for note in card.get("notes", ())):
        finding, is_accepted, check = note.removesuffix(")").rpartition(" (allowed: ")
        if is_accepted:
            field = check if check == "allow_columns" else "allow"
            without_ids = finding.partition(": '")[0]
            made.append(f"Accepted by config.data.{field}: {without_ids}.")
    return made


def _few(e: Evaluated, classes: Sequence[str]) -> list[str]:
    unit = "patients" if e.patients is not None else "examples"
    made, total = [], _units(e, None)
    if total < FEW_PATIENTS:
        made.append(f"Only {total} {unit}: the intervals are rough.")
        if total < _MEASURED_BELOW:
            made[-1] += (
                " In simulations with 10 patients, 95 % intervals held the truth in "
                f"{COVERAGE[0]} to {COVERAGE[1]} %, by metric."
            )
    is_number = e.task == "regression"
    counts = {} if is_number else {name: _units(e, k) for k, name in enumerate(classes)}
    few = [f"{n} with {name!r}" for name, n in counts.items() if n < FEW_OF_A_CLASS]
    if few:
        made.append(
            f"Only {', '.join(few)} among the {unit}: at least {FEW_OF_A_CLASS} are needed for "
            "intervals that hold."
        )
    return made


def _units(e: Evaluated, k: int | None) -> int:
    """Count the patients, or those with an example of class `k`."""
    some = []
    for i in e.once:
        label, patient = e.sets[i].label, e.sets[i].patient
        is_in = np.ones(len(patient), bool)
        if k is not None:
            is_in = label == k if label.ndim == 1 else label[:, k] == 1
        some.append(patient[is_in])
    return len(np.unique(np.concatenate(some)))


def _unknown_patients(e: Evaluated) -> list[str]:
    if e.patients is not None:
        return []
    return [
        "Patients are unknown: each example counts as a patient of its own, so intervals are far "
        "too short where a patient has several. Give the patient of each example."
    ]


def _unlabelled(rows: Sequence[Predictions], split: str) -> list[str]:
    left: set[str] = set()
    for p in rows:
        if p.split == split:
            left.update(p.id[~p.labelled].tolist())
    if not left:
        return []
    return [f"{len(left):,} examples of {split} without a label are left out."]


def _small_unit(e: Evaluated) -> list[str]:
    """Warn where the report's three decimals are too few for the unit of a predicted number."""
    if e.task != "regression" or e.sets[0].label.std() >= _SMALL:
        return []
    return [
        f"The labels have a standard deviation of {e.sets[0].label.std():.2g}, and the report "
        "three decimals: take a smaller unit, or the numbers in metrics.json."
    ]


def _default_threshold(e: Evaluated, rule: str) -> list[str]:
    if e.task != "two_class":
        return []
    if operating.fixed(rule) is None and not all(map(operating.has_both_classes, e.val)):
        return [
            "The operating threshold is 0.5: there is no val with both classes to choose it on."
        ]
    if rule != operating.DEFAULT:
        return []
    return [
        "The operating threshold is a default, for a sensitivity of 0.9 on val: set "
        "evaluation.threshold to what the use needs."
    ]
