"""Terms over a batch and over parameters: closed forms, float64 references, degenerate batches."""

from types import SimpleNamespace as Namespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.distance import cdist
from scipy.special import softmax

from medtl.errors import UserError
from medtl.losses import terms
from medtl.losses.terms.adversarial import reverse_gradient

DOMAINS = ("source", "target")
CLASSES = dict.fromkeys(DOMAINS, ("a", "b", "c"))


def context(x, y, *, p=None, q=None, labels=None, **fields):
    """Return a context whose features and logits are x f32[n, D] and y f32[m, D]."""
    parts = {"source": (x, p), "target": (y, q)}
    batch = {}
    for domain, (rows, mask) in parts.items():
        given = (labels or {}).get(domain, np.arange(len(rows)) % 3)
        ones = np.ones(len(rows), np.float32)
        batch[domain] = {
            "mask": jnp.asarray(ones if mask is None else mask, jnp.float32),
            "label": jnp.asarray(given),
        }
    outputs = {d: Namespace(features=rows, logits=rows) for d, (rows, _) in parts.items()}
    fields = {"classes": CLASSES, "progress": 0.5, **fields}
    return Namespace(outputs=outputs, batch=batch, **fields)


def dann(context, **options):
    module = terms.DANN(hidden=(5,), **options)
    return module.apply(module.init(jax.random.key(0), context), context)


EVERY = [terms.coral, terms.mmd, terms.contrastive, dann, terms.soft_f1, terms.auc_margin]
every_term = pytest.mark.parametrize("term", EVERY, ids=lambda term: term.__name__)


@pytest.fixture
def rows():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (8, 3)), rng.normal(0.7, 1.6, (7, 3))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def test_coral_is_the_distance_of_numpys_covariances(rows):
    x, y = (np.asarray(r, np.float64) for r in rows)
    expected = np.sum((np.cov(x.T) - np.cov(y.T)) ** 2) / (4 * 3**2)
    assert float(terms.coral(context(*rows))) == pytest.approx(expected, rel=1e-5)
    # It sees no shift, also a large one: the mean is subtracted before the product.
    assert float(terms.coral(context(rows[0] + 1e3, rows[0]))) < 1e-6


def mmd_of(x, y, scales, w=None):
    together = np.concatenate([x, y])
    squares = cdist(together, together, "sqeuclidean")
    w = squares.sum() / (len(squares) * (len(squares) - 1)) if w is None else w
    k = np.mean([np.exp(-squares / (c * w)) for c in scales], axis=0)
    n, m = len(x), len(y)
    same_x = (k[:n, :n].sum() - n) / (n * (n - 1))
    same_y = (k[n:, n:].sum() - m) / (m * (m - 1))
    return same_x + same_y - 2 * k[:n, n:].mean()


def test_mmd_is_the_unbiased_estimate(rows):
    x, y = (np.asarray(r, np.float64) for r in rows)
    for scales in ((1.0,), (0.25, 0.5, 1.0, 2.0, 4.0)):
        value = float(terms.mmd(context(*rows), scales=scales))
        assert value == pytest.approx(mmd_of(x, y, scales), rel=1e-5)
    far = float(terms.mmd(context(rows[0] + 1e3, rows[1] + 1e3)))
    assert far == pytest.approx(float(terms.mmd(context(*rows))), abs=1e-4)


def test_mmd_of_equal_distributions_is_zero_in_the_mean():
    x = jax.random.normal(jax.random.key(0), (2000, 2, 6, 2))
    values = jax.vmap(lambda x: terms.mmd(context(x[0], x[1])))(x)
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert (values < 0).any()  # the biased estimate never is


def contrastive_of(x, y, label, temperature):
    z = np.concatenate([x, y])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    domain, values = np.repeat([0, 1], [len(x), len(y)]), []
    for i in range(len(z)):
        others = np.delete(np.arange(len(z)), i)
        share = softmax(z[others] @ z[i] / temperature)
        positive = (label[others] == label[i]) & (domain[others] != domain[i]) & (label[i] >= 0)
        if positive.any():
            values.append(-np.log(share[positive]).mean())
    return np.mean(values) if values else 0.0


