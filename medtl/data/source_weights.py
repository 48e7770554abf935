"""Importance weights of source examples: how typical of the target each of them is.

A function `weights(source, target, rng, **options) -> float64[n]` gets the features of the train
examples, float64[n, D] and float64[m, D], and a `numpy.random.Generator`. An argument `patients`
gets (str[n], str[m]), or None where one of the domains does not know them. The weights are at least
0 and have a mean of 1. They correct a shift of the inputs, p(x), and assume that p(y | x) is the
same in both domains (Shimodaira 2000, J. Stat. Plan. Inference 90, 227).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medtl.errors import UserError

Weights = Callable[..., np.ndarray]
NAMES = ("domain_classifier", "kernel_mean_matching")
_MOST = 10_000  # source examples of which the kernel matrix is kept, 800 MB


def effective_size(weights: np.ndarray) -> float:
    """Return Kish's effective sample size (Σ w)² / Σ w²; 0 where all weights are 0.

    >>> effective_size(np.array([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    squares = float(np.sum(np.square(weights)))
    return float(np.sum(weights)) ** 2 / squares if squares > 0 else 0.0


def domain_classifier(
    source: np.ndarray,
    target: np.ndarray,
    rng: np.random.Generator,
    *,
    patients: tuple[np.ndarray, np.ndarray] | None = None,
    clip: float = 10.0,
    C: float = 1.0,  # noqa: N803  # scikit-learn's name
    folds: int = 5,
) -> np.ndarray:
    """Weigh each source example by the odds that a classifier of the domains takes it for a target.

        w_i = min(n_s/n_t · p(t | x_i) / p(s | x_i), clip), divided by the mean

    Bickel et al. 2007, ICML, equation 7, with logistic regression on standardized features. p is
    cross-fitted: of a model that has not seen the example or, where they are known, the patient.

    Args:
      source: float[n, D].
      target: float[m, D].
      rng: draws the folds.
      patients: whose images stay together.
      clip: the largest ratio, above 0.
      C: the inverse strength of the classifier's L2 penalty.
      folds: of the cross-fitting.

    Returns:
      float64[n], with the mean 1.

    Raises:
      UserError: an option is out of range, or a domain has fewer examples or patients than folds.

    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(400, 1)), rng.normal(1.0, 1.0, size=(400, 1))
    >>> w = domain_classifier(x, y, rng)
    >>> bool(np.corrcoef(w, np.exp(x[:, 0]))[0, 1] > 0.9)
    True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not (clip > 0 and C > 0 and folds >= 2):
        raise UserError(
            f"domain_classifier: clip is {clip}, C {C}, folds {folds}; clip and C must be above 0, "
            "folds at least 2"
        )
    x, is_target = np.concatenate([source, target]), np.repeat([0, 1], [len(source), len(target)])
    group: np.ndarray = np.arange(len(x))
    if patients is not None:
        names = [*(f"s{name}" for name in patients[0]), *(f"t{name}" for name in patients[1])]
        group = np.unique(names, return_inverse=True)[1]
    fewest = min(len(np.unique(group[is_target == k])) for k in (0, 1))
    if fewest < folds:
        unit = "examples" if patients is None else "patients"
        raise UserError(
            f"domain_classifier: a domain has {fewest} train {unit}, less than its {folds} folds"
        )
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=int(rng.integers(2**31)))
    odds = np.zeros(len(source))
    for fit, held in split.split(x, is_target, group):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
        model.fit(x[fit], is_target[fit])
        rows = held[held < len(source)]
        if len(rows):
            # e^z of the logit: p / (1 - p) would be infinite where p rounds to 1.
            logit = model.decision_function(x[rows])
            ratio = np.mean(is_target[fit] == 0) / np.mean(is_target[fit] == 1)
            odds[rows] = ratio * np.exp(np.clip(logit, -50, 50))
    weights = np.minimum(odds, clip)
    return weights / weights.mean()


def kernel_mean_matching(
    source: np.ndarray,
    target: np.ndarray,
    rng: np.random.Generator,
    *,
    bound: float = 10.0,
    epsilon: float = 0.0,
    bandwidth: float = 0.0,
    steps: int = 2000,
) -> np.ndarray:
    """Weigh the source so that its mean in a Gaussian kernel's space is nearest to the target's.

        minimize 1/2 w'Kw - κ'w,  0 <= w_i <= bound,  |mean w - 1| <= epsilon
        K_ij = k(x_i, x_j),  κ_i = n_s/n_t Σ_j k(x_i, t_j),  k(a, b) = exp(-‖a - b‖² / (2 σ²))

    Huang et al. 2006, NIPS, equation 5. Features are standardized by the source's mean and
    deviation; the quadratic program is solved by accelerated projected gradients (Beck & Teboulle
    2009, SIAM J. Imaging Sci. 2, 183).

    Args:
      source: float[n, D], n <= 10,000: the kernel matrix is kept.
      target: float[m, D].
      rng: not used.
      bound: the largest weight, at least 1.
      epsilon: how far the mean may be from 1 before the weights are divided by it.
      bandwidth: σ; 0: the median distance of the source from the target.
      steps: at most; the solver ends before where weights change by less than 1e-8.

    Returns:
      float64[n], with the mean 1.

    Raises:
      UserError: an option is out of range, or the source has too many examples.

    >>> x = np.array([[-1.0], [0.0], [1.0]])
    >>> kernel_mean_matching(x, x, np.random.default_rng(0)).round(6).tolist()
    [1.0, 1.0, 1.0]
    """
    from scipy.spatial.distance import cdist

    if not (bound >= 1 and 0 <= epsilon < 1 and bandwidth >= 0 and steps >= 1):
        raise UserError(
            f"kernel_mean_matching: bound is {bound}, epsilon {epsilon}, bandwidth {bandwidth}, "
            f"steps {steps}; they must be at least 1, in [0, 1), at least 0, and at least 1"
        )
    n, m = len(source), len(target)
    if n > _MOST:
        raise UserError(
            f"kernel_mean_matching keeps a matrix of all pairs: {n:,} source examples are more "
            f"than {_MOST:,}; take domain_classifier, or config.data.source.train_size"
        )
    deviation = source.std(axis=0)
    x, t = (
        (values - source.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
        for values in (source, target)
    )
    between = cdist(x, t, "sqeuclidean")
    width = bandwidth**2 or float(np.median(between)) or 1.0
    kernel = np.exp(cdist(x, x, "sqeuclidean") / (-2 * width))
    kappa = np.exp(between / (-2 * width)).sum(axis=1) * n / m
    slope = 1.0 / np.linalg.norm(kernel, 2)
    weights = point = np.ones(n)
    inertia = 1.0
    for _ in range(steps):
        new = _project(point - slope * (kernel @ point - kappa), bound, epsilon)
        following = (1 + np.sqrt(1 + 4 * inertia**2)) / 2
        moved = new - weights
        # Restart where the momentum points uphill (O'Donoghue & Candès 2015).
        inertia = 1.0 if (point - new) @ moved > 0 else following
        point = new + ((inertia - 1) / following if inertia > 1 else 0.0) * moved
        weights = new
        if np.abs(moved).max() < 1e-8:
            break
    return weights / weights.mean()


def _project(values: np.ndarray, bound: float, epsilon: float) -> np.ndarray:
    """Return the nearest point with 0 <= w <= bound and 1 - epsilon <= mean w <= 1 + epsilon."""
    clipped = np.clip(values, 0.0, bound)
    wanted = float(np.clip(clipped.mean(), 1 - epsilon, 1 + epsilon))
    low, high = values.min() - bound, values.max()
    if clipped.mean() == wanted:
        return clipped
    for _ in range(100):  # the mean falls as the shift rises
        shift = (low + high) / 2
        low, high = (
            (shift, high)
            if np.clip(values - shift, 0, bound).mean() > wanted
            else (
                low,
                shift,
            )
        )
    return np.clip(values - (low + high) / 2, 0.0, bound)
