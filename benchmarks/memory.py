"""What XLA says that a training step needs, against what the process takes.

    python benchmarks/memory.py --models=resnet18,resnet50 --batches=4,8

Each pair runs in a process of its own: after a first step, which also loads code, freed memory
goes back to the system, and the growth of the peak resident size over three steps is added to
the arguments, which are there before. On a GPU the allocator's own peak is taken. --write keeps
the result in benchmarks/results/memory_BACKEND.json.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path

import jax
import timing
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

import step as steps  # also defines --write

from medtl.training import memory, parallel

MODELS = flags.DEFINE_list("models", "resnet18,resnet50", "backbones")
BATCHES = flags.DEFINE_list("batches", "4,8", "images in a step")
PIXELS = flags.DEFINE_integer("pixels", 224, "pixels of a side", lower_bound=8)
ONE = flags.DEFINE_bool("one", False, "measure the one model and batch in this process")


def resident(name: str) -> int:
    """Return a number of bytes from /proc/self/status, "VmRSS" or its peak "VmHWM"."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def measure(name: str, batch: int, pixels: int) -> dict[str, float]:
    """Return the bytes that XLA says, and those that three steps take, arguments included."""
    model = steps.build(name, classes=1000, dtype="float32", domains=("target",))
    data = steps.images(batch, pixels, classes=1000, domains=("target",))
    variables = steps.draw(model, pixels)
    optimizer, step = steps.train_step(model)
    state = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    del variables
    options = parallel.compiler_options()
    jitted = jax.jit(step, donate_argnums=0, compiler_options=options)
    compiled = jitted.lower(state, data).compile()
    said = memory.needed(compiled)
    assert said is not None
    state = jax.block_until_ready(compiled(state, data))  # also loads code from the disk
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    for _ in range(3):
        state = jax.block_until_ready(compiled(state, data))
    stats = jax.local_devices()[0].memory_stats()
    grown = resident("VmHWM") - before + compiled.memory_analysis().argument_size_in_bytes
    used = stats["peak_bytes_in_use"] if stats else grown
    return {"model": name, "batch": batch, "pixels": pixels, "said": said, "used": used}


def main(_: list[str]) -> None:
    if ONE.value:
        print(json.dumps(measure(MODELS.value[0], int(BATCHES.value[0]), PIXELS.value)))
        return
    rows = []
    for name in MODELS.value:
        for batch in BATCHES.value:
            arguments = [f"--models={name}", f"--batches={batch}", f"--pixels={PIXELS.value}"]
            done = subprocess.run(
                [sys.executable, __file__, "--one", *arguments],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            row = json.loads(done.stdout.splitlines()[-1])
            row["ratio"] = row["said"] / row["used"]
            rows.append(row)
            sizes = f"said {row['said'] / 2**20:6.0f} MiB  used {row['used'] / 2**20:6.0f} MiB"
            print(f"{name:10} batch {batch:>3}  {sizes}  {row['ratio']:.2f}", flush=True)
    if steps.WRITE.value:
        timing.write(f"memory_{jax.default_backend()}", {"rows": rows})


if __name__ == "__main__":
    app.run(main)