def test_contrastive_is_the_formula_row_by_row(rows):
    x, y = (np.asarray(r, np.float64) for r in rows)
    label = {
        "source": np.array([0, 0, 1, 1, -1, 0, 1, 2]),
        "target": np.array([0, 1, 1, 0, 0, -1, 1]),
    }
    for temperature in (0.1, 1.0):
        value = float(terms.contrastive(context(*rows, labels=label), temperature=temperature))
        joined = np.concatenate([label["source"], label["target"]])
        assert value == pytest.approx(contrastive_of(x, y, joined, temperature), rel=1e-5)


def test_contrastive_falls_where_classes_meet_over_the_domains():
    axes = jnp.eye(3)
    aligned = terms.contrastive(context(axes, axes))
    shifted = terms.contrastive(context(axes, axes[jnp.array([1, 2, 0])]))
    assert float(aligned) < 0.01 < 5 < float(shifted)


def test_dann_reverses_the_gradient_of_the_features_alone(rows):
    """λ(p) = 2 / (1 + exp(-10 p)) - 1: 0 at the start, 0.987 in the middle."""
    module = terms.DANN(hidden=(5,))
    variables = module.init(jax.random.key(0), context(*rows))

    def value(variables, x, progress, gamma):
        return terms.DANN(hidden=(5,), gamma=gamma).apply(
            variables, context(x, rows[1], progress=progress)
        )

    def plain(variables, x):
        w, b = (variables["params"]["Dense_0"][k] for k in ("kernel", "bias"))
        v, c = (variables["params"]["Dense_1"][k] for k in ("kernel", "bias"))
        logits = [(jax.nn.relu(r @ w + b) @ v + c)[:, 0] for r in (x, rows[1])]
        return 0.5 * (jax.nn.softplus(logits[0]).mean() + jax.nn.softplus(-logits[1]).mean())

    forward = jax.grad(plain, (0, 1))(variables, rows[0])
    assert float(value(variables, rows[0], 0.5, 10.0)) == pytest.approx(
        float(plain(variables, rows[0]))
    )
    for progress in (0.0, 0.1, 0.5):
        of_parameters, of_features = jax.grad(value, (0, 1))(variables, rows[0], progress, 10.0)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), of_parameters, forward[0]
        )
        strength = 2 / (1 + np.exp(-10 * progress)) - 1
        np.testing.assert_allclose(of_features, -strength * forward[1], atol=1e-6)


def test_the_reversal_does_not_change_the_value_of_bfloat16():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 1e3, 100), jnp.bfloat16)
    np.testing.assert_array_equal(reverse_gradient(x, jnp.float32(0.3)), x)
    gradient = jax.grad(lambda x: reverse_gradient(x, jnp.float32(0.5)).sum())(x)
    assert gradient.dtype == jnp.bfloat16 and (gradient == -0.5).all()


def test_soft_f1_of_certain_predictions_is_one_minus_f1():
    label = np.array([0, 0, 1, 1, 1, 2])
    called = np.array([0, 1, 1, 1, 2, 2])
    logits = jnp.asarray(100.0 * np.eye(3)[called], jnp.float32)
    f1 = np.array([2 / 3, 2 / 3, 2 / 3])  # 2 TP / (2 TP + FP + FN), by hand
    value = terms.soft_f1(context(logits, logits, labels={"target": label}))
    assert float(value) == pytest.approx(1 - f1.mean(), abs=1e-6)


