"""Images per second of several backbones, training and inference, beside timm's in PyTorch.

    python benchmarks/backbones.py --batch=8 --rounds=5 --steps=1 --torch_python=PATH --threads=2

Each backbone is compared as in `peers.py`: the same work, separate processes that take turns, a
ratio within each round. The interpreter of --torch_python needs PyTorch and timm. --write keeps
the result in benchmarks/results/backbones_DTYPE_BACKEND.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import peers
import step
import timing
from absl import app, flags

MODELS = flags.DEFINE_list("models", "vit_base_patch16,convnext_tiny,densenet121", "backbones")
flags.adopt_module_key_flags(peers)
flags.FLAGS.set_default("mode", ["train", "infer"])


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each backbone and mode: rates, and ours / PyTorch's."""
    lines = [f"{'':18}{'':7}{'medtl':>9}{'PyTorch':>9}  medtl / PyTorch"]
    for name, modes in results.items():
        for mode, by_label in modes.items():
            ours = by_label["medtl"]["images_per_second"]["median"]
            for label, theirs in list(by_label.items())[1:]:
                rate, ratio = theirs["images_per_second"]["median"], theirs["medtl / this"]
                lines.append(
                    f"{name:18}{mode:7}{ours:9.2f}{rate:9.2f}  {ratio['median']:.2f} "
                    f"[{ratio['low']:.2f}, {ratio['high']:.2f}]  {label}"
                )
    return lines


def main(_: Sequence[str]) -> None:
    results: dict[str, dict[str, Any]] = {}
    for name in MODELS.value:
        flags.FLAGS.model = name  # what `peers` and the processes that it starts take
        print(name, flush=True)
        results[name] = {mode: peers.compare(mode) for mode in peers.MODES.value}
        if step.WRITE.value:  # after each, so that a later failure loses nothing
            fields = {
                flag: flags.FLAGS[flag].value for flag in ("batch", "size", "rounds", "steps")
            }
            result = {**fields, "torch_threads": peers.THREADS.value, "backbones": results}
            timing.write(f"backbones_{step.DTYPE.value}_{jax.default_backend()}", result)
    print(*table(results), sep="\n")


if __name__ == "__main__":
    app.run(main)
