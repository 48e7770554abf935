"""Kernel probes: the minimum of kernel logistic regression, alone, as a head and in whole runs."""

import jax
import numpy as np
import pytest
from opened import assert_arms_agree, backbone_file
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from test_probe import blobs
from tiny_run import changed, tiny

from medtl.config import arm, check
from medtl.data import splits
from medtl.errors import UserError
from medtl.experiment import experiment, inference
from medtl.models.kernel import KernelHead
from medtl.training import kernels, probe
from medtl.training.factory import Components
from medtl.training.probe import KernelProbe

CV = "KernelProbe(C='cv', grid=(0.1, 10.0), gammas=(0.3, 1.0), folds=3, centres=80)"
FIXED = "KernelProbe(C=10.0, gammas=(0.5,), centres=80)"

NEAREST = """
import numpy as np
from flax import linen as nn
from scipy.special import softmax


class Distances(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, features, keys=None):
        shape = (self.classes, features.shape[-1])
        centres = self.param("centres", nn.initializers.zeros, shape)
        return -((features[:, None] - centres) ** 2).sum(axis=-1)


class Nearest:
    def fit(self, x, y):
        self.classes_ = np.unique(y)
        self.centres_ = np.stack([x[y == k].mean(axis=0) for k in self.classes_])
        return self

    def predict_proba(self, x):
        return softmax(-((x[:, None] - self.centres_) ** 2).sum(axis=-1), axis=1)

    def head_module(self, classes):
        return Distances(classes)

    def head(self):
        return {"centres": self.centres_.astype(np.float32)}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("backbone"))


def stage_of(text, weights, **fields):
    return tiny(
        arms=("target_only",),
        weights__path=weights,
        stages__target__epochs=0,
        stages__target__head_start=text,
        stages__target__freeze="backbone",
        stages__target__batch_norm="frozen",
        checkpoint__select="last",
        augment__flip=False,
        **fields,
    )


def kernel_machine(k, y, weight, penalty):
    """Minimize Σ w ℓ(K α + b) + penalty/2 tr(αᵀ K α) over α and b; return the logits."""
    n, classes = len(k), y.max() + 1

    def objective(flat):
        a, b = flat[:-classes].reshape(n, classes), flat[-classes:]
        logits = k @ a + b
        loss = logsumexp(logits, axis=1) - logits[np.arange(n), y]
        slope = weight[:, None] * (softmax(logits, axis=1) - np.eye(classes)[y])
        value = weight @ loss + penalty / 2 * np.sum(a * (k @ a))
        return value, np.concatenate([(k @ (slope + penalty * a)).ravel(), slope.sum(axis=0)])

    options = {"maxiter": 50_000, "maxfun": 50_000, "maxcor": 50, "ftol": 0.0, "gtol": 1e-9}
    found = minimize(
        objective, np.zeros((n + 1) * classes), jac=True, method="L-BFGS-B", options=options
    )
    return k @ found.x[:-classes].reshape(n, classes) + found.x[-classes:]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_minimum_is_that_over_the_coefficients_of_the_kernel_matrix(classes):
    x, y = blobs(40, 5, classes)
    weight = np.random.default_rng(1).uniform(0.5, 2, len(x))
    mean, scale = kernels.standardization(x)
    u = (x - mean) / scale
    k = rbf_kernel(u, gamma=0.5 / (u.shape[1] * u.var()))
    for C in (0.1, 20.0):
        ours = KernelProbe(C=C, gammas=(0.5,)).fit(x, y, sample_weight=weight)
        theirs = softmax(kernel_machine(k, y, weight, (2 if classes == 2 else 1) / C), axis=1)
        np.testing.assert_allclose(ours.predict_proba(x), theirs, atol=1e-4)


def test_several_diagnoses_are_logistic_regressions_of_scikit_learn_on_the_map():
    x, y = blobs(60, 5)
    labels = np.stack([y == 0, y == 1], axis=1).astype(float)
    labels[::7, 1] = np.nan
    known = ~np.isnan(labels)
    ours = KernelProbe(C=2.0, gammas=(1.0,)).fit(x, labels)
    features = ours.map_.features((x - ours.mean_) / ours.scale_)
    for k in range(2):
        rows = known[:, k]
        theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=10_000)
        theirs.fit(features[rows], labels[rows, k], sample_weight=(1 / known.sum(axis=1))[rows])
        np.testing.assert_allclose(
            ours.predict_proba(x)[:, k], theirs.predict_proba(features)[:, 1], atol=1e-4
        )


def test_the_unit_of_gamma_is_scikit_learns_scale_on_standardized_features():
    x, y = blobs(50, 4)
    u = StandardScaler().fit_transform(x)
    svc = SVC(gamma="scale").fit(u, y)
    made = kernels.GaussianMap.create(u)
    assert made.gamma == pytest.approx(svc._gamma)
    features = made.features(u)
    np.testing.assert_allclose(features @ features.T, rbf_kernel(u, gamma=svc._gamma), atol=1e-6)


def test_folds_of_patients_choose_c_and_gamma_and_do_not_see_what_they_leave_out():
    """Each fold's minimum is that without the rows left out as centres."""
    x, y = blobs(60, 30)
    groups = np.array([f"p{i // 6}" for i in range(60)])
    grid, gammas = (0.1, 3.0), (0.2, 1.0)
    ours = KernelProbe(grid=grid, gammas=gammas, folds=4).fit(x, y, groups=groups)
    parts = splits.parts(y, [1 / 4] * 4, key=(0, 5), patient=groups)
    mean, scale = kernels.standardization(x)
    u, losses = (x - mean) / scale, {}
    for gamma in gammas:
        k = rbf_kernel(u, gamma=gamma / (u.shape[1] * u.var()))
        for C in grid:
            total = 0.0
            for fold in range(4):
                rows, held = parts != fold, parts == fold
                values, vectors = np.linalg.eigh(k[np.ix_(rows, rows)])
                back = vectors / np.sqrt(values)
                model = LogisticRegression(C=C, tol=1e-8, max_iter=10_000)
                model.fit(k[np.ix_(rows, rows)] @ back, y[rows])
                p = model.predict_proba(k[np.ix_(held, rows)] @ back)
                total -= np.sum(np.log(p[np.arange(held.sum()), y[held]]))
            losses[C, gamma] = total
    assert min(losses, key=losses.get) == (ours.C_, ours.gamma_)


