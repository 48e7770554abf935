"""The benchmarks: their arithmetic in closed form, that contenders do the same work, and that every script runs on tiny shapes."""

import argparse
import importlib
import itertools
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from medtl import models

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A benchmark as a module; those that define absl flags run as programs, below."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def small(load, monkeypatch):
    """The benchmarks' experiment with the first stage of its model, on one device: it compiles in seconds."""
    scaling = load("scaling")
    whole = scaling.experiment

    def experiment(**options):
        c = whole(**options)
        c.model.stages, c.parallel = 1, "none"
        return c

    monkeypatch.setattr(scaling, "experiment", experiment)
    return scaling


class Time:
    """A clock that only work moves."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def passes(self, seconds, result=None):
        self.now += seconds
        return result


def is_rate(found):
    return 0 < found["low"] <= found["median"] <= found["high"] < math.inf


def test_rounds_alternate_and_a_ratio_is_taken_within_its_round(load):
    timing = load("timing")
    noise = {"ours": iter([1.0, 10.0, 2.0]), "theirs": iter([3.0, 30.0, 4.0])}
    called = []

    def contender(name):
        def run(steps):
            called.append(name)
            return next(noise[name]) * steps

        return run

    seconds = timing.interleave({name: contender(name) for name in noise}, rounds=3, steps=7)
    assert called == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    # The round that was ten times as slow for both does not move the ratio.
    assert timing.ratios(seconds, "ours") == {
        "theirs": pytest.approx({"median": 3.0, "low": 2.0, "high": 3.0})
    }


@pytest.mark.parametrize("simulated", [True, False])
def test_devices_that_lose_nothing_have_efficiency_one(load, simulated):
    scaling = load("scaling")
    counts, options = (1, 2, 4), {"batch": 64, "device_batch": 8}
    seconds = {}
    for n in counts:
        for batch in scaling.batches(n, **options).values():
            # 100 images/s of a real device; of a simulated one, of all of them together.
            seconds[f"mesh {batch} {n}"] = [batch / 100 / (1 if simulated else n)] * 2
    found = scaling.table(seconds, modes=["mesh"], counts=counts, simulated=simulated, **options)[
        "mesh"
    ]
    assert [of["batch"] for of in found["strong"].values()] == [64, 64, 64]
    assert [of["batch"] for of in found["weak"].values()] == [8, 16, 32]
    for of in (*found["strong"].values(), *found["weak"].values()):
        assert of["efficiency"]["median"] == pytest.approx(1)


def test_the_trainers_step_runs_on_several_devices(small):
    config = small.experiment(model="cifar_resnet20", size=8)
    (key, run), *others = small.contenders(
        config, tuple(jax.devices()[:2]), [4, 4], ("mesh",)
    ).items()
    assert key == ("mesh", 4) and not others
    assert 0 < run(1) < math.inf


def test_the_clock_counts_training_alone_and_what_follows_it_apart(load, monkeypatch):
    end_to_end, clock = load("end_to_end"), Time(monkeypatch)
    heard = []

    class Store:
        def wait(self):
            clock.passes(100)

    def ask(training, whole):
        heard.append((training, whole))
        clock.passes(1e6)  # other contenders have their turn
        return 2

    timed = end_to_end.Clock(
        lambda state, most: clock.passes(1), lambda state: clock.passes(10), Store(), ask
    )
    for _ in range(1 + 2 + 2 + 1):  # the epoch that compiles, two rounds, and the first of a third
        for _ in range(5):
            timed.feed(None, 1)
        timed.evaluate(None)
        clock.passes(3)  # saving
    # 2 epochs of 5 steps of 1 s, each evaluated in 10 s and saved in 3 s; at the end the store is waited for.
    assert heard == [(0.0, 0.0), (10.0, 136.0), (10.0, 136.0)]


@pytest.mark.parametrize("resident", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_the_trainer_is_timed_round_by_round(small, load, resident):
    end_to_end = load("end_to_end")
    args = argparse.Namespace(
        model="cifar_resnet20", batch=16, size=8, dtype="float32", train=16, val=8
    )
    heard = []

    class DoneError(Exception):
        pass

    def ask(training, whole):
        heard.append((training, whole, time.perf_counter()))
        if len(heard) == 3:
            raise DoneError
        return 2

    with pytest.raises(DoneError):
        end_to_end.trainer(args, "joint", resident, ask)
    assert heard[0][:2] == (0.0, 0.0)
    for (_, _, before), (training, whole, now) in itertools.pairwise(heard):
        assert 0 < training < whole <= now - before


def test_the_fastest_pytorch_is_what_we_are_compared_with(load):
    end_to_end = load("end_to_end")
    training = {
        "medtl resident": [1.0, 2.0],
        "bare step": [0.9, 1.8],
        "PyTorch": [4.0, 8.0],
        "PyTorch, kept": [2.0, 4.0],
    }
    whole = {
        name: [s + 1 for s in seconds] for name, seconds in training.items() if name != "bare step"
    }
    ours = end_to_end.report("single", 100, training, whole)["medtl resident"]
    assert ours["training"]["images_per_second"] == {"median": 75.0, "low": 50.0, "high": 100.0}
    assert ours["training"]["of bare step"] == pytest.approx(
        {"median": 0.9, "low": 0.9, "high": 0.9}
    )
    fastest = ours["training"]["of fastest PyTorch"]
    assert (fastest["fastest"], fastest["median"]) == ("PyTorch, kept", 2.0)
    assert ours["whole"]["of fastest PyTorch"]["low"] == 1.5
    assert "of bare step" not in ours["whole"]


def bench(load, folder):
    args = argparse.Namespace(images=8, side=32, size=16, batch=4, rounds=1, against=1.0)
    return load("input").Bench(args, folder)


def test_every_stage_of_the_input_has_a_rate(load, tmp_path, monkeypatch):
    made = bench(load, tmp_path)
    monkeypatch.setattr(load("input"), "WORKERS", (0,))
    for stage in (made.decode, made.cache, made.batches, made.device):
        stage()
    assert {"load into memory", "batches from disk", "stream, 0 workers", "augment: all"} < set(
        made.found
    )
    assert all(is_rate(found["images_per_second"]) for found in made.found.values())


@pytest.mark.slow
def test_worker_processes_have_a_rate(load, tmp_path, monkeypatch):
    made = bench(load, tmp_path)
    made.load("png", "disk", tmp_path / "cache_0")
    monkeypatch.setattr(load("input"), "WORKERS", (2,))
    made.batches()
    assert is_rate(made.found["stream, 2 workers"]["images_per_second"])


def parameters(name, classes):
    """Of medtl's backbone and a linear head."""
    backbone = models.backbone(name)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(
        lambda x: backbone.init(jax.random.key(0), x, use_batch_stats=False), image
    )
    return (
        sum(x.size for x in jax.tree.leaves(variables["params"]))
        + (models.features(name, 0) + 1) * classes
    )


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "resnet50"])
def test_pytorchs_models_are_as_large_as_ours(load, name):
    pytest.importorskip("torch")
    ours = {"cifar_resnet20": lambda: load("end_to_end_torch").resnet20(10)}
    theirs = ours.get(name, lambda: load("peers_torch").resnet(name, 10))()
    assert sum(p.numel() for p in theirs.parameters()) == parameters(name, 10)


