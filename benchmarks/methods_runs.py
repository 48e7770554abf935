"""The runs of methods.py: data sets as features, and one method trained on all subsets at once.

A run is a training set: a subset of the labels drawn by a seed, or that subset without one of its
folds. All runs and settings of a method are one compiled program of `medtl.sweep`, or one call of
its convex solver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from medtl import config as configs
from medtl import plugins
from medtl.data import source_weights
from medtl.data.splits import subset_order
from medtl.evaluation import label_shift
from medtl.examples import Examples
from medtl.experiment import baselines, splits
from medtl.experiment.arm import Arm
from medtl.experiment.setup import Experiment
from medtl.experiment.trials import Trial, combinations, with_values
from medtl.sweep import trainer
from medtl.training import kernels
from medtl.training.factory import Components

FOLDS = 3  # within the labels, to choose a setting
STEPS = 400  # of each trained head
PENALTY = "stages.target.weight_decay"
LAMBDA = "objective.lambda_"


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry of the benchmark: what differs from a linear head on the target's features.

    Attributes:
      about: a phrase for the table.
      overrides: config path -> value.
      grid: config path -> the values that folds within train choose from. With solver "lbfgs" the
        penalty is in units of the features' total variance.
      solver: "train" (medtl's trainer), "lbfgs" (the convex minimum) or "estimator" (scikit-learn).
      view: which features; a function of `VIEWS`.
      joint, source_stage: as in `config.arm`.
      from_folds: predict by the mean of the folds' models in place of the one on all labels.
      cautious: the source counts where the folds show by one standard error that it helps.
      source_weights: a plug-in string of `medtl.data.source_weights`; the target's features are
        those of `DataSet.pool`, without labels.
      every_class: each subset must hold every class, as those of two classes do.
      shift: "em" or "bbse": the probabilities are corrected for the frequencies of the classes.
    """

    about: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    solver: str = "train"
    view: str = "plain"
    joint: bool = False
    source_stage: bool = False
    from_folds: bool = False
    cautious: bool = False
    source_weights: str = ""
    every_class: bool = False
    shift: str = ""

    @property
    def uses_source(self) -> bool:
        return self.joint or self.source_stage


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A target, with or without a source.

    Attributes:
      name: in the results.
      target: arrays of methods_data.py.
      source: the same; None: there is none.
      sizes: numbers of labels; 0: all of train.
      halves: test each half of the target once, as it has no split of its own.
      test: the name of the split that is tested, where it has one.
    """

    name: str
    target: Mapping[str, np.ndarray]
    source: Mapping[str, np.ndarray] | None
    sizes: tuple[int, ...]
    halves: bool = False
    test: str = "test"

    def outer(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows of train and test."""
        label, patient = self.target["label"], self.target["patient"]
        if not self.halves:
            split = self.target["split"]
            yield np.flatnonzero(split == "train"), np.flatnonzero(split == self.test)
            return
        half = splits.folds(label, n_folds=2, seed=seed, patient=patient)
        for k in (0, 1):
            yield np.flatnonzero(half != k), np.flatnonzero(half == k)

    @property
    def pool(self) -> np.ndarray:
        """The rows whose features, without labels, may be used by a view."""
        n = len(self.target["label"])
        return np.arange(n) if self.halves else np.flatnonzero(self.target["split"] == "train")


@dataclasses.dataclass(frozen=True)
class Run:
    """A subset of labels, its test rows, and the fold of each of its rows."""

    seed: int
    size: int
    outer: int
    train: np.ndarray
    test: np.ndarray
    fold: np.ndarray


def runs_of(data: DataSet, seeds: Sequence[int]) -> list[Run]:
    """Return the subsets of every seed and size; those of a seed are nested."""
    runs, label, patient = [], data.target["label"], data.target["patient"]
    for seed in seeds:
        for i, (pool, test) in enumerate(data.outer(seed)):
            order = pool[subset_order(label[pool], seed=seed)]
            for size in data.sizes:
                train = order[: size or len(order)]
                fold = splits.folds(label[train], n_folds=FOLDS, seed=seed, patient=patient[train])
                runs.append(Run(seed, size, i, train, test, fold))
    return runs


