"""Devices: the same pure step under pmap, under jit over a mesh, or on one device.

Under pmap the global batch is split into equal shards, and the step sums over `axis_name` where the
mathematics says "over the batch"; under jit over a mesh XLA inserts the same sums. State is
replicated. A batch that the number of devices does not divide is padded with masked examples, which
no sum counts. No other file knows devices.
"""

from __future__ import annotations

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

from medtl.errors import UserError

MODES = ("pmap", "mesh", "none")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """The way steps are spread over devices.

    Attributes:
      mode: "pmap", "mesh", or "none": the first device alone.
      devices: the devices in use.
    """

    mode: str
    devices: tuple[jax.Device, ...]

    @classmethod
    def create(cls, mode: str, devices: tuple[jax.Device, ...] | None = None) -> Parallel:
        """Take all local devices, or those given."""
        if mode not in MODES:
            raise UserError(f"config.parallel is {mode!r}; it can be {', '.join(MODES)}")
        devices = tuple(jax.local_devices()) if devices is None else devices
        return cls(mode, devices[:1] if mode == "none" else devices)

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
        if self.mode == "pmap":
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
        if self.mode == "mesh":
            stacked = NamedSharding(self._mesh, PartitionSpec(None, "batch"))
            by_kind = {"replicated": self.replicated, "sharded": self.sharded, "stacked": stacked}
            placed = {
                "in_shardings": tuple(by_kind[kind] for kind in kinds),
                "out_shardings": (self.replicated, self.replicated),
            }
        return jax.jit(function, donate_argnums=(0,), compiler_options=options, **placed)

    def stack(self, batches: Sequence[Any]) -> Any:
        """Stack batches from `shard`, one for each step, along a new axis for the steps."""
        axis = 1 if self.mode == "pmap" else 0
        return jax.tree.map(lambda *x: np.stack(x, axis=axis), *batches)

    def evaluate(self, step: Callable) -> Callable[[Any, Any], np.ndarray]:
        """Compile `(variables, batch) -> [B, ...]`.

        The result takes an unpadded host batch and returns a host array of its rows.
        """
        if self.mode == "pmap":
            compiled = jax.pmap(
                step, self.axis_name, in_axes=(None, 0), out_axes=0, devices=self.devices
            )
        elif self.mode == "none":
            compiled = jax.jit(step)
        else:
            compiled = jax.jit(
                step, in_shardings=(self.replicated, self.sharded), out_shardings=self.sharded
            )

        def run(variables: Any, batch: Any) -> np.ndarray:
            rows = len(next(iter(jax.tree.leaves(batch))))
            out = np.asarray(compiled(variables, self.shard(batch)))
            return out.reshape(-1, *out.shape[2:])[:rows] if self.mode == "pmap" else out[:rows]

        return run

    def replicate(self, tree: Any) -> Any:
        """Copy a tree of arrays to every device, so that donating it leaves the argument alive."""
        return jax.device_put(jax.tree.map(lambda x: np.array(x, copy=True), tree), self.replicated)

    def put(self, batch: Any) -> Any:
        """Copy a batch from `shard` to the devices; the copy runs while they work."""
        return jax.device_put(batch, self.sharded)

    def shard(self, batch: Any, *, multiple: int = 1) -> Any:
        """Pad a host batch so that each device gets the same multiple of rows, and split it.

        Args:
          batch: nested dicts of arrays [B, ...].
          multiple: of the rows on each device.
        """
        batch = _pad(batch, len(self.devices) * multiple)
        if self.mode == "pmap":
            n = len(self.devices)
            return jax.tree.map(lambda x: x.reshape(n, len(x) // n, *x.shape[1:]), batch)
        return batch

    def has_room(self, nbytes: int) -> bool:
        """Return whether `nbytes` take at most a quarter of a device; False on CPUs."""
        stats = self.devices[0].memory_stats() or {}
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
