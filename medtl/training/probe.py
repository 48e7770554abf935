"""Probes: the convex minimum of a linear or a kernel head on the features of a backbone.

    minimize over W, b:  Σ_i w_i ℓ(x_i W + b, y_i) + 1 / (2 C) · |W|²

with the softmax cross-entropy (C of two classes as in scikit-learn, for one logit w = 2 W), or the
sigmoid's for several diagnoses an example. A probe is a
classifier like those of scikit-learn, so it can be an arm of its own; as `head_start` it is the
head with which fine-tuning begins (LP-FT, Kumar et al. 2022, https://arxiv.org/abs/2202.10054).
A kernel probe is linear in a Gaussian kernel's features, and its head does not train further.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from sklearn.utils.validation import has_fit_parameter

from medtl.data import splits
from medtl.errors import UserError
from medtl.models.kernel import KernelHead
from medtl.training import kernels, logistic, own_head

GRID = tuple(10.0**k for k in range(-5, 4))
KERNEL_GRID = GRID[3:]  # a kernel separates what a linear head does not, and needs less penalty


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
            raise UserError(f"{self._name}: C is {C!r}; it must be a number above 0, or 'cv'")
        if not (len(grid) and all(0 < c < np.inf for c in grid)):
            raise UserError(f"{self._name}: grid is {grid!r}; it must hold numbers above 0")
        if folds < 2:
            raise UserError(f"{self._name}: folds is {folds}; it must be at least 2")
        self.C, self.grid, self.folds = C, grid, folds

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _values(self) -> list[float]:
        """The values of C to try, in rising order."""
        return sorted(self.grid) if self.C == "cv" else [float(self.C)]

    @property
    def _settings(self) -> int:
        """The number of settings to choose from."""
        return len(self._values)

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> Self:
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
        labels = _Labels.of(y, sample_weight)
        self.classes_, self._is_softmax = labels.classes, labels.is_softmax
        self._minimize(x, y, labels, self._held_out(y, groups))
        return self

    def _minimize(
        self, x: np.ndarray, y: np.ndarray, labels: _Labels, held_out: Sequence[np.ndarray]
    ) -> None:
        """Choose the settings and set what `predict_proba` reads; arguments are those of `fit`."""
        mean = x.mean(axis=0)  # the bias is not penalized, so that this moves no minimum
        x, back = logistic.rotated(x - mean)
        penalties = labels.penalties(self._values)
        losses, starts = _path(x, labels, penalties, held_out)
        best = int(np.argmin(losses))
        self.C_ = self._values[best]
        minimum = _polished(starts[best], x, labels, penalties[best])
        self.coef_ = (minimum[:-1] if back is None else back @ minimum[:-1]).T
        self.intercept_ = minimum[-1] - self.coef_ @ mean

    def _held_out(self, y: np.ndarray, groups: np.ndarray | None) -> list[np.ndarray]:
        """Return bool[N] for each fold, the rows that it leaves out."""
        folds = self.number_of_folds(y, groups)
        if not folds:
            return []
        parts = splits.parts(y, [1 / folds] * folds, key=(0, 5), patient=groups)
        return [parts == fold for fold in range(folds)]

    def number_of_folds(self, y: np.ndarray, groups: np.ndarray | None) -> int:
        """Return the number of folds that choose the settings; 0 where they are given.

        Raises:
          UserError: a class has a single patient.
        """
        if self._settings < 2:
            return 0
        return min(self.folds, _fewest(np.asarray(y), groups, self._name))

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Return the class probabilities float64[N, K]; with several diagnoses one for each."""
        logits = self._logits(np.asarray(x, np.float64))
        return softmax(logits, axis=1) if self._is_softmax else expit(logits)

    def _logits(self, x: np.ndarray) -> np.ndarray:
        return x @ self.coef_.T + self.intercept_


