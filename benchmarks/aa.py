"""How often a method that is compared with itself gets a verdict, and the power beside it.

    python benchmarks/aa.py [--write]
    python benchmarks/aa.py --training 40 [--write]

Both arms score an image by its patient's disease, by what is hard about the patient, and by what
training has learned by chance: a direction that differs from seed to seed, the same for all of a
model's patients. In an A/A run the arms are the same method, so a verdict is wrong; one should be
given in at most 5 % of the runs. The power is the share of verdicts for a method whose expected
AUROC is higher. The rate of the bootstrap alone, which leaves training out, stands beside it.

At level "alike" the variance of the mean over three seeds is about that of the patients, as in the
runs on phantoms; at "training" about three times. There Satterthwaite's approximation gives a
verdict in up to 8 % of A/A runs of three seeds, since the variance has two degrees of freedom.

`--training N` takes medtl's own training in place of the simulation: N models of each of two arms,
`transfer` and `scratch`, on phantoms of 16 px, each model with its own seed. A run draws models of
one arm for both sides (A/A), or of either arm (power), and test patients, all without replacement.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from medtl import config
from medtl.evaluation import arm_results, bootstrap, comparisons, metrics
from medtl.evaluation.predictions import Predictions
from medtl.experiment.arm import Arm
from medtl.experiment.experiment import open_experiment

RESULT = Path(__file__).parent / "results" / "aa.json"
WIDTH = 8  # directions in which training errs
LEVELS = {"alike": (0.17, 0.05), "training": (0.3, 0.08)}  # SD of the direction, of the signal
VERDICTS = ("better", "worse", "model_better", "model_worse")


def simulate(run: int, seeds: int, patients: int, shift: float, level: str) -> list[Predictions]:
    """Draw the predictions of two arms; `shift` is added to the first one's signal."""
    rng = np.random.default_rng([run, seeds, patients])
    label = rng.integers(0, 2, patients)
    hard, features = rng.normal(size=patients), rng.normal(size=(patients, WIDTH))
    ids = np.array([f"p{i}" for i in range(patients)])
    rows, (direction, spread) = [], LEVELS[level]
    for arm, signal in (("first", 1.3 + shift), ("second", 1.3)):
        for seed in range(seeds):
            learned = rng.normal(size=WIDTH) * direction / WIDTH**0.5
            gain = signal + spread * rng.normal()
            z = gain * (label - 0.5) + hard + features @ learned + 0.3 * rng.normal(size=patients)
            p = 1 / (1 + np.exp(-z))
            rows.append(
                Predictions(arm, "test", ids, label, np.c_[1 - p, p], seed=seed, patient=ids)
            )
    return rows


def trained(models: int, folder: Path) -> dict[str, list[Predictions]]:
    """Train `models` seeds of two arms on phantoms; return their predictions of the test split."""
    c = config.default()
    c.data.image_size, c.model.last_layer, c.parallel = 16, "layer1", "none"
    c.data.source = config.dataset("phantom(size=300, scanner='a', split=(0.8, 0.1, 0.1))")
    c.data.target = config.dataset(
        "phantom(size=2000, scanner='b', split=(0.03, 0.02, 0.95), seed=1)"
    )
    c.stages.source = config.stage(epochs=5, batch_size=32, learning_rate=2e-3)
    c.stages.target = config.stage(epochs=20, batch_size=16, learning_rate=1e-3)
    c.seeds, c.evaluation.times = tuple(range(models)), 1
    made: dict[str, list[Predictions]] = {arm: [] for arm in c.arms}
    experiment, splits = open_experiment(c, folder, training=True)
    for seed, arm in itertools.product(c.seeds, c.arms):
        outcome = Arm(experiment, splits[seed][0], seed, arm).outcome()
        made[arm] += [p for p in outcome.predictions if p.split == "test"]
    return made


def drawn(
    models: Mapping[str, Sequence[Predictions]],
    sides: tuple[str, str],
    run: int,
    seeds: int,
    patients: int,
) -> list[Predictions]:
    """Draw trained models for both sides, no model twice, and test patients."""
    rng = np.random.default_rng([run, seeds, patients])
    # Models of either arm may share seeds in a comparison of arms; those of one arm never.
    order = rng.permutation(len(models[sides[0]]))
    first = order[:seeds]
    second = first if sides[0] != sides[1] else order[seeds : 2 * seeds]
    some = models[sides[0]][0]
    ids = np.unique(some.patient)
    rows = np.flatnonzero(np.isin(some.patient, rng.choice(ids, patients, replace=False)))
    return [
        dataclasses.replace(models[arm][model].take(rows), arm=name, seed=seed)
        for name, arm, chosen in zip(("first", "second"), sides, (first, second), strict=True)
        for seed, model in enumerate(chosen)
    ]


