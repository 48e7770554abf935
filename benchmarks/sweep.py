"""A sweep of linear heads as one program, against one head after the other.

    python benchmarks/sweep.py --features=3000x1024

Three quarters of the rows are the source, the rest the target. The problems are folds of the target
x λ x seeds; each seed draws new folds, so that all problems differ. The synthetic features are like
those of pooled ReLUs: few directions separate the classes.

- lbfgs: all heads to the minimum (medtl.training.logistic), against scikit-learn's
  LogisticRegression with its defaults (lbfgs, tol 1e-4, 100 iterations, float32 features), with
  sample weights and C that make the same objective. It is timed on `--fits` heads, spread over λ,
  and its time multiplied. The losses of these heads are compared in float64; it is an error if one
  of ours is more than 1e-4 above.
- train: the trainer's minibatch steps for all heads (medtl.sweep.program), against the same program
  for one head, times the number of heads. Left out where the trainer's libraries are missing.

Interleaved; compilation is timed apart. --write keeps the result in
benchmarks/results/sweep_BACKEND.json.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timing
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl.training import logistic

FEATURES = flags.DEFINE_string("features", "3000x1024", "rows x width")
flags.register_validator(
    "features", re.compile(r"\d+x\d+").fullmatch, message="it must be like 3000x1024"
)
FOLDS = flags.DEFINE_integer("folds", 5, "folds of the target")
SEEDS = flags.DEFINE_integer("seeds", 5, "draws of the folds")
WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay", 1e-2, "weight_decay / 2 |W|², for examples whose weights sum to 1"
)
STANDARDIZE = flags.DEFINE_bool(
    "standardize",
    False,
    "features of mean 0 and variance 1, with which scikit-learn needs fewer iterations",
)
ROUNDS = flags.DEFINE_integer("rounds", 5, "timed rounds; the median is reported", lower_bound=1)
FITS = flags.DEFINE_integer("fits", 9, "heads that scikit-learn fits in a round")
STEPS = flags.DEFINE_integer("steps", 200, "the trainer's, of 32 + 32 rows; 0: it is left out")
WRITE = flags.DEFINE_bool("write", False, "keep the result in benchmarks/results")

LAMBDAS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
TOLERATED = 1e-4


def examples(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features f32[n, d], label int[n] of two classes, part int[n]: 0 source, 1 target."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    part = (np.arange(n) >= n * 3 // 4).astype(np.int64)
    latent = rng.normal(size=(n, 64))
    latent[:, 0] += 1.2 * (label - 0.5)
    # Another scanner, another sign of the disease.
    latent[:, 1] += 0.8 * part + 0.6 * part * (label - 0.5)
    features = np.maximum(latent @ rng.normal(size=(64, d)) / 8 + 0.5 * rng.normal(size=(n, d)), 0)
    if STANDARDIZE.value:
        features = (features - features.mean(axis=0)) / features.std(axis=0)
    return features.astype(np.float32), label, part


def problem(features: np.ndarray, label: np.ndarray, part: np.ndarray) -> logistic.Problem:
    """Return mean_source + λ mean_target + penalty, for every λ and every fold of every seed."""
    rows = []
    for seed in range(SEEDS.value):
        fold_of = np.random.default_rng([1, seed]).permutation(len(label)) % FOLDS.value
        rows += [(part == 0) | (fold_of != fold) for fold in range(FOLDS.value)]
    counts = np.array([[np.sum(r & (part == p)) for p in (0, 1)] for r in rows])
    strength = np.stack([np.ones(len(LAMBDAS)), LAMBDAS], axis=1)
    return logistic.Problem(
        features,
        np.eye(2, dtype=np.float32)[label],
        "softmax",
        part,
        np.array(rows, np.float32),
        (strength[:, None] / counts).astype(np.float32),
        (WEIGHT_DECAY.value * strength.sum(axis=1)).astype(np.float32),
    )


class InTurn:
    """scikit-learn on some of the heads: a contender that keeps the models of its last round."""

    def __init__(self, p: logistic.Problem):
        self.problem = p
        heads = [(h, r) for r in range(len(p.rows)) for h in range(len(p.scale))]
        # One more than a multiple of the number of λ, so that λ and fold differ from fit to fit.
        stride = (
            max(len(p.scale) * (len(heads) // len(p.scale) // max(FITS.value, 1)), len(p.scale)) + 1
        )
        self.chosen = [heads[i * stride % len(heads)] for i in range(FITS.value)]
        self.factor = len(heads) / len(self.chosen)
        self.models: dict[tuple[int, int], Any] = {}

    def arguments(self, h: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        p = self.problem
        weight = p.rows[r] * p.scale[h, r][p.part]
        used = weight > 0
        return p.features[used], p.target[used].argmax(axis=1), weight[used] / weight.sum()

    def __call__(self, rounds: int) -> float:
        from sklearn.linear_model import LogisticRegression

        seconds = 0.0
        for _ in range(rounds):
            for h, r in self.chosen:
                x, y, weight = self.arguments(h, r)
                # One column w = W_1 - W_0 with W_0 = -W_1: penalty / 2 |W|² is penalty / 4 |w|².
                model = LogisticRegression(C=2 / WEIGHT_DECAY.value)
                start = time.perf_counter()
                self.models[h, r] = model.fit(x, y, sample_weight=weight)
                seconds += time.perf_counter() - start
        return seconds * self.factor

    def excess(self, solution: logistic.Solution) -> list[float]:
        """Return (our loss - theirs) / theirs for each head, in float64."""
        gaps = []
        for (h, r), model in self.models.items():
            x, y, weight = (a.astype(np.float64) for a in self.arguments(h, r))

            def loss(w: np.ndarray, b: float) -> float:
                margin = (2 * y - 1) * (x @ w + b)  # noqa: B023
                return float(weight @ np.logaddexp(0, -margin) + WEIGHT_DECAY.value / 4 * w @ w)  # noqa: B023

            kernel = solution.kernel[h, r].astype(np.float64)
            bias = solution.bias[h, r].astype(np.float64)
            theirs = loss(model.coef_[0].astype(np.float64), float(model.intercept_[0]))
            gaps.append((loss(kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]) - theirs) / theirs)
        return gaps


def trainer(p: logistic.Problem, *, runs: int, settings: int) -> tuple[timing.Contender, float]:
    """Return `STEPS` of Adam on 32 + 32 rows for runs x settings heads, and compile seconds."""
    from medtl import losses, models
    from medtl.config import stage
    from medtl.data.augment import Augmentation
    from medtl.examples import NORMALIZATIONS
    from medtl.models.model import Head, Model
    from medtl.sweep.program import Program
    from medtl.training import optimizers
    from medtl.training.objective import DOMAINS, Loss, Objective
    from medtl.training.step import Step

    model = Model(
        {"image": models.backbone("cifar_resnet20")},
        {"shared": functools.partial(Head, 2)},
        dict.fromkeys(DOMAINS, "shared"),
    )
    optimizer, _ = optimizers.optimizer(
        stage(learning_rate=3e-3, weight_decay=0.3), steps=STEPS.value, key=""
    )
    step = Step(
        model=model,
        objective=Objective((Loss("main", losses.cross_entropy),)),
        optimizer=optimizer,
        trained=frozenset(("heads", "shared", "logits", name) for name in ("kernel", "bias")),
        augmentation=Augmentation(),
        normalization=NORMALIZATIONS["centered"],
    )
    label, ones = p.target.argmax(axis=1).astype(np.int32), np.ones(len(p.part), np.float32)
    columns = {"encoded_image": p.features, "label": label, "weight": ones}
    data = {
        domain: {name: x[p.part == i] for name, x in columns.items()}
        for i, domain in enumerate(DOMAINS)
    }
    program = Program.create(
        step,
        {"objective.lambda_": np.asarray(LAMBDAS[:settings])},
        data,
        of_run=[{"sizes": dict.fromkeys(data, 1)}] * runs,
        devices=tuple(jax.local_devices()),
    )
    rng = np.random.default_rng(0)
    shape = runs, STEPS.value, 32
    order = program.order({d: rng.integers(0, len(x["label"]), shape) for d, x in data.items()})
    width = p.features.shape[1]
    logits = {"kernel": np.zeros((width, 2), np.float32), "bias": np.zeros(2, np.float32)}
    variables = {"params": {"heads": {"shared": {"logits": logits}}}, "batch_stats": {}}
    holder = [program.start([variables] * runs, [jax.random.key(i) for i in range(runs)])]

    def run() -> Any:
        holder[0] = program.advance(holder[0], order, (0, STEPS.value))
        return holder[0].params

    start = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - start
    contender = timing.contender(run)
    return contender, max(first - contender(1), 0.0)


def report(name: str, seconds: dict[str, list[float]], ours: str, heads: int) -> dict[str, Any]:
    """Print and return the seconds of each contender, and their ratio to ours."""
    ratios = timing.ratios(seconds, ours)
    for who, values in seconds.items():
        summary = timing.summary(values)
        line = (
            f"{name:6s} {who:22s} {summary['median']:9.3g} s "
            f"[{summary['low']:.3g}, {summary['high']:.3g}] for {heads} heads"
        )
        if who != ours:
            line += "   ratio {median:.1f} [{low:.1f}, {high:.1f}]".format(**ratios[who])
        print(line, flush=True)
    return {
        "seconds": {who: timing.summary(values) for who, values in seconds.items()},
        "ratio": ratios,
    }


def main(_: Sequence[str]) -> None:
    n, d = map(int, FEATURES.value.split("x"))
    p = problem(*examples(n, d))
    heads = len(p.scale) * len(p.rows)
    devices = tuple(jax.local_devices())
    result: dict[str, Any] = {
        "features": [n, d],
        "folds": FOLDS.value,
        "seeds": SEEDS.value,
        "lambdas": LAMBDAS,
        "heads": heads,
        "weight_decay": WEIGHT_DECAY.value,
        "standardized": STANDARDIZE.value,
        "scikit-learn": importlib.metadata.version("scikit-learn"),
    }

    start = time.perf_counter()
    logistic.solve(p, devices=devices)
    first = time.perf_counter() - start
    solutions: list[logistic.Solution] = []

    def ours(rounds: int) -> float:
        start = time.perf_counter()
        solutions[:] = [logistic.solve(p, devices=devices) for _ in range(rounds)]
        return time.perf_counter() - start

    theirs = InTurn(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn may stop after 100 iterations
        seconds = timing.interleave(
            {"medtl": ours, "scikit-learn": theirs}, rounds=ROUNDS.value, steps=1, pause=0.5
        )
    result["lbfgs"] = report("lbfgs", seconds, "medtl", heads)
    gaps = theirs.excess(solutions[0])
    result["lbfgs"] |= {
        "compile_seconds": max(first - min(seconds["medtl"]), 0.0),
        "iterations": {
            "mean": float(solutions[0].iterations.mean()),
            "largest": int(solutions[0].iterations.max()),
        },
        "largest_gradient": float(solutions[0].gradient.max()),
        "scikit-learn fits": len(theirs.chosen),
        "scikit-learn iterations": [int(m.n_iter_[0]) for m in theirs.models.values()],
        "relative_excess_loss": {"least": min(gaps), "largest": max(gaps)},
    }
    print(
        f"       compiled in {result['lbfgs']['compile_seconds']:.1f} s; "
        f"loss above scikit-learn's, relative: {min(gaps):.1e} to {max(gaps):.1e}; its iterations "
        f"{result['lbfgs']['scikit-learn iterations']}"
    )
    if max(gaps) > TOLERATED:
        raise SystemExit(f"a loss is {max(gaps):.1e} above scikit-learn's, more than {TOLERATED:g}")

    if STEPS.value:
        try:
            together, compiling = trainer(p, runs=len(p.rows), settings=len(p.scale))
        except ImportError as error:
            print(f"train  left out: {error}")
        else:
            alone, _ = trainer(p, runs=1, settings=1)
            contenders = {
                "medtl": together,
                "one after the other": lambda rounds: heads * alone(rounds),
            }
            seconds = timing.interleave(contenders, rounds=ROUNDS.value, steps=1, pause=0.5)
            result["train"] = report("train", seconds, "medtl", heads)
            result["train"] |= {
                "steps": STEPS.value,
                "batch": [32, 32],
                "compile_seconds": compiling,
            }
            print(f"       compiled in {compiling:.1f} s")
    if WRITE.value:
        name = f"sweep{'_standardized' * STANDARDIZE.value}_{jax.default_backend()}"
        print(timing.write(name, result).name)


if __name__ == "__main__":
    app.run(main)
