"""Samplers: in which order, and how often, an epoch takes the rows of a train split.

A sampler is a function `sampler(labels, weights, domain, rng, **options) -> int[n]`:

- labels: int[n], or float[n, K] of 0, 1 or NaN; the labels of the n train rows.
- weights: f32[n], the rows' weights in the loss.
- domain: "source" or "target".
- rng: a `numpy.random.Generator` drawn from the seed and the epoch.

- patients: only where the sampler has an argument of this name: str[n], or None where patients are
  not known.

It returns n positions, 0 to n - 1; a position may occur several times or never. It must depend on
its arguments alone: a resumed run and a reading process call it again for the same epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medtl.errors import UserError

Sampler = Callable[..., np.ndarray]
NAMES = ("shuffled", "balanced", "square_root", "by_patient")


def shuffled(
    labels: np.ndarray, weights: np.ndarray, domain: str, rng: np.random.Generator
) -> np.ndarray:
    """Return a random order in which each row occurs once; arguments as in the module's docstring.

    >>> rng = np.random.default_rng(0)
    >>> np.sort(shuffled(np.array([0, 0, 0, 1]), np.ones(4), "target", rng))
    array([0, 1, 2, 3])
    """
    return rng.permutation(len(labels))


def balanced(
    labels: np.ndarray, weights: np.ndarray, domain: str, rng: np.random.Generator
) -> np.ndarray:
    """Return n positions in random order, such that each class is equally likely.

    With one diagnosis per row, each of the C classes present gets n / C positions, up or down to a
    whole number. Within a class the positions cycle through shuffled copies of its rows, so no row
    is taken more than once more often than another of its class. Rows without a label are left
    out, unless no row has one; then this is `shuffled`.

    With several diagnoses per row, a row's share is the sum of 1 / count over its diagnoses. Rows
    without any diagnosis count as one more class. A row whose share is s of all shares is taken
    n * s times, up or down to a whole number. (Systematic sampling; Madow, "On the theory of
    systematic sampling, II", Annals of Mathematical Statistics 20, 1949.)

    The loss still multiplies by `weights`; the sampler does not look at them.

    >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    >>> rows = balanced(labels, np.ones(8), "target", np.random.default_rng(0))
    >>> np.bincount(labels[rows]), np.bincount(rows)[6:]
    (array([4, 4]), array([2, 2]))
    """
    return _by_class(labels, 0.0, rng)


def square_root(
    labels: np.ndarray, weights: np.ndarray, domain: str, rng: np.random.Generator
) -> np.ndarray:
    """Return n positions in random order, where a class occurs with the square root of its size.

    The middle between `shuffled` (a class occurs with its size) and `balanced` (all occur equally
    often): rare classes are seen more often, and their few rows are repeated less. Otherwise as
    `balanced`. (Mahajan et al. 2018, https://arxiv.org/abs/1805.00932, section 2.2.)

    >>> labels = np.array([0] * 16 + [1] * 4)
    >>> rows = square_root(labels, np.ones(20), "target", np.random.default_rng(0))
    >>> sorted(np.bincount(labels[rows]).tolist()) in ([6, 14], [7, 13])  # 1 : 2
    True
    """
    return _by_class(labels, 0.5, rng)


def by_patient(
    labels: np.ndarray,
    weights: np.ndarray,
    domain: str,
    rng: np.random.Generator,
    *,
    patients: np.ndarray | None,
    balance: bool = False,
) -> np.ndarray:
    """Return n positions in random order, such that each patient is equally likely.

    A patient with many images then has no more influence than one with a single image.

    Args:
      labels: as in the module's docstring.
      weights: as in the module's docstring.
      domain: as in the module's docstring.
      rng: as in the module's docstring.
      patients: str[n].
      balance: first share the positions out between the classes, then within a class between the
        patients who have a row of it. Rows without a label are left out.

    Raises:
      UserError: the data has no patients, or `balance` meets several diagnoses per row.

    >>> patients = np.array(["a"] * 6 + ["b", "c"])
    >>> rng = np.random.default_rng(0)
    >>> rows = by_patient(np.zeros(8, int), np.ones(8), "target", rng, patients=patients)
    >>> sorted(np.unique(patients[rows], return_counts=True)[1].tolist())
    [2, 3, 3]
    """
    if patients is None:
        raise UserError(f"the sampler by_patient needs patients, but the {domain} data has none")
    _, patient = np.unique(patients, return_inverse=True)
    if not balance:
        return _systematic(1 / np.bincount(patient)[patient], patient, rng)
    if labels.ndim == 2:
        raise UserError(
            f"the sampler by_patient(balance=True) takes one diagnosis for each example, but the "
            f"{domain} data has several"
        )
    rows = np.flatnonzero(labels >= 0)
    pairs, of_pair = np.unique(np.stack([labels[rows], patient[rows]]), axis=1, return_inverse=True)
    in_class = np.bincount(pairs[0])  # patients of each class
    share = np.zeros(len(labels))
    share[rows] = 1 / np.bincount(of_pair)[of_pair] / in_class[labels[rows]]
    group = np.full(len(labels), -1)
    group[rows] = of_pair
    return _systematic(share, group, rng)


def _by_class(labels: np.ndarray, power: float, rng: np.random.Generator) -> np.ndarray:
    """Draw each class in proportion to its size to a power; see `balanced`."""
    if labels.ndim == 2:
        positive = labels == 1
        content, run = np.column_stack([positive, ~positive.any(axis=1)]), None
    elif (labels >= 0).any():
        content, run = labels[:, None] == np.unique(labels[labels >= 0]), labels
    else:
        return rng.permutation(len(labels))
    n = np.maximum(content.sum(axis=0), 1)
    return _systematic((content * n ** (power - 1.0)).sum(axis=1), run, rng)


def _systematic(share: np.ndarray, run: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Return n positions, row i about n * share_i / Σ share times, up or down to a whole number.

    Args:
      share: f64[n], not all 0.
      run: int[n]; rows of one value get their positions together, n times the sum of their shares,
        up or down to a whole number. None: single rows.
      rng: for the order and the start.
    """
    order = rng.permutation(len(share))
    if run is not None:
        order = order[np.argsort(run[order], kind="stable")]
    # Equally spaced points on the line of the shares, from a random start.
    end = np.cumsum(share[order])
    points = (rng.random() + np.arange(len(order))) * (end[-1] / len(order))
    taken = order[np.minimum(np.searchsorted(end, points, side="right"), len(order) - 1)]
    return rng.permutation(taken)
