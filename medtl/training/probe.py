"""Linear probes: the convex minimum of a linear head on the features of a backbone.

    minimize over W, b:  Σ_i w_i ℓ(x_i W + b, y_i) + 1 / (2 C) · |W|²

with the softmax cross-entropy (C of two classes as in scikit-learn, for one logit w = 2 W), or the
sigmoid's for several diagnoses an example. A probe is a
classifier like those of scikit-learn, so it can be an arm of its own; as `head_start` it is the
head with which fine-tuning begins (LP-FT, Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from sklearn.utils.validation import has_fit_parameter

from medtl.data import splits
from medtl.errors import UserError
from medtl.training import logistic

GRID = tuple(10.0**k for k in range(-5, 4))


class LinearProbe:
    """A logistic regression at its minimum, C given or chosen by cross-validation inside the data.

    With `C="cv"` the folds are stratified and keep the rows of a patient together; the C with the
    lowest mean loss over the held-out rows is taken, among equals the smallest. No row outside the
    data that `fit` gets plays a part.

    Attributes:
      C: the inverse of the penalty, as in scikit-learn, or "cv".
      grid: the values that "cv" tries.
      folds: their number, less where the rarest class has fewer patients.
      classes_: int[K], the classes, after `fit`.
      coef_: float64[K, D], the kernel; its columns sum to 0 over the classes.
      intercept_: float64[K].
      C_: the C that was taken.

    >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]])
    >>> probe = LinearProbe(C=1.0).fit(x, np.array([0, 0, 1, 1]))
    >>> probe.predict_proba(x).round(2).tolist()
    [[0.88, 0.12], [0.73, 0.27], [0.27, 0.73], [0.12, 0.88]]
    """

    def __init__(
        self,
        *,
        C: float | str = "cv",  # noqa: N803  # as in scikit-learn
        grid: Sequence[float] = GRID,
        folds: int = 5,
    ) -> None:
        """Check the options.

        Raises:
          UserError: C is neither positive nor "cv", a value of the grid is not positive, or there
            are fewer than two folds.
        """
        is_number = type(C) in (int, float) and 0 < float(C) < np.inf
        if not (is_number or C == "cv"):
            raise UserError(f"LinearProbe: C is {C!r}; it must be a number above 0, or 'cv'")
        if not (len(grid) and all(0 < c < np.inf for c in grid)):
            raise UserError(f"LinearProbe: grid is {grid!r}; it must hold numbers above 0")
        if folds < 2:
            raise UserError(f"LinearProbe: folds is {folds}; it must be at least 2")
        self.C, self.grid, self.folds = C, grid, folds

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> LinearProbe:
        """Find the minimum.

        Args:
          x: float[N, D].
          y: int[N] of classes, or float[N, K] of 0, 1 and NaN (unknown).
          sample_weight: float[N]; None: 1.
          groups: str[N], the patients, "" where unknown; None: each row is one of its own.

        Raises:
          UserError: "cv" has a class with a single patient.
        """
        x, y = np.asarray(x, np.float64), np.asarray(y)
        weight = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight)
        mean = x.mean(axis=0)  # the bias is not penalized, so that this moves no minimum
        x, back = _rotated(x - mean)
        self.classes_ = np.unique(y) if y.ndim == 1 else np.arange(y.shape[1])
        grid = sorted(self.grid) if self.C == "cv" else [float(self.C)]
        parts, folds = np.zeros(len(x), int), self.number_of_folds(y, groups)
        if folds:
            parts = splits.parts(y, [1 / folds] * folds, key=(0, 5), patient=groups)
        held_out = [parts == fold for fold in range(folds)]
        rows = np.stack([np.ones(len(x), bool), *(~held for held in held_out)])
        self._is_softmax = y.ndim == 1
        target = y if y.ndim == 2 else (y[:, None] == self.classes_).astype(np.float64)
        # scikit-learn's C of two classes is that of one logit w = 2 W.
        penalty = (2 if self._is_softmax and len(self.classes_) == 2 else 1) / np.array(grid)
        problem = logistic.Problem(
            features=x.astype(np.float32),
            target=target.astype(np.float32),
            kind="sigmoid" if y.ndim == 2 else "softmax",
            part=np.zeros(len(x), int),
            rows=(rows * weight).astype(np.float32),
            scale=np.ones((len(grid), len(rows), 1), np.float32),
            penalty=penalty.astype(np.float32),
        )
        solution = logistic.solve(problem, tolerance=1e-6)
        kernel, bias = solution.kernel.astype(np.float64), solution.bias.astype(np.float64)
        losses = np.zeros(len(grid))
        for r, held in enumerate(held_out, start=1):
            logits = np.einsum("nd,hdk->hnk", x[held], kernel[:, r]) + bias[:, r, None]
            for h, z in enumerate(logits):
                losses[h] += weight[held] @ _losses(z, target[held], self._is_softmax)[0]
        best = int(np.argmin(losses))
        self.C_ = grid[best]
        start = np.concatenate([kernel[best, 0], bias[best, :1]])
        found = _polished(start, x, target, weight, penalty[best], self._is_softmax)
        self.coef_ = (back @ found[:-1]).T
        self.intercept_ = found[-1] - self.coef_ @ mean
        return self

    def number_of_folds(self, y: np.ndarray, groups: np.ndarray | None) -> int:
        """Return the number of folds that choose C; 0 where it is given.

        Raises:
          UserError: a class has a single patient.
        """
        if self.C != "cv" or len(self.grid) < 2:
            return 0
        return min(self.folds, _fewest(np.asarray(y), groups))

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Return the class probabilities float64[N, K]; with several diagnoses one for each."""
        logits = np.asarray(x, np.float64) @ self.coef_.T + self.intercept_
        if not self._is_softmax:
            return expit(logits)
        return softmax(logits, axis=1)


