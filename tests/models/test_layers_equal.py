"""Each way of writing a primitive equals the plain one: forward, gradient, running statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_variables, relative_error

from medtl import models
from medtl.models import layers

FORMS = ("cpu", "plain")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def values_and_gradients(f, args, seed=9):
    """f(*args), and the gradient of its product with random weights by each argument."""
    y, pull = jax.vjp(f, *args)
    return jax.tree.leaves((y, pull(draw(*y.shape, seed=seed))))


def assert_equal_forms(results, tolerance=1e-5):
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < tolerance


# Wide to narrow and narrow to wide take different products in the gradient.
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 32), (32, 8), (16, 16)])
@pytest.mark.parametrize(("px", "stride"), [(8, 1), (8, 2), (7, 2), (7, 3)])
def test_convolution_1x1(inputs, outputs, px, stride):
    args = draw(3, px, px, inputs), draw(1, 1, inputs, outputs, seed=1)
    assert_equal_forms(
        [
            jax.jit(
                lambda *a, f=f: values_and_gradients(
                    lambda x, k: layers.convolve(x, k, stride=stride, form=f), a
                )
            )(*args)
            for f in FORMS
        ]
    )


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (7, 2, 3)])
@pytest.mark.parametrize("px", [8, 9])
def test_convolution_with_a_window(size, stride, padding, px):
    args = draw(3, px, px + 1, 4), draw(size, size, 4, 6, seed=1)

    def form(f):
        return lambda x, k: layers.convolve(x, k, stride=stride, padding=padding, form=f)

    assert_equal_forms(
        [jax.jit(lambda *a, f=f: values_and_gradients(form(f), a))(*args) for f in FORMS]
    )


POOLS = [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0), (2, 3, 0), (3, 2, 0), (5, 2, 2)]


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
@pytest.mark.parametrize("px", [8, 9, 11])
def test_max_pool(size, stride, padding, px):
    """Half of the values are zero, as after a ReLU: the first of equals takes the gradient."""
    x = jax.nn.relu(draw(2, px, px + 2, 3))
    pool = lambda f: lambda x: layers.max_pool(x, size=size, stride=stride, padding=padding, form=f)  # noqa: E731
    assert_equal_forms([values_and_gradients(pool(f), (x,)) for f in FORMS])
    np.testing.assert_array_equal(pool("cpu")(x), pool("plain")(x))


def test_max_pool_passes_nan_on():
    """Or a run that diverges would not be seen."""
    x = draw(1, 6, 6, 1).at[0, 2, 2, 0].set(jnp.nan)
    y, _ = jax.vjp(lambda x: layers.max_pool(x, size=3, stride=2, padding=1, form="cpu"), x)
    plain = layers.max_pool(x, size=3, stride=2, padding=1, form="plain")
    np.testing.assert_array_equal(y, plain)
    assert np.isnan(y).any()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11_bn"])
def test_backbone(name, monkeypatch):
    """Stem, pooling and first layer, with a padded row."""
    module = models.backbone(name, last_layer=models.parse(name).layers[0])()
    variables = random_variables(module, (33, 33, 3))
    images, mask = draw(4, 33, 33, 3), jnp.array([1.0, 1.0, 0.0, 1.0])
    results = []
    for form in FORMS:
        monkeypatch.setattr(layers, "lowering", lambda form=form: form)

        @jax.jit
        def run(params, images):
            def loss(params, images):
                changed_variables = variables | {"params": params}
                y, changed = module.apply(
                    changed_variables, images, True, mask=mask, mutable=["batch_stats"]
                )
                return jnp.sum(jnp.sin(y) * mask[:, None, None, None]), (y, changed)

            return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)

        (by_params, by_images), (y, changed) = run(variables["params"], images)
        y_eval = module.apply(variables, images, False)
        # The gradient of a bias before a BatchNorm is zero but for rounding: no relative error.
        by_params = {k: v for k, v in by_params.items() if "bias" not in v or "scale" in v}
        results.append(jax.tree.leaves((by_params, by_images, y[mask > 0], changed, y_eval)))
    assert_equal_forms(results)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "cifar_resnet20", "vgg11_bn", "vgg11"])
def test_rematerialisation_changes_memory_and_not_numbers(name):
    """Names, values, gradients and running statistics are those without it; less is kept."""
    x, mask = draw(4, 32, 32, 3), jnp.array([1.0, 1.0, 0.0, 1.0])
    last = models.parse(name).layers[1]
    variables = random_variables(models.backbone(name, last_layer=last)(), x.shape[1:])
    results, kept = [], []
    for remat in (False, True):
        module = models.backbone(name, last_layer=last, remat=remat)()
        assert jax.tree.structure(random_variables(module, x.shape[1:])) == jax.tree.structure(
            variables
        )

        def apply(params, module=module):
            y, changed = module.apply(
                variables | {"params": params},
                x,
                True,
                mask=mask,
                mutable=["batch_stats"],
            )
            return jnp.sum(jnp.sin(y) * mask[:, None, None, None]), (y, changed)

        gradient, found = jax.jit(jax.grad(apply, has_aux=True))(variables["params"])
        gradient = {
            k: v for k, v in gradient.items() if "bias" not in v or "scale" in v or name == "vgg11"
        }
        results.append(jax.tree.leaves((gradient, found)))
        residuals = jax.eval_shape(
            lambda p, apply=apply: jax.vjp(lambda p: apply(p)[0], p)[1], variables["params"]
        )
        kept.append(
            sum(leaf.size for leaf in jax.tree.leaves(residuals) if leaf.shape[:1] == x.shape[:1])
        )
    assert_equal_forms(results)
    assert kept[1] < 0.6 * kept[0]


def test_second_derivative_and_vmap():
    """Hessian-vector products and seeds under one vmap go through the gradients written here."""
    x, k = draw(5, 2, 6, 6, 4), draw(1, 1, 4, 3, seed=1)

    def loss(x, form):
        y = layers.max_pool(
            layers.convolve(x, k, form=form), size=3, stride=2, padding=1, form=form
        )
        return jnp.sum(jnp.sin(y))

    def product(x, v, form):
        return jax.jvp(jax.grad(lambda x: loss(x, form)), (x,), (v,))[1]

    v = draw(*x.shape, seed=2)
    assert_equal_forms([[jax.vmap(lambda x, v, f=f: product(x, v, f))(x, v)] for f in FORMS])
