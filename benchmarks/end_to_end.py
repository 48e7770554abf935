"""Training as a user runs it, beside the bare compiled step and a PyTorch loop.

    python benchmarks/end_to_end.py --torch_python=PATH --threads=2

Two runs of medtl.experiment.experiment.train on random images in memory: "single" trains on one
domain, "joint" on source and target, half a batch of each. The trainer runs with its log, progress,
evaluation and checkpoints. It streams its data (config.data.resident="never", which "auto" means on
CPUs) or, with --feed=resident, keeps the data on the device and takes many steps a dispatch
("always"). On CPUs XLA compiles the gradients of convolutions worse within a loop, so a resident
step takes more than ten times as long there, and a round takes minutes. Beside the trainer run

- bare step: the same compiled step on one batch that is on the device, and nothing else;
- PyTorch (single, ResNet-20): end_to_end_torch.py, eager, in both memory formats, as it comes and
  with its memory kept as medtl keeps its own ("kept"). It takes batches of the same size, flipped,
  from a permutation for each epoch.

"training" is the images of all steps divided by the time from the first step of each epoch until
its last has finished; on all sides it includes the log and excludes evaluation and checkpoint.
"whole" is the time until the next epoch begins, on all sides: with an evaluation of the val images
and a checkpoint every epoch, which is on disk when the round ends. Neither includes the first epoch
of each process, which compiles.

The trainer's `fit` gets its feed and its evaluation wrapped in a clock; it evaluates when the last
step of an epoch has finished. At the end of a round the clock stops and the wrapped feed waits for
the next round, so that contenders take turns within one long run of each. Needs medtl's
dependencies. --write keeps the result in benchmarks/results/end_to_end_MODEL_DTYPE_BACKEND.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import scaling
import timing

sys.path.insert(0, str(Path(__file__).parents[1]))

from medtl import models
from medtl.config import arm, dataset
from medtl.experiment import experiment
from medtl.training import loop, memory
from medtl.training.objective import DOMAINS
from medtl.training.parallel import Parallel

CASES = ("single", "joint")
EPOCHS = 10_000  # of the run, which ends before, after the last round
OURS = {"medtl streamed": "never", "medtl resident": "always"}
BARE = "bare step"


def sizes_of(args: argparse.Namespace, case: str) -> dict[str, int]:
    """Return domain -> images in a step."""
    return {"target": args.batch} if case == "single" else dict.fromkeys(DOMAINS, args.batch // 2)


def epoch_steps(args: argparse.Namespace, case: str) -> int:
    """Return the number of steps in an epoch of the target."""
    return -(-args.train // sizes_of(args, case)["target"])


def write_images(path: Path, args: argparse.Namespace, *, seed: int) -> None:
    """Write random images of two classes in MedMNIST's layout."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", args.train), ("val", args.val)):
        arrays[f"{split}_images"] = rng.integers(
            0, 256, (n, args.size, args.size, 3), dtype=np.uint8
        )
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(path, **arrays)


def config_of(args: argparse.Namespace, case: str, resident: str, folder: Path) -> Any:
    """Return the run's config; write its images into the folder."""
    c = scaling.experiment(model=args.model, size=args.size, dtype=args.dtype)
    c.arm.pooled = arm("random", source_stage=False, joint=True)
    c.arms = ("scratch",) if case == "single" else ("pooled",)
    for i, domain in enumerate(sizes_of(args, case)):
        write_images(folder / f"{domain}.npz", args, seed=i)
        c.data[domain] = dataset("npz", path=str(folder / f"{domain}.npz"))
    c.data.resident = resident
    c.stages.target.batch_size = sizes_of(args, case)["target"]
    c.stages.target.epochs = EPOCHS
    c.evaluation.times = EPOCHS
    # As the PyTorch loop; by default the trainer saves the best alone.
    c.checkpoint.every_steps = epoch_steps(args, case)
    return c


