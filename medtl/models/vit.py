"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) from ViT to DINOv3 and SigLIP.

One module with options; `presets` names the published ones. Parameters have timm's names:
`blocks.0.attn.qkv`. There is no dropout and no stochastic depth: the pretrained networks have none
in use. An image that is not a whole number of patches is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from medtl.errors import UserError
from medtl.models import layers, positions, presets
from medtl.models.convs import PatchConv, truncated_normal

Tokens = Float[Array, "b n d"]
Angles = Float[Array | np.ndarray, "m e"] | None
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # arXiv:1606.08415, section 4
}


class Qkv(nn.Module):
    """Query, key and value of each token as one matrix product.

    Attributes:
      key_bias: see `ViT`.
      dtype: compute dtype.
    """

    key_bias: bool
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b n e"]:
        """Map [B, N, D] to [B, N, 3 D]."""
        width = x.shape[-1]
        kernel = self.param("kernel", truncated_normal, (width, 3 * width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (3 * width,), jnp.float32)
        if not self.key_bias:
            bias = bias.at[width : 2 * width].set(0.0)  # its gradient is zero, too
        return x @ kernel.astype(self.dtype) + bias.astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention of all tokens to all (Vaswani et al. 2017, arXiv:1706.03762).

    Attributes:
      heads: number of heads; divides the width.
      key_bias: see `ViT`.
      dtype: compute dtype; the softmax is computed in float32.
    """

    heads: int
    key_bias: bool
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: Tokens, angles: Angles) -> Tokens:
        """Map tokens to tokens.

        Args:
          x: [B, N, D].
          angles: of `positions.rotations`; None: positions are in the tokens already.
        """
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=truncated_normal)
        qkv = Qkv(self.key_bias, self.dtype, name="qkv")(x)
        qkv = qkv.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if angles is not None:
            q, k = positions.rotate(q, angles), positions.rotate(k, angles)
        return dense(width, name="proj")(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class Mlp(nn.Module):
    """Two Dense layers, or SwiGLU (Shazeer 2020, arXiv:2002.05202, equation 6).

    Attributes:
      width: of the hidden layer.
      gated: silu(fc1_g(x)) * fc1_x(x) is the hidden layer, instead of activation(fc1(x)).
      activation: one of `ACTIVATIONS`.
      dtype: compute dtype.
    """

    width: int
    gated: bool
    activation: str
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Map each token on its own."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=truncated_normal)
        if self.gated:
            hidden = nn.silu(dense(self.width, name="fc1_g")(x))
            hidden = hidden * dense(self.width, name="fc1_x")(x)
        else:
            hidden = ACTIVATIONS[self.activation](dense(self.width, name="fc1")(x))
        return dense(x.shape[-1], name="fc2")(hidden)


class LayerScale(nn.Module):
    """Scale channels (Touvron et al. 2021, arXiv:2103.17239, equation 5).

    Attributes:
      dtype: compute dtype.
    """

    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        """Scale the last axis."""
        initial = nn.initializers.constant(1e-5)
        gamma = self.param("gamma", initial, (x.shape[-1],), jnp.float32)
        return x * gamma.astype(self.dtype)


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside a shortcut.

    Attributes:
      heads, mlp_width, gated, activation, layer_scale, key_bias, norm_epsilon, dtype: see `ViT`.
    """

    heads: int
    mlp_width: int
    gated: bool
    activation: str
    layer_scale: bool
    key_bias: bool
    norm_epsilon: float
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: Tokens, angles: Angles) -> Tokens:
        """Map [B, N, D] to [B, N, D]; `angles` as `Attention` has them."""
        norm = functools.partial(nn.LayerNorm, self.norm_epsilon, dtype=self.dtype)
        attention = Attention(self.heads, self.key_bias, self.dtype, name="attn")
        y = attention(norm(name="norm1")(x), angles)
        if self.layer_scale:
            y = LayerScale(self.dtype, name="ls1")(y)
        x = x + y
        mlp = Mlp(self.mlp_width, self.gated, self.activation, self.dtype, name="mlp")
        y = mlp(norm(name="norm2")(x))
        if self.layer_scale:
            y = LayerScale(self.dtype, name="ls2")(y)
        return x + y