def rates(
    draw: Callable[[int], list[Predictions]], runs: int, resamples: int, seeds: int
) -> dict[str, float]:
    """Return the share of runs with a verdict, with and without training variance, and spreads."""
    options = metrics.Options(resamples=resamples)
    verdicts, bootstrap_alone, values, errors = [], [], [], []
    for run in range(runs):
        rows = draw(run)
        evaluated = arm_results.collect(rows, "test", options, rule="0.5")
        sets = {arm: e.sets for arm, e in evaluated.items()}
        resampled = bootstrap.resample(sets, classes=_names(rows[0]), options=options)
        (compared,) = comparisons.with_reference(
            evaluated, resampled, "auroc", "second", sources=None, unit="patients"
        )
        c, main = compared.as_dict, compared.as_dict["tests"][0]
        sampled = float(main["note"].split(": ")[1].split(" and ")[0]) if seeds > 1 else main["se"]
        verdicts.append(c["verdict"] in VERDICTS)
        bootstrap_alone.append(abs(main["difference"]) > norm.ppf(0.975) * sampled)
        values.append(main["difference"])
        errors.append(main["se"])
    return {
        "verdict": round(float(np.mean(verdicts)), 4),
        "bootstrap_alone": round(float(np.mean(bootstrap_alone)), 4),
        "mean_difference": round(float(np.mean(values)), 4),
        "sd_difference": round(float(np.std(values, ddof=1)), 4),
        "mean_se": round(float(np.mean(errors)), 4),
    }


def _names(p: Predictions) -> tuple[str, ...]:
    return tuple(f"class {k}" for k in range(p.probability.shape[1]))


def of_training(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return the rates of trained models."""
    with tempfile.TemporaryDirectory() as folder:
        models = trained(args.training, Path(folder))
    designs = []
    print("arm       seeds  A/A verdicts  bootstrap alone  power  difference of the arms")
    for seeds in (1, 3, 5):

        def of(one: str, two: str, seeds: int = seeds) -> dict[str, float]:
            draw = functools.partial(drawn, models, (one, two), seeds=seeds, patients=args.patients)
            return rates(draw, args.runs, args.resamples, seeds)

        better = of("transfer", "scratch")
        for arm in ("transfer", "scratch"):
            same = of(arm, arm)
            designs.append({"arm": arm, "seeds": seeds, "same": same, "better": better})
            print(
                f"{arm:8s}  {seeds:5d}  {same['verdict']:12.3f}  {same['bootstrap_alone']:15.3f}  "
                f"{better['verdict']:5.3f}  {better['mean_difference']:+15.3f}",
                flush=True,
            )
    return designs


def of_simulation(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return the rates of simulated predictions."""
    designs = []
    print("level     seeds  A/A verdicts  bootstrap alone  power  true difference")
    for level, seeds in itertools.product(LEVELS, (1, 3, 5)):
        same, better = (
            rates(
                functools.partial(
                    simulate, seeds=seeds, patients=args.patients, shift=shift, level=level
                ),
                args.runs,
                args.resamples,
                seeds,
            )
            for shift in (0.0, 0.3)
        )
        designs.append({"level": level, "seeds": seeds, "same": same, "better": better})
        print(
            f"{level:8s}  {seeds:5d}  {same['verdict']:12.3f}  {same['bootstrap_alone']:15.3f}  "
            f"{better['verdict']:5.3f}  {better['mean_difference']:+15.3f}",
            flush=True,
        )
    return designs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--training", type=int, default=0, help="models of each arm to train")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    designs = (of_training if args.training else of_simulation)(args)
    if args.write:
        machine = (
            f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"
        )
        written = {**vars(args), "designs": designs, "machine": machine}
        del written["write"]
        written["date"] = date.today().isoformat()
        path = RESULT.with_name("aa_training.json") if args.training else RESULT
        path.write_text(json.dumps(written, indent=2) + "\n")
        print(path)


if __name__ == "__main__":
    main()
