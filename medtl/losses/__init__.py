"""Losses, `loss(outputs, batch, **options) -> f32[B]`: one value per example.

`medtl.training.objective` masks, weighs and reduces all of them alike. A loss with the argument
`class_counts` or `progress` gets it from training. Terms over a whole batch are in
`medtl.losses.terms`.
"""

from medtl.losses.focal import asymmetric, focal, sigmoid_focal
from medtl.losses.imbalance import balanced_softmax, class_weighted, ldam, logit_adjusted
from medtl.losses.noise import generalized_cross_entropy, symmetric_cross_entropy
from medtl.losses.ordinal import cumulative_link
from medtl.losses.quantities import absolute_error, huber, mean_squared_error_regression
from medtl.losses.supervised import cross_entropy, mean_squared_error, sigmoid_binary_cross_entropy

__all__ = [
    "absolute_error",
    "asymmetric",
    "balanced_softmax",
    "class_weighted",
    "cross_entropy",
    "cumulative_link",
    "focal",
    "generalized_cross_entropy",
    "huber",
    "ldam",
    "logit_adjusted",
    "mean_squared_error",
    "mean_squared_error_regression",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal",
    "symmetric_cross_entropy",
]