class AttentionPool(nn.Module):
    """SigLIP's pooling: a learned query attends to all tokens (Zhai et al. 2022, arXiv:2106.04560).

    Attributes:
      heads, mlp_width, activation, norm_epsilon, dtype: see `ViT`.
    """

    heads: int
    mlp_width: int
    activation: str
    norm_epsilon: float
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "b d"]:
        """Map [B, N, D] to [B, D]."""
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=truncated_normal)
        latent = self.param("latent", truncated_normal, (1, 1, width), jnp.float32)
        q = dense(width, name="q")(jnp.broadcast_to(latent, (len(x), 1, width)))
        kv = dense(2 * width, name="kv")(x)
        split = (self.heads, width // self.heads)
        kv = kv.reshape(*x.shape[:2], 2, *split)
        y = jax.nn.dot_product_attention(q.reshape(-1, 1, *split), kv[:, :, 0], kv[:, :, 1])
        y = dense(width, name="proj")(y.reshape(-1, 1, width))
        norm = nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name="norm")
        mlp = Mlp(self.mlp_width, False, self.activation, self.dtype, name="mlp")
        return (y + mlp(norm(y)))[:, 0]


class ViT(nn.Module):
    """A vision transformer from image to features; `medtl.models.backbone` builds it by name.

    Attributes:
      width: D, channels of a token.
      depth: number of blocks.
      heads: of each attention.
      patch: side of a patch in pixels.
      size: side in pixels of the square images for which the position embeddings are in the
        weights; images of other sizes get them interpolated, see `positions.resize`.
      mlp_width: of the hidden layers; 0: 4 D.
      class_token: whether there is one.
      registers: number of register tokens (Darcet et al. 2023, arXiv:2309.16588).
      layer_scale: whether blocks scale the channels of their branches.
      gated: SwiGLU instead of the two Dense layers.
      activation: one of `ACTIVATIONS`.
      key_bias: False: the bias of the keys is zero and stays zero (DINOv3).
      position: "learned" embeddings, or "rope" (DINOv3).
      antialias, resize_offset: see `positions.resize`.
      pre_norm: a LayerNorm before the first block (CLIP).
      patch_bias: whether the embedding of patches has a bias.
      norm_epsilon: of LayerNorm.
      pool: "token": the class token; "mean": of the patches; "attention": see `AttentionPool`. All
        follow the last LayerNorm.
      last_layer: the last block that is kept, e.g. "layer9"; "": all are.
      remat: the backward pass computes the inside of a block again instead of keeping it.
      dtype: compute dtype.
    """

    width: int
    depth: int
    heads: int
    patch: int = 16
    size: int = 224
    mlp_width: int = 0
    class_token: bool = True
    registers: int = 0
    layer_scale: bool = False
    gated: bool = False
    activation: str = "gelu"
    key_bias: bool = True
    position: str = "learned"
    antialias: bool = False
    resize_offset: float = 0.0
    pre_norm: bool = False
    patch_bias: bool = True
    norm_epsilon: float = 1e-6
    pool: str = "token"
    last_layer: str = ""
    remat: bool = False
    dtype: layers.Dtype = jnp.float32

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return group -> top-level parameter names, in order of depth: "stem", "layer1", ..."""
        names = ("depth", "class_token", "registers", "position", "pre_norm", "pool")
        every = presets.groups("vit", {name: getattr(self, name) for name in names})
        return presets.kept(every, self.last_layer, family="vit")

    @nn.compact
    def __call__(self, x: layers.Images, train: bool) -> Float[Array, "b d"]:
        """Return the pooled features.

        Args:
          x: [B, H, W, C], normalized as the weights expect; H and W are multiples of `patch`.
          train: is ignored; training and evaluation are the same.

        Returns:
          dtype[B, D].

        Raises:
          UserError: the image is not a whole number of patches.
        """
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            lower = max(x.shape[1] // self.patch, 1) * self.patch
            raise UserError(
                f"data.image_size: {x.shape[1]}x{x.shape[2]} is not a whole number of patches of "
                f"{self.patch} px; it can be {lower} or {lower + self.patch}"
            )
        x, grid = self._embed(x)
        angles = None
        if self.position == "rope":
            angles = positions.rotations(grid, self.width // self.heads)
        block: Any = nn.remat(Block) if self.remat else Block
        mlp_width = self.mlp_width or 4 * self.width
        names = [n for group in self.groups().values() for n in group if n.startswith("blocks_")]
        for name in names:
            if name == names[-1]:
                x = self._mark(x, grid)
            x = block(
                self.heads,
                mlp_width,
                self.gated,
                self.activation,
                self.layer_scale,
                self.key_bias,
                self.norm_epsilon,
                self.dtype,
                name=name,
            )(x, angles)
        x = nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name="norm")(x)
        if self.pool == "attention":
            pool = AttentionPool(
                self.heads,
                mlp_width,
                self.activation,
                self.norm_epsilon,
                self.dtype,
                name="attn_pool",
            )
            return pool(x)
        return x[:, 0] if self.pool == "token" else jnp.mean(x[:, self._prefix :], axis=1)

    @property
    def _prefix(self) -> int:
        """The number of tokens that are no patches."""
        return self.class_token + self.registers

    @nn.compact
    def _embed(self, x: layers.Images) -> tuple[Tokens, tuple[int, int]]:
        """Return the tokens [B, N, D]: class token, registers, patches; and rows and columns."""
        x = PatchEmbed(self.width, self.patch, self.patch_bias, self.dtype, name="patch_embed")(x)
        grid = (x.shape[1], x.shape[2])
        x = x.reshape(len(x), -1, self.width)

        def token(name: str, count: int) -> Tokens:
            value = self.param(name, truncated_normal, (1, count, self.width), jnp.float32)
            return jnp.broadcast_to(value.astype(self.dtype), (len(x), count, self.width))

        if self.class_token:
            x = jnp.concatenate([token("cls_token", 1), x], axis=1)
        if self.position == "learned":
            shape = (1, (self.size // self.patch) ** 2 + self.class_token, self.width)
            embeddings = self.param("pos_embed", truncated_normal, shape, jnp.float32)
            x = x + positions.resize(
                embeddings,
                int(self.class_token),
                grid,
                antialias=self.antialias,
                offset=self.resize_offset,
            ).astype(self.dtype)
        if self.registers:  # DINOv2 gives them no position
            at = int(self.class_token)
            registers = token("reg_token", self.registers)
            x = jnp.concatenate([x[:, :at], registers, x[:, at:]], axis=1)
        if self.pre_norm:
            x = nn.LayerNorm(self.norm_epsilon, dtype=self.dtype, name="norm_pre")(x)
        return x, grid

    def _mark(self, x: Tokens, grid: tuple[int, int]) -> Tokens:
        """Let Grad-CAM see the patches before the last block, after which none reaches the head."""
        patches = x[:, self._prefix :].reshape(len(x), *grid, -1)
        patches = layers.mark_feature_map(self, patches).reshape(len(x), -1, x.shape[-1])
        return jnp.concatenate([x[:, : self._prefix], patches], axis=1)


class PatchEmbed(nn.Module):
    """The linear map of each patch.

    Attributes:
      width: D.
      patch: side of a patch in pixels.
      use_bias: whether a bias is added.
      dtype: compute dtype.
    """

    width: int
    patch: int
    use_bias: bool
    dtype: layers.Dtype

    @nn.compact
    def __call__(self, x: layers.Images) -> layers.FeatureMap:
        """Map [B, H, W, C] to [B, H / patch, W / patch, D]."""
        return PatchConv(self.width, self.patch, self.use_bias, self.dtype, name="proj")(x)