def test_auc_margin_is_the_saddle_point_of_the_min_max_form():
    """Yuan et al.: min over a and b by their closed forms, max over α by scanning it."""
    rng = np.random.default_rng(0)
    logits, label = rng.normal(0, 2, (9, 2)), np.array([0, 1, 1, 0, 0, 0, 1, 0, 0])
    h = softmax(logits, axis=1)[:, 1]
    a, b, alphas = h[label == 1], h[label == 0], np.linspace(0, 3, 300_001)
    saddle = a.var() + b.var() + np.max(2 * alphas * (1 - a.mean() + b.mean()) - alphas**2)
    logits = jnp.asarray(logits, jnp.float32)
    value = terms.auc_margin(context(logits, logits, labels={"target": label}))
    assert float(value) == pytest.approx(saddle, rel=1e-4)  # of two classes both have this value


def test_unknown_diagnoses_do_not_count():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (6, 2)), jnp.float32)
    label = np.array([[1, 0], [0, np.nan], [1, 1], [np.nan, 0], [0, 1], [1, np.nan]], np.float32)
    for term in (terms.soft_f1, terms.auc_margin):

        def value(z, label=label, term=term):
            return term(context(z, z, labels={"source": label, "target": label}))

        gradient = jax.grad(value)(logits)
        assert (gradient[np.isnan(label)] == 0).all() and jnp.isfinite(gradient).all()
        single = [
            float(term(context(z, z, labels={"source": y, "target": y})))
            for k in range(2)
            for known in [~np.isnan(label[:, k])]
            for z, y in [(logits[known, k : k + 1], label[known, k : k + 1])]
        ]
        assert float(value(logits)) == pytest.approx(np.mean(single), rel=1e-5)


def test_every_term_is_tested_here():
    assert {term.__name__.upper() for term in (*EVERY, terms.l2_sp)} == {
        name.upper() for name in terms.__all__
    }


def test_l2_sp_is_half_the_squared_distance():
    params = {
        "encoders": {"image": {"w": jnp.array([3.0, 1.0])}, "table": {"w": jnp.ones(5)}},
        "heads": {"shared": jnp.array([2.0])},
    }
    start = {"image": {"w": jnp.array([1.0, 1.0])}}
    c = Namespace(params=params, pretrained=start)
    assert float(terms.l2_sp(c)) == 2.0
    assert float(terms.l2_sp(c, heads=0.5)) == 3.0
    gradient = jax.grad(lambda p: terms.l2_sp(Namespace(params=p, pretrained=start)))(params)
    np.testing.assert_array_equal(gradient["encoders"]["image"]["w"], [2, 0])
    np.testing.assert_array_equal(gradient["encoders"]["table"]["w"], 0)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, start))
    assert float(terms.l2_sp(Namespace(params=low[0], pretrained=low[1]), heads=0.5)) == 3.0
    moved = {**params, "encoders": {**params["encoders"], "image": {"w": jnp.array([1.3, 0.4])}}}
    check_grads(lambda p: terms.l2_sp(Namespace(params=p, pretrained=start)), (moved,), 1, "rev")


@every_term
def test_gradients_are_those_of_finite_differences(term, rows):
    if term is dann:  # without the reversal
        module = terms.DANN(hidden=(5,), gamma=0.0)
        variables = module.init(jax.random.key(0), context(*rows))
        with pytest.raises(AssertionError):  # gamma = 0 stops the gradient: the features rest
            check_grads(
                lambda x: module.apply(variables, context(x, rows[1])), (rows[0],), 1, "rev"
            )
        return
    if term is terms.mmd:  # the width of the kernels has no gradient
        h, y = 1e-6, np.asarray(rows[1], np.float64)
        x, scales = np.asarray(rows[0], np.float64), (0.5, 2.0)
        together = np.concatenate([x, y])
        w = cdist(together, together, "sqeuclidean").sum() / (15 * 14)
        gradient = jax.grad(lambda x: terms.mmd(context(x, rows[1]), scales=scales))(rows[0])
        for i, k in ((0, 0), (3, 2), (7, 1)):
            step = np.zeros_like(x)
            step[i, k] = h
            slope = (mmd_of(x + step, y, scales, w) - mmd_of(x - step, y, scales, w)) / (2 * h)
            assert float(gradient[i, k]) == pytest.approx(slope, rel=1e-3, abs=1e-6)
        return
    check_grads(lambda x, y: term(context(x, y)), rows, 1, "rev", atol=2e-3, rtol=2e-3)


