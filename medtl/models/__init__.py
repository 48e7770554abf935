"""Backbones: normalised image [B, H, W, C] -> feature map [B, h, w, D], pure Linen modules with torchvision's names.

Importing this package does not import JAX; `backbone` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtl.errors import UserError, nearest
from medtl.models.architectures import NAMES, check, features, freeze_prefixes

if TYPE_CHECKING:
    from flax import linen as nn

__all__ = ["DTYPES", "NAMES", "backbone", "check", "features", "freeze_prefixes"]

DTYPES = ("float32", "bfloat16")


def backbone(
    name: str,
    *,
    stages: int = 0,
    stride_in: str = "3x3",
    dtype: str = "float32",
    axis_name: str | None = None,
    epsilon: float = 1e-5,
    zero_init_residual: bool = False,
    classifier: bool = False,
    remat: bool = False,
) -> nn.Module:
    """The backbone of that name; `module.apply(variables, x, use_batch_stats=..., mask=...)` gives dtype[B, h, w, D].

    Args:
      name: one of `NAMES`.
      stages: keep the first n stages; 0 keeps all.
      stride_in: bottleneck ResNets: the convolution with the stride, "3x3" (torchvision, v1.5) or "1x1" (MSRA, Keras, v1).
      dtype: compute dtype, one of `DTYPES`; parameters are float32.
      axis_name: axis of `jax.pmap` over which BatchNorm takes its statistics.
      epsilon: of BatchNorm; Keras-applications ResNets were trained with 1.001e-5.
      zero_init_residual: ResNets: start the last BatchNorm scale of each block at 0.
      classifier: VGGs: go on through the two hidden fully connected layers, to [B, 1, 1, 4096].
      remat: the backward pass computes the inside of each block (VGG: stage) again, to save memory.

    Raises:
      UserError: there is no such backbone, or not with these options.
    """
    known = check(name, stages, stride_in, classifier=classifier)
    if dtype not in DTYPES:
        raise UserError(
            f"config.model.dtype: {dtype!r} is not a compute dtype{nearest(dtype, DTYPES)}"
        )

    import jax.numpy as jnp

    from medtl.models import architectures, resnet, vgg

    if known.family == "vgg":
        return vgg.VGG(
            architectures.vgg_layers(name),
            known.features,
            batch_norm=known.batch_norm,
            stages=stages,
            classifier=classifier,
            remat=remat,
            dtype=jnp.dtype(dtype),
            axis_name=axis_name,
            epsilon=epsilon,
        )
    return resnet.ResNet(
        known.depths,
        known.features,
        bottleneck=known.bottleneck,
        cifar=known.family == "cifar_resnet",
        stages=stages,
        stride_in=stride_in,
        zero_init_residual=zero_init_residual,
        remat=remat,
        dtype=jnp.dtype(dtype),
        axis_name=axis_name,
        epsilon=epsilon,
    )
