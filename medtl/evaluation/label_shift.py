"""Correction of predicted probabilities where the classes are more or less frequent than in val.

Both estimators need no label of the examples that are predicted. They assume label shift: p(x | y)
is that of val, and only p(y) differs. Refuses several diagnoses an example, and models without val.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.intervals import number_patients
from medtl.evaluation.predictions import Predictions

METHODS = {
    "em": "EM (Saerens 2002)",
    "bbse": "black-box shift estimation (Lipton 2018)",
}
_DRAWS = 200
_STEPS, _TOLERANCE = 1000, 1e-7


def em(
    probability: np.ndarray, prior: np.ndarray, *, weight: np.ndarray | None = None
) -> np.ndarray:
    """Return the class priors q that maximize Σ_i log Σ_k q_k p_ik / π_k, by EM.

        q_k <- mean_i [ q_k p_ik / π_k / Σ_j (q_j p_ij / π_j) ]

    Saerens et al. 2002, Neural Computation 14, 21, equation 2.9. The probabilities must be
    calibrated for π. A class with π_k = 0 keeps the prior 0.

    Args:
      probability: float64[N, K], p.
      prior: float64[K], π.
      weight: float64[R, N], how often each of R resamples holds an example; None: once each.

    Returns:
      float64[K], or float64[R, K].

    >>> em(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([0.5, 0.5])).round(3)
    array([0.667, 0.333])
    """
    count = np.ones((1, len(probability))) if weight is None else weight
    count = count / count.sum(axis=1, keepdims=True)
    ratio = np.tile(np.where(prior > 0, 1.0, 0.0), (len(count), 1))
    for _ in range(_STEPS):
        total = np.maximum(ratio @ probability.T, 1e-300)
        new = ratio * ((count / total) @ probability)
        change = np.abs(new - ratio * prior).max()
        ratio = np.where(prior > 0, new / np.where(prior > 0, prior, 1.0), 0.0)
        if change < _TOLERANCE:
            break
    found = ratio * prior
    found /= found.sum(axis=1, keepdims=True)
    return found[0] if weight is None else found


def bbse(
    val_probability: np.ndarray,
    val_label: np.ndarray,
    probability: np.ndarray,
    *,
    val_weight: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Return the class priors under which the model's calls would be as frequent as they are.

        C_jk = p_val(call j, y = k),  μ_j = p(call j),  q_k = π_k max(0, (C⁻¹ μ)_k), normalized

    Lipton et al. 2018, arXiv:1802.03916, proposition 2; the call is the class of the largest
    probability. Classes that val lacks have the prior 0.

    Args:
      val_probability: float64[M, K], of val.
      val_label: int[M].
      probability: float64[N, K], of the examples that are predicted.
      val_weight: float64[M], how often a resample holds each example; None: once.
      weight: float64[N], likewise.

    Returns:
      float64[K]; NaN where C cannot be inverted, as of a model that calls one class only.

    >>> val, label = np.eye(2)[[0, 0, 0, 1, 1, 1, 1, 0]], np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> bbse(val, label, np.eye(2)[[0, 1, 1, 1]])  # 3/4 of each class are called right
    array([0., 1.])
    """
    k = probability.shape[1]
    known = np.bincount(val_label, val_weight, minlength=k) > 0
    joint = np.zeros((k, k))
    one = np.ones(len(val_label)) if val_weight is None else val_weight
    np.add.at(joint, (val_probability.argmax(axis=1), val_label), one / one.sum())
    calls = np.bincount(probability.argmax(axis=1), weight, minlength=k)
    square, calls = joint[np.ix_(known, known)], (calls / calls.sum())[known]
    if np.linalg.cond(square) > 1e6:
        return np.full(k, np.nan)
    found = np.zeros(k)
    found[known] = np.maximum(np.linalg.solve(square, calls), 0.0) * joint.sum(axis=0)[known]
    return found / found.sum() if found.sum() > 0 else np.full(k, np.nan)


