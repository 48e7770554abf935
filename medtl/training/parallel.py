"""The only file that knows devices: the same pure step under pmap, under jit over a mesh, or on one device.

Under pmap the global batch is cut into equal shards and the step sums over `axis_name` where the mathematics says "over the
batch"; under jit over a mesh XLA puts in the same sums. State is replicated. A batch that the number of devices does not
divide is padded with masked examples, which no sum counts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
import tempfile
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
    """How steps are spread over devices.

    Attributes:
      mode: "pmap", "mesh", or "none": the first device alone.
      devices: the devices in use.
    """

    mode: str
    devices: tuple[jax.Device, ...]

    @classmethod
    def create(cls, mode: str, devices: tuple[jax.Device, ...] | None = None) -> Parallel:
        """All local devices, or those given."""
        if mode not in MODES:
            raise UserError(f"config.parallel is {mode!r}; it can be {', '.join(MODES)}")
        devices = tuple(jax.local_devices()) if devices is None else devices
        return cls(mode, devices[:1] if mode == "none" else devices)

    @property
    def axis_name(self) -> str | None:
        """What the step names in psum; None where the step sees the whole batch."""
        return "batch" if self.mode == "pmap" else None

    @property
    def _shardings(self) -> tuple[NamedSharding, NamedSharding]:
        """Of what is whole on every device, and of what is cut along its first axis."""
        mesh = jax.make_mesh(
            (len(self.devices),), ("batch",), axis_types=(AxisType.Auto,), devices=self.devices
        )
        return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))

    def train(self, step: Callable) -> Callable:
        """`(state, batch) -> (state, metrics)`, compiled, the state donated."""
        return self._donating(step, ("whole", "cut"))

    def loop(self, loop: Callable) -> Callable:
        """`(state, data, rows, n) -> (state, metrics)`, compiled, the state donated; `rows` as `stack` gives them."""
        return self._donating(loop, ("whole", "whole", "stacked", "whole"))

    def _donating(self, function: Callable, kinds: Sequence[str]) -> Callable:
        """`function`, compiled: its first argument is donated, what it gives is whole on every device.

        Args:
          function: gives a pair.
          kinds: of each argument: "whole" on every device, "cut" for the devices, or "stacked", several of these.
        """
        options = compiler_options()
        if self.mode == "pmap":
            axes = tuple(None if kind == "whole" else 0 for kind in kinds)
            mapped = jax.pmap(
                function,
                self.axis_name,
                in_axes=axes,
                out_axes=(None, None),
                donate_argnums=(0,),
                devices=self.devices,
            )
            return _Mapped(mapped, options)
        placed: dict[str, Any] = {}
        if self.mode == "mesh":
            whole, cut = self._shardings
            of = {
                "whole": whole,
                "cut": cut,
                "stacked": NamedSharding(cut.mesh, PartitionSpec(None, "batch")),
            }
            placed = {
                "in_shardings": tuple(of[kind] for kind in kinds),
                "out_shardings": (whole, whole),
            }
        return jax.jit(function, donate_argnums=(0,), compiler_options=options, **placed)

    def stack(self, batches: Sequence[Any]) -> Any:
        """Batches that `shard` cut, one for each step, as arrays with a further axis for the steps."""
        axis = 1 if self.mode == "pmap" else 0
        return jax.tree.map(lambda *x: np.stack(x, axis=axis), *batches)

    def evaluate(self, step: Callable) -> Callable[[Any, Any], np.ndarray]:
        """`(variables, batch) -> [B, ...]`, compiled; takes an unpadded host batch, returns a host array of its rows."""
        if self.mode == "pmap":
            compiled = jax.pmap(
                step, self.axis_name, in_axes=(None, 0), out_axes=0, devices=self.devices
            )
        elif self.mode == "none":
            compiled = jax.jit(step)
        else:
            whole, sharded = self._shardings
            compiled = jax.jit(step, in_shardings=(whole, sharded), out_shardings=sharded)

        def run(variables, batch):
            rows = len(next(iter(jax.tree.leaves(batch))))
            out = np.asarray(compiled(variables, self.shard(batch)))
            return out.reshape(-1, *out.shape[2:])[:rows] if self.mode == "pmap" else out[:rows]

        return run

    def replicate(self, tree: Any) -> Any:
        """A tree of arrays on every device, in buffers of its own, so that donating it leaves the argument alive."""
        sharding = (
            jax.sharding.SingleDeviceSharding(self.devices[0])
            if self.mode == "none"
            else self._shardings[0]
        )
        return jax.device_put(jax.tree.map(lambda x: np.array(x, copy=True), tree), sharding)

    def put(self, batch: Any) -> Any:
        """A batch that `shard` cut, on the devices; the copy runs while they work."""
        sharding = (
            jax.sharding.SingleDeviceSharding(self.devices[0])
            if self.mode == "none"
            else self._shardings[1]
        )
        return jax.device_put(batch, sharding)

    def shard(self, batch: Any, *, multiple: int = 1) -> Any:
        """A host batch (nested dicts of [B, ...]), padded so that each device gets the same multiple, and cut for the devices."""
        batch = _pad(batch, len(self.devices) * multiple)
        if self.mode == "pmap":
            n = len(self.devices)
            return jax.tree.map(lambda x: x.reshape(n, len(x) // n, *x.shape[1:]), batch)
        return batch

    def has_room(self, nbytes: int) -> bool:
        """Whether so many bytes on each device leave most of its memory free; False where the device does not tell, as CPUs."""
        stats = self.devices[0].memory_stats() or {}
        return nbytes <= stats.get("bytes_limit", 0) // 4

    def check_batch(self, size: int, key: str) -> None:
        """Refuses a batch that would leave a device without an example."""
        if size < len(self.devices):
            raise UserError(
                f"{key} is {size}, less than the {len(self.devices)} devices; use at least {len(self.devices)}"
            )


class _Mapped:
    """What `jax.pmap` gives, compiled with options, which `jax.pmap` itself does not take."""

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
    """What XLA is told beyond its defaults for a training step; None where it has nothing to be told.

    On CPUs convolutions go to Eigen instead of YNNPACK, which has slower code for their gradients (docs/performance.md).
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


def _pad(batch: Any, multiple: int) -> Any:
    """Rows up to a multiple: the first row again, with mask 0, so that no loss sees an input that could not occur."""
    padded = {}
    for name, value in batch.items():
        if isinstance(value, Mapping):
            padded[name] = _pad(value, multiple)
            continue
        missing = -len(value) % multiple
        filler = np.zeros_like(value[:1]) if name == "mask" else value[:1]
        padded[name] = (
            np.concatenate([value, np.repeat(filler, missing, axis=0)]) if missing else value
        )
    return padded


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs in a folder, where the next run finds them; $JAX_COMPILATION_CACHE_DIR names another.

    Each kind of CPU has a folder of its own, since a home directory may be shared by machines, and programs compiled for one
    do not run on every other.
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
    except OSError as error:
        print(f"compiled programs are not kept: {folder} cannot be written ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder / kind))
    # The many small programs that draw a model's initial variables are what a start waits for.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
