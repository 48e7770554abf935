"""Variances that an AUROC and a calibration slope will have, from what is expected of a model.

Refuses nothing: `plan` checks the assumptions.
"""

from __future__ import annotations

import math

import numpy as np


def auroc_variance(auroc: float, positive: float, negative: float) -> float:
    """Compute the variance of an AUROC by Hanley & McNeil (1982, Radiology 143, 29).

    Q1 = A / (2 - A) and Q2 = 2 A² / (1 + A), of exponential scores. Where positives are the rarer
    it is larger than that of normal scores of equal spread.

    Args:
      auroc: expected, A.
      positive: number of positive examples.
      negative: number of negative examples.

    >>> f"{auroc_variance(0.893, 51, 58) ** 0.5:.3f}"  # the example of the paper
    '0.033'
    """
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    both = (max(positive, 1) - 1) * (q1 - auroc**2) + (max(negative, 1) - 1) * (q2 - auroc**2)
    return (auroc * (1 - auroc) + both) / (positive * negative)


def newcombe_variance(auroc: float, prevalence: float, n: float) -> float:
    """Compute the variance of an AUROC by Newcombe (2006), as Riley et al. 2021 take it.

    It is Hanley and McNeil's, with half of the examples in each class in its brackets.

    Args:
      auroc: expected.
      prevalence: share of positive examples.
      n: number of examples.
    """
    ratio = (1 - auroc) / (2 - auroc) + auroc / (1 + auroc)
    pairs = n**2 * prevalence * (1 - prevalence)
    return auroc * (1 - auroc) * (1 + (n / 2 - 1) * ratio) / pairs


def slope_variance(auroc: float, prevalence: float) -> float:
    """Compute n times the variance of the calibration slope of a calibrated model.

    Logits of both classes are normal with one variance s². Where the probabilities are calibrated,
    their means are logit(prevalence) ± s² / 2, so that AUROC = Phi(s / sqrt(2)).

    Args:
      auroc: expected.
      prevalence: share of positive examples.
    """
    from scipy.stats import norm

    spread = math.sqrt(2) * float(norm.ppf(auroc))
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()
    center = math.log(prevalence / (1 - prevalence))
    logits = [center + side * spread**2 / 2 + spread * node for side in (-1, 1)]
    shares = [share * weight for share in (1 - prevalence, prevalence)]
    return recalibration_variance(np.concatenate(logits), np.concatenate(shares))


def recalibration_variance(logit: np.ndarray, weight: np.ndarray) -> float:
    """Compute n times the variance of a calibration slope of 1 (Riley et al. 2021, section 3.2).

    I_a / (I_a I_b - I_ab²), from Fisher's information of the recalibration at intercept 0 and
    slope 1: I_a, I_ab and I_b are the means of p (1 - p), and of it times the logit and its square.

    Args:
      logit: float64[Q], values of the linear predictor.
      weight: float64[Q], their shares, which sum to 1.
    """
    spread = weight / (2 + np.exp(logit) + np.exp(-logit))  # p (1 - p)
    a, ab, b = (float(np.sum(spread * logit**k)) for k in range(3))
    return a / (a * b - ab**2)
