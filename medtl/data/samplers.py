"""Samplers: in which order, and how often, an epoch takes the rows of a train split.

A sampler is a function `sampler(labels, weights, domain, rng, **options) -> int[n]`:

- labels: int[n], or float[n, K] of 0, 1 or NaN; the labels of the n train rows.
- weights: f32[n], the rows' weights in the loss.
- domain: "source" or "target".
- rng: a `numpy.random.Generator` drawn from the seed and the epoch.

It returns n positions, 0 to n - 1; a position may occur several times or never. It must depend on
its arguments alone: a resumed run and a reading process call it again for the same epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Sampler = Callable[[np.ndarray, np.ndarray, str, np.random.Generator], np.ndarray]


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
    order = rng.permutation(len(labels))
    if labels.ndim == 2:
        positive = labels == 1
        content = np.column_stack([positive, ~positive.any(axis=1)])
    elif (labels >= 0).any():
        order = order[np.argsort(labels[order], kind="stable")]  # a class is one run of the order
        content = labels[:, None] == np.unique(labels[labels >= 0])
    else:
        return order
    share = (content / np.maximum(content.sum(axis=0), 1)).sum(axis=1)[order]
    # Equally spaced points on the line of the shares, from a random start.
    end = np.cumsum(share)
    points = (rng.random() + np.arange(len(order))) * (end[-1] / len(order))
    taken = order[np.minimum(np.searchsorted(end, points, side="right"), len(order) - 1)]
    return rng.permutation(taken)
