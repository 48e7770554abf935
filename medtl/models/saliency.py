"""Where a model looked: Grad-CAM of any model, and pictures of it for a report.

Grad-CAM is a pure function that can be jitted. It explains the model in evaluation mode: dropout
off, running statistics. It shows the regions that moved a logit, not the disease.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int, UInt8

from medtl.errors import UserError
from medtl.models.model import Model, Variables


def grad_cam(
    model: Model,
    variables: Variables,
    image: Float[Array, "b h w c"],
    *,
    domain: str,
    target: Int[Array, " b"],
    inputs: Mapping[str, Array] | None = None,
) -> Float[Array, "b h w"]:
    """Return the regions that raised the logit of a class.

    Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2): with A the last feature
    map, `alpha_k = mean_ij d logit / d A_ijk`, and the heat is `relu(sum_k alpha_k A_k)`, enlarged
    to the image by bilinear interpolation. The last feature map is the one that is pooled for the
    head, or that goes into a VGG's fully connected layers; see `layers.mark_feature_map`.

    Args:
      model: the model.
      variables: its variables.
      image: f32[B, H, W, C], normalized as in training.
      domain: its head is explained.
      target: int[B], the class to explain, e.g. the predicted one; outside 0..K-1 gives zeros.
      inputs: the model's inputs besides the image, by name, each [B, ...].

    Returns:
      f32[B, H, W]; the maximum of each image is 1, or 0 where nothing raised the logit.

    Raises:
      UserError: the backbone gives no feature map, or several.
    """
    batch = {domain: {**(inputs or {}), "image": image, "mask": jnp.ones(image.shape[0])}}

    def perturbed(perturbations: Variables) -> tuple[jax.Array, Any]:
        outputs, changed = model.apply(
            {**variables, "perturbations": perturbations},
            batch,
            train=False,
            mutable=["intermediates"],
        )
        logits: jax.Array = outputs[domain].logits
        chosen = logits * jax.nn.one_hot(target, logits.shape[-1])
        return jnp.sum(chosen), changed["intermediates"]

    perturbations = jax.eval_shape(
        lambda: model.apply(variables, batch, train=False, mutable=["perturbations"])[1]
    ).get("perturbations", {})
    path = _path_of_feature_map(perturbations)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), perturbations)
    gradients, intermediates = jax.grad(perturbed, has_aux=True)(zeros)
    gradient = traverse_util.flatten_dict(gradients)[path].astype(jnp.float32)
    (feature_map,) = traverse_util.flatten_dict(intermediates)[path]

    alpha = jnp.mean(gradient, axis=(1, 2), keepdims=True)
    heat = nn.relu(jnp.sum(alpha * feature_map.astype(jnp.float32), axis=-1))
    heat = jax.image.resize(heat, image.shape[:3], "bilinear")
    largest = jnp.max(heat, axis=(1, 2), keepdims=True)
    return jnp.where(largest > 0, heat / jnp.where(largest > 0, largest, 1.0), 0.0)


def _path_of_feature_map(perturbations: Variables) -> tuple[str, ...]:
    """Return the path of the one "feature_map" in nested dicts."""
    paths = [p for p in traverse_util.flatten_dict(perturbations) if p[-1] == "feature_map"]
    if not paths:
        raise UserError(
            "Grad-CAM: the backbone gives no feature map; it must return [B, h, w, D], or call "
            "medtl.models.layers.mark_feature_map on one"
        )
    if len(paths) > 1:
        names = ", ".join("/".join(path) for path in paths)
        raise UserError(
            f"Grad-CAM: the backbone gives {len(paths)} feature maps ({names}), not one"
        )
    return paths[0]


def overlay(
    image: UInt8[np.ndarray, "h w c"], heat: Float[np.ndarray, "_ _"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image in grey with the heat over it, from nothing through red to yellow.

    Args:
      image: uint8[H, W, C].
      heat: f32[H, W], 0 to 1.

    Returns:
      uint8[H, W, 3].
    """
    if image.shape[:2] != heat.shape or image.ndim != 3:
        raise ValueError(
            f"the heat is {list(heat.shape)} and the image {list(image.shape)}; "
            "they must be [H, W] and [H, W, C]"
        )
    heat = np.clip(heat, 0.0, 1.0)[..., None].astype(np.float64)
    grey = np.mean(image, axis=2, keepdims=True)
    colour = np.concatenate([np.ones_like(heat), heat, np.zeros_like(heat)], axis=2) * 255
    opacity = 0.6 * heat  # the image stays visible under the hottest region
    return np.rint((1 - opacity) * grey + opacity * colour).astype(np.uint8)


def png_data_uri(array: np.ndarray, *, max_side: int = 224) -> str:
    """Return an image as a PNG in a data URI.

    Args:
      array: uint8[H, W], or uint8[H, W, C] with C = 3 for RGB; for other C the mean over C is shown
        in grey.
      max_side: an image with a longer side is made smaller.

    >>> png_data_uri(np.zeros((2, 2), np.uint8))[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise ValueError(
            f"the image is {array.dtype}{list(array.shape)}; "
            "it must be uint8[H, W] or uint8[H, W, C]"
        )
    if array.ndim == 3 and array.shape[2] != 3:
        array = np.rint(array.mean(axis=2)).astype(np.uint8)
    picture = Image.fromarray(array)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
