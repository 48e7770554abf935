"""The evaluator: the model, its compiled forward passes and the features of a frozen backbone.

Each forward pass is compiled once for all splits, arms and seeds. The training loop is handed a
`Validation`, which evaluates a state on val.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from medtl.data import augment, loading, views
from medtl.evaluation import metrics, predictions
from medtl.examples import Examples, Normalization
from medtl.models import saliency
from medtl.models.model import Model
from medtl.training import features, hosts
from medtl.training.inputs import prepare
from medtl.training.parallel import Parallel
from medtl.training.progress import Progress
from medtl.training.step import TrainState
from medtl.weights import Pretrained

Replaced = Mapping[str, np.ndarray]
"""Arrays that replace inputs, such as `encoded_image` f32[N, D]; see `loading.columns`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """The forward passes of one experiment.

    Attributes:
      config: the experiment's.
      parallel: the devices.
      model: the model.
      normalization: of the images.
      loaded: the pretrained backbone.
      extra: the user's metrics by name.
    """

    config: Any
    parallel: Parallel
    model: Model
    normalization: Normalization
    loaded: Pretrained | None
    extra: Mapping[str, metrics.Metric] = dataclasses.field(default_factory=dict)
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)
    _features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def with_model(self, config: Any, model: Model) -> Evaluator:
        """Return an evaluator of another model with the same backbone; features are shared."""
        return dataclasses.replace(self, config=config, model=model, _compiled={})

    def probabilities(
        self,
        variables: Any,
        domain: str,
        examples: Examples,
        rows: np.ndarray,
        replaced: Replaced | None = None,
    ) -> np.ndarray:
        """Return the class probabilities float64[n, K] of some examples, or numbers float64[n, 1].

        Args:
          variables: the model's, on the devices.
          domain: whose head is used.
          examples: the domain's.
          rows: int[n].
          replaced: for all examples.
        """
        step = make_eval_step(self.model, domain, self.normalization)
        logits = self._run(("logits", domain), step, variables, examples, rows, replaced)
        if examples.is_quantity:
            return predictions.in_units(logits, examples.scale)
        return predictions.probabilities(logits, multi_label=examples.multi_label)

    def features(
        self,
        variables: Any,
        domain: str,
        examples: Examples,
        rows: np.ndarray,
        replaced: Replaced | None = None,
    ) -> np.ndarray:
        """Return the fused features f32[n, D] of some examples; arguments as `probabilities`."""

        def step(variables: Any, batch: Mapping[str, Any]) -> jax.Array:
            inputs = prepare({domain: batch}, normalization=self.normalization)
            outputs: Any = self.model.apply(variables, inputs, False)
            return outputs[domain].features

        return self._run(("features", domain), step, variables, examples, rows, replaced)

    def mean_over_views(
        self,
        variables: Any,
        domain: str,
        examples: Examples,
        rows: np.ndarray,
        *,
        multi_label: bool,
    ) -> np.ndarray:
        """Return the mean class probabilities float64[n, K] over the views of each image.

        The views are those of `evaluation.test_time`, see `medtl.data.views`.

        Args:
          variables: the model's, on the devices.
          domain: whose head is used.
          examples: the domain's, with images.
          rows: int[n].
          multi_label: whether an example may have several diagnoses.
        """
        predict = make_eval_step(self.model, domain, self.normalization)

        def step(tree: Any, batch: Mapping[str, Any]) -> jax.Array:
            image = jax.vmap(lambda x: augment.resample(x, *tree["view"]))(batch["image"])
            return predict(tree["variables"], {**batch, "image": image})

        size = self.config.data.image_size
        total: Any = 0.0
        made = views.views(self.config.evaluation.test_time, size, size)
        for view in made:  # one program for all views, whose map is an argument
            tree = {"variables": variables, "view": self.parallel.replicate(view)}
            logits = self._run(("view", domain), step, tree, examples, rows)
            total = total + predictions.probabilities(logits, multi_label=multi_label)
        return total / len(made)

    def metrics_of(
        self, examples: Examples, rows: np.ndarray, probability: np.ndarray
    ) -> dict[str, float]:
        """Return the metrics of class probabilities float64[n, K] for the rows int[n]."""
        return metrics.compute(
            examples.label[rows],
            probability,
            classes=examples.classes,
            positive=self.config.evaluation.positive,
            extra=self.extra,
        )

    def criterion(self, examples: Examples, rows: np.ndarray) -> metrics.Criterion:
        """Return what ranks checkpoints and settings on the rows int[n]; see `criterion`."""
        return metrics.criterion(
            self.config.checkpoint.metric,
            examples.label[rows],
            classes=examples.classes,
            positive=self.config.evaluation.positive,
            extra=self.extra,
        )

    def score(
        self,
        examples: Examples,
        rows: np.ndarray,
        probability: np.ndarray,
        criterion: metrics.Criterion | None = None,
    ) -> float:
        """Return the score by which checkpoints and settings are ranked: higher is better.

        Args:
          examples: the domain's.
          rows: int[n], of the examples.
          probability: float64[n, K].
          criterion: of these rows; None: it is chosen here.
        """
        criterion = criterion or self.criterion(examples, rows)
        return criterion.score(
            examples.label[rows],
            probability,
            classes=examples.classes,
            positive=self.config.evaluation.positive,
            extra=self.extra,
        )

    def frozen_features(
        self, domain: str, examples: Examples, initial: Callable[[], Any]
    ) -> np.ndarray:
        """Return the features f32[N, D] of the loaded backbone: computed once, kept by content.

        Args:
          domain: the domain.
          examples: the domain's.
          initial: returns variables with the loaded backbone, on the host.
        """
        if domain not in self._features:
            assert self.loaded is not None
            path = features.path(self.config, examples, self.loaded, self.normalization)
            values = features.read(path, len(examples))
            is_found = hosts.everywhere(values is not None)
            if values is None or not is_found:
                began = time.monotonic()
                variables = self.parallel.place(initial())
                title = f"features of {examples.name}"
                progress = Progress(title, len(examples), unit="image")
                rows = np.arange(len(examples))
                values = self._run(
                    "features", self._encode, variables, examples, rows, progress=progress
                )
                is_kept = hosts.is_first() and features.keep(path, values)
                kept = f"; kept in {path}" if is_kept else ""
                seconds = time.monotonic() - began
                progress.end(f"{title}: {len(examples)} images in {seconds:.0f} s, once{kept}")
            self._features[domain] = values
        return self._features[domain]

    def grad_cam(
        self, variables: Any, inputs: Mapping[str, np.ndarray], classes: np.ndarray
    ) -> np.ndarray:
        """Return the Grad-CAM maps f32[B, H, W] of the target's classes int[B].

        Args:
          variables: the model's.
          inputs: name -> [B, ...]; "image" is uint8[B, H, W, C].
          classes: int[B].
        """
        if "grad_cam" not in self._compiled:

            def grad_cam(variables: Any, inputs: Any, classes: Any) -> jax.Array:
                others = {name: x for name, x in inputs.items() if name != "image"}
                image = augment.normalize(inputs["image"], self.normalization)
                return saliency.grad_cam(
                    self.model, variables, image, domain="target", target=classes, inputs=others
                )

            self._compiled["grad_cam"] = jax.jit(grad_cam)
        return np.asarray(self._compiled["grad_cam"](variables, inputs, classes))

    def _encode(self, variables: Any, batch: Mapping[str, Any]) -> Any:
        inputs = prepare({"": batch}, normalization=self.normalization)[""]
        return self.model.apply(variables, inputs, method="encode")

    def _run(
        self,
        key: Any,
        function: Callable[..., Any],
        variables: Any,
        examples: Examples,
        rows: np.ndarray,
        replaced: Replaced | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        if key not in self._compiled:
            self._compiled[key] = self.parallel.evaluate(function)
        batches = loading.eval_batches(
            examples,
            rows,
            self.config.evaluation.batch_size,
            workers=self.config.data.workers,
            replaced=replaced,
            part=self.parallel.part(self.config.evaluation.batch_size),
        )
        return run_batches(self._compiled[key], variables, batches, progress)


def make_eval_step(
    model: Model, domain: str, normalization: Normalization
) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
    """Return the pure function `(variables, batch of one domain) -> logits f32[B, K]`."""

    def step(variables: Any, batch: Mapping[str, Any]) -> jax.Array:
        inputs = prepare({domain: batch}, normalization=normalization)
        outputs: Any = model.apply(variables, inputs, False)
        return outputs[domain].logits

    return step


def run_batches(
    step: Callable[[Any, Any], np.ndarray],
    variables: Any,
    batches: Any,
    progress: Progress | None = None,
) -> np.ndarray:
    """Return [N, ...]: the compiled `step(variables, batch)` for the real rows of all batches."""
    results, done = [], 0
    for batch in batches:
        results.append(step(variables, batch))
        rows = len(results[-1])
        done += rows
        if progress is not None:
            progress.count(done, rows)
            progress.show(done, {})
    return np.concatenate(results)


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """Evaluates a training state on val, for the log and to rank checkpoints.

    Attributes:
      evaluator: the forward passes.
      variables_of: the step's `variables`.
      domain: the training stage's own domain.
      examples: the domain's.
      replaced: of the domain; None: nothing is replaced.
      ranks: whether checkpoints are ranked.
    """

    evaluator: Evaluator
    variables_of: Callable[[TrainState], Any]
    domain: str
    examples: Examples
    replaced: Replaced | None
    ranks: bool

    def __call__(self, state: TrainState) -> tuple[dict[str, float], float | None]:
        """Return the metrics, and the score; nothing where the domain has no val split."""
        if "val" not in self.examples.splits:
            return {}, None
        probability = self.evaluator.probabilities(
            self.variables_of(state), self.domain, self.examples, self._rows, self.replaced
        )
        values = self.evaluator.metrics_of(self.examples, self._rows, probability)
        if not self.ranks:
            return values, None
        criterion = self._criterion
        if not criterion.present_only:
            return values, metrics.rank(criterion.metric, values[criterion.metric])
        return values, self.evaluator.score(self.examples, self._rows, probability, criterion)

    @functools.cached_property
    def _criterion(self) -> metrics.Criterion:
        return self.evaluator.criterion(self.examples, self._rows)

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        return self.examples.indices("val")
