"""The batch that fits: predicted from XLA's analysis, kept by the run, named when memory ends."""

import json
import types

import jax
import pytest
from tiny_run import tiny

from medtl import cli
from medtl import config as configs
from medtl.config import check
from medtl.errors import UserError
from medtl.experiment import batch_fit, experiment, run_folder
from medtl.training import loop, memory


def auto(**fields):
    config = tiny(arms=("target_only",), **fields)
    config.stages.target.batch_size = configs.AUTO
    return config


def stage_of(config, folder):
    opened, _ = experiment.open_experiment(config, folder, training=True)
    [stage] = batch_fit._stages(opened, config.arms)
    return stage


def test_more_examples_need_more_memory_and_the_state_is_in_it(tmp_path):
    stage = stage_of(tiny(arms=("target_only",)), tmp_path)
    small, large = (batch_fit.needed(batch_fit._with_size(stage, n)) for n in (8, 16))
    state = sum(x.nbytes for x in jax.tree.leaves(stage.state()))
    assert state < small < large < 2 * small


@pytest.mark.parametrize("factor, size", [(1.0, 8), (0.999, 4)])
def test_the_largest_power_of_two_within_the_limit_is_taken(factor, size, tmp_path, monkeypatch):
    stage = stage_of(tiny(arms=("target_only",)), tmp_path)
    eight = batch_fit.needed(batch_fit._with_size(stage, 8))
    monkeypatch.setattr(batch_fit, "limit", lambda: int(factor * eight))
    assert batch_fit.largest(stage, 64) == size


def test_several_processes_take_the_size_that_fits_in_each(tmp_path, monkeypatch):
    """The first has 32 examples in mind; 8 are more than another process can hold."""
    stage, tried = stage_of(tiny(arms=("target_only",)), tmp_path), []
    monkeypatch.setattr(batch_fit.hosts, "agreed", lambda size: 32)
    monkeypatch.setattr(batch_fit, "limit", lambda: 2**40)
    monkeypatch.setattr(
        batch_fit.hosts, "everywhere", lambda fits: fits and bool(tried.append(1) or len(tried) > 2)
    )
    assert batch_fit.largest(stage, 64) == 8


def test_auto_is_kept_by_the_run_and_taken_again(tmp_path, monkeypatch, capsys):
    config = auto()
    experiment.train(config, tmp_path / "run")
    n = 36  # train examples of the target
    kept = run_folder.load_config(tmp_path / "run").stages.target.batch_size
    assert kept == 4 and kept <= n / 8 < 2 * kept
    assert f"config.stages.target.batch_size: {kept}, of" in capsys.readouterr().out
    before = (tmp_path / "run" / "metrics.json").read_text()
    monkeypatch.setattr(batch_fit, "limit", lambda: 0)  # another machine
    experiment.train(config, tmp_path / "run")
    after = (tmp_path / "run" / "metrics.json").read_text()
    assert json.loads(after)["arms"] == json.loads(before)["arms"]
    experiment.evaluate(run_folder.load_config(tmp_path / "run"), tmp_path / "run")
    config.stages.target.batch_size = 8
    with pytest.raises(UserError, match="batch_size is 4 there and 8 here"):
        run_folder.check(tmp_path / "run", config)


def test_the_command_line_takes_the_word():
    values = cli._parse(["--config.stages.target.batch_size=auto"], configs.default())
    assert values.config.stages.target.batch_size == configs.AUTO
    config = tiny()
    config.sweep.grid = {"stages": {"target": {"batch_size": (0, 8)}}}
    with pytest.raises(UserError, match="give numbers"):
        check.check(config)


def test_out_of_memory_is_one_line_with_what_would_fit(tmp_path, monkeypatch, capsys):
    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.")

    config = tiny(arms=("target_only",))
    config.stages.target.batch_size = 32
    stage = stage_of(config, tmp_path)
    needed = batch_fit.needed(batch_fit._with_size(stage, 16))
    monkeypatch.setattr(batch_fit, "limit", lambda: needed)
    monkeypatch.setattr(loop, "fit", exhausted)
    with pytest.raises(memory.OutOfMemoryError) as caught:
        experiment.train(config, tmp_path / "run")
    line = cli._machine_message(caught.value)
    assert "(allocating 99 bytes) with config.stages.target.batch_size=32; set it to 16" in line
    assert "accumulate" in line and "config.model.remat=True" in line and "\n" not in line


def test_a_cgroup_limits_what_is_there(tmp_path, monkeypatch):
    assert 0 < memory.available() < 2**50
    texts = {
        "/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 1000 kB\n",
        "/sys/fs/cgroup/memory.max": "700000",
        "/sys/fs/cgroup/memory.current": "200000",
    }

    class Fake(type(tmp_path)):
        def read_text(self):
            return texts[str(self)]

    monkeypatch.setattr(memory, "Path", Fake)
    assert memory.available() == 500_000
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert memory.available() == 1_024_000


def test_what_a_program_needs_counts_donated_arguments_once():
    sizes = {"argument": 10, "output": 8, "temp": 5, "alias": 7}
    stats = types.SimpleNamespace(**{f"{k}_size_in_bytes": v for k, v in sizes.items()})
    assert memory.needed(types.SimpleNamespace(memory_analysis=lambda: stats)) == 16
