"""How often the 95 % intervals of medtl.evaluation.bootstrap hold the truth, beside other kinds.

    python benchmarks/interval_coverage.py --replicates 1000
    python benchmarks/interval_coverage.py --first-table --replicates 600 --resamples 400

Draws data sets of two classes and two models whose scores are correlated, takes the intervals of
each metric of one model and of the difference of the two, and counts those that hold the metric's
value in 2,000,000 examples. `medtl` is the package's interval; beside it are kinds that were not
chosen: the percentile, the expanded percentile (Hesterberg 2015), BCa with its acceleration from
the draws' skewness, and Student's t on the log-odds scale (differences: unchanged) and on the
logarithmic one. Under clustering, 100 patients of 10 examples each, `rows` resamples examples as
though they were patients. Writes benchmarks/results/interval_coverage.json.

`--first-table` takes the intervals of the report's first table, and PPV at a prevalence of 1 %, for
100 and 1,000 patients with 1 and 10 images each, 5 and 50 % of them ill, and for 10 and 15 patients
half of whom are ill. The threshold is fixed where 90 % of the ill are found. Writes
benchmarks/results/first_table_coverage.json.
"""

import argparse
import functools
import json
import platform
from pathlib import Path

import numpy as np
import scipy
from scipy.special import expit, logit
from scipy.stats import norm, skew, t

from medtl.evaluation import bootstrap, wording
from medtl.evaluation.intervals import predictive_value
from medtl.evaluation.metrics import ALL_NAMES, EvaluationSet, Options, Scorer

RESULT = Path(__file__).parent / "results/interval_coverage.json"
FIRST_TABLE = RESULT.with_name("first_table_coverage.json")
LEVEL = 0.95
RARE = 0.01  # the prevalence of the PPV
DESIGNS = {"n = 100": (100, 1), "n = 1000": (1000, 1), "100 patients x 10": (100, 10)}
POSITIVE = 0.4
# Shares of the score's variance between patients and within them; both models see the same half.
WITHIN = {1: (0.0, 1.0), 10: (0.8, 0.2)}


def draw(rng, patients, per, prevalence=POSITIVE):
    """Return label int64[N], two models' positive probability float64[N], patient int64[N]."""
    label = np.repeat(rng.random(patients) < prevalence, per).astype(np.int64)
    patient = np.repeat(np.arange(patients), per)
    between, within = WITHIN[per]

    def noise():
        of_patient = np.repeat(rng.normal(size=patients), per)
        of_example = rng.normal(size=patients * per)
        return np.sqrt(between) * of_patient + np.sqrt(within) * of_example

    common = noise()
    scores = [distance * label + np.sqrt(0.5) * (common + noise()) for distance in (1.5, 1.2)]
    # A little overconfident, as networks are.
    return label, [expit(1.3 * (1.5 * s - 1.4)) for s in scores], patient


def arms(label, scores, patient):
    return {
        name: [EvaluationSet(label, np.stack([1 - p, p], axis=1), patient)]
        for name, p in zip("ab", scores, strict=True)
    }


