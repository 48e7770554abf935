"""The flow of participants: how many examples and patients there are, and which are left out.

Counts are of different examples, not of a file's rows: an example that several models predict
counts once. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation.predictions import Predictions
from medtl.examples import known

_ORDER = ("train", "val", "test", "predict")


def of_predictions(rows: Sequence[Predictions], *, positive: int | None = None) -> dict[str, Any]:
    """Count the examples and patients of predictions by split.

    Args:
      rows: of all arms, splits and models.
      positive: the positive class of two; None where there are more or several per example.

    Returns:
      "rows", "labelled" and "unlabelled": different examples; "excluded": for each reason
      {"reason", "rows", "patients"}; "splits": split -> {"examples", "patients",
      "positive_patients"} of the labelled ones. Patients are None where they are unknown. In
      cross-validation an example is in several splits.
    """
    splits = sorted({p.split for p in rows}, key=_ORDER.index)
    counts: dict[str, Any] = {}
    excluded = []
    ids = []
    for split in splits:
        one = _distinct([p for p in rows if p.split == split])
        counts[split] = count(one.id, one.label, one.patient, positive=positive)
        ids.append((one.id, one.labelled))
        if not one.labelled.all():
            excluded.append(_without_label(one))
    all_ids, first = np.unique(np.concatenate([i for i, _ in ids]), return_index=True)
    of_all = int(np.concatenate([labelled for _, labelled in ids])[first].sum())
    return {
        "rows": len(all_ids),
        "labelled": of_all,
        "unlabelled": len(all_ids) - of_all,
        "excluded": excluded,
        "splits": counts,
    }


def count(
    ids: np.ndarray, label: np.ndarray, patient: np.ndarray | None, *, positive: int | None = None
) -> dict[str, Any]:
    """Count the labelled examples, their patients, and the patients with a positive example.

    Args:
      ids: str[N].
      label: int[N], -1 where unknown; or float[N, K] of 0, 1 or NaN (unknown), or float[N].
      patient: str[N]; None where patients are unknown.
      positive: the positive class of two, else None.

    >>> ids, patient = np.array(["a", "b", "c"]), np.array(["p", "p", "q"])
    >>> count(ids, np.array([1, 1, -1]), patient, positive=1)
    {'examples': 2, 'patients': 1, 'positive_patients': 1}
    """
    labelled = known(label)
    of_patients: dict[str, int | None] = {"patients": None, "positive_patients": None}
    if patient is not None:
        of_patients["patients"] = len(np.unique(patient[labelled]))
        if positive is not None and label.ndim == 1:
            of_patients["positive_patients"] = len(np.unique(patient[label == positive]))
    return {"examples": int(labelled.sum()), **of_patients}


def with_data(flow: Mapping[str, Any], card: Mapping[str, Any] | None) -> dict[str, Any]:
    """Add the splits that a run does not predict, as train, from the card of its target's data.

    Args:
      flow: of `of_predictions`.
      card: "data" -> "target" of metrics.json; None: there is none.
    """
    there = (card or {}).get("flow") or {}
    added = {split: entry for split, entry in there.items() if split not in flow["splits"]}
    if not added or not set(flow["splits"]) <= set(there):
        return dict(flow)
    examples = sum(entry["examples"] for entry in added.values())
    unlabelled = [entry for entry in added.values() if entry.get("unlabelled")]
    rows = sum(entry["unlabelled"] for entry in unlabelled)
    more = [
        {"reason": _reason(split), "rows": entry["unlabelled"], "patients": None}
        for split, entry in added.items()
        if entry.get("unlabelled")
    ]
    shown = ("examples", "patients", "positive_patients")
    splits = {s: {name: e[name] for name in shown} for s, e in added.items()} | flow["splits"]
    return {
        "rows": flow["rows"] + examples + rows,
        "labelled": flow["labelled"] + examples,
        "unlabelled": flow["unlabelled"] + rows,
        "excluded": [*more, *flow["excluded"]],
        "splits": {s: splits[s] for s in sorted(splits, key=_ORDER.index)},
    }


def notes(rows: Sequence[Predictions], split: str) -> list[str]:
    """Return sentences on the examples of a split without a label, and without a patient."""
    one = _distinct([p for p in rows if p.split == split])
    made = []
    if not one.labelled.all():
        left = _without_label(one)
        of = "" if left["patients"] is None else f", of {left['patients']:,} patients,"
        few = left["rows"] == 1
        made.append(
            f"{left['rows']:,} of {len(one.id):,} examples of the {split} split{of} "
            f"{'has no label and is' if few else 'have no label and are'} left out."
        )
    alone = int(one.without_patient.sum()) if one.patient is not None else 0
    if alone:
        made.append(
            f"The patient of {alone:,} of {len(one.id):,} examples of the {split} split is "
            "unknown; each counts as a patient of its own, so that intervals may be too short."
        )
    return made


def _distinct(rows: Sequence[Predictions]) -> Predictions:
    """Return each example once."""
    first, *others = rows
    new = [p for p in others if p.id is not first.id and not np.array_equal(p.id, first.id)]
    if not new:
        return first
    patients = [p.patient for p in (first, *new) if p.patient is not None]
    ids, index = np.unique(np.concatenate([p.id for p in (first, *new)]), return_index=True)
    return Predictions(
        first.arm,
        first.split,
        ids,
        np.concatenate([p.label for p in (first, *new)])[index],
        np.empty((len(ids), first.probability.shape[1])),
        patient=np.concatenate(patients)[index] if len(patients) == 1 + len(new) else None,
    )


def _without_label(one: Predictions) -> dict[str, Any]:
    missing = ~one.labelled
    patients = None if one.patient is None else len(np.unique(one.patient[missing]))
    return {"reason": _reason(one.split), "rows": int(missing.sum()), "patients": patients}


def _reason(split: str) -> str:
    return f"no label, {split} split"
