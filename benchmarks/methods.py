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
from methods_runs import LAMBDA, PENALTY, DataSet, Method, Run, applies, runs_of, train

from medtl import files
from medtl.data import cache
from medtl.experiment.provenance import versions
from medtl.training import parallel

RESULT = Path(__file__).parent / "results" / "methods.json"
SEEDS = (0, 1, 2)

LOSS = "objective.losses.main.loss"
# Six settings each: of the decay, or of the decay and λ.
DECAY = {PENALTY: (0.03, 0.3, 1.0, 3.0, 10.0, 30.0)}
JOINT = {PENALTY: (0.3, 3.0), LAMBDA: (1.0, 10.0, 100.0)}
CONVEX = {PENALTY: (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
CONVEX_JOINT = {PENALTY: (1e-2, 1e-1), LAMBDA: (1.0, 10.0, 1000.0)}
# A Gaussian kernel separates what a linear one does not, and needs less of a penalty.
KERNEL = {PENALTY: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)}
KERNEL_JOINT = {PENALTY: (1e-3, 1e-2), LAMBDA: (1.0, 10.0, 1000.0)}
CAUTIOUS = {PENALTY: (1.0, 10.0, 30.0), LAMBDA: (10.0, 1000.0)}
DENSE = {"model.encoders.features": "dense(width=16)"}  # on principal components
SKLEARN = "arm.method.estimator"
HEAD = "sklearn.linear_model:LogisticRegression(max_iter=1000)"
LDA = "sklearn.discriminant_analysis:LinearDiscriminantAnalysis(solver='lsqr', shrinkage={})"


def _term(text: str, weight: float = 1.0) -> dict[str, Any]:
    return {"objective.terms": {"align": {"term": text, "weight": weight}}}


def _loss(about: str, text: str) -> Method:
    return Method(about, {LOSS: text}, DECAY)


def _convex(about: str, view: str = "plain", grid: Any = CONVEX, **fields: Any) -> Method:
    return Method(f"convex, {about}", grid=grid, solver="lbfgs", view=view, **fields)


def _joint_convex(
    about: str, view: str = "plain", grid: Any = CONVEX_JOINT, **fields: Any
) -> Method:
    about = f"joint minimum, λ in folds{about}"
    return Method(about, grid=grid, solver="lbfgs", view=view, joint=True, **fields)


METHODS: dict[str, Method] = {
    # A linear head on the target's own features, trained.
    "target_only": Method("linear head, Adam", grid=DECAY),
    "ema": Method("moving average of the weights", {"stages.target.ema": 0.98}, DECAY),
    "sam": Method("sharpness-aware minimization", {"stages.target.sam": 0.05}, DECAY),
    "dropout": Method("dropout 0.5 of the features", {"model.dropout": 0.5}, DECAY),
    "mixup": Method("mixup of the features", {"augment.mix": "mixup"}, DECAY),
    "smoothing": _loss("labels smoothed", "cross_entropy(label_smoothing=0.1)"),
    "focal": _loss("focal loss", "focal"),
    "class_weighted": _loss("weighted classes", "class_weighted"),
    "effective": _loss(
        "weights by effective number", "class_weighted(scheme='effective', beta=0.99)"
    ),
    "logit_adjusted": _loss("logit adjustment, τ = 0.5", "logit_adjusted(tau=0.5)"),
    "balanced_softmax": _loss("balanced softmax", "balanced_softmax"),
    "ldam": _loss("LDAM, deferred weights", "ldam(deferred=0.8)"),
    "noise_robust": _loss("generalized CE", "generalized_cross_entropy"),
    "symmetric": _loss("symmetric CE", "symmetric_cross_entropy"),
    "squared": _loss("Brier score", "mean_squared_error"),
    "soft_f1": Method("soft F1 added", _term("soft_f1"), DECAY),
    "auc_margin": Method("AUC margin added", _term("auc_margin"), DECAY),
    "balanced": Method("balanced sampler", {"stages.target.sampler": "balanced"}, DECAY),
    "square_root": Method("square-root sampler", {"stages.target.sampler": "square_root"}, DECAY),
    "by_patient": Method("sampler by patient", {"stages.target.sampler": "by_patient"}, DECAY),
    "mlp": Method("one hidden layer of 16", DENSE, DECAY, view="principal"),
    "folds": Method("mean of the folds' heads", grid=DECAY, from_folds=True),
    "em": Method("class frequencies by EM", grid=DECAY, shift="em"),
    "bbse": Method("class frequencies by BBSE", grid=DECAY, shift="bbse"),
    # The same at the convex minimum, on several features.
    "probe": Method("convex minimum", grid=CONVEX, solver="lbfgs"),
    "probe_folds": _convex("mean of the folds' heads", from_folds=True),
    "probe_standard": _convex("standardized features", "standard"),
    "probe_unit": _convex("features of norm 1", "unit"),
    "probe_root": _convex("square roots", "root"),
    "probe_layers": _convex("layer2 + layer3", "layers"),
    "probe_views": _convex("mean over flips", "views"),
    "probe_views_standard": _convex("mean over flips, standardized", "views_standard"),
    "probe_adabn": _convex("features by AdaBN", "adabn"),
    "probe_principal": _convex("32 principal components", "principal"),
    "probe_principal_views": _convex("the same of the mean over flips", "principal_views"),
    "probe_kernel": _convex("Gaussian kernel", "kernel", KERNEL),
    "probe_kernel_views": _convex("Gaussian kernel, mean over flips", "kernel_views", KERNEL),
    "lda": Method(
        "shrinkage LDA of 32 principal components",
        grid={SKLEARN: [LDA.format(x) for x in (0.1, 0.3, 0.5, 0.7, 0.9, "'auto'")]},
        solver="estimator",
        view="principal",
    ),
    # With the source.
    "pooled": Method("joint, λ = 1", grid=DECAY, joint=True),
    "joint": Method("joint, λ in folds", grid=JOINT, joint=True),
    "joint_cautious": Method(
        "joint, λ = 10 where the folds show a gain, else 1000",
        grid=CAUTIOUS,
        joint=True,
        cautious=True,
    ),
    "gated": Method("joint, gated gradients", {"objective.gradients": "gated"}, JOINT, joint=True),
    "pcgrad": Method("joint, PCGrad", {"objective.gradients": "pcgrad"}, JOINT, joint=True),
    **{
        mode: Method(f"joint, λ by {about}", {"objective.balance": mode}, DECAY, joint=True)
        for mode, about in (
            ("uncertainty", "uncertainty"),
            ("learned", "a held-out loss"),
            ("reweight", "a held-out loss for each example"),
        )
    },
    "joint_convex": _joint_convex(""),
    "joint_standard": _joint_convex(", each domain standardized", "standard"),
    "joint_adabn": _joint_convex(", each domain's BatchNorm", "adabn"),
    "joint_kernel": _joint_convex(", Gaussian kernel", "kernel", KERNEL_JOINT),
    "joint_kernel_cautious": _joint_convex(
        " that show a gain, else 1000, Gaussian kernel", "kernel", KERNEL_JOINT, cautious=True
    ),
    "domain_classifier": _joint_convex(
        ", source weights by a domain classifier",
        "principal",
        source_weights="domain_classifier",
    ),
    "kernel_mean_matching": _joint_convex(
        ", source weights by kernel mean matching",
        "principal",
        source_weights="kernel_mean_matching",
    ),
    "joint_principal": _joint_convex(", 32 principal components", "principal"),
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
    "sequential": Method("source, then target", grid=DECAY, source_stage=True),
    "sequential_standard": Method(
        "source, then target, each standardized", grid=DECAY, view="standard", source_stage=True
    ),
    "sequential_mlp": Method(
        "source, then target, one hidden layer of 16",
        DENSE,
        DECAY,
        view="principal",
        source_stage=True,
    ),
    **{
        name: Method(
            f"sequential_mlp + {about}",
            {**DENSE, **values},
            DECAY,
            view="principal",
            source_stage=True,
            every_class=name == "lp_ft",
        )
        for name, about, values in (
            ("l2_sp", "L2-SP", _term("l2_sp", 0.1)),
            ("layerwise", "layer-wise rates", {"stages.target.rates": "layerwise(decay=0.3)"}),
            ("gradual", "gradual unfreezing", {"stages.target.rates": "gradual(share=0.5)"}),
            ("auto_rgn", "Auto-RGN", {"stages.target.rates": "auto_rgn"}),
            ("lp_ft", "LP-FT", {"stages.target.head_start": HEAD}),
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
