"""What a model says of images, where it looked, and a frozen backbone's features: each compiled once for all cells, arms and seeds."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from medtl import models, weights
from medtl.data import augment, loading
from medtl.examples import Examples, Normalization
from medtl.models import saliency
from medtl.models.model import Model
from medtl.training import factory, features
from medtl.training.parallel import Parallel
from medtl.training.progress import Progress
from medtl.training.step import make_eval_step, prepare, run_batches


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """The forward passes of one experiment.

    Attributes:
      config: the experiment's.
      parallel: the devices.
      model: the model.
      normalization: of the input.
      loaded: the pretrained backbone.
    """

    config: Any
    parallel: Parallel
    model: Model
    normalization: Normalization
    loaded: weights.Pretrained | None
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)
    _features: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def features(self, domain: str, examples: Examples) -> np.ndarray:
        """f32[N, D], the features of a domain's examples under the loaded backbone: computed once, and kept by content."""
        if domain not in self._features:
            assert self.loaded is not None
            path = features.path(self.config, examples, self.loaded, self.normalization)
            c = self.config.model
            found = features.read(
                path, (len(examples), models.features(c.name, c.stages, classifier=c.classifier))
            )
            if found is None:
                began = time.monotonic()
                variables = self.parallel.replicate(
                    factory.variables(self.model, self.config, 0, self.loaded)
                )
                every = np.arange(len(examples))
                progress = Progress(f"features of {examples.name}", len(examples), unit="image")
                found = self._run(
                    ("features", domain),
                    self._features_of,
                    variables,
                    examples,
                    every,
                    progress=progress,
                )
                kept = f"; kept in {path}" if features.keep(path, found) else ""
                seconds = time.monotonic() - began
                progress.end(
                    f"features of {examples.name}: {len(examples)} images in {seconds:.0f} s, once{kept}"
                )
            self._features[domain] = found
        return self._features[domain]

    def logits(
        self,
        variables: Any,
        domain: str,
        examples: Examples,
        chosen: np.ndarray,
        *,
        features: np.ndarray | None = None,
    ) -> np.ndarray:
        """f32[n, K], of the rows int[n] of a domain; the variables lie on the devices.

        Args:
          variables: of the model.
          domain: whose head answers.
          examples: the domain's.
          chosen: the rows.
          features: f32[N, D] that stand in for the images.
        """
        step = make_eval_step(self.model, domain, self.normalization)
        return self._run(("logits", domain), step, variables, examples, chosen, features=features)

    def grad_cam(self, variables: Any, image: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Where the model looked: f32[B, H, W] of the target's classes int[B] on images uint8[B, H, W, C]."""
        if "grad_cam" not in self._compiled:

            def grad_cam(variables: Any, image: Any, asked: Any) -> jax.Array:
                x = augment.normalize(image, self.normalization)
                return saliency.grad_cam(self.model, variables, x, domain="target", target=asked)

            self._compiled["grad_cam"] = jax.jit(grad_cam)
        return np.asarray(self._compiled["grad_cam"](variables, image, asked))

    def _features_of(self, variables: Any, batch: Mapping[str, Any]) -> jax.Array:
        return self.model.features(
            variables, prepare({"": batch}, normalization=self.normalization)[""]["image"]
        )[0]

    def _run(
        self,
        key: Any,
        function: Callable[..., Any],
        variables: Any,
        examples: Examples,
        chosen: np.ndarray,
        *,
        features: np.ndarray | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        if key not in self._compiled:
            self._compiled[key] = self.parallel.evaluate(function)
        c = self.config
        batches = loading.eval_batches(
            examples, chosen, c.evaluation.batch_size, workers=c.data.workers, features=features
        )
        return run_batches(self._compiled[key], variables, batches, progress)
