"""Two processes with Gloo collectives on CPUs equal one, are killed, and go on elsewhere."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hosts_worker import SMALL, trained

from medtl.config import check
from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.training import launching, standard_error
from medtl.training.parallel import Parallel

ROOT = Path(__file__).parents[1]
WAYS = [(mode, devices) for mode in ("pmap", "mesh", "fsdp") for devices in (1, 2, 4)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(arguments, *, devices, **environment):
    """Start a Python process with simulated CPU devices, from the project's folder."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes):
    """Wait for processes; return their exit codes, and the lines of their standard errors."""
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    codes = [process.returncode for process in processes]
    return codes, [[line for line in text.splitlines() if line] for text in errors]


def assert_equal(one, other, *, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(
            other[name], one[name], rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """All arrays after training in this process, on one device."""
    return trained(tmp_path_factory.mktemp("alone"), "none", 1)


@pytest.mark.parametrize("mode, devices", [("pmap", 4), ("mesh", 4), ("fsdp", 2), ("fsdp", 4)])
def test_one_process_with_many_devices_equals_one_device(tmp_path, alone, mode, devices):
    assert_equal(alone, trained(tmp_path, mode, devices))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder in which two processes left the arrays of every way to train."""
    folder, port = tmp_path_factory.mktemp("together"), free_port()
    ways = [f"{mode}:{devices}" for mode, devices in WAYS]
    pair = [
        start([ROOT / "tests/hosts_worker.py", folder, i, port, *ways], devices=4) for i in (0, 1)
    ]
    codes, errors = ended(pair)
    assert codes == [0, 0], errors
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode, devices", WAYS)
def test_two_processes_equal_one_device(together, alone, mode, devices):
    with np.load(together / f"{mode}_{devices}.npz") as arrays:
        assert_equal(alone, dict(arrays))


def test_fsdp_keeps_a_part_of_each_array_on_each_device():
    parallel = Parallel.create("fsdp", tuple(jax.devices()[:4]))
    state = {"kernel": np.ones((3, 3, 16, 8), np.float32), "bias": np.ones(6), "step": np.int32(0)}
    placed = parallel.place(state)
    shapes = jax.tree.map(lambda x: x.addressable_shards[0].data.shape, placed)
    assert shapes == {"kernel": (3, 3, 4, 8), "bias": (6,), "step": ()}
    grow = parallel.train(lambda s, x: (jax.tree.map(lambda y: y + x["n"].sum(), s), {"m": x["n"]}))
    new, _ = grow(placed, {"n": np.ones(4, np.int32)})
    assert jax.tree.map(lambda x: x.addressable_shards[0].data.shape, new) == shapes
    assert float(new["kernel"].min()) == float(new["kernel"].max()) == 5


def test_a_run_folder_accepts_another_mode(tmp_path):
    from hosts_worker import config

    from medtl.experiment import run_folder

    there, here = (config(tmp_path, mode, resident=False) for mode in ("fsdp", "pmap"))
    check.check(there)
    assert not run_folder.differences(there, here)


KILLER = '''
"""Send a signal to a process when the stage reaches a step."""

import os


class Killer:
    def __init__(self, folder, config):
        self.step, self.signal, self.path = os.environ.get("KILL", "0 0 -").split(" ")

    def write(self, step, scalars):
        if step == int(self.step):
            pid = os.getpid() if self.path == "-" else int(open(self.path).read())
            os.kill(pid, int(self.signal))

    def close(self):
        pass
'''
CONFIG = """
from tiny_run import tiny


def get_config():
    return tiny(
        model__name="{folder}/small.py:Small",
        model__last_layer="",
        arms=("scratch",),
        arm__scratch__source_stage=False,
        stages__target__epochs=14,
        checkpoint__every_steps=3,
        evaluation__resamples=100,
        evaluation__mistakes="none",
        loggers=("{folder}/killer.py:Killer",),
        parallel="pmap",
    )
"""


def run(folder, workdir, processes, *, devices, kill="0 0 -"):
    """Run `launch.py` to its end; return exit codes, and lines of the standard errors."""
    arguments = ["launch.py", f"--config={folder}/config.py", f"--workdir={workdir}"]
    port, started = free_port(), []
    for i in range(processes):
        flags = [f"--coordinator=localhost:{port}", f"--process_id={i}", "--process_count=2"]
        several = flags if processes > 1 else []
        started.append(start([*arguments, *several], devices=devices, KILL=kill))
    (folder / "victim").write_text(str(started[-1].pid))
    return ended(started)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes_and_devices(tmp_path):
    for name, text in (("small", SMALL), ("killer", KILLER), ("config", CONFIG)):
        (tmp_path / f"{name}.py").write_text(text.replace("{folder}", str(tmp_path)))
    victim, workdir = tmp_path / "victim", tmp_path / "run"

    codes, errors = run(tmp_path, workdir, 2, devices=2, kill=f"8 9 {victim}")
    assert codes[1] == -9 and codes[0] not in (0, 2)
    assert errors[0] == [f"medtl: error: {launching.LOST}"]

    codes, _ = run(tmp_path, workdir, 1, devices=1, kill="14 9 -")
    assert codes == [-9]

    codes, errors = run(tmp_path, workdir, 2, devices=2, kill=f"20 15 {victim}")
    assert codes == [143, 143]
    assert errors[0][-1].startswith("medtl: stopped; step ")

    assert run(tmp_path, workdir, 1, devices=1) == ([0], [[]])
    assert run(tmp_path, tmp_path / "other", 1, devices=1) == ([0], [[]])
    made = [
        predictions.read(folder / "predictions.csv")[0] for folder in (workdir, tmp_path / "other")
    ]
    for one, other in zip(*made, strict=True):
        assert one.id.tolist() == other.id.tolist()
        np.testing.assert_allclose(one.probability, other.probability, atol=1e-5)
    logs = [
        (folder / "seed_0/scratch/target/log.jsonl").read_text().splitlines()
        for folder in (workdir, tmp_path / "other")
    ]
    steps = [[json.loads(line)["step"] for line in lines] for lines in logs]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    "flags, message",
    [
        (("node0", "0", "2"), "must be HOST:PORT"),
        (("node0:1234", "", "2"), "needs --process_id"),
        (("node0:1234", "2", "2"), "of 2 processes the last is 1"),
        (("", "0", "2"), "need --coordinator"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        launching.launch_of(*flags, {})


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, False),  # a batch script without srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, True),
    ],
)
def test_the_scheduler_says_whether_there_are_several_processes(environment, several):
    assert (launching.launch_of("", "", "", environment) is not None) == several
    assert launching.launch_of("none", "", "", environment) is None


def test_the_abort_of_the_coordination_service_is_one_line():
    given = [
        b"a warning\n",
        b"E1126 04:13:09.811156 9127 coordination_service.cc:1518] Use error polling\n",
        b"1\n",
        b"W1126 04:13:09.811156 9127 other.cc:7] kept\n",
        b"F1126 04:13:09.811797 9138 client.h:86] Terminating process\n",
        b"*** Check failure stack trace: ***\n",
        b"Traceback (most recent call last):\n",
    ]
    shown = list(standard_error.lines(given, b"lost"))
    assert shown == [given[0], given[3], b"medtl: error: lost\n"]
    own = [b"medtl: error: lost\n", *given[1:]]
    assert list(standard_error.lines(own, b"lost")) == own[:1]