def head(model: Any, classes: int, *, key: str) -> dict[str, dict[str, np.ndarray]]:
    """Return a fitted linear classifier as the parameters of a linear head.

    Args:
      model: with `coef_` [K, D], or [1, D] of two classes, `intercept_` and `classes_`.
      classes: K.
      key: the config's key, for errors.

    Raises:
      UserError: the classifier is not linear, or has not seen every class.
    """
    kernel = np.atleast_2d(getattr(model, "coef_", np.zeros((0, 0))))
    if not kernel.size:
        raise UserError(f"{key}: {type(model).__name__} is not linear: it has no coef_")
    bias = np.broadcast_to(model.intercept_, len(kernel))
    if len(kernel) == 1:  # the logit of the second class against the first
        kernel, bias = np.concatenate([-kernel, kernel]) / 2, np.array([-bias[0], bias[0]]) / 2
    if len(kernel) != classes:
        raise UserError(f"{key}: {len(kernel)} of {classes} classes have examples to learn from")
    return {"logits": {"kernel": kernel.T.astype(np.float32), "bias": bias.astype(np.float32)}}


def fit(
    model: Any, x: np.ndarray, y: np.ndarray, *, weight: np.ndarray, patient: np.ndarray | None
) -> Any:
    """Fit a classifier, with weights and patients where it takes `sample_weight` and `groups`."""
    given: dict[str, Any] = {}
    if np.any(weight != 1) and has_fit_parameter(model, "sample_weight"):
        given["sample_weight"] = weight
    if patient is not None and has_fit_parameter(model, "groups"):
        given["groups"] = patient
    return model.fit(x, y, **given)


def _rotated(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features of at most N columns, and the matrix that takes a kernel back to D rows.

    With fewer rows than columns the minimum is in the span of the rows, and a rotation changes
    neither |W| nor a logit; so 25 labels on 2,048 features cost what 25 features do.
    """
    if len(x) >= x.shape[1]:
        return x, np.eye(x.shape[1])
    left, singular, right = np.linalg.svd(x, full_matrices=False)
    return left * singular, right.T


def _fewest(y: np.ndarray, groups: np.ndarray | None) -> int:
    """Return the number of patients of the rarest class; of several diagnoses, of all rows."""
    if groups is None:
        groups = np.full(len(y), "")
    names = np.where(groups == "", np.char.add("row ", np.arange(len(y)).astype(str)), groups)
    if y.ndim == 2:
        return len(np.unique(names))
    counts = {c: len(np.unique(names[y == c])) for c in np.unique(y)}
    rarest = min(counts, key=lambda c: counts[c])
    if counts[rarest] < 2:
        raise UserError(
            f"LinearProbe(C='cv'): class {rarest} has examples of one patient in the train part, "
            "too few for folds; give C a number"
        )
    return counts[rarest]


def _losses(
    logits: np.ndarray, target: np.ndarray, is_softmax: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses float64[N] and their derivatives by the logits float64[N, K]."""
    if is_softmax:
        normalizer = logsumexp(logits, axis=1, keepdims=True)
        loss = normalizer[:, 0] - np.sum(target * logits, axis=1)
        return loss, np.exp(logits - normalizer) - target
    known = ~np.isnan(target) / np.maximum((~np.isnan(target)).sum(axis=1, keepdims=True), 1)
    target = np.nan_to_num(target)
    values = np.logaddexp(0, logits) - target * logits
    return np.sum(values * known, axis=1), known * (expit(logits) - target)


def _polished(
    start: np.ndarray,
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray,
    penalty: float,
    is_softmax: bool,
) -> np.ndarray:
    """Go from a minimum in float32, [D + 1, K] with the bias last, to that in float64."""

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat.reshape(start.shape)[:-1], flat.reshape(start.shape)[-1]
        loss, slope = _losses(x @ kernel + bias, target, is_softmax)
        slope = weight[:, None] * slope
        gradient = np.concatenate([x.T @ slope + penalty * kernel, slope.sum(axis=0)[None]])
        return weight @ loss + penalty / 2 * np.sum(kernel**2), gradient.ravel()

    options = {"maxiter": 2000, "maxcor": 30, "ftol": 0.0, "gtol": 1e-8 * weight.sum()}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)