class KernelProbe(LinearProbe):
    """Kernel logistic regression at its minimum, C and the width chosen inside the data.

        minimize over α, b:  Σ_i w_i ℓ(k(u_i, c) α + b, y_i) + 1 / (2 C) · tr(αᵀ k(c, c) α)

    with the Gaussian kernel k(u, c) = exp(-γ |u - c|²) of features u that are standardized by the
    data's mean and deviation (Zhu & Hastie 2005, J Comput Graph Stat 14, 185, equation 9). The
    centres c are the rows of the data, and above `centres` of them a stratified part. The minimum
    of a fold does not depend on centres among the rows that it leaves out, as they are orthogonal
    to the span of its own rows (the representer theorem); the features' mean and deviation, which
    need no label, are those of all rows.

    Attributes:
      C, grid, folds, classes_, C_: as in `LinearProbe`.
      gammas: the values of γ to choose from, in units of scikit-learn's `gamma="scale"`, which is
        1 / (D variance). The folds choose it together with C, among equals the widest kernel.
      centres: the largest number of centres.
      gamma_: γ in that unit, after `fit`.
      map_: the kernel with its centres, standardized.
      mean_, scale_: float64[D], of the standardization.
      coefficients_: float64[M, K], α.
      intercept_: float64[K].

    >>> x = np.array([[-2.0], [-1.0], [1.0], [2.0]])  # no line separates the outer from the inner
    >>> probe = KernelProbe(C=100.0, gammas=(1.0,)).fit(x, np.array([0, 1, 1, 0]))
    >>> probe.predict_proba(x).argmax(axis=1).tolist()
    [0, 1, 1, 0]
    """

    def __init__(
        self,
        *,
        C: float | str = "cv",  # noqa: N803  # as in scikit-learn
        gammas: Sequence[float] = (0.1, 0.3, 1.0, 3.0),
        grid: Sequence[float] = KERNEL_GRID,
        folds: int = 5,
        centres: int = 1000,
    ) -> None:
        """Check the options.

        Raises:
          UserError: as in `LinearProbe`, a γ is not positive, or there are fewer than two centres.
        """
        super().__init__(C=C, grid=grid, folds=folds)
        if not (isinstance(gammas, Sequence) and gammas and all(0 < g < np.inf for g in gammas)):
            raise UserError(f"KernelProbe: gammas is {gammas!r}; it must hold numbers above 0")
        if type(centres) is not int or centres < 2:
            raise UserError(f"KernelProbe: centres is {centres!r}; it must be at least 2")
        self.gammas, self.centres = gammas, centres

    @property
    def _settings(self) -> int:
        return len(self._values) * len(self.gammas)

    def _minimize(
        self, x: np.ndarray, y: np.ndarray, labels: _Labels, held_out: Sequence[np.ndarray]
    ) -> None:
        self.mean_, self.scale_ = kernels.standardization(x)
        x = (x - self.mean_) / self.scale_
        rows = np.sort(splits.subset_order(y, seed=0)[: self.centres])
        penalties = labels.penalties(self._values)
        lowest = np.inf
        for gamma in sorted(self.gammas):
            made = kernels.GaussianMap.create(x[rows], gamma=gamma)
            features = made.features(x)
            mean = features.mean(axis=0)
            features -= mean
            losses, starts = _path(features, labels, penalties, held_out)
            best = int(np.argmin(losses))
            if not lowest <= losses[best]:  # so that the first is taken even where its loss is NaN
                lowest, self.gamma_, self.map_ = losses[best], gamma, made
                self.C_ = self._values[best]
                chosen, offset = (starts[best], features, labels, penalties[best]), mean
        minimum = _polished(*chosen)
        self.coefficients_ = self.map_.back @ minimum[:-1]
        self.intercept_ = minimum[-1] - offset @ minimum[:-1]

    def _logits(self, x: np.ndarray) -> np.ndarray:
        x = (x - self.mean_) / self.scale_
        return self.map_.kernel(x) @ self.coefficients_ + self.intercept_

    def head_module(self, classes: int) -> KernelHead:
        """Return the head that `head` gives the parameters of."""
        return KernelHead(classes, self.centres)

    def head(self) -> dict[str, np.ndarray]:
        """Return the parameters of `medtl.models.kernel.KernelHead`, padded to its centres."""
        padding = ((0, self.centres - len(self.coefficients_)), (0, 0))
        made = {
            "mean": self.mean_,
            "scale": self.scale_,
            "centres": np.pad(self.map_.centres, padding),
            "gamma": np.asarray(self.map_.gamma),
            "coefficients": np.pad(self.coefficients_, padding),
            "bias": self.intercept_,
        }
        return {name: values.astype(np.float32) for name, values in made.items()}


