"""Time of a joint step with each term, and with combined gradients, over that of the plain step.

    python benchmarks/joint_step.py [--size=224] [--batch=32] [--rounds=5] [--variants=...]

ResNet-18, batch + batch examples, random data. The variants take turns, one step each, so that
other load on the machine meets all of them; the table has the median of each, its ratio to the
plain step (whose log has no cosine), and the floating-point operations that XLA counts.
--rounds=0 counts the operations alone, and compiles nothing.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medtl import models
from medtl.data.augment import Augmentation
from medtl.examples import NORMALIZATIONS
from medtl.losses import cross_entropy, terms
from medtl.models.model import Head, Model, Outputs, init_variables
from medtl.training import balance, batch_norm, optimizers
from medtl.training.objective import DOMAINS, Context, Loss, Objective, Term
from medtl.training.step import Step

VARIANTS = {
    "plain": (None, "sum"),
    "cosine/head": (None, "sum"),
    "coral": (terms.coral, "sum"),
    "mmd": (terms.mmd, "sum"),
    "contrastive": (terms.contrastive, "sum"),
    "DANN": (terms.DANN(), "sum"),
    "gated": (None, "gated"),
    "pcgrad": (None, "pcgrad"),
    "uncertainty": (None, "sum"),
    "learned": (None, "sum"),
    "reweight": (None, "sum"),
    "domain BatchNorm": (None, "sum"),
}


class Plain(Step):
    """The step without the cosine."""

    def _shifts(self, trained, batch):
        return {}


def make_batch(size: int, n: int) -> dict:
    rng = np.random.default_rng(0)
    return {
        domain: {
            "image": rng.integers(0, 255, (n, size, size, 3), dtype=np.uint8),
            "label": rng.integers(0, 2, n).astype(np.int32),
            "mask": np.ones(n, np.float32),
            "weight": np.ones(n, np.float32),
            "position": np.arange(n, dtype=np.int32),
            "index": np.arange(n, dtype=np.int32),
        }
        for domain in DOMAINS
    }


def make(name: str, model: Model, variables: dict, batch: dict):
    """Return a lowered step and its first state."""
    term, gradients = VARIANTS[name]
    classes = dict.fromkeys(DOMAINS, ("a", "b"))
    params, used = dict(variables["params"]), ()
    if term is not None:
        used = (Term("term", term),)
    if isinstance(term, terms.DANN):
        n = len(batch["source"]["label"])
        outputs = {d: Outputs(jnp.zeros((n, 2)), jnp.zeros((n, 512))) for d in DOMAINS}
        context = Context({"outputs": outputs, "batch": batch, "progress": jnp.zeros(())})
        params["terms"] = {"term": term.init(jax.random.key(0), context)["params"]}
    if own := balance.initial(name, 1.0):
        params["terms"] = {balance.NAME: own}
    variables = {**variables, "params": params}
    if name == "domain BatchNorm":
        variables = batch_norm.with_source(variables, key="batch_norm")
        params = variables["params"]
    objective = Objective((Loss("main", cross_entropy),), 1.0, "mean", {}, used)
    trained = optimizers.trained_paths(
        params, freeze="none", groups={}, heads={"shared"},
        terms={balance.NAME, *(t.name for t in used)},
    )  # fmt: skip
    step = (Plain if name == "plain" else Step)(
        model, objective, optax.adam(1e-4), trained, Augmentation(),
        NORMALIZATIONS["torchvision"], steps=100, classes=classes, gradients=gradients,
        balance=name if name in balance.MODES else "fixed",
        batch_norm="domain" if name == "domain BatchNorm" else "batch",
    )  # fmt: skip
    n = len(batch["target"]["label"])
    held = {"held_out": (np.arange(n) % 5 == 0).astype(np.float32)}
    state = step.init(jax.random.key(1), variables, held if name in balance.HELD_OUT else None)
    return jax.jit(step).lower(state, batch), state


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag, default in (("--size", 224), ("--batch", 32), ("--rounds", 5)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="plain comes first")
    args = parser.parse_args()
    head = functools.partial(Head, 2)
    backbone = models.backbone("resnet18", last_layer="layer4")
    model = Model({"image": backbone}, {"shared": head}, dict.fromkeys(DOMAINS, "shared"))
    image = jax.ShapeDtypeStruct((1, args.size, args.size, 3), jnp.float32)
    variables = init_variables(model, jax.random.key(0), {"image": image})
    batch = jax.device_put(make_batch(args.size, args.batch))
    made = {name: make(name, model, variables, batch) for name in args.variants.split(",")}
    print(f"{jax.devices()[0].device_kind}, {args.size} px, {args.batch} + {args.batch}")
    flops = {name: step.cost_analysis()["flops"] for name, (step, _) in made.items()}
    for name, count in flops.items():
        print(f"{name:16} {count / 1e9:8.2f} GFLOP  {count / flops['plain']:6.4f} x")
    if not args.rounds:
        return
    compiled = {name: step.compile() for name, (step, _) in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(args.rounds + 1):
        for name, step in compiled.items():
            began = time.monotonic()
            jax.block_until_ready(step(made[name][1], batch))
            if turn:
                seconds[name].append(time.monotonic() - began)
    plain = statistics.median(seconds["plain"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:12} {median:8.3f} s      {median / plain:6.2f} x")


if __name__ == "__main__":
    main()
