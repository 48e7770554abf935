"""Devices: the same pure step under pmap, under jit over a mesh, or on one device.

Under pmap the global batch is split into equal shards, and the step sums over `axis_name` where the
mathematics says "over the batch"; under jit over a mesh XLA inserts the same sums. State is
replicated; under fsdp, which is jit over the same mesh, each device holds a part of it. A batch
that the number of devices does not divide is padded with masked examples, which no sum counts.

Where several processes train, the devices are those of all of them, in the order of the processes,
and each process brings its own rows of a batch. No other file knows devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medtl.data.order import Part
from medtl.errors import UserError

MODES = ("pmap", "mesh", "fsdp", "none")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The way steps are spread over devices.

    Attributes:
      mode: "pmap", "mesh", "fsdp", or "none": the first device alone.
      devices: the devices in use; those of a process are neighbours.
    """

    mode: str
    devices: tuple[jax.Device, ...]

    @classmethod
    def create(cls, mode: str, devices: tuple[jax.Device, ...] | None = None) -> Parallel:
        """Take the devices of all processes, or those given.

        Raises:
          UserError: there is no such mode, or the processes cannot use it.
        """
        if mode not in MODES:
            raise UserError(f"config.parallel is {mode!r}; it can be {', '.join(MODES)}")
        devices = tuple(jax.devices()) if devices is None else devices
        parallel = cls(mode, tuple(sorted(devices, key=lambda d: (d.process_index, d.id))))
        if not parallel.spans_processes:
            return cls(mode, devices[:1] if mode == "none" else devices)
        if mode == "none":
            raise UserError(
                f"config.parallel is 'none', which is one device, but {jax.process_count()} "
                "processes train; use 'pmap', or start one process"
            )
        numbers = [d.process_index for d in parallel.devices]
        each = {p: numbers.count(p) for p in numbers}
        if len(set(each.values())) > 1 or len(each) < jax.process_count():
            raise UserError(f"the processes have {list(each.values())} devices; give each as many")
        return parallel

    @property
    def spans_processes(self) -> bool:
        """Whether some of the devices belong to other processes."""
        return len({d.process_index for d in self.devices}) > 1

    @property
    def _is_mapped(self) -> bool:
        """Whether `jax.pmap` runs the step; over processes it is what `jax.pmap` stands for."""
        return self.mode == "pmap" and not self.spans_processes

    @property
    def axis_name(self) -> str | None:
        """The axis of the step's psum; None where the step sees the whole batch."""
        return "batch" if self.mode == "pmap" else None

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """The sharding of arrays that every device holds in full."""
        if self.mode == "none":
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        return NamedSharding(self._mesh, PartitionSpec())

    @property
    def sharded(self) -> jax.sharding.Sharding:
        """The sharding of arrays that are split along their first axis."""
        if self.mode == "none":
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        return NamedSharding(self._mesh, PartitionSpec("batch"))

    @property
    def _mesh(self) -> jax.sharding.Mesh:
        if self.spans_processes:  # make_mesh may put devices in another order
            return jax.sharding.Mesh(
                np.array(self.devices), ("batch",), axis_types=(AxisType.Auto,)
            )
        return jax.make_mesh(
            (len(self.devices),), ("batch",), axis_types=(AxisType.Auto,), devices=self.devices
        )

    def train(self, step: Callable) -> Callable:
        """Compile `(state, batch) -> (state, metrics)`; the state is donated."""
        return self._donating(step, ("replicated", "sharded"))

    def loop(self, loop: Callable) -> Callable:
        """Compile `(state, data, rows, n) -> (state, metrics)`; `rows` are from `stack`."""
        return self._donating(loop, ("replicated", "replicated", "stacked", "replicated"))

    def _donating(self, function: Callable, kinds: Sequence[str]) -> Callable:
        """Compile a function that donates its first argument and returns a replicated pair.

        Args:
          function: returns a pair.
          kinds: for each argument "replicated", "sharded", or "stacked": several sharded ones.
        """
        options = compiler_options()
        if self._is_mapped:
            mapped = jax.pmap(
                function,
                self.axis_name,
                in_axes=tuple(None if kind == "replicated" else 0 for kind in kinds),
                out_axes=(None, None),
                donate_argnums=(0,),
                devices=self.devices,
            )
            return _Mapped(mapped, options)
        placed: dict[str, Any] = {}
        if self.mode != "none":
            inputs = [self._sharding(kind) for kind in kinds]
            outputs = [self.replicated, self.replicated]
            if self.mode == "fsdp":  # the state stays where `place` and the step put it
                inputs[0] = outputs[0] = None  # type: ignore[assignment,call-overload]
                function = self._kept_apart(function)
            if self.mode == "pmap":
                function = self._over_shards(function, kinds, (PartitionSpec(), PartitionSpec()))
            placed = {"in_shardings": tuple(inputs), "out_shardings": tuple(outputs)}
        return jax.jit(function, donate_argnums=(0,), compiler_options=options, **placed)

    def _sharding(self, kind: str) -> jax.sharding.Sharding:
        stacked = PartitionSpec(None, "batch")
        return {
            "replicated": self.replicated,
            "sharded": self.sharded,
            "stacked": NamedSharding(self._mesh, stacked),
        }[kind]

    def _over_shards(self, function: Callable, kinds: Sequence[str], out_specs: Any) -> Callable:
        """Return the function over the shards of all processes, as `jax.pmap` is over one's."""
        specs = {
            "replicated": PartitionSpec(),
            "sharded": PartitionSpec("batch"),
            "stacked": PartitionSpec(None, "batch"),
        }
        return jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=tuple(specs[kind] for kind in kinds),
            out_specs=out_specs,
            check_vma=False,
        )

    def _kept_apart(self, function: Callable) -> Callable:
        """Return the function with a new state in the same parts as the old one."""

        def apart(state: Any, *rest: Any) -> Any:
            new, metrics = function(state, *rest)
            constrain = jax.lax.with_sharding_constraint
            return jax.tree.map(lambda x: constrain(x, self._part_of(x.shape)), new), metrics

        return apart

    def _part_of(self, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        """Return the sharding of one array of the state under fsdp.

        The largest of the dimensions that the devices divide is split; without one the array is
        replicated, such as a bias of 10 classes on 8 devices.
        """
        n = len(self.devices)
        divisible = [d for d, size in enumerate(shape) if size and size % n == 0]
        if not divisible:
            return self.replicated
        largest = max(divisible, key=lambda d: shape[d])
        return NamedSharding(self._mesh, PartitionSpec(*[None] * largest, "batch"))

    def stack(self, batches: Sequence[Any]) -> Any:
        """Stack batches from `shard`, one for each step, along a new axis for the steps."""
        axis = 1 if self._is_mapped else 0
        stacked = jax.tree.map(lambda *x: np.stack(x, axis=axis), *batches)
        return self._joined(stacked, "stacked") if self.spans_processes else stacked

    def _joined(self, tree: Any, kind: str) -> Any:
        """Return arrays over all processes, of which this process gives its part."""
        sharding = self._sharding(kind)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
        )

    def evaluate(self, step: Callable) -> Callable[[Any, Any], np.ndarray]:
        """Compile `(variables, batch) -> [B, ...]`.

        The result takes a host batch, over several processes the part that `part` says, and returns
        a host array of its rows, those of all processes; rows of padding are left out, if the batch
        has a `mask`.
        """
        if self.spans_processes:
            return self._evaluate_together(step)
        if self._is_mapped:
            compiled = jax.pmap(
                step, self.axis_name, in_axes=(None, 0), out_axes=0, devices=self.devices
            )
        elif self.mode == "none":
            compiled = jax.jit(step)
        else:
            variables = None if self.mode == "fsdp" else self.replicated
            compiled = jax.jit(
                step, in_shardings=(variables, self.sharded), out_shardings=self.sharded
            )

        def run(variables: Any, batch: Any) -> np.ndarray:
            mask = batch.get("mask")
            rows = len(jax.tree.leaves(batch)[0]) if mask is None else int(mask.sum())
            out = np.asarray(compiled(variables, self.shard(batch)))
            return out.reshape(-1, *out.shape[2:])[:rows] if self._is_mapped else out[:rows]

        return run

    def _evaluate_together(self, step: Callable) -> Callable[[Any, Any], np.ndarray]:
        if self.mode == "pmap":
            step = self._over_shards(step, ("replicated", "sharded"), PartitionSpec("batch"))
        variables = None if self.mode == "fsdp" else self.replicated
        compiled = jax.jit(
            lambda variables, batch: (step(variables, batch), batch["mask"]),
            in_shardings=(variables, self.sharded),
            out_shardings=self.replicated,  # every process gets the rows of all
        )

        def run(variables: Any, batch: Any) -> np.ndarray:
            out, mask = jax.device_get(compiled(variables, self.put(batch)))
            return out[mask > 0]

        return run

    def replicate(self, tree: Any) -> Any:
        """Copy a tree of arrays to every device, so that donating it leaves the argument alive."""
        return self._placed(tree, lambda shape: self.replicated)

    def place(self, state: Any) -> Any:
        """Copy a training state or variables to the devices: under fsdp to each its part."""
        by_shape = self._part_of if self.mode == "fsdp" else lambda shape: self.replicated
        return self._placed(state, by_shape)

    def _placed(self, tree: Any, sharding_of: Callable[[tuple[int, ...]], Any]) -> Any:
        tree = jax.tree.map(lambda x: np.array(x, copy=True), tree)
        if not self.spans_processes:
            return jax.device_put(tree, jax.tree.map(lambda x: sharding_of(x.shape), tree))
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, sharding_of(x.shape), x.__getitem__),
            tree,
        )

    def on_host(self) -> Any:
        """Return a context in which arrays are made on the CPU, if a device may not hold them."""
        if self.mode == "fsdp":
            with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS leaves CPUs out
                return jax.default_device(jax.local_devices(backend="cpu")[0])
        return contextlib.nullcontext()

    def put(self, batch: Any) -> Any:
        """Copy a batch from `shard` to the devices; the copy runs while they work."""
        if self.spans_processes:
            return self._joined(batch, "sharded")
        return jax.device_put(batch, self.sharded)

    def part(self, size: int, *, multiple: int = 1) -> Part | None:
        """Return the rows of a batch that this process reads; None: all of them.

        Args:
          size: of the batch of all processes.
          multiple: as in `shard`.
        """
        if not self.spans_processes:
            return None
        n = len(self.devices) * multiple
        rows = -(-size // n) * n // jax.process_count()
        return Part(jax.process_index() * rows, (jax.process_index() + 1) * rows)

    def shard(self, batch: Any, *, multiple: int = 1) -> Any:
        """Pad a host batch so that each device gets the same multiple of rows, and split it.

        A process's part is padded where it is read.

        Args:
          batch: nested dicts of arrays [B, ...].
          multiple: of the rows on each device.
        """
        if self.spans_processes:
            return batch
        batch = _pad(batch, len(self.devices) * multiple)
        if self._is_mapped:
            n = len(self.devices)
            return jax.tree.map(lambda x: x.reshape(n, len(x) // n, *x.shape[1:]), batch)
        return batch

    def has_room(self, nbytes: int) -> bool:
        """Return whether `nbytes` take at most a quarter of a device; False on CPUs."""
        own = next(d for d in self.devices if d.process_index == jax.process_index())
        stats = own.memory_stats() or {}
        return nbytes <= stats.get("bytes_limit", 0) // 4

    def check_batch(self, size: int, key: str) -> None:
        """Refuse a batch that would leave a device without an example."""
        if size < len(self.devices):
            raise UserError(
                f"{key} is {size}, less than the {len(self.devices)} devices; "
                f"use at least {len(self.devices)}"
            )


class _Mapped:
    """A function from `jax.pmap`, compiled with options, which `jax.pmap` itself does not take."""

    def __init__(self, mapped: Any, options: dict[str, str] | None):
        self._mapped, self._options = mapped, options
        self._compiled: Any = None if options else mapped

    def __call__(self, *args: Any) -> Any:
        if self._compiled is None:
            self._compiled = self.lower(*args).compile(self._options)
        return self._compiled(*args)

    def lower(self, *args: Any) -> Any:
        return self._mapped.lower(*args)


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """Return XLA's options for a training step; None for its defaults.

    On CPUs convolutions go to Eigen: YNNPACK has slower code for their gradients
    (docs/performance.md).
    """
    options = {
        "xla_cpu_experimental_ynn_fusion_type": ",".join(
            f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("REDUCE", "DOT", "INDIVIDUAL_DOT")
        )
    }
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:  # an experimental option: another release may not know it
        return None
    return options


_PADDING = {"mask": 0, "weight": 0, "index": -1}  # as `data.loading.batch_of` pads


def _pad(batch: Any, multiple: int) -> Any:
    """Repeat the first row up to a multiple; losses then see only inputs that occur."""
    padded = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            padded[name] = _pad(value, multiple)
            continue
        missing = -len(value) % multiple
        filler = np.full_like(value[:1], _PADDING[name]) if name in _PADDING else value[:1]
        padded[name] = (
            np.concatenate([value, np.repeat(filler, missing, axis=0)]) if missing else value
        )
    return padded


def keep_compiled(folder: Path) -> None:
    """Keep compiled programs in a folder for the next run; $JAX_COMPILATION_CACHE_DIR overrides it.

    Each kind of CPU has a folder: machines may share a home directory, and a program compiled for
    one CPU does not run on every other.
    """
    settings: Any = jax.config  # older releases declare fewer of its fields
    if settings.jax_compilation_cache_dir:
        return
    try:
        cpu = next(
            line
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("flags", "Features"))
        )
    except (OSError, StopIteration):
        cpu = platform.processor()
    kind = hashlib.sha256(f"{platform.machine()} {cpu}".encode()).hexdigest()[:16]
    try:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / kind):
            pass
        for path in (folder / kind).iterdir():  # JAX keeps what a full disk left, and warns of it
            if not path.stat().st_size and path.stat().st_mtime < time.time() - 60:
                path.unlink()
    except OSError as error:
        print(f"Compiled programs are not kept: {folder} cannot be written ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / kind))
    # A start waits mostly for the many small programs that draw a model's initial variables.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