def truth(per):
    label, scores, patient = draw(np.random.default_rng(0), 2_000_000 // per, per)
    once = np.ones((1, len(set(patient))))
    value = {
        name: Scorer(one, classes=("no", "yes"), options=Options(resamples=1))(once)[0]
        for name, [one] in arms(label, scores, patient).items()
    }
    return value["a"], value["a"] - value["b"]


def kinds(value, draws, units, scale):
    """Return name -> (low, high) of each metric."""
    tail = (1 - LEVEL) / 2
    quantile = t.ppf(1 - tail, units - 1)
    wide = norm.cdf(-np.sqrt(units / (units - 1)) * quantile)
    with np.errstate(all="ignore"):
        bias = norm.ppf(
            np.clip(
                np.mean(draws < value, axis=0) + np.mean(draws == value, axis=0) / 2, 1e-3, 1 - 1e-3
            )
        )
        speed = skew(draws, axis=0) / 6
        moved = [
            norm.cdf(bias + (bias + z) / (1 - speed * (bias + z)))
            for z in (norm.ppf(tail), norm.ppf(1 - tail))
        ]
        m = range(len(value))
        bca = [
            np.array([np.quantile(draws[:, i], side[i]) for i in m])
            for side in np.nan_to_num(moved, nan=0.5)
        ]
        to, back = {"odds": (logit, expit), "log": (np.log, np.exp), "": (np.asarray, np.asarray)}[
            scale
        ]
        half = quantile * np.std(to(draws), axis=0)
        return {
            "percentile": np.quantile(draws, [tail, 1 - tail], axis=0),
            "expanded": np.quantile(draws, [wide, 1 - wide], axis=0),
            "bca": bca,
            "t": (back(to(value) - half), back(to(value) + half)),
        }


def simulate(patients, per, *, replicates, resamples, seed=1):
    """Return kind -> metric -> share of intervals that hold the truth."""
    of_a, of_difference = truth(per)
    hits, total = {}, {}
    for i in range(replicates):
        label, scores, patient = draw(np.random.default_rng([seed, i]), patients, per)
        options = Options(resamples=resamples, seed=i, level=LEVEL)
        made = bootstrap.resample(
            arms(label, scores, patient), classes=("no", "yes"), options=options
        )
        value, low, high, draws = made.difference("a", "b")
        one = kinds(made.value["a"], made.draws["a"], made.patients, "odds")
        log = kinds(made.value["a"], made.draws["a"], made.patients, "log")["t"]
        intervals = {"medtl": made.interval("a"), **one, "log t": log}
        pairs = {"medtl": (low, high), **kinds(value, draws, made.patients, "")}
        if per > 1:
            naive = bootstrap.resample(
                arms(label, scores, np.arange(len(label))), classes=("no", "yes"), options=options
            )
            intervals["rows"], pairs["rows"] = naive.interval("a"), naive.difference("a", "b")[1:3]
        for prefix, expected, by_kind in (
            ("", of_a, intervals),
            ("difference of ", of_difference, pairs),
        ):
            for kind, (below, above) in by_kind.items():
                for m, name in enumerate(made.names):
                    key = kind, prefix + name
                    if np.isfinite(below[m]) and np.isfinite(above[m]):
                        hits[key] = hits.get(key, 0) + bool(below[m] <= expected[m] <= above[m])
                        total[key] = total.get(key, 0) + 1
    table = {}
    for (kind, name), n in total.items():
        if n > replicates / 2:
            table.setdefault(kind, {})[name] = hits[kind, name] / n
    return table


@functools.cache
def first_table_truth(per, prevalence):
    """Return the metrics' values in 2,000,000 examples, the threshold, and PPV at `RARE`."""
    rng = np.random.default_rng(0)
    label, (score, _), patient = draw(rng, 2_000_000 // per, per, prevalence)
    threshold = float(np.quantile(score[label == 1], 0.1))
    data = EvaluationSet(label, np.stack([1 - score, score], axis=1), patient, threshold)
    names = wording.main_metrics(_TWO_CLASS)
    scorer = Scorer(data, classes=("no", "yes"), options=Options(resamples=1), names=names)
    values = dict(zip(scorer.names, scorer(np.ones((1, scorer.units)))[0], strict=True))
    true, false = values["sensitivity"] * RARE, (1 - values["specificity"]) * (1 - RARE)
    return {**values, "ppv at 1 %": true / (true + false)}, threshold


def first_table(patients, per, prevalence, *, replicates, resamples):
    """Return metric -> coverage, mean width and share of replicates with an interval."""
    expected, threshold = first_table_truth(per, prevalence)
    hits = {name: [] for name in expected}
    widths = {name: [] for name in expected}
    for i in range(replicates):
        rng = np.random.default_rng([2, patients, per, i])
        label, (score, _), patient = draw(rng, patients, per, prevalence)
        data = EvaluationSet(label, np.stack([1 - score, score], axis=1), patient, threshold)
        options = Options(resamples=resamples, seed=i, level=LEVEL)
        made = bootstrap.resample({"a": [data]}, classes=("no", "yes"), options=options)
        triples = zip(made.value["a"], *made.interval("a"), strict=True)
        ends = dict(zip(made.names, triples, strict=True))
        rates = [ends[name] for name in ("sensitivity", "specificity")]
        ends["ppv at 1 %"] = predictive_value(*rates, RARE)
        for name, truth_ in expected.items():
            _, low, high = ends[name]
            if np.isfinite(low) and np.isfinite(high):
                hits[name].append(bool(low <= truth_ <= high))
                widths[name].append(float(high - low))
    return {
        name: {
            "coverage": round(float(np.mean(hit)), 4) if hit else None,
            "width": round(float(np.mean(widths[name])), 4) if hit else None,
            "defined": len(hit) / replicates,
        }
        for name, hit in hits.items()
    }


def first_tables(replicates, resamples):
    """Print and write the coverage of the report's first table."""
    designs = [(n, per, 0.5) for n in (10, 15) for per in (1, 10)]
    designs += [(n, per, q) for n in (100, 1000) for per in (1, 10) for q in (0.05, 0.5)]
    result = {"replicates": replicates, "resamples": resamples, "level": LEVEL, "designs": []}
    result["versions"] = {"numpy": np.__version__, "scipy": scipy.__version__}
    for patients, per, prevalence in designs:
        few = patients <= 100
        table = first_table(
            patients,
            per,
            prevalence,
            replicates=2 * replicates if few and per == 1 else replicates,
            resamples=resamples,
        )
        design = {"patients": patients, "images": per, "prevalence": prevalence}
        result["designs"].append({**design, "metrics": table})
        print(f"\n{patients} patients x {per}, {prevalence:.0%} ill")
        for name, entry in table.items():
            print(f"  {name:22}" + "".join(f"{v:>9}" for v in entry.values()), flush=True)
        FIRST_TABLE.write_text(json.dumps(result, indent=2) + "\n")


_TWO_CLASS = {
    "metric": "auroc",
    "task": "two_class",
    "arms": {"a": {"metrics": dict.fromkeys(ALL_NAMES)}},
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicates", type=int, default=1000, help="data sets a design")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--design", choices=DESIGNS, help="only this one; nothing is written")
    parser.add_argument("--first-table", action="store_true", help="the report's first table")
    options = parser.parse_args()
    if options.first_table:
        first_tables(options.replicates, options.resamples)
        return
    result = {
        "replicates": options.replicates,
        "resamples": options.resamples,
        "level": LEVEL,
        "designs": {},
    }
    for design, (patients, per) in DESIGNS.items():
        if options.design not in (None, design):
            continue
        table = simulate(patients, per, replicates=options.replicates, resamples=options.resamples)
        result["designs"][design] = table
        print(f"\n{design:45}" + "".join(f"{kind:>11}" for kind in table))
        for name in table["medtl"]:
            row = (f"{of[name]:11.3f}" if name in of else f"{'':11}" for of in table.values())
            print(f"{name:45}" + "".join(row), flush=True)
    result["versions"] = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    if options.design is None:
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
