"""Distances between the features of the source and the target in a batch.

Each takes `context.outputs[domain].features` f32[B, D] and `context.batch[domain]["mask"]` f32[B].
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from medtl.errors import UserError
from medtl.losses.supervised import require

DOMAINS = ("source", "target")


def coral(context: Any) -> Float[Array, ""]:
    """Return the CORAL loss, the distance between the covariances of the two domains' features.

    `1 / (4 D²) ‖C_s - C_t‖²_F`, with `C = Σ (x - x̄)(x - x̄)ᵀ / (n - 1)`.

    Sun and Saenko 2016, https://arxiv.org/abs/1607.01719, equations 1 to 3; the mean is subtracted
    before the product, which keeps the digits that the paper's form loses in float32. Memory is
    D². A domain with fewer than two rows gives 0.

    Args:
      context: as in the module's docstring.

    Returns:
      f32[].

    >>> from types import SimpleNamespace as Namespace
    >>> features = {"source": jnp.array([[0.0], [2.0]]), "target": jnp.array([[5.0], [5.0]])}
    >>> outputs = {d: Namespace(features=x) for d, x in features.items()}
    >>> batch = {d: {"mask": jnp.ones(2)} for d in outputs}
    >>> print(coral(Namespace(outputs=outputs, batch=batch)))  # variances 2 and 0
    1.0
    """
    (x, p), (y, q) = (masked_features(context, domain) for domain in DOMAINS)
    enough = (jnp.sum(p) > 1) & (jnp.sum(q) > 1)
    difference = _covariance(x, p) - _covariance(y, q)
    return jnp.where(enough, jnp.sum(difference**2) / (4 * x.shape[1] ** 2), 0.0)


def mmd(context: Any, *, scales: Any = (0.25, 0.5, 1.0, 2.0, 4.0)) -> Float[Array, ""]:
    """Return the squared maximum mean discrepancy for a mean of Gaussian kernels, without bias.

    `mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j)` with
    `k(a, b) = mean_c exp(-‖a - b‖² / (c w))`. w is the mean squared distance of two different rows
    of the batch, without a gradient. The value may be negative; where the two distributions are
    equal, its expectation is close to 0 (it is 0 for a fixed w).

    Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html, lemma 6; the kernels of Long
    et al. 2015, https://arxiv.org/abs/1502.02791, section 4.1. A domain with fewer than two rows
    gives 0.

    Args:
      context: as in the module's docstring.
      scales: the factors c, each above 0.

    Returns:
      f32[].

    Raises:
      UserError: there is no scale, or one is not above 0.

    >>> from types import SimpleNamespace as Namespace
    >>> features = {"source": jnp.zeros((2, 1)), "target": jnp.ones((2, 1))}
    >>> outputs = {d: Namespace(features=x) for d, x in features.items()}
    >>> batch = {d: {"mask": jnp.ones(2)} for d in outputs}
    >>> print(mmd(Namespace(outputs=outputs, batch=batch), scales=(1.0,)).round(4))  # w = 2 / 3
    1.5537
    """
    is_list = isinstance(scales, tuple | list) and len(scales) > 0
    require(
        is_list and all(scale > 0 for scale in scales),
        f"mmd: scales is {scales!r}; it must be a tuple of numbers above 0, such as (0.5, 1, 2)",
    )
    (x, p), (y, q) = (masked_features(context, domain) for domain in DOMAINS)
    n, m, rows = len(x), jnp.concatenate([p, q]), jnp.concatenate([x, y])
    # Distances do not change with the origin; about the mean, the products lose fewer digits.
    center = jnp.sum(m[:, None] * rows, axis=0) / jnp.maximum(jnp.sum(m), 1.0)
    rows = (rows - jax.lax.stop_gradient(center)) * m[:, None]
    squares = jnp.sum(rows**2, axis=1)
    products = jnp.matmul(rows, rows.T, precision="highest")
    distance = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0.0)
    pairs = m[:, None] * m[None] * (1 - jnp.eye(len(rows)))
    width = jnp.sum(pairs * distance) / jnp.maximum(jnp.sum(pairs), 1.0)
    width = jax.lax.stop_gradient(jnp.maximum(width, 1e-12))
    kernel = jnp.zeros_like(distance)
    for scale in scales:
        kernel += jnp.exp(-distance / (scale * width)) / len(scales)

    def mean(values: Array, weights: Array) -> Array:
        return jnp.sum(weights * values) / jnp.maximum(jnp.sum(weights), 1.0)

    same_x, same_y = mean(kernel[:n, :n], pairs[:n, :n]), mean(kernel[n:, n:], pairs[n:, n:])
    value = same_x + same_y - 2 * mean(kernel[:n, n:], pairs[:n, n:])
    return jnp.where((jnp.sum(p) > 1) & (jnp.sum(q) > 1), value, 0.0)


def contrastive(context: Any, *, temperature: float = 0.1) -> Float[Array, ""]:
    """Return the supervised contrastive loss whose positives are of the other domain.

    For each row i with positives P(i), the rows of its class in the other domain:
    `-mean_{j in P(i)} log (exp(z_i·z_j / τ) / Σ_{a≠i} exp(z_i·z_a / τ))`, with `z = x / ‖x‖`;
    the result is the mean over the rows that have positives. It brings the classes of both domains
    together and different classes apart.

    Khosla et al. 2020, https://arxiv.org/abs/2004.11362, equation 2; positives across domains as in
    Motiian et al. 2017, https://arxiv.org/abs/1709.10190. Rows without a label are in the sum over
    a alone. A batch without a class in both domains gives 0.

    Args:
      context: as in the module's docstring, with `label` int[B]; the classes of both domains must
        be the same.
      temperature: τ > 0.

    Returns:
      f32[], in nats.

    Raises:
      UserError: τ is not above 0, the labels are of several diagnoses, or the classes differ.

    >>> from types import SimpleNamespace as Namespace
    >>> outputs = {d: Namespace(features=jnp.eye(2)) for d in ("source", "target")}
    >>> batch = {d: {"mask": jnp.ones(2), "label": jnp.array([0, 1])} for d in outputs}
    >>> classes = {d: ("ill", "well") for d in outputs}
    >>> context = Namespace(outputs=outputs, batch=batch, classes=classes)
    >>> print(contrastive(context, temperature=1.0).round(4))  # log(1 + 2 / e)
    0.5514
    """
    require(temperature > 0, f"contrastive: temperature is {temperature}; it must be above 0")
    if context.classes["source"] != context.classes["target"]:
        raise UserError(
            f"contrastive compares the classes of both domains, but those of the source are "
            f"{', '.join(context.classes['source'])} and those of the target are "
            f"{', '.join(context.classes['target'])}; they must be the same"
        )
    (x, p), (y, q) = (masked_features(context, domain) for domain in DOMAINS)
    label = jnp.concatenate([context.batch[domain]["label"] for domain in DOMAINS])
    require(label.ndim == 1, "contrastive takes one diagnosis for each example")
    rows, m = jnp.concatenate([x, y]), jnp.concatenate([p, q])
    is_target = jnp.arange(len(rows)) >= len(x)
    # Below 1e-4 a norm counts as 1e-4: a row of zeros has a direction of zeros and no NaN.
    z = rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows**2, axis=1, keepdims=True), 1e-8))
    similarity = jnp.matmul(z, z.T, precision="highest") / temperature
    others = m[:, None] * m[None] * (1 - jnp.eye(len(rows)))
    of_class = (label[:, None] == label[None]) & (label[:, None] >= 0)
    positive = others * of_class * (is_target[:, None] != is_target[None])
    lowest = jnp.where(others > 0, similarity, -1e30)
    log_share = similarity - jax.nn.logsumexp(lowest, axis=1, keepdims=True)
    n_positive = jnp.sum(positive, axis=1)
    log_share = jnp.where(positive > 0, log_share, 0.0)
    of_row = -jnp.sum(log_share, axis=1) / jnp.maximum(n_positive, 1.0)
    return jnp.sum(of_row) / jnp.maximum(jnp.sum(n_positive > 0), 1.0)


def masked_features(context: Any, domain: str) -> tuple[Float[Array, "b d"], Float[Array, " b"]]:
    """Return a domain's features, with zeros in place of padding, and its mask."""
    mask = context.batch[domain]["mask"].astype(jnp.float32)
    features = context.outputs[domain].features.astype(jnp.float32)
    return jnp.where(mask[:, None] > 0, features, 0.0), mask


def _covariance(x: Float[Array, "b d"], mask: Float[Array, " b"]) -> Float[Array, "d d"]:
    n = jnp.sum(mask)
    mean = jnp.sum(mask[:, None] * x, axis=0) / jnp.maximum(n, 1.0)
    centered = (x - mean) * mask[:, None]
    return jnp.matmul(centered.T, centered, precision="highest") / jnp.maximum(n - 1, 1.0)
