"""Losses for rare classes, hard examples and wrong labels, against float64 references."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.utils.class_weight import compute_class_weight
from test_supervised import Outputs, value_and_gradient

import medtl.losses as losses
from medtl.config.tasks import ONE_DIAGNOSIS, QUANTITY_LOSSES
from medtl.errors import UserError
from medtl.losses.imbalance import class_weights
from medtl.training.objective import Loss

COUNTS = (400, 90, 9, 1)


def chosen(values, y):
    return values[np.arange(len(y)), y]


def effective(n, beta):
    weight = (1 - beta) / (1 - beta ** np.float64(n))
    return weight * np.sum(n) / np.sum(n * weight)


def class_weighted(z, y, n=COUNTS):
    return -chosen(log_softmax(z, 1), y) * (np.sum(n) / (len(n) * np.float64(n)))[y]


def logit_adjusted(z, y, tau=1.0, n=COUNTS):
    return -chosen(log_softmax(z + tau * np.log(np.float64(n) / np.sum(n)), 1), y)


def ldam(z, y, s=1.0, reweighted=False):
    delta = 0.5 * (min(COUNTS) / np.float64(COUNTS)) ** 0.25
    values = -chosen(log_softmax(s * (z - np.eye(4)[y] * delta), 1), y)
    return values * (effective(np.array(COUNTS), 0.9999)[y] if reweighted else 1)


def focal(z, y, gamma=2.0):
    p = chosen(softmax(z, 1), y)
    return -((1 - p) ** gamma) * np.log(p)


def sigmoid_focal(z, y, gamma=2.0, alpha=0.25):
    one = np.eye(4)[y]
    pt = np.where(one == 1, expit(z), expit(-z))
    return np.mean(-np.where(one, alpha, 1 - alpha) * (1 - pt) ** gamma * np.log(pt), axis=1)


def asymmetric(z, y, positive=0.0, negative=4.0, m=0.05):
    p, one = expit(z), np.eye(4)[y]
    pm = np.maximum(p - m, 0)
    values = np.where(one, (1 - p) ** positive * np.log(p), pm**negative * np.log1p(-pm))
    return -values.mean(axis=1)


def generalized(z, y, q=0.7):
    return (1 - chosen(softmax(z, 1), y) ** q) / q


def symmetric(z, y):
    p = chosen(softmax(z, 1), y)
    return -0.1 * np.log(p) + 4 * (1 - p)


CASES = [
    (losses.class_weighted, {"class_counts": COUNTS}, class_weighted),
    (losses.logit_adjusted, {"class_counts": COUNTS}, logit_adjusted),
    (
        losses.logit_adjusted,
        {"class_counts": COUNTS, "tau": 0.5},
        lambda z, y: logit_adjusted(z, y, 0.5),
    ),
    (losses.balanced_softmax, {"class_counts": COUNTS}, logit_adjusted),
    (losses.ldam, {"class_counts": COUNTS}, ldam),
    (
        losses.ldam,
        {"class_counts": COUNTS, "scale": 3.0, "progress": 0.9},
        lambda z, y: ldam(z, y, 3.0, True),
    ),
    (losses.focal, {}, focal),
    (losses.focal, {"gamma": 0.5}, lambda z, y: focal(z, y, 0.5)),
    (losses.sigmoid_focal, {}, sigmoid_focal),
    (losses.asymmetric, {}, asymmetric),
    (
        losses.asymmetric,
        {"gamma_positive": 1.0, "gamma_negative": 2.0, "shift": 0.0},
        lambda z, y: asymmetric(z, y, 1.0, 2.0, 0.0),
    ),
    (losses.generalized_cross_entropy, {}, generalized),
    (losses.symmetric_cross_entropy, {}, symmetric),
]
IDS = [f"{loss.__name__}-{i}" for i, (loss, *_) in enumerate(CASES)]
every_loss = pytest.mark.parametrize(("loss", "options", "reference"), CASES, ids=IDS)


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(0).normal(0, 2, (7, 4)), jnp.float32)


@pytest.fixture
def label():
    return jnp.asarray([0, 1, 2, 3, 3, 0, 2], jnp.int32)


@every_loss
def test_values_and_gradients_are_those_of_the_formula_in_float64(
    loss, options, reference, logits, label
):
    """The gradient is compared with central differences of the reference."""
    values, gradient = value_and_gradient(loss, logits, label, **options)
    z, y, h = np.asarray(logits, np.float64), np.asarray(label), 1e-6
    np.testing.assert_allclose(values, reference(z, y), rtol=2e-5, atol=1e-6)
    for k in range(4):
        step = h * np.eye(4)[k]
        slope = (reference(z + step, y) - reference(z - step, y)) / (2 * h)
        np.testing.assert_allclose(gradient[:, k], slope, rtol=1e-3, atol=2e-5)


@every_loss
def test_extreme_logits_have_finite_values_and_gradients(loss, options, reference):
    logits = jnp.array([[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 1e4, 0.0], [88.0, -104.0, 1e-30, 1.0]])
    for label in ([0, 1, 2], [1, 0, 3]):
        values, gradient = value_and_gradient(loss, logits, jnp.array(label), **options)
        assert np.all(np.isfinite(values)) and np.all(np.isfinite(gradient))


@every_loss
def test_an_example_is_alone_and_bfloat16_is_worked_on_in_float32(
    loss, options, reference, logits, label
):
    low, order = logits.astype(jnp.bfloat16), jnp.array([3, 1, 6])
    values = loss(Outputs(low), {"label": label}, **options)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(
        values, loss(Outputs(low.astype(jnp.float32)), {"label": label}, **options)
    )
    some = loss(Outputs(low[order]), {"label": label[order]}, **options)
    np.testing.assert_allclose(values[order], some, rtol=1e-6)
    full = loss(Outputs(logits), {"label": label}, **options)
    np.testing.assert_allclose(values, full, rtol=0.05, atol=0.03)


@every_loss
def test_one_hot_rows_are_class_indices_and_a_row_without_a_label_counts_nothing(
    loss, options, reference, logits, label
):
    integers = loss(Outputs(logits), {"label": label}, **options)
    np.testing.assert_allclose(
        integers, loss(Outputs(logits), {"label": jnp.eye(4)[label]}, **options), rtol=1e-6
    )
    if loss.__name__ in ONE_DIAGNOSIS:
        none = loss(Outputs(logits), {"label": jnp.full(7, -1)}, **options)
    else:
        none = loss(Outputs(logits), {"label": jnp.full((7, 4), jnp.nan)}, **options)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.parametrize("loss", [losses.sigmoid_focal, losses.asymmetric])
def test_unknown_diagnoses_have_no_part_and_no_gradient(loss, logits):
    label = np.random.default_rng(1).choice([0.0, 1.0, np.nan], (7, 4)).astype(np.float32)
    label[2] = np.nan
    values, gradient = value_and_gradient(loss, logits, jnp.asarray(label))
    assert np.all(gradient[np.isnan(label)] == 0) and np.all(np.isfinite(gradient))
    for i in range(7):
        known = np.flatnonzero(~np.isnan(label[i]))
        alone = 0.0
        if len(known):
            alone = loss(
                Outputs(logits[i : i + 1, known]), {"label": jnp.asarray(label[i : i + 1, known])}
            )[0]
        assert values[i] == pytest.approx(float(alone), rel=1e-6)


def test_limits_are_the_cross_entropy(logits, label):
    expected = losses.cross_entropy(Outputs(logits), {"label": label})
    for loss, options in [
        (losses.focal, {"gamma": 0.0}),
        (losses.generalized_cross_entropy, {"q": 1e-5}),
        (losses.logit_adjusted, {"class_counts": COUNTS, "tau": 0.0}),
        (losses.ldam, {"class_counts": COUNTS, "margin": 0.0}),
        (losses.class_weighted, {"class_counts": COUNTS, "scheme": "effective", "beta": 0.0}),
        (losses.symmetric_cross_entropy, {"alpha": 1.0, "beta": 0.0}),
    ]:
        np.testing.assert_allclose(
            loss(Outputs(logits), {"label": label}, **options), expected, rtol=2e-4
        )
    binary = losses.sigmoid_binary_cross_entropy(Outputs(logits), {"label": label})
    for loss, options in [
        (losses.sigmoid_focal, {"gamma": 0.0, "alpha": None}),
        (losses.asymmetric, {"gamma_negative": 0.0, "shift": 0.0}),
    ]:
        np.testing.assert_allclose(
            loss(Outputs(logits), {"label": label}, **options), binary, rtol=1e-5
        )


def test_class_weights_are_scikit_learns_and_those_of_the_effective_number():
    y = np.repeat(np.arange(4), COUNTS)
    balanced = compute_class_weight("balanced", classes=np.arange(4), y=y)
    n = jnp.array(COUNTS, jnp.float32)
    np.testing.assert_allclose(class_weights(n), balanced, rtol=1e-6)
    for beta in (0.9, 0.999, 0.9999999):
        weights = class_weights(n, scheme="effective", beta=beta)
        np.testing.assert_allclose(weights, effective(np.array(COUNTS), beta), rtol=1e-5)
        assert np.sum(weights * n) == pytest.approx(sum(COUNTS), rel=1e-5)
    root = class_weights(n, scheme="square_root")
    np.testing.assert_allclose(root / root[3], np.array(COUNTS) ** -0.5, rtol=1e-6)


def test_the_weights_of_ldam_are_deferred(logits, label):
    def at(progress, **options):
        return losses.ldam(
            Outputs(logits), {"label": label}, class_counts=COUNTS, progress=progress, **options
        )

    np.testing.assert_array_equal(at(0.0), at(0.79))
    assert np.all(at(0.0) != at(0.8))
    np.testing.assert_array_equal(at(0.0), at(0.99, deferred=1.0))


@pytest.mark.parametrize("loss", [c[0] for c in CASES if "class_counts" in c[1]])
def test_a_class_without_train_examples_gives_no_nan(loss, logits):
    label = jnp.array([0, 1, 2, 0, 1, 2, 0])
    for counts in ((5, 3, 2, 0), (0, 0, 0, 0)):
        values, gradient = value_and_gradient(loss, logits, label, class_counts=counts)
        assert np.all(np.isfinite(values)) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("loss", [c[0] for c in CASES if "class_counts" in c[1]])
def test_the_order_of_the_classes_does_not_matter(loss, logits, label):
    order = np.array([2, 0, 3, 1])
    values = loss(Outputs(logits), {"label": label}, class_counts=COUNTS)
    permuted = loss(
        Outputs(logits[:, order]),
        {"label": jnp.asarray(np.argsort(order))[label]},
        class_counts=np.array(COUNTS)[order],
    )
    np.testing.assert_allclose(values, permuted, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (
            losses.class_weighted,
            {"class_counts": COUNTS, "scheme": "inverze"},
            "did you mean 'inverse'",
        ),
        (losses.class_weighted, {"class_counts": COUNTS, "beta": 1.0}, "beta is 1"),
        (losses.class_weighted, {"class_counts": (1, 2)}, "each of the 4 classes"),
        (losses.logit_adjusted, {"class_counts": COUNTS, "tau": -1.0}, "tau is -1"),
        (losses.ldam, {"class_counts": COUNTS, "margin": -1.0}, "margin is -1"),
        (losses.ldam, {"class_counts": COUNTS, "scale": 0.0}, "scale is 0"),
        (losses.ldam, {"class_counts": COUNTS, "deferred": 2.0}, "deferred is 2"),
        (losses.focal, {"gamma": -1.0}, "gamma is -1"),
        (losses.sigmoid_focal, {"alpha": 2.0}, "alpha is 2"),
        (losses.asymmetric, {"shift": 1.0}, "shift is 1"),
        (losses.asymmetric, {"gamma_negative": -1.0}, "gamma_negative is -1"),
        (losses.generalized_cross_entropy, {"q": 0.0}, "q is 0"),
        (losses.symmetric_cross_entropy, {"log_zero": 1.0}, "log_zero is 1"),
        (losses.symmetric_cross_entropy, {"alpha": -1.0}, "alpha is -1"),
    ],
)
def test_options_out_of_range_are_refused(loss, options, message, logits, label):
    with pytest.raises(UserError, match=message):
        loss(Outputs(logits), {"label": label}, **options)


def test_training_gives_a_loss_the_arguments_that_it_has():
    assert Loss("a", losses.ldam).takes == {"class_counts", "progress"}
    assert Loss("a", losses.balanced_softmax).takes == {"class_counts"}
    assert Loss("a", losses.focal).takes == set()


def test_the_losses_for_one_diagnosis_are_known_to_the_check_of_a_config():
    """All others take NaN for an unknown diagnosis, or compare probabilities."""
    others = {"asymmetric", "mean_squared_error", "sigmoid_binary_cross_entropy", "sigmoid_focal"}
    assert {*ONE_DIAGNOSIS} == {*losses.__all__} - others - {*QUANTITY_LOSSES, "cumulative_link"}