@every_term
def test_padding_and_order_do_not_matter(term, rows):
    x, y = rows
    label = {"source": np.arange(8) % 3, "target": np.arange(7) % 3}
    value = float(term(context(x, y, labels=label)))
    order, other = np.random.default_rng(0).permutation(8), np.random.default_rng(1).permutation(7)
    moved = {"source": label["source"][order], "target": label["target"][other]}
    assert float(term(context(x[order], y[other], labels=moved))) == pytest.approx(
        value, rel=1e-4, abs=1e-6
    )

    def padded(x, y):
        more = {d: np.concatenate([v, [0, 1]]) for d, v in label.items()}
        return term(context(
            jnp.concatenate([x, jnp.array([[9.0, -9.0, 1e30], [jnp.inf, jnp.nan, 1.0]])]),
            jnp.concatenate([y, jnp.array([[1e30, 0.0, 7.0], [jnp.nan, 0.0, 0.0]])]),
            p=[1] * 8 + [0, 0], q=[1] * 7 + [0, 0], labels=more,
        ))  # fmt: skip

    assert float(padded(x, y)) == pytest.approx(value, rel=1e-4, abs=1e-6)
    for a, b in zip(
        jax.grad(padded, (0, 1))(x, y),
        jax.grad(lambda x, y: term(context(x, y, labels=label)), (0, 1))(x, y),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@every_term
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (1, 0, 0)),
        ((1, 1, 1), (0, 0, 0)),
        ((1, 1, 0), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("same", [False, True], ids=["rows", "equal_rows"])
def test_degenerate_batches_have_finite_values_and_gradients(term, p, q, same):
    """All padding, one row, an empty domain, an absent class; rows of zeros."""
    x = (
        jnp.zeros((3, 3))
        if same
        else jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
    )
    label = dict.fromkeys(DOMAINS, np.array([0, 0, -1]))

    def value(x, y):
        return term(context(x, y, p=p, q=q, labels=label))

    result, gradients = jax.value_and_grad(value, (0, 1))(x, x)
    assert jnp.isfinite(result)
    assert all(jnp.isfinite(g).all() for g in gradients)
    if sum(p) + sum(q) == 0:
        assert result == 0 and all((g == 0).all() for g in gradients)


@every_term
def test_bfloat16_is_close_and_the_result_is_float32(term, rows):
    low = [r.astype(jnp.bfloat16) for r in rows]
    value = term(context(*low))
    assert value.dtype == jnp.float32
    exact = term(context(*[r.astype(jnp.float32) for r in low]))
    np.testing.assert_allclose(value, exact, rtol=1e-6)
    np.testing.assert_allclose(value, term(context(*rows)), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("term", "options", "message"),
    [
        (terms.mmd, {"scales": ()}, r"scales is \(\)"),
        (terms.mmd, {"scales": (1.0, 0.0)}, "numbers above 0"),
        (terms.contrastive, {"temperature": 0.0}, "temperature is 0"),
        (terms.soft_f1, {"domain": "targett"}, "did you mean 'target'"),
        (terms.auc_margin, {"margin": -1.0}, "margin is -1"),
        (dann, {"gamma": -1.0}, "gamma is -1"),
        (terms.l2_sp, {"heads": -1.0}, "heads is -1"),
    ],
)
def test_options_out_of_range_are_refused(term, options, message, rows):
    with pytest.raises(UserError, match=message):
        term(context(*rows), **options)


def test_contrastive_refuses_other_classes_and_several_diagnoses(rows):
    with pytest.raises(
        UserError, match="those of the source are a, b and those of the target are a, c"
    ):
        terms.contrastive(context(*rows, classes={"source": ("a", "b"), "target": ("a", "c")}))
    several = {d: np.zeros((n, 3), np.float32) for d, n in (("source", 8), ("target", 7))}
    with pytest.raises(UserError, match="one diagnosis"):
        terms.contrastive(context(*rows, labels=several))