def test_neither_the_order_of_rows_nor_padding_changes_it():
    x, y = blobs(40, 5)
    order = np.random.default_rng(0).permutation(len(x))
    ours = KernelProbe(C=5.0, gammas=(1.0,)).fit(x, y)
    other = KernelProbe(C=5.0, gammas=(1.0,), centres=40).fit(x[order], y[order])
    np.testing.assert_allclose(ours.predict_proba(x), other.predict_proba(x), atol=1e-6)
    for model in (ours, other):
        made = probe.head(model, 3, key="k")
        head = KernelHead(3, model.centres)
        logits = head.apply({"params": made}, x.astype(np.float32))
        assert made["centres"].shape == (model.centres, 5)
        np.testing.assert_allclose(jax.nn.softmax(logits), model.predict_proba(x), atol=1e-5)


def test_some_centres_are_an_approximation_and_float32_holds_it():
    x, y = blobs(300, 6)
    whole = KernelProbe(C=100.0, gammas=(0.3,)).fit(x, y)
    part = KernelProbe(C=100.0, gammas=(0.3,), centres=150).fit(x, y)
    assert len(part.map_.centres) == 150
    assert np.abs(part.predict_proba(x) - whole.predict_proba(x)).mean() < 0.05
    head = KernelHead(3, 150).apply({"params": part.head()}, x.astype(np.float32))
    np.testing.assert_allclose(jax.nn.softmax(head), part.predict_proba(x), atol=2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": 0}, "KernelProbe: C is 0; it must be a number above 0, or 'cv'"),
        ({"gammas": ()}, "gammas is"),
        ({"gammas": 1.0}, "gammas is 1.0"),
        ({"gammas": (0.0,)}, "gammas is"),
        ({"centres": 1}, "centres is 1; it must be at least 2"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        KernelProbe(**options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages__target__epochs": 2}, "does not train further, but epochs is 2; set"),
        ({"stages__source__head_start": FIXED}, "stages.source.head_start .* take 'LinearProbe'"),
        ({"stages__target__adapt_batch_norm": True}, "adapt_batch_norm is True, which moves"),
        ({"model__hidden": (4,)}, "a head of one layer, but config.model.hidden is"),
        ({"arms": ("target_only", "transfer")}, "the arm 'transfer' trains on the source; leave"),
        (
            {"data__task": "ordinal", "data__grades": ("healthy", "infiltrate", "nodule")},
            "for classes, but config.data.task is 'ordinal'",
        ),
    ],
)
def test_what_a_kernel_head_cannot_do_is_refused_before_data_are_read(fields, message):
    config = changed(stage_of(FIXED, ""), **fields)

    def checked():
        check.check(config)
        Components.create(config)

    with pytest.raises(UserError, match=message):
        checked()


def test_random_encoders_have_no_kernel_head(tmp_path):
    random = {"stages__target__freeze": "none", "stages__target__batch_norm": "batch"}
    config = changed(stage_of(FIXED, ""), **random)
    with pytest.raises(UserError, match="encoders of the arm 'target_only' have random weights"):
        experiment.train(config, tmp_path)


def test_a_stage_is_the_machine_that_an_arm_is_in_each_fold(tmp_path, weights):
    """The head in JAX gives the float64 probabilities of the same minimum, chosen in each fold."""
    config = changed(stage_of(CV, weights, evaluation__folds=2), arms=("target_only", "probe"))
    config.arm.probe = arm("weights", source_stage=False, joint=False, estimator=CV)
    experiment.train(config, tmp_path)
    assert_arms_agree(tmp_path, *config.arms, atol=1e-4)


def test_a_classifier_of_the_user_s_brings_its_own_head(tmp_path, weights):
    (tmp_path / "nearest.py").write_text(NEAREST)
    text = f"{tmp_path}/nearest.py:Nearest"
    config = changed(stage_of(text, weights), arms=("target_only", "alone"))
    config.arm.alone = arm("weights", source_stage=False, joint=False, estimator=text)
    experiment.train(config, tmp_path / "run")
    assert_arms_agree(tmp_path / "run", *config.arms, atol=1e-4)
    config.stages.target.epochs = 1
    with pytest.raises(UserError, match="a head of its own, which does not train further"):
        experiment.train(config, tmp_path / "other")


def test_a_checkpoint_restores_the_head_and_evaluation_repeats_its_figures(tmp_path, weights):
    config = stage_of(FIXED, weights)
    experiment.train(config, tmp_path)
    before = (tmp_path / "predictions.csv").read_bytes()
    stored = inference.load_checkpoint(tmp_path)
    head = stored.variables["params"]["heads"][stored.model.head_of["target"]]
    assert head["centres"].shape[0] == 80
    assert 0 < np.count_nonzero(head["coefficients"].any(axis=1)) < 80  # the rest is padding
    experiment.evaluate(config, tmp_path)
    assert (tmp_path / "predictions.csv").read_bytes() == before
    inference.export(tmp_path, tmp_path / "model.safetensors")
    assert not (tmp_path / "model_loader.py").exists()