def test_pytorchs_loop_takes_full_batches_of_permutations(load, tmp_path):
    torch = pytest.importorskip("torch")
    module = load("end_to_end_torch")
    rows = module.endless(6, 4, torch.device("cpu"))
    drawn = torch.cat([next(rows) for _ in range(3)])
    assert sorted(drawn[:6].tolist()) == sorted(drawn[6:].tolist()) == list(range(6))
    args = argparse.Namespace(batch=4, size=8, train=6, val=4, channels_last=True)
    training, whole = module.Loop(args, torch.device("cpu"), tmp_path).run(2)
    assert 0 < training < whole < math.inf


PROGRAMS = {
    "step": [
        "step.py",
        "--model=cifar_resnet20",
        "--batch=2",
        "--size=8",
        "--rounds=1",
        "--steps=1",
    ],
    "peers": [
        "peers.py",
        "--model=resnet18",
        "--batch=2",
        "--size=32",
        "--rounds=1",
        "--steps=1",
        "--mode=infer",
        "--noall_kept",
    ],
    "sweep": [
        "sweep.py",
        "--features=200x8",
        "--folds=2",
        "--seeds=1",
        "--rounds=1",
        "--fits=2",
        "--steps=2",
    ],
    "input": ["input.py", "--images=4", "--side=32", "--size=16", "--batch=2", "--rounds=1"],
    "scaling": [
        "scaling.py",
        "--size=8",
        "--batch=4",
        "--device_batch=4",
        "--counts=1",
        "--mode=mesh",
        "--rounds=1",
        "--steps=1",
    ],
    "end_to_end": [
        "end_to_end.py",
        "--case=single",
        "--size=8",
        "--batch=4",
        "--train=4",
        "--val=4",
        "--rounds=1",
        "--epochs=1",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_script_runs_and_prints_rates(program):
    script, *arguments = PROGRAMS[program]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rates = [
        float(number.replace(",", ""))
        for number in re.findall(r"([\d.,]+|nan|inf) (?:images/s|s \[)", done.stdout)
    ]
    assert rates and all(0 < rate < math.inf for rate in rates), done.stdout
