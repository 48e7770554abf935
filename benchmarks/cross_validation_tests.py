"""How often each test of a cross-validated difference is wrong, in a simulation of two equal arms.

    python benchmarks/cross_validation_tests.py

Each patient has three images; the features of an image are the patient's plus noise. Each of the
two arms is a ridge regression on one half of the features; by symmetry their expected AUROC is the
same. 5-fold cross-validation by patient, 3 repeats. A test at the 5 % level should call a
difference in 5 % of the replicates. In the last design the second arm's features are weaker, which
shows the power.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np

from medtl.evaluation import bootstrap, compare
from medtl.evaluation.metrics import EvaluationSet, Options
from medtl.experiment import splits

RESULT = Path(__file__).parent / "results" / "cross_validation_tests.json"


def draw(rng, patients, width, shift):
    label = rng.integers(0, 2, patients)
    signal = np.concatenate([np.full(width, 0.35), np.full(width, 0.35 - shift)])
    of_patient = rng.normal(size=(patients, 2 * width)) + np.outer(label - 0.5, signal)
    rows = np.repeat(np.arange(patients), 3)
    return of_patient[rows] + 0.7 * rng.normal(size=(len(rows), 2 * width)), label[rows], rows


def ridge(x, y, penalty=10.0):
    x1 = np.c_[x, np.ones(len(x))]
    return np.linalg.solve(x1.T @ x1 + penalty * np.eye(x1.shape[1]), x1.T @ (2.0 * y - 1))


def one(seed, patients, width, shift, resamples):
    rng = np.random.default_rng(seed)
    x, y, patient = draw(rng, patients, width, shift)
    names = np.array([f"p{i}" for i in patient])
    arms = {"a": [], "b": []}
    for repeat in range(3):
        fold = splits.folds(y.astype(np.int32), n_folds=5, repeat=repeat, seed=seed, patient=names)
        for k in range(5):
            train, test = fold != k, fold == k
            for arm, half in (("a", slice(0, width)), ("b", slice(width, None))):
                w = ridge(x[train][:, half], y[train])
                score = 1 / (1 + np.exp(-(x[test][:, half] @ w[:-1] + w[-1])))
                arms[arm].append(EvaluationSet(y[test], np.c_[1 - score, score], patient[test]))
    options = Options(resamples=resamples, seed=seed)
    resampled = bootstrap.resample(arms, classes=("0", "1"), options=options)
    m = resampled.names.index("auroc")
    value, low, high, _ = resampled.difference("a", "b")
    each = resampled.by_split["a"][:, m] - resampled.by_split["b"][:, m]
    t = compare.corrected_resampled_t(each, test_share=0.25)
    naive = compare.corrected_resampled_t(each, test_share=0.0)
    called = [not test.low <= 0 <= test.high for test in (t, naive)]
    return [value[m], *called, not low[m] <= 0 <= high[m]]


DESIGNS = (
    {"patients": 100, "width": 20, "shift": 0.0},
    {"patients": 200, "width": 100, "shift": 0.0},
    {"patients": 100, "width": 20, "shift": 0.1},
)
TESTS = ("corrected resampled t", "uncorrected t", "patient bootstrap")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=300)
    args = parser.parse_args()
    results = []
    for design in DESIGNS:
        rows = np.array(
            [one(s, **design, resamples=args.resamples) for s in range(args.replicates)], float
        )
        called = {name: round(float(rows[:, 1 + i].mean()), 4) for i, name in enumerate(TESTS)}
        results.append(
            {**design, "mean_difference": round(float(rows[:, 0].mean()), 4), "called": called}
        )
        print(f"{design}: mean difference {results[-1]['mean_difference']:+.4f} AUROC")
        for name, share in called.items():
            error = (share * (1 - share) / args.replicates) ** 0.5
            print(
                f"  {name:22s} calls a difference in {100 * share:5.1f} % of {args.replicates} "
                f"(± {100 * error:.1f})"
            )
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    written = {
        "designs": results,
        "replicates": args.replicates,
        "resamples": args.resamples,
        "machine": f"{platform.machine()}, {versions}",
        "date": date.today().isoformat(),
    }
    RESULT.write_text(json.dumps(written, indent=2) + "\n")
    print(RESULT)


if __name__ == "__main__":
    main()
