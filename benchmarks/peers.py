"""medtl's step beside plain Flax Linen, PyTorch eager (channels_last) and torch.compile.

    python benchmarks/peers.py --model=resnet50 --batch=16 --torch_python=PATH

All do the same work: a ResNet v1.5 (`backbones.py` has others), cross-entropy over 1,000 classes,
SGD with momentum, the same shapes. Contenders take turns in rounds, each in a separate process, so
that the machine's noise hits all; a ratio is taken within a round. PyTorch runs under the
interpreter of --torch_python and is left out, with a notice, if that has none. Compilation and
warm-up are not timed. medtl runs as its trainer does, with memory kept from step to step
(medtl/training/memory.py). The peers run as they come, and once more with the same setting, which a
user could give them ("kept"). --write keeps the result in
benchmarks/results/peers_MODEL_DTYPE_BACKEND.json.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import step
import timing
from absl import app, flags
from flax import linen as nn

TORCH_PYTHON = flags.DEFINE_string("torch_python", sys.executable, "interpreter with PyTorch")
THREADS = flags.DEFINE_integer("threads", 0, "PyTorch's threads; 0: its default")
MODES = flags.DEFINE_multi_enum(
    "mode", ["train", "infer", "joint"], ["train", "infer", "joint"], "what to compare"
)
COMPILE = flags.DEFINE_bool(
    "torch_compile", False, "also torch.compile; on a CPU it needs a C++ compiler"
)
ALL_KEPT = flags.DEFINE_bool(
    "all_kept", True, "also the peers with their memory kept, as medtl keeps its own"
)
SERVE = flags.DEFINE_string("serve", "", "internal: be one contender, e.g. medtl/train")
flags.adopt_module_key_flags(step)
PAUSE = flags.DEFINE_float(
    "pause", 0.5, "seconds between contenders, in which their threads stop spinning"
)


DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}


class PlainBlock(nn.Module):
    """A residual block from Flax's own layers, as its ImageNet example writes it."""

    features: int
    stride: int
    bottleneck: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        outputs = 4 * self.features if self.bottleneck else self.features
        plan = [(self.features, 1, 1), (self.features, 3, self.stride), (outputs, 1, 1)]
        if not self.bottleneck:
            plan = [(outputs, 3, self.stride), (outputs, 3, 1)]
        y = x
        for i, (features, size, stride) in enumerate(plan):
            y = self.norm()(
                self.conv(features, (size, size), (stride, stride), padding=size // 2)(y)
            )
            y = nn.relu(y) if i + 1 < len(plan) else y
        if x.shape != y.shape:
            x = self.norm()(self.conv(outputs, (1, 1), (self.stride, self.stride))(x))
        return nn.relu(x + y)


class PlainResNet(nn.Module):
    """A ResNet v1.5 from `nn.Conv`, `nn.BatchNorm` and `nn.max_pool`."""

    depths: tuple[int, ...]
    bottleneck: bool
    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        x = nn.relu(norm()(conv(64, (7, 7), (2, 2), padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=[(1, 1), (1, 1)])
        for layer, depth in enumerate(self.depths):
            for i in range(depth):
                stride = 2 if layer > 0 and i == 0 else 1
                x = PlainBlock(64 * 2**layer, stride, self.bottleneck, conv, norm)(x)
        return nn.Dense(self.classes)(jnp.mean(x.astype(jnp.float32), axis=(1, 2)))


def plain(
    name: str, *, batch: int, size: int, dtype: str, train: bool, classes: int = 1000
) -> timing.Contender:
    """Return the plain Flax step, compiled and warm."""
    net = PlainResNet(DEPTHS[name], name not in ("resnet18", "resnet34"), classes, jnp.dtype(dtype))
    data = step.images(batch, size, classes=classes, domains=("target",))["target"]
    variables = jax.jit(functools.partial(net.init, train=False))(
        jax.random.key(0), data["image"][:1]
    )
    optimizer = optax.sgd(1e-3, momentum=0.9)

    def update(state: Any, data: Any) -> Any:
        params, stats, opt_state = state

        def loss(params: Any) -> Any:
            logits, changed = net.apply(
                {"params": params, "batch_stats": stats},
                data["image"],
                train=True,
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, data["label"]
            ).mean(), changed["batch_stats"]

        gradient, stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    if not train:
        predict = jax.jit(lambda variables, image: net.apply(variables, image, train=False))
        run = timing.contender(lambda: predict(variables, data["image"]))
    else:
        compiled = jax.jit(update, donate_argnums=0)
        holder = [
            (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
        ]

        def advance() -> Any:
            holder[0] = compiled(holder[0], data)
            return holder[0]

        run = timing.contender(advance)
    run(2)
    return run


def serve(what: str) -> None:
    """Be one contender: `medtl/train`, `plain/infer`, `joint/train`, ..."""
    who, mode = what.split("/")
    options: dict[str, Any] = {
        "batch": step.BATCH.value,
        "size": step.SIZE.value,
        "dtype": step.DTYPE.value,
    }
    name = step.MODEL.value
    if who == "plain":
        run = plain(name, **options, train=mode == "train")
    elif who == "joint":
        half = options | {"batch": options["batch"] // 2}
        run = step.trainer(name, **half, domains=("source", "target"))[0]
    else:
        run = (step.trainer if mode == "train" else step.predictor)(name, **options)[0]
    run(1)
    timing.serve(lambda line: run(int(line)))


def command(who: str, mode: str) -> list[str]:
    """Return the command that starts a contender."""
    shapes = [
        f"--model={step.MODEL.value}",
        f"--batch={step.BATCH.value}",
        f"--size={step.SIZE.value}",
    ]
    shapes += [f"--dtype={step.DTYPE.value}"]
    if who == "torch":
        script = str(Path(__file__).with_name("peers_torch.py"))
        return [TORCH_PYTHON.value, script, *shapes, f"--mode={mode}", f"--threads={THREADS.value}"]
    return [sys.executable, __file__, *shapes, f"--serve={who}/{mode}"]


def plan(mode: str) -> dict[str, tuple[list[str], bool]]:
    """Return contender -> its command, and whether its memory is kept; ours comes first."""
    if mode == "joint":
        return {
            "medtl joint n + n": (command("joint", "train"), True),
            "medtl single 2n": (command("medtl", "train"), True),
        }
    commands = {
        "medtl": (command("medtl", mode), True),
        "plain Flax": (command("plain", mode), False),
        "PyTorch eager": (command("torch", mode), False),
    }
    if step.MODEL.value not in DEPTHS:
        del commands["plain Flax"]
    if COMPILE.value:
        commands["torch.compile"] = ([*command("torch", mode), "--compile"], False)
    if ALL_KEPT.value:
        for label, (arguments, keep) in list(commands.items()):
            commands |= {} if keep else {f"{label}, kept": (arguments, True)}
    return commands


def compare(mode: str) -> dict[str, Any]:
    """Time all contenders of one mode; print and return their rates and ratios."""
    contenders: dict[str, timing.Process] = {}
    try:
        for label, (arguments, keep) in plan(mode).items():
            try:
                contenders[label] = timing.Process(
                    arguments, environment=timing.KEPT if keep else {}
                )
            except (OSError, RuntimeError) as error:
                print(f"{label}: left out: {error}", file=sys.stderr)
        seconds = timing.interleave(
            contenders, rounds=step.ROUNDS.value, steps=step.STEPS.value, pause=PAUSE.value
        )
    finally:
        for process in contenders.values():
            process.close()
    ours = next(iter(contenders))
    ratios = timing.ratios(seconds, ours)
    result: dict[str, Any] = {}
    for label, values in seconds.items():
        rates = timing.summary([step.BATCH.value / s for s in values])
        result[label] = {"runs": contenders[label].words, "images_per_second": rates}
        line = (
            f"{mode:5s} {label:20s} {rates['median']:8.2f} images/s "
            f"[{rates['low']:.2f}, {rates['high']:.2f}]"
        )
        if label in ratios:
            ratio = ratios[label]
            result[label][f"{ours} / this"] = ratio
            line += (
                f"   {ours} / this = {ratio['median']:.3f} "
                f"[{ratio['low']:.3f}, {ratio['high']:.3f}]"
            )
        print(line, flush=True)
    return result


def main(_: Sequence[str]) -> None:
    if SERVE.value:
        serve(SERVE.value)
        return
    result: dict[str, Any] = {
        "model": step.MODEL.value,
        "batch": step.BATCH.value,
        "size": step.SIZE.value,
        "dtype": step.DTYPE.value,
        "rounds": step.ROUNDS.value,
        "steps_in_a_round": step.STEPS.value,
        "torch_threads": THREADS.value,
    }
    if "joint" in MODES.value and step.BATCH.value % 2:
        raise app.UsageError(
            f"--batch={step.BATCH.value}: a joint step has two equal halves; use an even number"
        )
    for mode in MODES.value:
        result[mode] = compare(mode)
        if step.WRITE.value:  # after each mode, so that a later failure loses nothing
            timing.write(
                f"peers_{step.MODEL.value}_{step.DTYPE.value}_{jax.default_backend()}", result
            )


if __name__ == "__main__":
    app.run(main)