class Clock:
    """Time the epochs of `medtl.training.loop.fit` from outside, and halt it after each round.

    It replaces the feed.

    Args:
      feed: takes the steps.
      evaluate: called when the last step of an epoch has finished; `fit` then saves.
      store: of the checkpoints.
      ask: takes the seconds of training and of the whole round, and returns the epochs of the next
        round; the first call, after the epoch that compiles, gets zeros.
    """

    def __init__(
        self,
        feed: Any,
        evaluate: Callable[[Any], Any],
        store: Any,
        ask: Callable[[float, float], int],
    ):
        self._feed, self._evaluate, self._store, self._ask = feed, evaluate, store, ask
        self._left, self._is_warm = 1, False
        self._is_between = True
        self._training = 0.0
        self._round = self._epoch = time.perf_counter()

    def __call__(self, state: Any, most: int) -> Any:
        if self._is_between:
            if self._left == 0:
                self._next_round()
            self._left -= 1
            self._is_between, self._epoch = False, time.perf_counter()
        return self._feed(state, most)

    def close(self) -> None:
        self._feed.close()

    def evaluate(self, state: Any) -> Any:
        self._training += time.perf_counter() - self._epoch
        self._is_between = True
        return self._evaluate(state)

    def _next_round(self) -> None:
        self._store.wait()
        whole = time.perf_counter() - self._round
        self._left = self._ask(self._training, whole) if self._is_warm else self._ask(0.0, 0.0)
        self._is_warm, self._training, self._round = True, 0.0, time.perf_counter()


@contextlib.contextmanager
def clocked(ask: Callable[[float, float], int]) -> Iterator[None]:
    """Time every training stage by a `Clock`."""
    original = loop.fit

    def fit(
        state: Any, feed: Any, schedule: Any, *, evaluate: Any, store: Any, **options: Any
    ) -> Any:
        clock = Clock(feed, evaluate, store, ask)
        return original(state, clock, schedule, evaluate=clock.evaluate, store=store, **options)

    with mock.patch.object(loop, "fit", fit):
        yield


def trainer(
    args: argparse.Namespace, case: str, resident: str, ask: Callable[[float, float], int]
) -> None:
    """Train until `ask` raises; the trainer's output is dropped."""
    timing.end_on_sigterm()
    with (
        tempfile.TemporaryDirectory(prefix="medtl-benchmark-") as folder,
        open(os.devnull, "w") as dropped,
        contextlib.redirect_stdout(dropped),
        clocked(ask),
    ):
        experiment.train(config_of(args, case, resident, Path(folder)), Path(folder) / "run")


