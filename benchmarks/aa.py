"""How often a method that is compared with itself gets a verdict, and the power beside it.

    python benchmarks/aa.py [--write]

Both arms score an image by its patient's disease, by what is hard about the patient, and by what
training has learned by chance: a direction that differs from seed to seed, the same for all of a
model's patients. In an A/A run the arms are the same method, so a verdict is wrong; it should be
given in at most 5 % of the runs. The last column is the share of verdicts for a method whose
expected AUROC is truly higher. The rate of the bootstrap alone, which leaves training out, stands
beside it.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
from scipy.stats import norm

from medtl.evaluation import analysis
from medtl.evaluation.predictions import Predictions

RESULT = Path(__file__).parent / "results" / "aa.json"
WIDTH = 8  # directions in which training errs
VERDICTS = ("helps", "hurts", "model_better", "model_worse")


def simulate(run: int, seeds: int, patients: int, shift: float) -> list[Predictions]:
    """Draw the predictions of two arms; `shift` is added to the first one's signal."""
    rng = np.random.default_rng([run, seeds, patients])
    label = rng.integers(0, 2, patients)
    hard, features = rng.normal(size=patients), rng.normal(size=(patients, WIDTH))
    ids = np.array([f"p{i}" for i in range(patients)])
    rows = []
    for arm, signal in (("first", 1.3 + shift), ("second", 1.3)):
        for seed in range(seeds):
            learned = rng.normal(size=WIDTH) * 0.3 / WIDTH**0.5
            gain = signal + 0.08 * rng.normal()
            z = gain * (label - 0.5) + hard + features @ learned + 0.3 * rng.normal(size=patients)
            p = 1 / (1 + np.exp(-z))
            rows.append(
                Predictions(arm, "test", ids, label, np.c_[1 - p, p], seed=seed, patient=ids)
            )
    return rows


def rates(seeds: int, patients: int, shift: float, runs: int, resamples: int) -> dict[str, float]:
    """Return the share of runs with a verdict, with and without training variance, and spreads."""
    settings = analysis.Settings(resamples=resamples)
    verdicts, bootstrap_alone, values, errors = [], [], [], []
    for run in range(runs):
        rows = simulate(run, seeds, patients, shift)
        (c,) = analysis.analyse(rows, ("well", "ill"), settings)["comparisons"]
        main = c["tests"][0]
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
    print("seeds  A/A verdicts  bootstrap alone  power  true difference")
    for seeds in (1, 3, 5):
        same, better = (
            rates(seeds, args.patients, shift, args.runs, args.resamples) for shift in (0.0, 0.3)
        )
        designs.append({"seeds": seeds, "same": same, "better": better})
        print(
            f"{seeds:5d}  {same['verdict']:12.3f}  {same['bootstrap_alone']:15.3f}  "
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
