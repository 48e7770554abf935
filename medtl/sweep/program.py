"""One compiled program that trains many heads on the features of a frozen backbone.

A head is trained for each run (a seed on a split) and each setting (values of λ, learning rate and
weight decay). The program is a loop over the trainer's own step, mapped over runs and settings; the
devices share the runs or the settings.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medtl.data import loading
from medtl.training.evaluator import make_eval_step
from medtl.training.parallel import compiler_options
from medtl.training.step import Step, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The compiled loop over steps, for R runs x H settings.

    Both numbers are filled up to what the devices divide by repeating runs or settings.

    Attributes:
      step: the trainer's; a setting's values replace its own.
      data: domain -> columns [N, ...] of all its examples, on each device.
      shape: (R, H), filled up.
      values: name in `TrainState.values` -> f32[H].
      of_run: name in `TrainState.values` -> numbers f32[R, ...] of each run, such as the domains'
        `class_counts`.
      sharding: of arrays that are "replicated", or have an axis of "runs", "settings", or "both".
    """

    step: Step
    data: Any
    shape: tuple[int, int]
    values: Any
    of_run: Any
    sharding: Mapping[str, NamedSharding]

    @classmethod
    def create(
        cls,
        step: Step,
        values: Mapping[str, np.ndarray],
        data: Any,
        *,
        of_run: Sequence[Mapping[str, Any]],
        devices: tuple[jax.Device, ...],
    ) -> Program:
        """Put the data on the devices; nothing is compiled yet.

        Args:
          step: as `Program.step`.
          values: as `Program.values`, on the host.
          data: as `Program.data`, on the host.
          of_run: of each run, as `Program.of_run`, on the host.
          devices: that share the runs or the settings.
        """
        shape = [len(of_run), len(next(iter(values.values())))]
        filled = [-(-n // len(devices)) * len(devices) for n in shape]
        axis = int(filled[1] / shape[1] < filled[0] / shape[0])
        shape[axis] = filled[axis]
        mesh = jax.make_mesh(
            (len(devices),), ("grid",), axis_types=(AxisType.Auto,), devices=devices
        )
        axes: dict[str, tuple[str | None, ...]] = {
            "replicated": (),
            "runs": () if axis else ("grid",),
            "settings": ("grid",) if axis else (),
            "both": (None, "grid") if axis else ("grid",),
        }
        sharding = {k: NamedSharding(mesh, PartitionSpec(*names)) for k, names in axes.items()}
        rows = np.resize(np.arange(len(of_run)), shape[0]).tolist()
        filled_runs = jax.tree.map(
            lambda *x: np.stack(x).astype(np.float32), *[dict(of_run[r]) for r in rows]
        )
        settings = {k: np.resize(v.astype(np.float32), shape[1]) for k, v in values.items()}
        return cls(
            step,
            jax.device_put(data, sharding["replicated"]),
            (shape[0], shape[1]),
            jax.device_put(settings, sharding["settings"]),
            jax.device_put(filled_runs, sharding["runs"]),
            sharding,
        )

    def start(self, variables: Sequence[Any], keys: Sequence[jax.Array]) -> TrainState:
        """Return the state before the first step, with leaves [R, H, ...].

        Args:
          variables: of each run, on the host.
          keys: of each run, the training stage's random key.
        """
        rows = np.resize(np.arange(len(variables)), self.shape[0]).tolist()
        stacked = jax.tree.map(lambda *x: np.stack(x), *[variables[r] for r in rows])
        placed = jax.device_put(
            (stacked, jnp.stack([keys[r] for r in rows])), self.sharding["runs"]
        )
        return self._compiled.start(*placed, self.of_run, self.values)

    def order(self, rows: Mapping[str, np.ndarray]) -> Any:
        """Put the rows of n steps on the devices: domain -> i32[runs, n, B]."""
        filled = {d: np.resize(x, (self.shape[0], *x.shape[1:])) for d, x in rows.items()}
        return jax.device_put(
            {d: x.astype(np.int32) for d, x in filled.items()}, self.sharding["runs"]
        )

    def advance(self, state: TrainState, order: Any, span: tuple[int, int]) -> TrainState:
        """Take the steps `span[0]` to `span[1]` of `order`; the state is donated."""
        return self._compiled.advance(state, order, self.data, span)

    def logits(
        self, state: TrainState, rows: Sequence[np.ndarray], batch_size: int
    ) -> list[np.ndarray]:
        """Return f32[H, n, K] for each run: the logits of these rows of the target."""
        longest = -(-max(map(len, rows)) // batch_size) * batch_size
        of_run = np.resize(np.arange(len(rows)), self.shape[0]).tolist()
        filled = np.stack([np.resize(rows[r], longest) for r in of_run]).astype(np.int32)
        parts = []
        for begin in range(0, longest, batch_size):
            chosen = filled[:, begin : begin + batch_size]
            chosen = jax.device_put(chosen, self.sharding["runs"])
            parts.append(np.asarray(self._compiled.logits(state, chosen, self.data["target"])))
        out = np.concatenate(parts, axis=2)
        return [out[r, :, : len(x)] for r, x in enumerate(rows)]

    @functools.cached_property
    def _compiled(self) -> Any:
        def start(variables: Any, key: Any, of_run: Any, values: Any) -> TrainState:
            encoders = variables["params"].get("encoders", {})
            return self.step.init(key, variables, {**values, **of_run}, pretrained=encoders)

        def advance(state: Any, order: Any, data: Any, span: Any) -> TrainState:
            def body(t: Any, state: Any) -> Any:
                batch = {d: _batch(data[d], rows[t]) for d, rows in order.items()}
                return self.step(state, batch)[0]

            return jax.lax.fori_loop(span[0], span[1], body, state)

        evaluate = make_eval_step(self.step.model, "target", self.step.normalization)

        def logits(state: Any, rows: Any, data: Any) -> jax.Array:
            return evaluate(self.step.variables(state), _batch(data, rows))

        # The order and what it gathers are mapped over runs alone: a run's settings share them.
        return types.SimpleNamespace(
            start=self._mapped(start, "runs", "runs", "runs", "settings"),
            advance=self._mapped(advance, "both", "runs", "replicated", "replicated", donate=(0,)),
            logits=self._mapped(logits, "both", "runs", "replicated"),
        )

    def _mapped(self, function: Callable, *kinds: str, donate: tuple[int, ...] = ()) -> Callable:
        """Map a function of one run and setting over all and over the devices, and compile it."""
        for axis in ("settings", "runs"):
            function = jax.vmap(function, tuple(0 if k in (axis, "both") else None for k in kinds))
        spread = jax.shard_map(
            function,
            mesh=self.sharding["replicated"].mesh,
            in_specs=tuple(self.sharding[kind].spec for kind in kinds),
            out_specs=self.sharding["both"].spec,
            check_vma=False,  # devices exchange nothing
        )
        options = compiler_options() if donate else None
        return jax.jit(spread, donate_argnums=donate, compiler_options=options)


def _batch(data: Mapping[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
    """Return the batch that `data.loading` makes of these rows."""
    return {
        **loading.gather(data, rows),
        "mask": jnp.ones(len(rows), jnp.float32),
        "index": rows,
        "position": jnp.arange(len(rows), dtype=jnp.int32),
    }