def adjusted(probability: np.ndarray, prior: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Return p_ik q_k / π_k, normalized over the classes; a class with π_k = 0 keeps its factor 1.

    Args:
      probability: float64[N, K].
      prior: float64[K], π.
      new: float64[K], q; NaN: the probabilities are returned as they are.

    >>> adjusted(np.array([[0.5, 0.5]]), np.array([0.5, 0.5]), np.array([0.9, 0.1]))
    array([[0.9, 0.1]])
    """
    if np.isnan(new).any():
        return probability
    factor = np.where(prior > 0, new / np.where(prior > 0, prior, 1.0), 1.0)
    scaled = probability * factor
    total = scaled.sum(axis=1, keepdims=True)
    return np.where(total > 0, scaled / np.where(total > 0, total, 1.0), probability)


@dataclasses.dataclass(frozen=True)
class Shift:
    """The priors of one model's examples.

    Attributes:
      prior: float64[K], π, the class frequencies of val.
      value, low, high: float64[K], the estimated priors and their 95 % bootstrap interval, over
        the patients that are predicted and, with BBSE, over those of val.
    """

    prior: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def estimate(method: str, val: Predictions, predicted: Predictions, *, seed: int = 0) -> Shift:
    """Estimate the class priors of predicted examples; their labels are not used.

    Args:
      method: "em" or "bbse".
      val: the same model's predictions of val; rows without a label are left out.
      predicted: of the examples to be corrected.
      seed: of the bootstrap.
    """
    val = val.take(np.flatnonzero(val.labelled))
    counts = np.bincount(val.label, minlength=val.probability.shape[1])
    prior = counts / counts.sum()
    weight = _resamples(predicted, seed)
    if method == "em":
        value = em(predicted.probability, prior)
        draws = em(predicted.probability, prior, weight=weight)
    else:
        value = bbse(val.probability, val.label, predicted.probability)
        draws = np.array(
            [
                bbse(val.probability, val.label, predicted.probability, val_weight=v, weight=w)
                for v, w in zip(_resamples(val, seed + 1), weight, strict=True)
            ]
        )
    defined = draws[~np.isnan(draws).any(axis=1)]
    if np.isnan(value).any() or len(defined) < _DRAWS // 2:
        unknown = np.full(len(prior), np.nan)
        return Shift(prior, value, unknown, unknown)
    low, high = np.quantile(defined, (0.025, 0.975), axis=0)
    return Shift(prior, value, low, high)


def _resamples(p: Predictions, seed: int) -> np.ndarray:
    """Return float64[R, N], how often each resample of the patients holds an example."""
    units, [number] = number_patients([p.id if p.patient is None else p.patient])
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=_DRAWS)[:, number].astype(float)


def arms(
    rows: Sequence[Predictions], methods: Sequence[str]
) -> tuple[list[Predictions], list[dict[str, Any]]]:
    """Return for each arm and method the arm "NAME+METHOD", and the priors that it assumes.

    The priors of a model are those of its examples outside val. Its val is adjusted by the same
    factors, so that thresholds chosen there fit.

    Args:
      rows: the predictions of every arm, split and model.
      methods: of `METHODS`.

    Returns:
      The further predictions; and for each arm, method and model its `Shift` as a dict.

    Raises:
      UserError: an example may have several diagnoses, there is no test, or a model has no
        labelled val.
    """
    key = "config.evaluation.label_shift"
    if methods and any(p.label.ndim == 2 for p in rows):
        raise UserError(f"{key} takes one diagnosis an example, but there are several")
    vals = {(p.arm, p.model): p for p in rows if p.split == "val" and p.labelled.any()}
    predicted = [p for p in rows if p.split == "test"]
    if methods and not predicted:
        raise UserError(f"{key} corrects the probabilities of test, and there is none")
    made: list[Predictions] = []
    found: list[dict[str, Any]] = []
    for method in methods:
        for p in predicted:
            val = vals.get((p.arm, p.model))
            if val is None:
                raise UserError(
                    f"{key} compares with val, but arm {p.arm!r} has no labelled val ({p.where})"
                )
            shift = estimate(method, val, p)
            made += [corrected(part, shift, method) for part in (val, p)]
            found.append(
                {"arm": p.arm, "method": method, "where": p.where, **dataclasses.asdict(shift)}
            )
    return made, found


def corrected(p: Predictions, shift: Shift, method: str) -> Predictions:
    """Return predictions for other class priors, of the arm "NAME+METHOD"."""
    probability = adjusted(p.probability, shift.prior, shift.value)
    return dataclasses.replace(p, arm=f"{p.arm}+{method}", probability=probability)


def notes(found: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> list[str]:
    """Return for each arm and method a sentence with the priors and what they assume.

    Args:
      found: of `arms`; of several models the means are shown.
      classes: the K names.
    """
    by_arm: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in found:
        by_arm.setdefault((entry["arm"], entry["method"]), []).append(entry)
    made = []
    for (arm, method), entries in by_arm.items():
        undefined = sum(bool(np.isnan(e["value"]).any()) for e in entries)
        if undefined:
            made.append(
                f"{arm}+{method}: the class frequencies cannot be estimated for {undefined} of "
                f"{len(entries)} models, whose probabilities are unchanged"
            )
            entries = [e for e in entries if not np.isnan(e["value"]).any()]
        if entries:
            made.append(f"{arm}+{method}: {_frequencies(entries, classes)} by {METHODS[method]}")
    if made:
        made[-1] += (
            "; it assumes that the classes look as in val and differ in their frequency alone"
        )
    return made


def _frequencies(entries: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> str:
    prior, value, low, high = (
        np.mean([e[name] for e in entries], axis=0) for name in ("prior", "value", "low", "high")
    )
    shown = [
        f"{name} {100 * value[k]:.1f} % ({100 * low[k]:.1f} to {100 * high[k]:.1f} %, in val "
        f"{100 * prior[k]:.1f} %)"
        for k, name in enumerate(classes)
    ]
    return f"estimated frequencies {', '.join(shown)}"
