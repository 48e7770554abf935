"""Gaussian kernels as features: a linear model on them is a kernel machine. NumPy in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
from sklearn.metrics.pairwise import rbf_kernel

_RANK = 1e-8  # of the largest eigenvalue; below it the centres depend on each other


def standardization(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the scale by which features are standardized, float64[D] each.

    The scale is the column's standard deviation plus a thousandth of that of all values: what is
    left of a constant column is not blown up.

    >>> mean, scale = standardization(np.array([[1.0, 5.0], [3.0, 5.0]]))
    >>> mean.tolist(), scale.round(3).tolist()
    ([2.0, 5.0], [1.002, 0.002])
    """
    x = np.asarray(x, np.float64)
    scale = x.std(axis=0) + 1e-3 * x.std()
    return x.mean(axis=0), np.where(scale > 0, scale, 1.0)


@dataclasses.dataclass(frozen=True)
class GaussianMap:
    """Features φ with φ(x) · φ(c) = exp(-γ |x - c|²) for each centre c.

    The penalty |w|² of a linear model on φ is that of the kernel's space (Schölkopf & Smola 2002,
    Learning with Kernels, section 2.2.6). With all rows as centres the model is the kernel machine;
    with a part of them it is the Nyström approximation (Williams & Seeger 2001, NIPS 13).

    Attributes:
      centres: float64[M, D].
      gamma: γ.
      back: float64[M, R], from the kernel values of M centres to φ, and from w to the centres'
        coefficients.
    """

    centres: np.ndarray
    gamma: float
    back: np.ndarray

    @classmethod
    def create(cls, centres: np.ndarray, *, gamma: float = 1.0) -> GaussianMap:
        """Return the map to the span of the centres.

        Args:
          centres: float[M, D], standardized.
          gamma: in units of 1 / (D variance), which is scikit-learn's `gamma="scale"`.

        >>> made = GaussianMap.create(np.array([[0.0], [1.0]]), gamma=0.25)
        >>> x = made.features(made.centres)
        >>> (x @ x.T).round(3).tolist()  # exp(-1) beside 1
        [[1.0, 0.368], [0.368, 1.0]]
        """
        centres = np.asarray(centres, np.float64)
        scaled = gamma / (centres.shape[1] * (centres.var() or 1.0))
        values, vectors = np.linalg.eigh(rbf_kernel(centres, gamma=scaled))
        kept = values > _RANK * values[-1]
        return cls(centres, scaled, vectors[:, kept] / np.sqrt(values[kept]))

    def kernel(self, x: np.ndarray) -> np.ndarray:
        """Return the kernel's values float64[N, M] of rows float[N, D]."""
        return rbf_kernel(np.asarray(x, np.float64), self.centres, gamma=self.gamma)

    def features(self, x: np.ndarray) -> np.ndarray:
        """Return φ, float64[N, R], of rows float[N, D]."""
        return self.kernel(x) @ self.back
