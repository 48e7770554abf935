"""How often a method that is compared with itself gets a verdict, and the power beside it.

    python benchmarks/aa.py [--write]

Both arms score an image by its patient's disease, by what is hard about the patient, and by what
training has learned by chance: a direction that differs from seed to seed, the same for all of a
model's patients. In an A/A run the arms are the same method, so a verdict is wrong; one should be
given in at most 5 % of the runs. The power is the share of verdicts for a method whose expected
AUROC is higher. The rate of the bootstrap alone, which leaves training out, stands beside it.

At level "alike" the variance of the mean over three seeds is about that of the patients, as in the
runs on phantoms; at "training" about three times. There Satterthwaite's approximation gives a
verdict in up to 8 % of A/A runs of three seeds, since the variance has two degrees of freedom.
"""

import argparse
import itertools
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
from scipy.stats import norm

from medtl.evaluation import arm_results, bootstrap, comparisons, metrics
from medtl.evaluation.predictions import Predictions

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


def rates(
    seeds: int, patients: int, shift: float, level: str, runs: int, resamples: int
) -> dict[str, float]:
    """Return the share of runs with a verdict, with and without training variance, and spreads."""
    options = metrics.Options(resamples=resamples)
    verdicts, bootstrap_alone, values, errors = [], [], [], []
    for run in range(runs):
        rows = simulate(run, seeds, patients, shift, level)
        evaluated = arm_results.collect(rows, "test", options, rule="0.5")
        sets = {arm: e.sets for arm, e in evaluated.items()}
        resampled = bootstrap.resample(sets, classes=("well", "ill"), options=options)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    designs = []
    print("level     seeds  A/A verdicts  bootstrap alone  power  true difference")
    for level, seeds in itertools.product(LEVELS, (1, 3, 5)):
        same, better = (
            rates(seeds, args.patients, shift, level, args.runs, args.resamples)
            for shift in (0.0, 0.3)
        )
        designs.append({"level": level, "seeds": seeds, "same": same, "better": better})
        print(
            f"{level:8s}  {seeds:5d}  {same['verdict']:12.3f}  {same['bootstrap_alone']:15.3f}  "
            f"{better['verdict']:5.3f}  {better['mean_difference']:+15.3f}",
            flush=True,
        )
    if args.write:
        machine = (
            f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"
        )
        written = {**vars(args), "designs": designs, "machine": machine}
        del written["write"]
        written["date"] = date.today().isoformat()
        RESULT.write_text(json.dumps(written, indent=2) + "\n")
        print(RESULT)


if __name__ == "__main__":
    main()
