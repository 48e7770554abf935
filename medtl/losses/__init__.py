"""Losses, `loss(outputs, batch, **options) -> f32[B]`: one value per example.

`medtl.training.objective` masks, weighs and reduces all of them alike.
"""

from medtl.losses.supervised import cross_entropy, mean_squared_error, sigmoid_binary_cross_entropy

__all__ = ["cross_entropy", "mean_squared_error", "sigmoid_binary_cross_entropy"]
