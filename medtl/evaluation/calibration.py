"""Maps from probabilities to calibrated ones: temperature, Platt, vector and isotonic scaling.

They are fitted on val. Where none can be fitted, a reason in words is returned, never a guess: too
few examples, a class that val lacks, or separated labels, for which every scaling that makes the
model surer is better than the last. Refuses probabilities that are not finite or not in 0..1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.checks import check_label, check_probability

KINDS = ("temperature", "platt", "vector", "isotonic")
MIN_EXAMPLES = 20
MIN_PER_CLASS = 5

_EPS = float(np.finfo(np.float32).eps)
_SEPARATED = "the probabilities separate the labels of val, so that no finite scaling is the best"


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A fitted map; call it with probability float[N, K] for the calibrated float64[N, K].

    Attributes:
      kind: one of `KINDS`.
      classes: the K names.
      multi_label: whether each class is a question of its own; otherwise the rows of the result sum
        to 1.
      parameters: ready for JSON. temperature: {"temperature": T}. platt and vector: {"weight": [K],
        "bias": [K]}, for platt with equal weights and biases of opposite sign. isotonic: {"x": K
        lists, "y": K lists}, the corners of each class's broken line. With several labels per
        example every entry is a list over the classes (weight and bias of the logit), None at those
        in `undefined`.
      undefined: class -> why its probability is passed through as it was; only with several labels
        an example.
    """

    kind: str
    classes: tuple[str, ...]
    multi_label: bool
    parameters: Mapping[str, Any]
    undefined: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        probability = np.asarray(probability, np.float64)
        if probability.ndim != 2 or probability.shape[1] != len(self.classes):
            raise UserError(
                f"probability is {list(probability.shape)}; "
                f"the calibrator wants [N, {len(self.classes)}]"
            )
        if not self.multi_label:
            return _apply(self.kind, self.parameters, probability)
        result = probability.copy()
        for k, name in enumerate(self.classes):
            if name not in self.undefined:
                of_label = {key: value[k] for key, value in self.parameters.items()}
                result[:, k] = _apply_label(self.kind, of_label, probability[:, k])
        return result


def kinds(multi_label: bool, k: int) -> tuple[str, ...]:
    """Return the kinds for a task: vector scaling of two classes is Platt's.

    Args:
      multi_label: whether an example may have several labels, each a two-class task of its own.
      k: the number of classes.

    >>> kinds(False, 2), kinds(False, 3)
    (('temperature', 'platt', 'isotonic'), ('temperature', 'vector', 'isotonic'))
    """
    other = "vector" if multi_label or k == 2 else "platt"
    return tuple(kind for kind in KINDS if kind != other)


def fit(
    kind: str, label: np.ndarray, probability: np.ndarray, *, classes: Sequence[str]
) -> Calibrator | str:
    """Fit a map to the labels of val; use it on test.

    The logits are log p, p clipped to [eps, 1 - eps] of float32 as in the log loss of
    `metrics.compute`. They replace the model's logits, from which they differ by a constant
    an example; every kind is blind to that constant.

    - temperature: softmax(log p / T), the one T > 0 of least mean log loss on val (Guo et al. 2017,
      section 4.2). The order of the classes of an example is kept, and for two classes the order of
      the examples, so the AUROC.
    - platt, of two classes: the logistic regression of the label on the logit (Platt 1999).
    - vector, of more classes: softmax(w * z + b) with z = log p less its mean over the classes, the
      weights and biases of least mean log loss, not regularized (Guo et al. 2017, section 4.2,
      whose logits have a free constant, fixed here by the centring). The biases sum to 0.
    - isotonic: each class's probability against the rest by increasing steps, see `_isotonic`.

    With several labels per example, each label is a two-class task of its own over the examples
    where it is known.

    Args:
      kind: one of `kinds` for the task.
      label: int[N], an index into `classes`, -1 where unknown; or float[N, K] of 0, 1 or NaN
        (unknown).
      probability: float[N, K], the model's probabilities on val.
      classes: the K names.

    Returns:
      The map, or the reason why there is none: fewer than `MIN_EXAMPLES` labelled examples; fewer
      than `MIN_PER_CLASS` of a class (for temperature: one class only); labels that are separated;
      or an optimum that would turn the model's order over (T or a weight not above 0). With several
      labels an example a reason only where no label can be fitted.

    Raises:
      UserError: a kind that the task does not have, shapes that do not fit, or probabilities that
        are not finite or not in 0..1.
    """
    label, probability = np.asarray(label), np.asarray(probability, np.float64)
    allowed = kinds(label.ndim == 2, len(classes))
    if kind not in allowed:
        raise UserError(f"calibration {kind!r} is unknown here; it can be {', '.join(allowed)}")
    check_probability(probability, len(label), len(classes))
    check_label(label, len(label), len(classes))
    if label.ndim == 2:
        return _fit_labels(kind, label, probability, classes)
    rows = label >= 0
    fitted = _fit_one(kind, label[rows], probability[rows], classes)
    if isinstance(fitted, str):
        return fitted
    return Calibrator(kind, tuple(classes), False, fitted)


