"""Losses, `loss(outputs, batch, **options) -> f32[B]`: one value per example.

`medtl.objective` masks, weighs and reduces them, for all losses alike.
"""

from medtl.losses.supervised import cross_entropy, mean_squared_error, sigmoid_binary_cross_entropy

__all__ = ["cross_entropy", "mean_squared_error", "sigmoid_binary_cross_entropy"]
