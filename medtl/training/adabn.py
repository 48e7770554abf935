"""AdaBN: the running statistics of BatchNorm, estimated anew on the images of one domain."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from medtl import files
from medtl.errors import damaged
from medtl.examples import Normalization
from medtl.models.model import Model
from medtl.training.parallel import Parallel
from medtl.training.step import prepare

FEWEST = 32  # images whose statistics are worth estimating
FILE = "batch_stats.npz"  # in a stage's folder: the statistics that replace the checkpoint's


def adapted(
    model: Model,
    variables: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    *,
    normalization: Normalization,
    parallel: Parallel,
) -> dict[str, Any]:
    """Return the variables with running statistics that are re-estimated on some batches.

    AdaBN: Li et al. 2016, arXiv:1603.04779, algorithm 1. The mean of each layer is that of all
    examples, and the variance that within the batches and between their means; as in training, a
    layer's input is normalized by the statistics of the batch before it.

    Args:
      model: the model.
      variables: of the model, on the host.
      batches: of one domain, with `mask`, from the host.
      normalization: of the images.
      parallel: the devices.
    """
    names = list(variables["batch_stats"]["encoders"])

    def step(tree: Any, batch: Mapping[str, Any]) -> jax.Array:
        inputs = prepare({"": batch}, normalization=normalization)

        def updated(value: float) -> jax.Array:
            """Return the statistics after one update from this value, f32[P]."""
            old = jax.tree.map(lambda x: jnp.full_like(x, value), tree["batch_stats"])
            new = {"encoders": dict(old["encoders"])}
            for name in names:
                _, changed = model.apply(
                    {**tree, "batch_stats": old}, name, inputs, True, "batch", method="_encode",
                    mutable=["batch_stats"],
                )  # fmt: skip
                new["encoders"][name] = changed["batch_stats"]["encoders"][name]
            leaves = jax.tree.leaves(new["encoders"])
            return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

        # new = m old + (1 - m) batch, with the layer's own momentum m.
        of_zero, of_one = updated(0.0), updated(1.0)
        kept = jnp.round(of_one - of_zero, 4)  # without the rounding of large statistics
        made = of_zero / jnp.maximum(1.0 - kept, 1e-6)
        return jnp.tile(made, (len(batch["mask"]), 1))  # one row an example, as in an evaluation

    compiled = parallel.evaluate(step)
    encoders = variables["batch_stats"]["encoders"]
    tree = parallel.replicate(
        {"params": variables["params"], "batch_stats": {"encoders": encoders}}
    )
    parts = [(float(batch["mask"].sum()), compiled(tree, batch)[0]) for batch in batches]
    share = np.array([n for n, _ in parts]) / sum(n for n, _ in parts)
    values = np.stack([row for _, row in parts]).astype(np.float64)
    pooled = _pooled(encoders, values, share)
    return {**variables, "batch_stats": {**variables["batch_stats"], "encoders": pooled}}


def _pooled(like: Any, values: np.ndarray, share: np.ndarray) -> Any:
    """Return statistics of all batches: the mean, and the variance within and between them.

    Args:
      like: the running statistics, which name the means and variances.
      values: float64[batches, P], those of each batch, in the order of the leaves.
      share: float64[batches], of the examples.
    """
    leaves, tree = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    by_leaf = jax.tree.unflatten(tree, np.split(values, ends, axis=1))
    flat, shapes = traverse_util.flatten_dict(by_leaf), traverse_util.flatten_dict(like)
    made = {}
    for path, of_batches in flat.items():
        pooled = share @ of_batches
        if path[-1] == "var" and (*path[:-1], "mean") in flat:
            means = flat[*path[:-1], "mean"]
            pooled = pooled + share @ (means - share @ means) ** 2
        made[path] = pooled.reshape(shapes[path].shape).astype(np.float32)
    return traverse_util.unflatten_dict(made)


def write(folder: Path, statistics: Mapping[str, Any]) -> None:
    """Write the statistics of the encoders beside a stage's checkpoints."""
    arrays: dict[str, Any] = traverse_util.flatten_dict(statistics["encoders"], sep="/")
    with files.atomic(folder / FILE, "wb") as file:
        np.savez(file, **arrays)


def read(folder: Path) -> dict[str, Any]:
    """Return the statistics of the encoders that `write` left.

    Raises:
      UserError: the file is absent or damaged.
    """
    advice = "run the training command again"
    with (
        damaged(f"{folder / FILE}, the statistics by adapt_batch_norm, cannot be read; {advice}"),
        files.open_npz(io.BytesIO((folder / FILE).read_bytes())) as stored,
    ):
        flat = {name: stored[name] for name in stored.files}
        return {"encoders": traverse_util.unflatten_dict(flat, sep="/")}