def _fit_labels(
    kind: str, label: np.ndarray, probability: np.ndarray, classes: Sequence[str]
) -> Calibrator | str:
    """Fit the map of each of several labels to the examples where it is known."""
    undefined, parameters = {}, []
    for k, name in enumerate(classes):
        rows = ~np.isnan(label[:, k])
        positive, p = label[rows, k].astype(np.int64), probability[rows, k]
        fitted = _fit_one(kind, positive, np.stack([1 - p, p], axis=1), (f"not {name}", name))
        if isinstance(fitted, str):
            undefined[name] = fitted
        parameters.append({} if isinstance(fitted, str) else _of_label(kind, fitted))
    if len(undefined) == len(classes):
        return "; ".join(f"{name}: {reason}" for name, reason in undefined.items())
    names = next(of_label for of_label in parameters if of_label)
    lists = {key: [of_label.get(key) for of_label in parameters] for key in names}
    return Calibrator(kind, tuple(classes), True, lists, undefined)


def _fit_one(
    kind: str, label: np.ndarray, probability: np.ndarray, classes: Sequence[str]
) -> dict[str, Any] | str:
    """Fit the parameters to known labels, one per example; or return why there are none."""
    n, counts = len(label), np.bincount(label, minlength=len(classes))
    if n < MIN_EXAMPLES:
        return f"val has {n} labelled examples; calibration wants at least {MIN_EXAMPLES}"
    if counts.max() == n:
        return f"every labelled example of val is {classes[int(counts.argmax())]!r}"
    if kind != "temperature" and counts.min() < MIN_PER_CLASS:
        rare = int(counts.argmin())
        has = f"val has {counts[rare]} examples of {classes[rare]!r}"
        return f"{has}; {kind.replace('platt', 'Platt')} scaling wants at least {MIN_PER_CLASS}"
    if kind == "isotonic":
        return _isotonic(label, probability)
    z = _centred(probability)
    fitted = _maximum_likelihood(z, label, _directions(kind, len(classes)))
    if isinstance(fitted, str):
        return fitted
    weight, bias = fitted
    if kind == "temperature":
        if weight[0] <= 1e-6:
            return (
                "the model's probabilities do not rise with the labels of val, so that no "
                "temperature above 0 is the best"
            )
        return {"temperature": float(1 / weight[0])}
    if weight.min() <= 0:
        falling = classes[int(weight.argmin())]
        return (
            f"on val the probability of {falling!r} does not rise with its label, so that scaling "
            "would turn the order over"
        )
    return {"weight": weight.tolist(), "bias": bias.tolist()}


def _directions(kind: str, k: int) -> np.ndarray:
    """Return float64[2K, F], the directions of (weight, bias) that change the likelihood."""
    ones = np.ones((k, 1))
    if kind == "temperature":
        return np.concatenate([ones, np.zeros((k, 1))])
    weights = ones if k == 2 else np.eye(k)
    biases = np.concatenate([np.eye(k - 1), -np.ones((1, k - 1))])
    top = np.concatenate([weights, np.zeros((k, k - 1))], axis=1)
    return np.concatenate([top, np.concatenate([np.zeros((k, weights.shape[1])), biases], axis=1)])


