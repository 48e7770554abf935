"""Each backbone against PyTorch on the same weights: features, running statistics, gradients.

PyTorch computes in float64: rounding is then all on the side that is tested.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from random_variables import random_variables, relative_error, to_torch, torch_name

from medtl import models

torch = pytest.importorskip("torch")
import torch_reference  # noqa: E402

TOLERANCE = 1e-4
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")
NAMES = [
    name
    for name in models.NAMES
    if name.startswith(("resnet", "cifar", "vgg")) and name[-1] not in "dt"  # ResNet-D, BiT: later
]
CASES = [(name, "3x3") for name in NAMES] + [(name, "1x1") for name in BOTTLENECKS]


@pytest.fixture(autouse=True)
def _one_thread():
    """On images this small, PyTorch's threads spend seven times the work waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pair(name, px, batch, stride_in="3x3", classifier=False, seed=0):
    """Our module and its variables, the reference with the same, and images [batch, px, px, 3]."""
    options = "classifier=True" if classifier else "stride_in='1x1'" if stride_in == "1x1" else ""
    module = models.backbone(f"{name}({options})")()
    variables = random_variables(module, (px, px, 3), seed)
    net = torch_reference.build(name, stride_in, classifier).double()
    result = net.load_state_dict(
        {k: torch.from_numpy(v) for k, v in to_torch(variables).items()}, strict=False
    )
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    images = np.random.default_rng(seed + 1).standard_normal((batch, px, px, 3), np.float32)
    return module, variables, net, images


def to_nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def to_nchw(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float64))


@pytest.mark.parametrize(("name", "stride_in"), CASES)
def test_features_and_running_statistics(name, stride_in, record_property):
    """33 px is odd, where a wrong padding shows; 16 samples in the last layer show n / (n - 1)."""
    module, variables, net, images = pair(name, 33, 4, stride_in)

    with torch.no_grad():
        expected = to_nhwc(net.eval()(to_nchw(images)))
    error = relative_error(module.apply(variables, jnp.asarray(images), False), expected)

    with torch.no_grad():
        expected = to_nhwc(net.train()(to_nchw(images)))
    found, changed = module.apply(variables, jnp.asarray(images), True, mutable=["batch_stats"])
    train_error = relative_error(found, expected)
    state = net.state_dict()
    stats = traverse_util.flatten_dict(dict(changed))
    assert bool(stats) == ("resnet" in name or name.endswith("_bn"))
    stats_error = max(
        (relative_error(x, state[torch_name(path)]) for path, x in stats.items()), default=0.0
    )

    record_property(
        "relative_errors",
        f"eval {error:.1e}, train {train_error:.1e}, statistics {stats_error:.1e}",
    )
    print(
        f"{name} {stride_in}: eval {error:.1e}, train {train_error:.1e}, "
        f"running statistics {stats_error:.1e}"
    )
    assert error < TOLERANCE
    assert train_error < TOLERANCE
    assert stats_error < TOLERANCE


def test_vgg_classifier_takes_weights_in_torch_order():
    module, variables, net, images = pair("vgg11", 224, 1, classifier=True)
    with torch.no_grad():
        expected = to_nhwc(net.eval()(to_nchw(images)))[:, 0, 0]
    found = module.apply(variables, jnp.asarray(images), False)
    assert found.shape == (1, 4096)
    assert relative_error(found, expected) < TOLERANCE


def test_gradient_in_train_mode():
    """The best of three draws: rounding may flip a sign before a ReLU, and the gradient jumps."""
    weights = np.random.default_rng(2).standard_normal((4, 5, 5, 64), np.float32)
    module = models.backbone("cifar_resnet20")()

    @jax.jit
    @jax.grad
    def gradient(params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        features, _ = module.apply(variables, images, True, mutable=["batch_stats"])
        return (features * weights).sum()

    errors = []
    for seed in range(3):
        _, variables, net, images = pair("cifar_resnet20", 17, 4, seed=seed)
        (net.train()(to_nchw(images)) * to_nchw(weights)).sum().backward()
        expected = {name: p.grad.numpy() for name, p in net.named_parameters()}
        found = to_torch(
            {"params": gradient(variables["params"], variables["batch_stats"], images)}
        )
        assert found.keys() == expected.keys()
        errors.append(max(relative_error(found[name], expected[name]) for name in expected))
    assert min(errors) < 1e-5
