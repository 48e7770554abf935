"""A small backbone's variables and the same as a state_dict, for files that fit it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medtl import models, weights


@functools.cache
def _shapes(name, channels, options):
    module = models.backbone(name, **dict(options))()
    patch = models.parse(name).settings.get("patch", 16)
    size = 224 if "classifier" in name else 4 * patch
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)


@pytest.fixture(scope="session")
def shapes():
    """The variables of a backbone as shapes."""
    return lambda name, channels=3, **options: _shapes(
        name, channels, tuple(sorted(options.items()))
    )


@pytest.fixture(scope="session")
def randomize():
    """Shapes -> random float32 arrays, variances positive."""

    def draw(tree, seed=0):
        rng = np.random.default_rng(seed)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
                if path[-1].key in ("var", "scale")
                else (rng.normal(size=leaf.shape) * 0.1).astype(np.float32)
            ),
            tree,
        )

    return draw


@pytest.fixture
def variables(shapes, randomize):
    """Random variables of cifar_resnet20."""
    return randomize(shapes("cifar_resnet20"))


@pytest.fixture
def state_dict(variables):
    """`variables` under torchvision's names, in PyTorch's layout, by a second implementation."""
    tensors = {}
    leaves = {
        "kernel": "weight",
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *modules, last = [key.key for key in path[1:]]
        name = ".".join([*modules, leaves[last]]).replace("_", ".").replace("running.", "running_")
        tensors[name] = np.ascontiguousarray(
            np.moveaxis(leaf, (3, 2), (0, 1)) if leaf.ndim == 4 else leaf
        )
    return tensors


@pytest.fixture
def load_npz(tmp_path, shapes):
    """Writes tensors as .npz and loads them into cifar_resnet20 or another architecture."""

    def load(tensors, architecture="cifar_resnet20", channels=3, **options):
        path = tmp_path / "weights.npz"
        np.savez(path, **tensors)
        variables = shapes(architecture, channels, last_layer=options.get("last_layer", ""))
        options = {"normalization": "torchvision", **options}
        return weights.load(str(path), models.parse(architecture), variables, **options)

    return load