def _plain(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    return arrays["plain"]


def _standard(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    x = arrays["plain"]
    mean, scale = kernels.standardization(x[data.pool if is_target else slice(None)])
    return (x - mean) / scale


def _unit(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    x = arrays["plain"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _root(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    x = arrays["plain"]
    return np.sign(x) * np.sqrt(np.abs(x))


def _layers(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    parts = [arrays["layer2"], arrays["plain"]]
    return np.concatenate([x / np.sqrt(x[data.pool].var(0).sum()) for x in parts], axis=1)


def _views(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    return arrays["views"].mean(axis=1)


def _views_standard(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    return _standard(data, {"plain": _views(data, arrays, is_target)}, is_target)


def _kernel(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    """Return features whose inner products are a Gaussian kernel, from the target's train images.

    A linear head on them is kernel logistic regression. The kernel's width is that of
    scikit-learn's SVC(gamma="scale") on standardized features.
    """
    made = kernels.GaussianMap.create(_standard(data, data.target, True)[data.pool])
    return made.features(_standard(data, arrays, is_target))


def _adabn(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    return arrays["adabn"]


def _principal_views(data: DataSet, arrays: Mapping[str, np.ndarray], _: bool) -> np.ndarray:
    return _principal(*_of_views(data), True)


def _kernel_views(data: DataSet, arrays: Mapping[str, np.ndarray], _: bool) -> np.ndarray:
    return _kernel(*_of_views(data), True)


def _of_views(data: DataSet) -> tuple[DataSet, Mapping[str, np.ndarray]]:
    """Return the data set with the mean over flips as the features, and the target's arrays."""
    arrays = {**data.target, "plain": data.target["views"].mean(axis=1)}
    return dataclasses.replace(data, target=arrays), arrays


def _principal(data: DataSet, arrays: Mapping[str, np.ndarray], is_target: bool) -> np.ndarray:
    """Return the first 32 principal components of the target's train images, whitened."""
    x = data.target["plain"]
    width = min(32, x.shape[1], len(data.pool) - 1)
    pca = PCA(width, whiten=True, random_state=0).fit(x[data.pool])
    # The columns of a table may depend on each other; whitening would blow up what is left of that.
    is_real = pca.explained_variance_ > 1e-6 * pca.explained_variance_[0]
    return pca.transform(arrays["plain"])[:, is_real]


VIEWS = {
    "plain": _plain,
    "standard": _standard,
    "unit": _unit,
    "root": _root,
    "layers": _layers,
    "views": _views,
    "views_standard": _views_standard,
    "principal": _principal,
    "principal_views": _principal_views,
    "kernel": _kernel,
    "kernel_views": _kernel_views,
    "adabn": _adabn,
}
NEEDS = {
    "layers": "layer2",
    "views": "views",
    "views_standard": "views",
    "principal_views": "views",
    "kernel_views": "views",
    "adabn": "adabn",
}


class OnFeatures(Experiment):
    """An experiment on precomputed features, which medtl's head solvers take as the backbone's."""

    def frozen_features(self, domain: str) -> np.ndarray:
        return np.asarray(self.examples[domain].inputs["features"])

    def replaced(self, domain: str, *, encoded: bool) -> dict[str, np.ndarray]:
        return {}


def applies(method: Method, data: DataSet) -> bool:
    """Return whether the data set has what the method needs."""
    needs = NEEDS.get(method.view)
    return (
        (data.source is not None or not method.uses_source)
        and (needs is None or needs in data.target)
        and (len(data.target["classes"]) == 2 or not method.every_class)
    )


def train(method: Method, data: DataSet, runs: Sequence[Run]) -> list[tuple[np.ndarray, Any]]:
    """Return for each run the test probabilities float64[n, K], and the values that were chosen."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = _opened(method, data, Path(folder))
        arms, held_out = [], []
        for r, run in enumerate(runs):
            for k in range(-1, FOLDS):
                part = np.full(len(data.target["label"]), splits.UNUSED, "<U5")
                part[run.train[run.fold != k]] = "train"
                part[run.train[run.fold == k]] = "val"
                part[run.test] = "val"
                arms.append(Arm(experiment, splits.Split(part, r, k + 1), run.seed, "method"))
                held_out.append(np.isin(np.flatnonzero(part == "val"), run.test, invert=True))
        trials = combinations(_grid(method, experiment)) or [Trial("as_is")]
        with contextlib.redirect_stdout(io.StringIO()):
            sizes = np.repeat([run.size for run in runs], FOLDS + 1)
            probabilities = _fitted(method, arms, sizes, trials)
    made = []
    for r, run in enumerate(runs):
        span = slice(r * (FOLDS + 1), (r + 1) * (FOLDS + 1))
        held, tested = _of_run(method, probabilities[span], held_out[span])
        rows = [np.sort(run.train[run.fold == k]) for k in range(FOLDS)]  # arms: in file order
        label = data.target["label"][np.concatenate(rows)]
        losses = -np.log(np.clip(held[:, np.arange(len(label)), label], 1e-6, 1))
        best = choose(losses, [trial.values for trial in trials], cautious=method.cautious)
        p = tested[best]
        if method.shift:
            p = _shifted(method.shift, held[best], label, p)
        made.append((p, dict(trials[best].values)))
    return made


def _shifted(name: str, held: np.ndarray, label: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return test probabilities corrected for the frequencies of the classes in test."""
    prior = np.bincount(label, minlength=p.shape[1]) / len(label)
    if name == "em":
        return label_shift.adjusted(p, prior, label_shift.em(p, prior))
    return label_shift.adjusted(p, prior, label_shift.bbse(held, label, p))


def _opened(method: Method, data: DataSet, folder: Path) -> OnFeatures:
    config = configs.default()
    config.arm.method = configs.arm("weights", source_stage=method.source_stage, joint=method.joint)
    config.arms, config.data.inputs, config.parallel = ("method",), ("features",), "none"
    config.model.encoders.features = "linear"
    per_epoch = 1 if data.source is None else -(-len(data.source["label"]) // 32)
    config.stages.source = configs.stage(learning_rate=3e-3, epochs=-(-STEPS // 2 // per_epoch))
    config.stages.target = configs.stage(learning_rate=3e-3, epochs=STEPS)
    config.checkpoint.select, config.checkpoint.metric = "last", "accuracy"
    config.evaluation.times, config.evaluation.batch_size = 1, 512
    with_source = {"target": data.target, **({"source": data.source} if method.uses_source else {})}
    examples = {
        domain: _examples(data, arrays, method.view, domain)
        for domain, arrays in with_source.items()
        if arrays is not None
    }
    if method.source_weights:
        examples["source"] = _weighted(method, data, examples)
    config = with_values(config, method.overrides)
    made = Components.create(config)
    opened = OnFeatures.create(config, folder, made, examples, training=True, train_size=1)
    assert isinstance(opened, OnFeatures)
    return opened


def _examples(data: DataSet, arrays: Mapping[str, Any], view: str, domain: str) -> Examples:
    n = len(arrays["label"])
    x = VIEWS[view](data, arrays, domain == "target").astype(np.float32)
    return Examples(
        name=domain,
        inputs={"features": np.ascontiguousarray(x)},
        label=arrays["label"].astype(np.int32),
        id=np.arange(n).astype(str),
        split=np.full(n, "train"),
        patient=arrays["patient"],
        weight=np.ones(n, np.float32),
        classes=tuple(arrays["classes"].tolist()),
        fingerprint=f"{data.name}/{domain}/{view}",
        split_hash="",
    )


def _weighted(method: Method, data: DataSet, examples: Mapping[str, Examples]) -> Examples:
    weigh = plugins.resolve(method.source_weights, source_weights.__name__, key="source_weights")
    source, pool = examples["source"], examples["target"].inputs["features"][data.pool]
    x = np.asarray(source.inputs["features"], np.float64)
    weight = weigh(x, np.asarray(pool, np.float64), np.random.default_rng(0))
    return dataclasses.replace(source, weight=weight.astype(np.float32))


def _grid(method: Method, experiment: Experiment) -> dict[str, Sequence[Any]]:
    grid = dict(method.grid)
    if method.solver == "lbfgs":
        target = experiment.examples["target"]
        variance = float(np.asarray(target.inputs["features"]).var(axis=0).sum())
        grid[PENALTY] = [value * variance for value in grid[PENALTY]]
    return grid


def _fitted(
    method: Method, arms: list[Arm], sizes: np.ndarray, trials: list[Trial]
) -> list[np.ndarray]:
    """Return for each arm float64[H, n, K], the probabilities of its val rows."""
    if method.solver == "lbfgs":
        # The problems of a call share rows and a preconditioner, so they are those of one size.
        found = {}
        for size in np.unique(sizes):
            of_size = np.flatnonzero(sizes == size).tolist()
            solved = trainer.minimize([arms[i] for i in of_size], trials).probabilities
            found |= dict(zip(of_size, solved, strict=True))
        return [found[i] for i in range(len(arms))]
    if method.solver == "train":
        return trainer.train_heads(arms, trials).probabilities
    fitted: list[np.ndarray] = []
    with warnings.catch_warnings():
        # A class of one image has no covariance of its own, which the shrinkage is there for.
        warnings.filterwarnings("ignore", "Only one sample available", UserWarning)
        for arm in arms:
            rows = arm.examples["target"].indices("val")
            fitted.append(np.stack([baselines.fit(arm.with_trial(t))(rows) for t in trials]))
    return fitted


def _of_run(
    method: Method, probabilities: Sequence[np.ndarray], held_out: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return every setting's probabilities f64[H, n, K] of the rows left out, and of test."""
    folds = range(1, FOLDS + 1)
    held = [np.nan_to_num(probabilities[k][:, held_out[k]]) for k in folds]
    tested = [probabilities[m][:, ~held_out[m]] for m in (folds if method.from_folds else (0,))]
    return np.concatenate(held, axis=1), np.mean(tested, axis=0)


def choose(
    losses: np.ndarray, values: Sequence[Mapping[str, Any]], *, cautious: bool = False
) -> int:
    """Return the setting to use: the largest penalty within one standard error of the best.

    Breiman et al. 1984, section 3.4.3; the settings that differ from the best in more than the
    penalty do not count.

    Args:
      losses: float[H, n], of the rows that the folds left out.
      values: of each setting.
      cautious: the best is first moved to the best of those with the largest λ that has a setting
        within one standard error.
    """
    mean = losses.mean(axis=1)
    best = int(np.argmin(mean))
    most = mean[best] + losses[best].std() / np.sqrt(losses.shape[1])
    if cautious:
        within = np.flatnonzero(mean <= most).tolist()
        best = max(within, key=lambda i: (values[i][LAMBDA], -mean[i]))

    def others(i: int) -> dict[str, Any]:
        return {path: value for path, value in values[i].items() if path != PENALTY}

    near = [i for i in range(len(mean)) if mean[i] <= most and others(i) == others(best)]
    return max(near, key=lambda i: (values[i].get(PENALTY, 0.0), -mean[i]))
