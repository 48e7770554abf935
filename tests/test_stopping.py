"""SIGTERM and Ctrl-C save the step in progress; the same command then ends as if none had come."""

import os
import signal
import threading

import pytest
from tiny_run import tiny

from medtl import cli
from medtl.experiment import experiment
from medtl.training import loop, stopping
from medtl.training.checkpoint import Store


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    experiment.train(tiny(arms=("transfer",)), folder)
    return folder


def kill_before(monkeypatch, dispatch, *signals):
    """Send signals to this process before one of the dispatches, counted over the run."""
    take, dispatches = loop.Streamed.__call__, []

    def taken(self, state, most):
        dispatches.append(int(state.step))
        if len(dispatches) == dispatch:
            for number in signals:
                os.kill(os.getpid(), number)
        return take(self, state, most)

    monkeypatch.setattr(loop.Streamed, "__call__", taken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("dispatch", [2, 5, 8])
def test_a_stopped_run_loses_no_step_and_ends_alike(
    tmp_path, finished, monkeypatch, number, dispatch
):
    config = tiny(arms=("transfer",))
    with monkeypatch.context() as patch:
        kill_before(patch, dispatch, number)
        with pytest.raises(stopping.Stopped, match="is saved; the same command resumes") as stopped:
            experiment.train(config, tmp_path)
    assert stopped.value.exit_code == 128 + number
    saved = 0
    for stage in ("source", "target"):
        if (tmp_path / f"seed_0/transfer/{stage}").exists():
            with Store(tmp_path / f"seed_0/transfer/{stage}") as store:
                saved += store.last_step
    assert saved == dispatch
    experiment.train(config, tmp_path)
    for name in ("predictions.csv", *(f"seed_0/transfer/{s}/log.jsonl" for s in loop.STAGES)):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    kill_before(monkeypatch, 3, signal.SIGINT, signal.SIGTERM)
    with pytest.raises(stopping.Stopped) as stopped:
        experiment.train(tiny(arms=("transfer",)), tmp_path)
    assert stopped.value.exit_code == 143
    with Store(tmp_path / "seed_0/transfer/source") as store:
        assert store.last_step == 2  # as evaluated; step 3 is not waited for


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_says_so_and_exits_with_the_code_of_the_signal(
    tmp_path, monkeypatch, capfd, number, code
):
    monkeypatch.setattr(cli, "_run", lambda argv: os.kill(os.getpid(), number))
    handlers = [signal.getsignal(s) for s in stopping.SIGNALS]
    assert cli.run([]) == code
    assert capfd.readouterr().err == "medtl: stopped; the same command resumes\n"
    assert [signal.getsignal(s) for s in stopping.SIGNALS] == handlers


def test_outside_of_the_main_thread_no_handler_is_installed():
    installed = []

    def work():
        with stopping.deferred() as stop:
            installed.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert installed == [(False, before)]
