"""The benchmarks: arithmetic in closed form, equal work of contenders, and tiny runs of all."""

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
from medtl.models.model import Head, Model, init_variables

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a benchmark; those that define absl flags run as programs, below."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def small(load, monkeypatch):
    """The benchmarks' experiment with the model's first layer, on one device: fast to compile."""
    scaling = load("scaling")
    full = scaling.experiment

    def experiment(**options):
        c = full(**options)
        c.model.last_layer, c.parallel = "layer1", "none"
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


def is_rate(rate):
    return 0 < rate["low"] <= rate["median"] <= rate["high"] < math.inf


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
    table = scaling.table(seconds, modes=["mesh"], counts=counts, simulated=simulated, **options)
    strong, weak = (list(table["mesh"][kind].values()) for kind in ("strong", "weak"))
    assert [row["batch"] for row in strong] == [64, 64, 64]
    assert [row["batch"] for row in weak] == [8, 16, 32]
    for row in (*strong, *weak):
        assert row["efficiency"]["median"] == pytest.approx(1)


def test_the_trainers_step_runs_on_several_devices(small):
    config = small.experiment(model="cifar_resnet20", size=8)
    (key, run), *others = small.contenders(
        config, tuple(jax.devices()[:2]), [4, 4], ("mesh",)
    ).items()
    assert key == ("mesh", 4) and not others
    assert 0 < run(1) < math.inf


def test_the_clock_counts_training_alone_and_what_follows_it_apart(load, monkeypatch):
    end_to_end, clock = load("end_to_end"), Time(monkeypatch)
    asked = []

    class Store:
        def wait(self):
            clock.passes(100)

    def ask(training, whole):
        asked.append((training, whole))
        clock.passes(1e6)  # other contenders have their turn
        return 2

    timed = end_to_end.Clock(
        lambda state, most: clock.passes(1), lambda state: clock.passes(10), Store(), ask
    )
    for _ in range(1 + 2 + 2 + 1):  # the epoch that compiles, two rounds, and the first of a third
        for _ in range(5):
            timed(None, 1)
        timed.evaluate(None)
        clock.passes(3)  # saving
    # 2 epochs of 5 steps of 1 s, each evaluated in 10 s and saved in 3 s; then 100 s for the store.
    assert asked == [(0.0, 0.0), (10.0, 136.0), (10.0, 136.0)]


@pytest.mark.parametrize("resident", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_the_trainer_is_timed_round_by_round(small, load, resident):
    end_to_end = load("end_to_end")
    args = argparse.Namespace(
        model="cifar_resnet20", batch=16, size=8, dtype="float32", train=16, val=8
    )
    asked = []

    class DoneError(Exception):
        pass

    def ask(training, whole):
        asked.append((training, whole, time.perf_counter()))
        if len(asked) == 3:
            raise DoneError
        return 2

    with pytest.raises(DoneError):
        end_to_end.trainer(args, "joint", resident, ask)
    assert asked[0][:2] == (0.0, 0.0)
    for (_, _, before), (training, whole, now) in itertools.pairwise(asked):
        assert 0 < training < whole <= now - before


def test_ours_is_compared_with_the_fastest_pytorch(load):
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
        made.rates
    )
    assert all(is_rate(entry["images_per_second"]) for entry in made.rates.values())


@pytest.mark.slow
def test_worker_processes_have_a_rate(load, tmp_path, monkeypatch):
    made = bench(load, tmp_path)
    made.load("png", "disk", tmp_path / "cache_0")
    monkeypatch.setattr(load("input"), "WORKERS", (2,))
    made.batches()
    assert is_rate(made.rates["stream, 2 workers"]["images_per_second"])


def parameters(name, classes):
    """Count the parameters of medtl's backbone and a linear head."""
    encoders, heads = {"image": models.backbone(name)}, {"shared": lambda: Head(classes)}
    model = Model(encoders, heads, {"target": "shared"})
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), {"image": image}))
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "resnet50"])
def test_pytorch_models_have_as_many_parameters_as_ours(load, name):
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
    "backbones": [
        "backbones.py",
        "--models=resnet18",
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
    "stream": ["stream.py", "--images=40", "--side=32", "--batch=4"],
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
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rates = [
        float(number.replace(",", ""))
        for number in re.findall(r"([\d.,]+|nan|inf) (?:images/s|s \[)", done.stdout)
    ]
    assert rates and all(0 < rate < math.inf for rate in rates), done.stdout


@pytest.mark.parametrize("cases", [0, 7, 10, 57, 1000])
def test_the_rounds_of_fuzzing_hold_every_case_once(load, cases):
    rounds = load("fuzz").rounds(cases)
    assert [case for of_round in rounds for case in of_round] == list(range(cases))
    assert max(map(len, rounds)) - min(map(len, rounds)) <= 1


def test_soaking_begins_no_trial_after_its_time(load):
    trials = load("soak")._trials
    trial = {"disturbed": True, "fault": ""}
    assert trials("kill", 3, math.inf, lambda: trial) == [trial] * 3
    assert trials("kill", 3, time.monotonic() - 1, lambda: trial) == []
    one = iter([trial])
    until = time.monotonic() + 0.05
    assert trials("kill", 3, until, lambda: time.sleep(0.06) or next(one)) == [trial]