def serve(args: argparse.Namespace) -> None:
    """Be one contender: answer "N" epochs by the seconds of training and of the whole round."""
    who, case = args.serve.split("/")
    memory.keep()  # as the command line does
    if who == BARE:
        config = scaling.experiment(model=args.model, size=args.size, dtype=args.dtype)
        step = scaling.bare(config, Parallel.create(config.parallel), sizes_of(args, case))
        timing.serve(lambda line: step(int(line) * epoch_steps(args, case)))
        return
    out = sys.stdout

    def ask(training: float, whole: float) -> int:
        ready = f"ready jax {jax.__version__} {jax.devices()[0].device_kind}"
        print(f"{training} {whole}" if whole else ready, file=out, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        return int(line)

    trainer(args, case, OURS[who], ask)


class Contender:
    """A process that answers a number of epochs by seconds: of training, and maybe of the round.

    Attributes:
      whole: seconds of an epoch with evaluation and checkpoint, by round.
    """

    def __init__(self, arguments: Sequence[str], *, keep: bool):
        self.process = timing.Process(arguments, environment=timing.KEPT if keep else {})
        self.whole: list[float] = []

    def __call__(self, epochs: int) -> float:
        training, *whole = map(float, self.process.ask(str(epochs)).split())
        self.whole += [seconds / epochs for seconds in whole]
        return training


def plan(
    args: argparse.Namespace, case: str, arguments: Sequence[str]
) -> dict[str, tuple[list[str], bool]]:
    """Return contender -> its command, and whether its environment makes it keep its memory."""
    ours = [name for name in OURS if name.split()[1] in args.feed]
    commands = {
        name: ([sys.executable, __file__, *arguments, f"--serve={name}/{case}"], False)
        for name in (*ours, BARE)
    }
    if (
        case == "single"
        and (args.model, args.dtype) == ("cifar_resnet20", "float32")
        and args.torch_python
    ):
        script = str(Path(__file__).with_name("end_to_end_torch.py"))
        shapes = [
            f"--{name}={getattr(args, name)}"
            for name in ("batch", "size", "train", "val", "threads")
        ]
        for name, extra in (("PyTorch", []), ("PyTorch channels_last", ["--channels_last"])):
            command = [args.torch_python, script, *shapes, *extra]
            commands |= {name: (command, False), f"{name}, kept": (command, True)}
    return commands


def report(
    case: str, images: int, training: dict[str, list[float]], whole: dict[str, list[float]]
) -> dict[str, Any]:
    """Print and return the rates, and ours over those of the bare step and of the fastest PyTorch.

    Args:
      case: of `CASES`.
      images: in an epoch.
      training: contender -> seconds an epoch, by round.
      whole: the same with evaluation and checkpoint, for contenders that have them.
    """
    result: dict[str, Any] = {}
    for name in training:
        result[name] = {}
        line = f"{case:6s} {name:28s}"
        for kind, seconds in (("training", training), ("whole", whole)):
            if name not in seconds:
                continue
            rate = timing.summary([images / s for s in seconds[name]])
            result[name][kind] = {"images_per_second": rate}
            line += (
                f"  {kind} {rate['median']:8.1f} images/s [{rate['low']:.1f}, {rate['high']:.1f}]"
            )
        print(line, flush=True)
    for kind, seconds in (("training", training), ("whole", whole)):
        peers = {name: seconds[name] for name in seconds if name.startswith("PyTorch")}
        fastest = min(peers, key=lambda name: statistics.median(peers[name]), default="")
        for ours in OURS:
            for other, called in ((BARE, BARE), (fastest, "fastest PyTorch")):
                if ours not in seconds or other not in seconds:
                    continue
                ratio = timing.ratios({ours: seconds[ours], other: seconds[other]}, ours)[other]
                result[ours][kind][f"of {called}"] = ratio | (
                    {"fastest": other} if other != called else {}
                )
                note = f" ({other})" if other != called else ""
                print(
                    f"{case:6s} {kind:8s} {ours} / {called}{note} = {ratio['median']:.3f} "
                    f"[{ratio['low']:.3f}, {ratio['high']:.3f}]",
                    flush=True,
                )
    return result


def compare(args: argparse.Namespace, case: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Time all contenders of one case; see `report`."""
    contenders: dict[str, Contender] = {}
    try:
        for name, (command, keep) in plan(args, case, arguments).items():
            try:
                contenders[name] = Contender(command, keep=keep)
            except (OSError, RuntimeError) as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
        training = timing.interleave(
            contenders, rounds=args.rounds, steps=args.epochs, pause=args.pause
        )
    finally:
        for contender in contenders.values():
            contender.process.close()
    whole = {name: contender.whole for name, contender in contenders.items() if contender.whole}
    images = epoch_steps(args, case) * sum(sizes_of(args, case).values())
    rates = report(case, images, training, whole)
    return {
        name: {"runs": contenders[name].process.words, **of_one} for name, of_one in rates.items()
    }


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=timing.Help)
    parser.add_argument(
        "--model", default="cifar_resnet20", help="backbone, one of medtl.models.NAMES"
    )
    parser.add_argument(
        "--batch", type=timing.positive, default=128, help="images in a step, of all domains"
    )
    parser.add_argument("--size", type=timing.positive, default=28, help="pixels of a side")
    parser.add_argument("--dtype", default="float32", choices=models.DTYPES, help="compute dtype")
    parser.add_argument(
        "--train",
        type=timing.positive,
        default=546,
        help="train images of a domain; the default is BreastMNIST's",
    )
    parser.add_argument("--val", type=timing.positive, default=78, help="val images of a domain")
    parser.add_argument("--epochs", type=timing.positive, default=2, help="epochs in a round")
    parser.add_argument(
        "--rounds", type=timing.positive, default=5, help="timed rounds; the median is reported"
    )
    parser.add_argument("--case", nargs="+", default=CASES, choices=CASES, help="what to train")
    parser.add_argument(
        "--feed",
        nargs="+",
        default=["streamed"],
        choices=("streamed", "resident"),
        help="streamed data, or data kept on the device",
    )
    parser.add_argument(
        "--torch_python", default="", help="interpreter with PyTorch; empty: PyTorch is left out"
    )
    parser.add_argument("--threads", type=int, default=0, help="PyTorch's threads; 0: its default")
    parser.add_argument(
        "--pause",
        type=float,
        default=0.5,
        help="seconds between contenders, in which threads stop spinning",
    )
    parser.add_argument(
        "--write", action="store_true", help="keep the result in benchmarks/results"
    )
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.batch < 2 or args.batch % 2:
        parser.error(f"--batch={args.batch} cannot be halved for the joint run")
    if args.serve:
        serve(args)
        return
    names = ("model", "batch", "size", "dtype", "train", "val", "epochs", "rounds", "threads")
    result: dict[str, Any] = {name: getattr(args, name) for name in names}
    for case in args.case:
        result[case] = compare(args, case, arguments)
    if args.write:
        print(
            timing.write(
                f"end_to_end_{args.model}_{args.dtype}_{jax.default_backend()}", result
            ).name
        )


if __name__ == "__main__":
    main(sys.argv[1:])
