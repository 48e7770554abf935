"""Where a model looked: Grad-CAM and integrated gradients of any of our models, and pictures of them for a report.

The attributions are pure functions that can be jitted. They explain the model as it is evaluated: dropout off, batch statistics
frozen. They show what moved a logit, not what is wrong with the patient.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from medtl.models.model import Model, Variables
from medtl.models.vgg import VGG


def grad_cam(
    model: Model, variables: Variables, image: jax.Array, *, domain: str, target: jax.Array
) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2): which places raised the logit of a class.

    With A the last feature map, `alpha_k = mean_ij d logit / d A_ijk` and the map is `relu(sum_k alpha_k A_k)`, made as large as
    the image by bilinear interpolation. The last feature map is what is pooled for the head; in a VGG with its fully connected
    layers what goes into those.

    Args:
      model: the model.
      variables: its variables.
      image: f32[B, H, W, C], normalised as in training.
      domain: whose head is explained.
      target: int[B], the class to explain, e.g. the predicted one; outside 0..K-1 gives zeros.

    Returns:
      f32[B, H, W], each image's own maximum 1; all 0 where nothing raised the logit.
    """
    feature_map, logits_of = _cut(model, variables, image, domain)
    gradient = jax.grad(lambda x: jnp.sum(_chosen(logits_of(x), target)))(feature_map)
    alpha = jnp.mean(gradient, axis=(1, 2), keepdims=True)
    cam = nn.relu(jnp.sum(alpha * feature_map, axis=-1))
    cam = jax.image.resize(cam, image.shape[:3], "bilinear")
    largest = jnp.max(cam, axis=(1, 2), keepdims=True)
    return jnp.where(largest > 0, cam / jnp.where(largest > 0, largest, 1.0), 0.0)


def integrated_gradients(
    model: Model,
    variables: Variables,
    image: jax.Array,
    *,
    domain: str,
    target: jax.Array,
    baseline: jax.Array | float = 0.0,
    steps: int = 32,
) -> jax.Array:
    """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, equation 1): what each pixel adds to the logit of a class.

    `(x - b) * integral over a in 0..1 of d logit / d x at b + a (x - b)`, by Gauss-Legendre quadrature. They sum to
    `logit(x) - logit(b)`, up to an error that falls with `steps`; for a map of the image take the sum over C of the absolute
    values.

    Args:
      model: the model.
      variables: its variables.
      image: f32[B, H, W, C], normalised as in training.
      domain: whose head is explained.
      target: int[B], the class to explain; outside 0..K-1 gives zeros.
      baseline: what stands for "nothing there", f32 that broadcasts to `image`; 0 is the mean image of the normalisation.
      steps: points of the quadrature, each of which takes a forward and a backward pass.

    Returns:
      f32[B, H, W, C], in units of the logit.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    points = jnp.asarray(np.stack([(nodes + 1) / 2, weights / 2], axis=1), jnp.float32)
    difference = image - baseline

    def logit(x: jax.Array) -> jax.Array:
        feature_map, logits_of = _cut(model, variables, x, domain)
        return jnp.sum(_chosen(logits_of(feature_map), target))

    def add(total: jax.Array, point: jax.Array) -> tuple[jax.Array, None]:
        return total + point[1] * jax.grad(logit)(baseline + point[0] * difference), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(image), points)
    return difference * total


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey with the heat over it, from nothing through red to yellow.

    Args:
      image: uint8[H, W, C].
      heat: f32[H, W], 0 to 1.

    Returns:
      uint8[H, W, 3].
    """
    if image.shape[:2] != heat.shape or image.ndim != 3:
        raise ValueError(
            f"the heat is {list(heat.shape)} and the image {list(image.shape)}; they must be [H, W] and [H, W, C]"
        )
    heat = np.clip(heat, 0.0, 1.0)[..., None].astype(np.float64)
    grey = np.mean(image, axis=2, keepdims=True)
    colour = np.concatenate([np.ones_like(heat), heat, np.zeros_like(heat)], axis=2) * 255
    opacity = 0.6 * heat  # what lies under the hottest place can still be seen
    return np.rint((1 - opacity) * grey + opacity * colour).astype(np.uint8)


def png_data_uri(array: np.ndarray, *, max_side: int = 224) -> str:
    """An image as a PNG in a data URI, made smaller where a side is longer than `max_side` pixels.

    Args:
      array: uint8[H, W], or uint8[H, W, C] with C = 3 for RGB; of any other C the mean is shown in grey.
      max_side: the most pixels of a side.
    """
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(
            f"the image is {array.dtype}{list(array.shape)}; it must be uint8[H, W] or uint8[H, W, C]"
        )
    if array.ndim == 3 and array.shape[2] != 3:
        array = np.rint(array.mean(axis=2)).astype(np.uint8)
    picture = Image.fromarray(array)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _cut(
    model: Model, variables: Variables, image: jax.Array, domain: str
) -> tuple[jax.Array, Any]:
    """The last feature map f32[B, h, w, D], and the function from it to the logits f32[B, K]."""
    lower, upper = model.backbone, None
    if isinstance(lower, VGG) and lower.classifier:
        # Without convolutions, what is left of it are its fully connected layers.
        lower, upper = lower.clone(classifier=False), lower.clone(convs=(), stages=0)
    collections = {
        "params": variables["params"]["backbone"],
        "batch_stats": variables["batch_stats"]["backbone"],
    }

    def logits_of(feature_map: jax.Array) -> jax.Array:
        x: Any = feature_map
        if upper is not None:
            x = upper.apply(collections, feature_map, use_batch_stats=False)
        features = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        outputs, _ = model.apply(variables, {domain: {"features": features}}, train=False)
        return outputs[domain].logits

    feature_map: Any = lower.apply(collections, image, use_batch_stats=False)
    return feature_map.astype(jnp.float32), logits_of


def _chosen(logits: jax.Array, target: jax.Array) -> jax.Array:
    """f32[B], each example's logit of its class; 0 of a class that is not there."""
    return jnp.sum(logits * jax.nn.one_hot(target, logits.shape[-1]), axis=-1)