def _maximum_likelihood(
    z: np.ndarray, label: np.ndarray, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | str:
    """Return weight and bias, float64[K] each, of the least log loss of softmax(weight * z + bias).

    Newton's method; the loss is convex. Coordinates are chosen so that its Hessian is the identity
    at the start, where all classes are equally probable; where the labels are separated the loss
    has no minimum, the steps never become small and the Hessian goes to 0.
    """
    k = z.shape[1]
    theta = np.zeros(2 * k)
    start = directions.T @ _derivatives(z, label, theta)[2] @ directions
    values, vectors = np.linalg.eigh(start)
    if values[0] <= 1e-12 * values[-1] or values[-1] == 0:
        return "the model's probabilities on val do not vary enough to be scaled"
    directions = directions @ (vectors / np.sqrt(values))
    here = _derivatives(z, label, theta)
    for _ in range(100):
        loss, gradient, hessian = here
        values, vectors = np.linalg.eigh(directions.T @ hessian @ directions)
        if values[0] <= 1e-12:
            return _SEPARATED
        g = directions.T @ gradient
        step = -vectors @ ((vectors.T @ g) / values)
        size, slack = 1.0, 1e-13 * (1 + loss)
        here = _derivatives(z, label, theta + directions @ step)
        while here[0] > loss + 1e-4 * size * (g @ step) + slack:
            size /= 2
            here = _derivatives(z, label, theta + size * directions @ step)
        theta = theta + size * directions @ step
        if size == 1 and np.abs(step).max() <= 1e-8:
            # Newton's error is squared by a step, so this last one left about 1e-16.
            return theta[:k], theta[k:]
    return _SEPARATED


def _derivatives(
    z: np.ndarray, label: np.ndarray, theta: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean log loss, its gradient float64[2K] and Hessian float64[2K, 2K]."""
    n, k = z.shape
    logits = theta[:k] * z + theta[k:]
    p = _softmax(logits)
    rows = np.arange(n)
    top = logits.max(axis=1)
    loss = np.mean(top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[rows, label])
    residual = p.copy()
    residual[rows, label] -= 1
    gradient = np.concatenate([(residual * z).mean(axis=0), residual.mean(axis=0)])
    both = np.concatenate([z * p, p], axis=1)
    hessian = -both.T @ both / n
    diagonal = np.arange(k)
    hessian[diagonal, diagonal] += (z * z * p).mean(axis=0)
    hessian[diagonal, k + diagonal] += (z * p).mean(axis=0)
    hessian[k + diagonal, diagonal] += (z * p).mean(axis=0)
    hessian[k + diagonal, k + diagonal] += p.mean(axis=0)
    return float(loss), gradient, hessian


def _isotonic(label: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
    """Fit each class's probability against the rest by increasing steps of least squared error.

    The steps are joined by straight lines (Zadrozny & Elkan 2002), then the classes are divided by
    their sum. Steps are held within [1 / (n0 + 2), (n1 + 1) / (n1 + 2)] for n1 examples of the
    class and n0 others, Platt's (1999) targets, so that no probability is 0 or 1 and the log loss
    is finite. Makes ties; below about 1,000 examples it tends to overfit (Niculescu-Mizil & Caruana
    2005).
    """
    from sklearn.isotonic import IsotonicRegression

    x, y = [], []
    for k in range(probability.shape[1]):
        positive = label == k
        low = 1 / (np.sum(~positive) + 2)
        high = (positive.sum() + 1) / (positive.sum() + 2)
        steps = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip").fit(
            probability[:, k], positive.astype(float)
        )
        x.append(steps.X_thresholds_.tolist())
        y.append(steps.y_thresholds_.tolist())
    return {"x": x, "y": y}


def _of_label(kind: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a two-class map of [1 - p, p] into the parameters for one of several labels."""
    if kind == "temperature":
        return dict(parameters)
    if kind == "isotonic":
        return {"x": parameters["x"][1], "y": parameters["y"][1]}
    # The logit of p is z1 - z0 = 2 z1 and the biases are (-b, b).
    return {"weight": parameters["weight"][1], "bias": 2 * parameters["bias"][1]}


def _apply(kind: str, parameters: Mapping[str, Any], probability: np.ndarray) -> np.ndarray:
    if kind == "isotonic":
        corners = zip(probability.T, parameters["x"], parameters["y"], strict=True)
        steps = np.stack([np.interp(p, x, y) for p, x, y in corners], axis=1)
        return steps / steps.sum(axis=1, keepdims=True)
    z = _centred(probability)
    if kind == "temperature":
        return _softmax(z / parameters["temperature"])
    return _softmax(np.asarray(parameters["weight"]) * z + np.asarray(parameters["bias"]))


def _softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import softmax

    return softmax(logits, axis=1)


def _apply_label(kind: str, parameters: Mapping[str, Any], p: np.ndarray) -> np.ndarray:
    """Return float64[N], the calibrated probabilities of one of several labels."""
    from scipy.special import expit

    if kind == "isotonic":
        return np.interp(p, parameters["x"], parameters["y"])
    z = _centred(np.stack([1 - p, p], axis=1))
    logit = z[:, 1] - z[:, 0]
    if kind == "temperature":
        return expit(logit / parameters["temperature"])
    return expit(parameters["weight"] * logit + parameters["bias"])


def _centred(probability: np.ndarray) -> np.ndarray:
    z = np.log(np.clip(probability, _EPS, 1 - _EPS))
    return z - z.mean(axis=1, keepdims=True)
