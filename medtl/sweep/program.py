"""The trainer's step over the places and points of a sweep, compiled once: λ, learning rate and weight decay are arguments.

A *place* is a seed in a cell, a *point* one combination of values. They are trained a block at a time, and a block is spread
over the devices along one of the two, so that no device waits for another. Where a device has one place and one point at a
time, nothing is mapped: it runs the trainer's own step. Knows the step, and nothing of what trains or how points are compared.
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

from medtl.training.parallel import compiler_options
from medtl.training.step import Step, TrainState, make_eval_step

Grid = Mapping[str, np.ndarray]  # field of config.sweep -> f64[H], its value at each point


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Places and points that train together.

    Attributes:
      places: int[r], which of the sweep's.
      points: int[h], which of the grid's.
      sizes: domain -> the number of train examples of each place, on the devices.
      values: field of config.sweep -> its value at each point, on the devices.
    """

    places: np.ndarray
    points: np.ndarray
    sizes: Any
    values: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The compiled loop over steps, for a block of R places x H points; a smaller block is filled up with places and points again.

    Attributes:
      step: the trainer's; a point's values take the place of its own.
      data: domain -> `image` uint8[N, H, W, C] or `features` f32[N, D], `label`, `weight` of all its examples, on each device.
      shape: (R, H).
      local: the same on one device.
      loop: whether many steps are one dispatch.
      sharding: of what is "whole" on each device, and of what has an axis of "places", of "points", or of "both".
      blocks: those of the sweep.
    """

    step: Step
    data: Any
    shape: tuple[int, int]
    local: tuple[int, int]
    loop: bool
    sharding: Mapping[str, NamedSharding]
    blocks: tuple[Block, ...] = ()

    @classmethod
    def create(
        cls,
        step: Step,
        grid: Grid,
        data: Any,
        *,
        sizes: Mapping[str, Sequence[int]],
        together: tuple[int, int],
        loop: bool,
        devices: tuple[jax.Device, ...],
    ) -> Program:
        """Puts the data on the devices; nothing is compiled yet.

        Args:
          step: as `Program.step`.
          grid: the points.
          data: as `Program.data`, on the host.
          sizes: domain -> of each place, the number of train examples.
          together: how many places and points one device trains at once, at most.
          loop: as `Program.loop`.
          devices: over which a block is spread.
        """
        total = len(next(iter(sizes.values()))), len(next(iter(grid.values())))
        filled = [-(-n // len(devices)) * len(devices) / n for n in total]
        axis = int(filled[1] < filled[0])
        local = [min(most, n) for most, n in zip(together, total, strict=True)]
        local[axis] = min(local[axis], -(-total[axis] // len(devices)))
        shape = list(local)
        shape[axis] *= len(devices)
        mesh = jax.make_mesh(
            (len(devices),), ("grid",), axis_types=(AxisType.Auto,), devices=devices
        )
        cut: dict[str, tuple[str | None, ...]] = {
            "whole": (),
            "places": (),
            "points": (),
            "both": (None, "grid"),
        }
        cut |= {"points": ("grid",)} if axis else {"places": ("grid",), "both": ("grid",)}
        sharding = {name: NamedSharding(mesh, PartitionSpec(*axes)) for name, axes in cut.items()}
        made = cls(
            step,
            jax.device_put(data, sharding["whole"]),
            (shape[0], shape[1]),
            (local[0], local[1]),
            loop,
            sharding,
        )
        every = [
            np.split(np.arange(n), range(size, n, size))
            for n, size in zip(total, shape, strict=True)
        ]
        blocks = [
            made._block(places, points, sizes, grid) for points in every[1] for places in every[0]
        ]
        return dataclasses.replace(made, blocks=tuple(blocks))

    def _block(self, places: np.ndarray, points: np.ndarray, sizes: Any, grid: Grid) -> Block:
        counts = {d: np.asarray(n, np.float32)[self._filled(places, 0)] for d, n in sizes.items()}
        values = {
            name: column.astype(np.float32)[self._filled(points, 1)]
            for name, column in grid.items()
        }
        put = jax.device_put((counts, values), (self.sharding["places"], self.sharding["points"]))
        return Block(places, points, *put)

    def _filled(self, chosen: np.ndarray, axis: int) -> np.ndarray:
        return np.resize(chosen, self.shape[axis])

    def start(
        self, block: Block, variables: Sequence[Any], keys: Sequence[jax.Array]
    ) -> TrainState:
        """The state before the first step, leaves [R, H, ...].

        Args:
          block: what trains.
          variables: of each place of the block, on the host.
          keys: of each place of the block, the stage's random key.
        """
        rows = self._filled(np.arange(len(block.places)), 0)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[variables[r] for r in rows])
        given = jax.device_put((stacked, jnp.stack(keys)[rows]), self.sharding["places"])
        return self._compiled.start(*given, block.sizes, block.values)

    def order(self, rows: Mapping[str, np.ndarray]) -> Any:
        """On the devices, domain -> i32[r, n, B], the rows of n steps for each place of a block; cut evenly into parts."""
        placed = {}
        for domain, of_places in rows.items():
            # As `Parallel.shard` pads: the first row again. Its complement says that it does not count.
            missing = -of_places.shape[-1] % self.step.accumulate
            filler = np.repeat(~of_places[..., :1], missing, axis=-1)
            of_places = np.concatenate([of_places, filler], axis=-1)
            placed[domain] = of_places[self._filled(np.arange(len(of_places)), 0)].astype(np.int32)
        return jax.device_put(placed, self.sharding["places"])

    def advance(self, state: TrainState, order: Any, span: tuple[int, int]) -> TrainState:
        """Takes the steps `span[0]` to `span[1]` of `order`; donates the state."""
        for part in [span] if self.loop else [(t, t + 1) for t in range(*span)]:
            state = self._compiled.advance(state, order, self.data, part)
        return state

    def logits(
        self, state: TrainState, rows: Sequence[np.ndarray], batch_size: int
    ) -> list[np.ndarray]:
        """For each place of a block f32[H, n, K], of these rows of the target, computed in batches."""
        longest = -(-max(map(len, rows)) // batch_size) * batch_size
        filled = np.stack(
            [np.resize(rows[r], longest) for r in self._filled(np.arange(len(rows)), 0)]
        )
        found = []
        for begin in range(0, longest, batch_size):
            chosen = filled[:, begin : begin + batch_size].astype(np.int32)
            chosen = jax.device_put(chosen, self.sharding["places"])
            found.append(np.asarray(self._compiled.logits(state, chosen, self.data["target"])))
        out = np.concatenate(found, axis=2)
        return [out[r, :, : len(of_place)] for r, of_place in enumerate(rows)]

    @functools.cached_property
    def _compiled(self) -> Any:
        def start(variables: Any, key: Any, sizes: Any, values: Any) -> TrainState:
            return self.step.init(key, variables, {**values, "sizes": sizes})

        def advance(state: Any, order: Any, data: Any, span: Any) -> TrainState:
            def body(t: Any, state: Any) -> Any:
                return self.step(state, {d: _batch(data[d], rows[t]) for d, rows in order.items()})[
                    0
                ]

            return (
                jax.lax.fori_loop(span[0], span[1], body, state)
                if self.loop
                else body(span[0], state)
            )

        said = make_eval_step(self.step.model, "target", self.step.normalization)

        def logits(state: Any, rows: Any, data: Any) -> jax.Array:
            return said(self.step.variables(state), _batch(data, rows))

        # The order and what it gathers are mapped over places alone: the points of a place share them.
        return types.SimpleNamespace(
            start=self._mapped(start, "places", "places", "places", "points"),
            advance=self._mapped(advance, "both", "places", "whole", "whole", donate=(0,)),
            logits=self._mapped(logits, "both", "places", "whole"),
        )

    def _mapped(self, function: Callable, *kinds: str, donate: tuple[int, ...] = ()) -> Callable:
        """`function` of one place and point over a block: mapped on each device, spread over them, and compiled."""
        of_points = _over(function, self.local[1], [kind in ("points", "both") for kind in kinds])
        of_both = _over(of_points, self.local[0], [kind in ("places", "both") for kind in kinds])
        spread = jax.shard_map(
            of_both,
            mesh=self.sharding["whole"].mesh,
            in_specs=tuple(self.sharding[kind].spec for kind in kinds),
            out_specs=self.sharding["both"].spec,
            check_vma=False,  # devices have nothing to say to each other
        )
        return jax.jit(
            spread, donate_argnums=donate, compiler_options=compiler_options() if donate else None
        )


def _over(function: Callable, size: int, mapped: Sequence[bool]) -> Callable:
    """`function` over the first axis of the mapped arguments; of an axis of one nothing is mapped, since a mapped convolution is another."""
    if size > 1:
        return jax.vmap(function, tuple(0 if m else None for m in mapped))

    @functools.wraps(function)
    def alone(*arguments: Any) -> Any:
        first = functools.partial(jax.tree.map, lambda x: jax.lax.squeeze(x, (0,)))
        found = function(*[first(a) if m else a for a, m in zip(arguments, mapped, strict=True)])
        return jax.tree.map(lambda x: jax.lax.expand_dims(x, (0,)), found)

    return alone


def _batch(data: Mapping[str, jax.Array], rows: jax.Array) -> dict[str, jax.Array]:
    """The batch that `data.loading` would give of these rows; below 0 they are complements, and do not count."""
    index = jnp.where(rows < 0, ~rows, rows)
    place = jnp.arange(len(rows), dtype=jnp.int32)
    mask = (rows >= 0).astype(jnp.float32)
    return {
        **{name: values[index] for name, values in data.items()},
        "mask": mask,
        "index": index,
        "position": place,
    }
