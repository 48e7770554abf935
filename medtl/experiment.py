"""The story: weights -> source stage -> target stage -> evaluation, for each arm and seed.

Each stage is a function of the last one's checkpoint. What is done is not done again: the same command resumes where it was
stopped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import medtl
from medtl import build, check, data, weights, workdir
from medtl.base import Examples, Normalization, UserError
from medtl.checkpoint import Store
from medtl.data import loading
from medtl.evaluation import metrics, predictions, summarize, table, to_json
from medtl.models.model import Model
from medtl.parallel import Parallel
from medtl.progress import Progress
from medtl.train import DOMAINS, Step, fit, make_eval_step, prepare, run_batches

STAGES = ("source", "target")


def train(config: Any, folder: str | Path) -> dict[str, Any]:
    """Runs or resumes an experiment and writes `metrics.json` and `predictions.csv` into `folder`.

    Args:
      config: as `medtl.config.default` describes.
      folder: the work folder; made where it is absent.

    Returns:
      What `metrics.json` holds.

    Raises:
      UserError: the config, the data, the weights or the folder is at fault, or a loss became NaN.
    """
    return _run(config, Path(folder), training=True)


def evaluate(config: Any, folder: str | Path) -> dict[str, Any]:
    """Evaluates the checkpoints in `folder` again, without training; otherwise as `train`."""
    return _run(config, Path(folder), training=False)


def _run(config: Any, folder: Path, *, training: bool) -> dict[str, Any]:
    began = time.monotonic()
    check.check(config)
    workdir.check(folder, config)
    _check_devices()
    build.check(config)
    examples = load_data(config)
    for domain in examples.values():
        print(_data_line(domain))
    run = Run.create(config, folder, examples, training=training)
    print(f"arms {', '.join(config.arms)}; seeds {', '.join(map(str, config.seeds))}; {versions()['device']}; {folder}")
    if run.loaded is not None:
        print(run.loaded.report.summary())
    workdir.prepare(folder, config)
    with workdir.locked(folder):
        return _run_arms(run, began)


def _run_arms(run: Run, began: float) -> dict[str, Any]:
    config, folder, examples = run.config, run.folder, run.examples
    results: dict[int, dict[str, Any]] = {}
    rows = []
    for seed in config.seeds:
        results[seed] = {}
        for arm in config.arms:
            variables, cached = run.arm(seed, arm)
            placed = run.parallel.replicate(variables)
            results[seed][arm] = {}
            for split in _reported(examples["target"]):
                chosen, probability = run.probabilities(placed, "target", split, cached=cached)
                target = examples["target"]
                rows.append(
                    predictions.Predictions(arm, split, target.id[chosen], target.label[chosen], probability, seed)
                )
                results[seed][arm][split] = metrics.compute(
                    target.label[chosen], probability, classes=target.classes
                ).as_dict()
    summary = {
        **summarize(results),
        "config": config.to_dict(),
        "versions": versions(),
        "seconds": run.seconds(began),
    }
    predictions.write(folder / "predictions.csv", rows, examples["target"].classes)
    workdir.write_text(folder / "metrics.json", to_json(summary))
    sources = [arm for arm in config.arms if _uses_source(config, arm)]
    print(table.render(summary, metric=config.checkpoint.metric, uses_source=sources))
    if config.checkpoint.select == "best" and _reported(examples["target"]) == ["val"]:
        print(
            "The checkpoints were chosen on val, which is also what is reported, so it flatters; a test split would not."
        )
    print(f"{summary['seconds']} s; {folder / 'metrics.json'}, {folder / 'predictions.csv'}")
    return summary


def load_data(config: Any) -> dict[str, Examples]:
    """The domains that the arms need, checked and decoded; the target always, last."""
    c = config.data
    needed = [d for d in DOMAINS if d == "target" or any(_uses_source(config, arm) for arm in config.arms)]
    found = {
        domain: data.load(
            c[domain],
            image_size=c.image_size,
            channels=c.channels,
            resize=c.resize,
            cache=c.cache,
            cache_dir=c.cache_dir,
            key=f"config.data.{domain}",
        )
        for domain in needed
    }
    data.check_domains(found.get("source"), found["target"])
    if not _reported(found["target"]):
        raise UserError("config.data.target has neither a val nor a test split, so nothing could be reported")
    for domain, e in found.items():
        for name, term in config.objective.losses.items():
            if e.multi_label != ("sigmoid" in term.loss) and term.loss.split("(")[0] in _LABEL_KINDS:
                kind = "several diagnoses an example" if e.multi_label else "one diagnosis an example"
                right = "sigmoid_binary_cross_entropy" if e.multi_label else "cross_entropy"
                raise UserError(
                    f"config.objective.losses.{name}.loss is {term.loss!r}, but {domain} has {kind}; use {right!r}"
                )
    return found


_LABEL_KINDS = ("cross_entropy", "sigmoid_binary_cross_entropy")


def _check_devices() -> None:
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device: {' '.join(str(error).split())}") from None


def _uses_source(config: Any, arm: str) -> bool:
    return config.arm[arm].source_stage or config.arm[arm].joint


def _reported(examples: Examples) -> list[str]:
    return [s for s in examples.splits if s != "train"]


@dataclasses.dataclass(eq=False)
class Run:
    """One experiment under way; what its arms and seeds share."""

    config: Any
    folder: Path
    examples: Mapping[str, Examples]
    parallel: Parallel
    model: Model
    normalization: Normalization
    loaded: weights.Pretrained | None
    training: bool
    trained: bool = False
    _features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    _steps: dict[Any, Any] = dataclasses.field(default_factory=dict)
    _functions: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def create(cls, config: Any, folder: Path, examples: Mapping[str, Examples], *, training: bool) -> Run:
        """Loads the weights and builds the model."""
        loaded = build.pretrained(config)
        parallel = Parallel.create(config.parallel)
        model = build.model(
            config,
            {domain: e.classes for domain, e in examples.items()},
            priors={d: build.prior(e) for d, e in examples.items()} if config.model.prior_bias else None,
            axis_name=parallel.axis_name,
            epsilon=loaded.epsilon if loaded else 1e-5,
        )
        run = cls(
            config, folder, examples, parallel, model, build.normalization(config, loaded), loaded, training=training
        )
        run._check()
        return run

    def _check(self) -> None:
        """What can be known only with data, weights and devices, and must be known before training."""
        for arm in self.config.arms:
            for stage in self._stages(arm):
                c, key = self.config.stages[stage], f"config.stages.{stage}"
                self.parallel.check_batch(c.batch_size, f"{key}.batch_size")
                if stage == "target" and self.config.arm[arm].joint:
                    self.parallel.check_batch(c.source_batch_size or c.batch_size, f"{key}.source_batch_size")
                    build.objective(self.config, {}).check(self.steps(arm, stage))
                left = self.loaded.report.left_random if self.loaded and self.config.arm[arm].init == "weights" else ()
                if left and (c.freeze != "none" or c.batch_norm == "frozen"):
                    raise UserError(
                        f"{key} freezes the backbone, but config.weights.allow leaves {len(left)} of its tensors random, "
                        f"such as {left[0][0]}; set freeze='none' and batch_norm='batch', or load them"
                    )
        for domain in self.examples:
            build.check_losses(self.config, self.examples[domain])
            if self.config.checkpoint.select == "best" and "val" not in self.examples[domain].splits:
                print(f"{domain} has no val split: the last checkpoint is taken, not the best")

    def seconds(self, began: float) -> float:
        """How long the run took; of one that was done before, and only evaluated again, what it took then."""
        metrics_file = self.folder / "metrics.json"
        if not self.trained and metrics_file.exists():
            return json.loads(metrics_file.read_text())["seconds"]
        return round(time.monotonic() - began, 1)

    def _stages(self, arm: str) -> tuple[str, ...]:
        return STAGES if self.config.arm[arm].source_stage else STAGES[1:]

    def arm(self, seed: int, name: str) -> tuple[Any, bool]:
        """Runs an arm's stages; returns its final variables, and whether its backbone is still the loaded one."""
        arm = self.config.arm[name]
        loaded = self.loaded if arm.init == "weights" else None
        variables = build.variables(self.model, self.config, seed, loaded)
        fresh = loaded is None
        intact = loaded is not None and not loaded.report.left_random  # what is random differs between seeds
        for stage in self._stages(name):
            variables, intact = self.stage(seed, name, stage, variables, fresh=fresh, intact=intact)
            fresh = fresh and self.steps(name, stage) == 0
        return variables, intact

    def steps(self, arm: str, stage: str) -> int:
        """The length of a stage: every arm takes as many optimizer steps in all as the longest."""
        own = {s: self._epoch(s) * self.config.stages[s].epochs for s in STAGES if s in self.examples}
        skips = stage == "target" and not self.config.arm[arm].source_stage
        if skips and any(self.config.arm[other].source_stage for other in self.config.arms):
            return sum(own.values())
        return own[stage]

    def _epoch(self, stage: str) -> int:
        return loading.steps_per_epoch(len(self.examples[stage].indices("train")), self.config.stages[stage].batch_size)

    def stage(self, seed: int, arm: str, stage: str, variables: Any, *, fresh: bool, intact: bool) -> tuple[Any, bool]:
        """Trains one stage, or goes on with it, or takes what it left when it was done.

        Args:
          seed: the seed.
          arm: the arm's name.
          stage: "source" or "target".
          variables: what the stage starts from.
          fresh: the backbone is random.
          intact: the backbone is the loaded one, unchanged.

        Returns:
          The variables of the chosen checkpoint, and whether their backbone is the loaded one, unchanged.
        """
        c = self.config.stages[stage]
        joint = stage == "target" and self.config.arm[arm].joint
        domains = DOMAINS if joint else (stage,)
        steps = self.steps(arm, stage)
        step, compiled = self._compiled(stage, domains, fresh, steps, variables["params"])
        intact = intact and c.freeze == "backbone" and c.batch_norm == "frozen"
        cached = intact and step.augmentation.is_identity
        key = jax.random.fold_in(jax.random.key(seed), 1 + STAGES.index(stage))
        state = step.init(key, variables)
        with Store(self.folder / f"seed_{seed}" / arm / stage) as store:
            start = store.last_step
            if not self.training and start != steps:
                raise UserError(f"{store.folder} holds no finished stage ({start or 0} of {steps} steps); train first")
            record = self._record(seed, arm, stage)
            if start is not None:
                _check_same(store.record(start), record, store.folder)
                state = store.restore(start, state)
            if start != steps:
                self.trained = True
                fit(
                    self.parallel.replicate(state),
                    compiled,
                    self._batches(seed, stage, domains, start or 0, cached=cached),
                    steps=steps,
                    every=-(-steps // self.config.evaluation.times),
                    save_every=self.config.checkpoint.every_steps,
                    evaluate=lambda s: self._evaluate(step.variables(s), stage, cached=cached),
                    record=record,
                    store=store,
                    progress=Progress(f"seed {seed}  {arm}  {stage} stage", steps, start=start or 0),
                )
            chosen = store.restore(store.chosen_step(), state)
        return jax.device_get(step.variables(chosen)), intact

    def _compiled(self, stage: str, domains: tuple[str, ...], fresh: bool, steps: int, params: Any) -> tuple[Step, Any]:
        """The step, compiled once for all seeds and arms that share it."""
        key = (stage, domains, fresh, steps)
        if key not in self._steps:
            step = build.step(
                self.config,
                stage,
                self.model,
                params=params,
                domains=domains,
                fresh=fresh,
                steps=steps,
                sizes={d: len(e.indices("train")) for d, e in self.examples.items()},
                norm=self.normalization,
                parallel=self.parallel,
            )
            self._steps[key] = step, self.parallel.train(step)
        return self._steps[key]

    def _batches(
        self, seed: int, stage: str, domains: tuple[str, ...], start: int, *, cached: bool
    ) -> Iterator[tuple[Any, int]]:
        c = self.config.stages[stage]
        sizes = {d: c.source_batch_size or c.batch_size if d != stage else c.batch_size for d in domains}
        streams = {
            d: loading.train_batches(
                self.examples[d],
                "train",
                sizes[d],
                # A stream of its own for each seed, stage and domain; the same for all arms.
                seed=seed * 4 + 2 * STAGES.index(stage) + DOMAINS.index(d),
                start_step=start,
                workers=self.config.data.workers,
                features=self.frozen_features(d) if cached else None,
            )
            for d in domains
        }

        def shards() -> Iterator[tuple[Any, int]]:
            while True:
                batch = {d: next(stream) for d, stream in streams.items()}
                yield self.parallel.shard(batch, multiple=c.accumulate), sum(sizes.values())

        return loading.prefetch(shards())

    def frozen_features(self, domain: str) -> np.ndarray:
        """f32[N, D], the features of a domain's examples under the loaded backbone, computed once."""
        if domain not in self._features:
            assert self.loaded is not None
            variables = build.variables(self.model, self.config, 0, self.loaded)
            examples = self.examples[domain]
            began = time.monotonic()
            every = np.arange(len(examples))
            self._features[domain] = self._forward(
                ("features", domain), self._features_of, self.parallel.replicate(variables), examples, every
            )
            seconds = time.monotonic() - began
            print(
                f"features of {examples.name}: {len(examples)} images in {seconds:.0f} s, once for all arms and seeds"
            )
        return self._features[domain]

    def _features_of(self, variables: Any, batch: Mapping[str, Any]) -> jax.Array:
        return self.model.features(variables, prepare({"": batch}, normalization=self.normalization)[""]["image"])[0]

    def probabilities(self, variables: Any, domain: str, split: str, *, cached: bool) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a split, int[n], and their class probabilities, float64[n, K]; the variables lie on the devices."""
        examples = self.examples[domain]
        chosen = examples.indices(split)
        logits = self._forward(
            ("logits", domain),
            make_eval_step(self.model, domain, self.normalization),
            variables,
            examples,
            chosen,
            features=self.frozen_features(domain) if cached else None,
        )
        return chosen, predictions.probabilities(logits, multi_label=examples.multi_label)

    def _forward(
        self,
        key: Any,
        function: Any,
        variables: Any,
        examples: Examples,
        chosen: np.ndarray,
        *,
        features: np.ndarray | None = None,
    ) -> np.ndarray:
        if key not in self._functions:
            self._functions[key] = self.parallel.evaluate(function)
        c = self.config
        batches = loading.eval_batches(
            examples, chosen, c.evaluation.batch_size, workers=c.data.workers, features=features
        )
        return run_batches(self._functions[key], variables, batches)

    def _evaluate(self, variables: Any, domain: str, *, cached: bool) -> tuple[dict[str, float], float | None]:
        if "val" not in self.examples[domain].splits:
            return {}, None
        chosen, probability = self.probabilities(variables, domain, "val", cached=cached)
        examples = self.examples[domain]
        found = metrics.compute(examples.label[chosen], probability, classes=examples.classes).as_dict()
        values = {name: float(value) for name, value in found.items() if isinstance(value, float)}
        if self.config.checkpoint.select == "last":
            return values, None
        metric = self.config.checkpoint.metric
        return values, -values[metric] if metric == "loss" else values[metric]

    def _record(self, seed: int, arm: str, stage: str) -> dict[str, Any]:
        return {
            "seed": seed,
            "arm": arm,
            "stage": stage,
            "classes": {d: list(e.classes) for d, e in self.examples.items()},
            "multi_label": {d: e.multi_label for d, e in self.examples.items()},
            "fingerprint": {d: e.fingerprint for d, e in self.examples.items()},
            "split_hash": {d: e.split_hash for d, e in self.examples.items()},
            "normalization": dataclasses.asdict(self.normalization),
            "epsilon": self.loaded.epsilon if self.loaded else 1e-5,
            "weights": {"path": self.loaded.path, "sha256": self.loaded.sha256} if self.loaded else None,
            "config": self.config.to_dict(),
            "versions": versions(),
        }


def _check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """Refuses to go on from a checkpoint that was trained on other data or weights."""
    what = {
        "classes": "the classes have",
        "split_hash": "the split has",
        "fingerprint": "the images or labels have",
        "multi_label": "the labels have",
        "weights": "the weights have",
    }
    for name, words in what.items():
        old, new = there.get(name), here[name]
        if name == "weights":
            old, new = (w and w["sha256"] for w in (old, new))
        elif isinstance(old, Mapping):
            # Another arm may have needed a domain that none needs now.
            old, new = ({d: side[d] for d in old.keys() & new.keys()} for side in (old, new))
        if old != new:
            raise UserError(f"{words} changed since {folder} was trained; put them back, or give another --workdir")


def _data_line(e: Examples) -> str:
    parts = []
    for split in e.splits:
        label = e.label[e.indices(split)]
        counts = np.nansum(label, axis=0) if e.multi_label else np.bincount(label, minlength=len(e.classes))
        shown = ", ".join(f"{name} {int(n)}" for name, n in zip(e.classes, counts, strict=True))
        parts.append(f"{split} {len(label)} ({shown})")
    patients = f", {len(set(e.patient))} patients" if e.patient is not None else ""
    return f"{e.name}{' (synthetic)' if e.synthetic else ''}: {'; '.join(parts)}{patients}"


def versions() -> dict[str, str]:
    """Of Python, medtl, and what the numbers depend on; and the device."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")
    found = {name: metadata.version(name) for name in packages}
    device = jax.local_devices()[0]
    return {
        "python": platform.python_version(),
        "medtl": medtl.__version__,
        **found,
        "device": f"{jax.local_device_count()} x {device.device_kind} ({device.platform})",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