def head(model: Any, classes: int, *, key: str) -> dict[str, Any]:
    """Return a fitted classifier as the parameters of a linear head, or of its own.

    Args:
      model: with `coef_` [K, D], or [1, D] of two classes, `intercept_` and `classes_`; or
        one with a head of its own, see `own_head`.
      classes: K.
      key: the config's key, for errors.

    Raises:
      UserError: the classifier is not linear, or has not seen every class.
    """
    if own_head.is_own(model):
        _check_classes(len(model.classes_), classes, key)
        return model.head()
    kernel = np.atleast_2d(getattr(model, "coef_", np.zeros((0, 0))))
    if not kernel.size:
        raise UserError(f"{key}: {type(model).__name__} is not linear: it has no coef_")
    bias = np.broadcast_to(model.intercept_, len(kernel))
    if len(kernel) == 1:  # the logit of the second class against the first
        kernel, bias = np.concatenate([-kernel, kernel]) / 2, np.array([-bias[0], bias[0]]) / 2
    _check_classes(len(kernel), classes, key)
    return {"logits": {"kernel": kernel.T.astype(np.float32), "bias": bias.astype(np.float32)}}


def _check_classes(present: int, classes: int, key: str) -> None:
    if present != classes:
        raise UserError(f"{key}: {present} of {classes} classes have examples to learn from")


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


@dataclasses.dataclass(frozen=True)
class _Labels:
    """What the rows teach: float64[N, K] targets, float64[N] weights, and the classes int[K]."""

    target: np.ndarray
    weight: np.ndarray
    classes: np.ndarray
    is_softmax: bool

    @classmethod
    def of(cls, y: np.ndarray, weight: np.ndarray | None) -> _Labels:
        weight = np.ones(len(y)) if weight is None else np.asarray(weight)
        if y.ndim == 2:
            return cls(y, weight, np.arange(y.shape[1]), False)
        classes = np.unique(y)
        return cls((y[:, None] == classes).astype(np.float64), weight, classes, True)

    def penalties(self, values: Sequence[float]) -> np.ndarray:
        """Return the penalties of values of C; scikit-learn's C of two classes is for w = 2 W."""
        return (2 if self.is_softmax and len(self.classes) == 2 else 1) / np.array(values)


def _path(
    x: np.ndarray, labels: _Labels, penalties: np.ndarray, held_out: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Minimize in float32 for each penalty, on all rows and without those of each fold.

    Returns:
      The loss over the held-out rows float64[H], and the minima on all rows float64[H, D + 1, K]
      with the bias last.
    """
    rows = np.stack([np.ones(len(x), bool), *(~held for held in held_out)])
    problem = logistic.Problem(
        features=x.astype(np.float32),
        target=labels.target.astype(np.float32),
        kind="softmax" if labels.is_softmax else "sigmoid",
        part=np.zeros(len(x), int),
        rows=(rows * labels.weight).astype(np.float32),
        scale=np.ones((len(penalties), len(rows), 1), np.float32),
        penalty=penalties.astype(np.float32),
    )
    solution = logistic.solve(problem)
    kernel, bias = solution.kernel.astype(np.float64), solution.bias.astype(np.float64)
    losses = np.zeros(len(penalties))
    for r, held in enumerate(held_out, start=1):
        logits = np.einsum("nd,hdk->hnk", x[held], kernel[:, r]) + bias[:, r, None]
        for h, z in enumerate(logits):
            loss = _losses(z, labels.target[held], labels.is_softmax)[0]
            losses[h] += labels.weight[held] @ loss
    return losses, np.concatenate([kernel[:, 0], bias[:, :1]], axis=1)


def _fewest(y: np.ndarray, groups: np.ndarray | None, name: str) -> int:
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
            f"{name}(C='cv'): class {rarest} has examples of one patient in the train part, "
            "too few for folds; give C a number" + (", gammas one" if name == "KernelProbe" else "")
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
    share = ~np.isnan(target) / np.maximum((~np.isnan(target)).sum(axis=1, keepdims=True), 1)
    target = np.nan_to_num(target)
    values = np.logaddexp(0, logits) - target * logits
    return np.sum(values * share, axis=1), share * (expit(logits) - target)


def _polished(start: np.ndarray, x: np.ndarray, labels: _Labels, penalty: float) -> np.ndarray:
    """Go from a minimum in float32, [D + 1, K] with the bias last, to that in float64."""
    weight = labels.weight

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat.reshape(start.shape)[:-1], flat.reshape(start.shape)[-1]
        loss, slope = _losses(x @ kernel + bias, labels.target, labels.is_softmax)
        slope = weight[:, None] * slope
        gradient = np.concatenate([x.T @ slope + penalty * kernel, slope.sum(axis=0)[None]])
        return weight @ loss + penalty / 2 * np.sum(kernel**2), gradient.ravel()

    options = {"maxiter": 2000, "maxcor": 30, "ftol": 0.0, "gtol": 1e-8 * weight.sum()}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(start.shape)
