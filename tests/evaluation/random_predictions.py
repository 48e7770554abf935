"""Labels and a model's probabilities drawn at random, for tests that hold metrics against
scikit-learn."""

import numpy as np


def random_case(seed, n, k, decimals=None):
    """Labels of every class, probabilities that sum to 1, with `decimals` so coarse that many are
    equal, and weights."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    score = rng.dirichlet(np.ones(k), n)
    score[np.arange(n), label] += rng.uniform(0, 0.3, n)
    if decimals is not None:
        score = np.round(score, decimals) + 10.0**-decimals
    return label, score / score.sum(axis=1, keepdims=True), rng.uniform(0.1, 2, n)
