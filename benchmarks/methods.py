"""Which methods help with few labels: all under one protocol, on frozen features.

    python benchmarks/methods.py --folder=runs/methods
    python benchmarks/methods.py --folder=runs/methods --data covid_ct --methods probe lda
    python benchmarks/methods.py --folder=runs/methods --report

Every method sees the same features, the same subsets of labels (one for each seed) and as many
settings, and chooses among them by the log loss of 3 patient-grouped folds within its labels: the
largest penalty within one standard error of the best. Test rows choose nothing. Trained heads take
400 steps of Adam. `METHODS` has one entry a method: config
overrides, and the grid of values. A finished method x data set is kept in the folder and not run
again; --report (also the end of a run) writes results/methods.json.

The metric is AUROC, for several classes the mean over those with at least 10 images. Intervals
resample patients and seeds, the same for all methods. Ranks are over the data sets with a source,
for the methods that exist on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from methods_report import report
from methods_runs import PENALTY, DataSet, Method, Run, applies, runs_of, train

from medtl import files
from medtl.data import cache
from medtl.experiment.provenance import versions
from medtl.training import parallel

RESULT = Path(__file__).parent / "results" / "methods.json"
SEEDS = (0, 1, 2)

LOSS, LAMBDA = "objective.losses.main.loss", "objective.lambda_"
# Six settings each: of the decay, or of the decay and λ.
DECAY = {PENALTY: (0.03, 0.3, 1.0, 3.0, 10.0, 30.0)}
JOINT = {PENALTY: (0.3, 3.0), LAMBDA: (1.0, 10.0, 100.0)}
CONVEX = {PENALTY: (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
CONVEX_JOINT = {PENALTY: (1e-2, 1e-1), LAMBDA: (1.0, 10.0, 1000.0)}
DENSE = {"model.encoders.features": "dense(width=16)"}  # on principal components
SKLEARN = "arm.method.estimator"
LDA = "sklearn.discriminant_analysis:LinearDiscriminantAnalysis(solver='lsqr', shrinkage={})"


def _term(text: str, weight: float = 1.0) -> dict[str, Any]:
    return {"objective.terms": {"align": {"term": text, "weight": weight}}}


METHODS: dict[str, Method] = {
    # A linear head on the target's own features, trained.
    "target_only": Method("linear head, Adam", grid=DECAY),
    "ema": Method("moving average of the weights", {"stages.target.ema": 0.98}, DECAY),
    "dropout": Method("dropout 0.5 of the features", {"model.dropout": 0.5}, DECAY),
    "smoothing": Method("labels smoothed", {LOSS: "cross_entropy(label_smoothing=0.1)"}, DECAY),
    "focal": Method("focal loss", {LOSS: "focal"}, DECAY),
    "class_weighted": Method("weighted classes", {LOSS: "class_weighted"}, DECAY),
    "logit_adjusted": Method("logit adjustment", {LOSS: "logit_adjusted"}, DECAY),
    "ldam": Method("LDAM, deferred weights", {LOSS: "ldam(deferred=0.8)"}, DECAY),
    "noise_robust": Method("generalized CE", {LOSS: "generalized_cross_entropy"}, DECAY),
    "balanced": Method("balanced sampler", {"stages.target.sampler": "balanced"}, DECAY),
    "mlp": Method("one hidden layer of 16", DENSE, DECAY, view="principal"),
    "folds": Method("mean of the folds' heads", grid=DECAY, from_folds=True),
    # The same at the convex minimum, on several features.
    "probe": Method("convex minimum", grid=CONVEX, solver="lbfgs"),
    "probe_folds": Method(
        "convex minimum, mean of the folds' heads", grid=CONVEX, solver="lbfgs", from_folds=True
    ),
    "probe_standard": Method(
        "convex, standardized features", grid=CONVEX, solver="lbfgs", view="standard"
    ),
    "probe_unit": Method("convex, features of norm 1", grid=CONVEX, solver="lbfgs", view="unit"),
    "probe_root": Method("convex, square roots", grid=CONVEX, solver="lbfgs", view="root"),
    "probe_layers": Method("convex, layer2 + layer3", grid=CONVEX, solver="lbfgs", view="layers"),
    "probe_views": Method("convex, mean over flips", grid=CONVEX, solver="lbfgs", view="views"),
    "probe_views_standard": Method(
        "convex, mean over flips, standardized", grid=CONVEX, solver="lbfgs", view="views_standard"
    ),
    "probe_principal": Method(
        "convex, 32 principal components", grid=CONVEX, solver="lbfgs", view="principal"
    ),
    "probe_principal_views": Method(
        "convex, 32 principal components of the mean over flips",
        grid=CONVEX,
        solver="lbfgs",
        view="principal_views",
    ),
    "lda": Method(
        "shrinkage LDA",
        grid={SKLEARN: [LDA.format(x) for x in (0.1, 0.3, 0.5, 0.7, 0.9, "'auto'")]},
        solver="estimator",
    ),
    # With the source.
    "pooled": Method("joint, λ = 1", grid=DECAY, joint=True),
    "joint": Method("joint, λ in folds", grid=JOINT, joint=True),
    "joint_convex": Method(
        "joint minimum, λ in folds", grid=CONVEX_JOINT, solver="lbfgs", joint=True
    ),
    "joint_standard": Method(
        "joint minimum, λ in folds, each domain standardized",
        grid=CONVEX_JOINT,
        solver="lbfgs",
        view="standard",
        joint=True,
    ),
    "gated": Method("joint, gated gradients", {"objective.gradients": "gated"}, JOINT, joint=True),
    "pcgrad": Method("joint, PCGrad", {"objective.gradients": "pcgrad"}, JOINT, joint=True),
    "sequential": Method("source, then target", grid=DECAY, source_stage=True),
    "joint_mlp": Method(
        "joint, one hidden layer of 16", DENSE, JOINT, view="principal", joint=True
    ),
    **{
        name: Method(
            f"joint_mlp + {name}", {**DENSE, **_term(text)}, JOINT, view="principal", joint=True
        )
        for name, text in (
            ("coral", "coral"),
            ("mmd", "mmd"),
            ("dann", "DANN(hidden=(16,))"),
            ("contrastive", "contrastive"),
        )
    },
}


def data_sets(folder: Path) -> dict[str, DataSet]:
    """Return the data sets whose features are in the folder."""

    def load(name: str) -> dict[str, np.ndarray]:
        return dict(np.load(folder / f"{name}.npz"))

    made = {}
    for name, target, source, sizes, options in (
        ("covid_ct", "covid_ct", "sao_paulo", (25, 50, 100, 425), {"test": "val"}),
        ("lab_a_to_b", "lab_b", "lab_a", (10, 25, 50), {"halves": True}),
        ("lab_b_to_a", "lab_a", "lab_b", (10, 25, 50, 0), {"halves": True}),
        ("heart_to_hungary", "hungarian", "cleveland", (50, 0), {}),
        ("heart_to_cleveland", "cleveland", "hungarian", (50, 0), {}),
        ("breastmnist", "breastmnist", None, (50, 0), {}),
    ):
        if all((folder / f"{n}.npz").exists() for n in (target, source) if n):
            arrays = load(source) if source else None
            made[name] = DataSet(name, load(target), arrays, sizes, **options)  # type: ignore[arg-type]
    return made


def run(folder: Path, names: Sequence[str], methods: Mapping[str, Method], seeds: Sequence[int]):
    """Train what is not there yet; keep the test probabilities of each method x data set."""
    for name, data in data_sets(folder).items():
        if name not in names:
            continue
        runs = runs_of(data, seeds)
        for key, method in methods.items():
            path = folder / "predictions" / name / f"{key}.npz"
            if path.exists() or not applies(method, data):
                continue
            wall, cpu = time.monotonic(), time.process_time()
            made = train(method, data, runs)
            seconds = time.monotonic() - wall, time.process_time() - cpu
            keep(path, runs, made, seconds)
            print(f"{name} {key}: {seconds[0]:.0f} s, {seconds[1]:.0f} s of CPU", flush=True)


def keep(
    path: Path, runs: Sequence[Run], made: Sequence[Any], seconds: tuple[float, float]
) -> None:
    """Write the predictions of all runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"p{i}": p.astype(np.float32) for i, (p, _) in enumerate(made)}
    chosen = np.array([json.dumps(values) for _, values in made])
    partial = path.with_suffix(".part.npz")
    np.savez(partial, chosen=chosen, seconds=np.array(seconds), **arrays)
    partial.replace(path)


def main() -> None:
    """Run the benchmark, or report what was run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"))
    parser.add_argument("--data", nargs="*", default=None)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    known = data_sets(args.folder)
    names = list(known) if args.data is None else args.data
    if not args.report:
        parallel.keep_compiled(cache.folder("") / "compiled")
        run(args.folder, names, {m: METHODS[m] for m in args.methods}, SEEDS)
    about = {name: method.about for name, method in METHODS.items()}
    chosen = {name: data for name, data in known.items() if name in names}
    result = report(args.folder / "predictions", chosen, about, SEEDS)
    result["versions"] = versions()
    if args.data is None and args.methods == list(METHODS):
        files.write_text(RESULT, json.dumps(result, indent=1) + "\n")
        print(RESULT)


if __name__ == "__main__":
    main()
