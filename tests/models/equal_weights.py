"""A PyTorch network and ours on equal random weights: features, running statistics, gradients.

The state_dict goes through `weights.load`, and so do PyTorch's gradients, as if they were weights:
the names, joins and transposes of a checkpoint family are tested with its numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import traverse_util
from random_variables import relative_error

from medtl import models, weights


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors: of features in evaluation and training, of the worst statistic and gradient.

    Attributes:
      notes: of the load report.
    """

    evaluation: float
    training: float
    statistics: float
    gradient: float
    notes: str


def randomize(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw values that keep the size of activations, and show every parameter in the features."""
    rng = np.random.default_rng(seed)
    for name, value in net.state_dict().items():
        if not value.is_floating_point():
            continue
        shape, size = tuple(value.shape), max(value.numel(), 1)
        draws = np.resize(rng.standard_normal(min(size, 999_983)), shape)
        leaf = name.rpartition(".")[2]
        if leaf == "running_var" or "gamma" in leaf or "scale" in leaf or "lambda" in leaf:
            new = 0.7 + 0.2 * np.tanh(draws)
        elif leaf == "weight" and len(shape) == 1:
            new = 1 + 0.1 * np.tanh(draws)
        elif leaf in ("weight", "in_proj_weight") and len(shape) > 1 and "position" not in name:
            new = draws / np.sqrt(np.prod(shape[1:]))
        else:
            new = 0.2 * draws
        value.copy_(torch.from_numpy(np.asarray(new)))
    return net


def loaded(state, module, architecture, shape, folder):
    """Our variables from a state_dict, or from gradients under its names, and the load report."""
    path = folder / "weights.npz"
    np.savez(path, **{name: value.numpy() for name, value in state.items()})
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    like = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    like = {collection: like.get(collection, {}) for collection in ("params", "batch_stats")}
    result = weights.load(str(path), architecture, like, normalization="torchvision")
    return jax.tree.map(jnp.asarray, result.variables), result.report


@contextlib.contextmanager
def float64():
    """Let our modules compute in float64: what they call float32 is float64 here."""
    float32 = jnp.float32
    with jax.enable_x64(True):
        jnp.float32 = jnp.float64
        try:
            yield
        finally:
            jnp.float32 = float32


def compare(
    net, module, folder, *, px, features, text="", batch=2, seed=0, gradient=True, exact=False
):
    """Return the errors of `module` against `net`, whose `features(images)` are NCHW or [B, D].

    PyTorch computes in float64: rounding is then all on the side that is tested. `exact`: our
    gradient is in float64, too, as rounding flips some ReLUs, where the gradient jumps.
    """
    architecture = models.parse(text) if text else None
    net = randomize(net.double(), seed).float().double().eval()
    images = np.random.default_rng(seed + 1).standard_normal((batch, px, px, 3), np.float32)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float64))
    images = jnp.asarray(images)
    shape = (px, px, 3)
    variables, report = loaded(net.state_dict(), module, architecture, shape, folder)
    with torch.no_grad():
        expected = _nhwc(features(tensor))
    found = jax.jit(lambda v, x: module.apply(v, x, False))(variables, images)
    assert found.shape == expected.shape
    evaluation = relative_error(found, expected)

    has_statistics = bool(variables["batch_stats"])
    net.train()
    output = features(tensor)
    expected = _nhwc(output)
    weight = np.random.default_rng(seed + 2).standard_normal(expected.shape, np.float32)

    def step(module, params, images, gradient):
        def loss(params):
            found, changed = module.apply(
                {**variables, "params": params}, images, True, mutable=["batch_stats"]
            )
            return jnp.sum(found * weight), (found, changed)

        return jax.jit((jax.grad if gradient else _only_values)(loss, has_aux=True))(params)

    ours, (found, changed) = step(module, variables["params"], images, gradient and not exact)
    training, worst = relative_error(found, expected), 0.0
    if gradient:
        if exact:
            with float64():
                double = [jax.tree.map(jnp.float64, x) for x in (variables["params"], images)]
                ours, _ = step(module.clone(dtype=jnp.float64), *double, True)
        (_nchw_like(weight, output) * output).sum().backward()
        missing = {n: torch.zeros_like(v) for n, v in net.state_dict().items()}
        theirs = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        theirs, _ = loaded({**missing, **theirs}, module, architecture, shape, folder)
        worst = _worst(ours, theirs["params"])
    statistics = 0.0
    if has_statistics:
        after, _ = loaded(net.state_dict(), module, architecture, shape, folder)
        statistics = _worst(changed["batch_stats"], after["batch_stats"])
    return Errors(evaluation, training, statistics, worst, "; ".join(report.notes))


def _only_values(loss, has_aux):
    return lambda params: (None, loss(params)[1])


def _worst(found, expected) -> float:
    """Return the largest relative error; a bias before a BatchNorm has a gradient of rounding."""
    found, expected = (traverse_util.flatten_dict(tree) for tree in (found, expected))
    assert found.keys() == expected.keys()
    sizes = {path: np.linalg.norm(np.asarray(x, np.float64)) for path, x in expected.items()}
    floor = 1e-4 * max(sizes.values())
    return max(
        float(np.linalg.norm(np.asarray(found[path], np.float64) - np.asarray(expected[path])))
        / max(sizes[path], floor)
        for path in expected
    )


def _nhwc(x):
    x = x.detach().numpy()
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


def _nchw_like(weight, output):
    return torch.from_numpy(weight.transpose(0, 3, 1, 2) if output.ndim == 4 else weight)
