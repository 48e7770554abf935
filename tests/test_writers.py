"""Metric writers get what log.jsonl gets; a missing library is named before anything is trained."""

import importlib.util
import json
import sys
import time
import types

import pytest
from tiny_run import tiny

from medtl.config import check
from medtl.errors import UserError
from medtl.experiment import experiment
from medtl.training import writers
from medtl.training.writers import naming


def logged(folder):
    """Return (name, step) -> value of the lines of log.jsonl."""
    values = {}
    for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines()):
        step, val = line.pop("step"), line.pop("val", {})
        values |= {(name, step): value for name, value in line.items()}
        values |= {(f"val/{name}", step): v for name, v in val.items() if v is not None}
    return values


def run(tmp_path, logger):
    config = tiny(arms=("target_only",), loggers=(logger,))
    experiment.train(config, tmp_path / "run")
    return tmp_path / "run" / "seed_0" / "target_only" / "target"


def test_tensorboard_holds_the_log(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2

    stage = run(tmp_path, "tensorboard(flush_secs=5)")
    [path] = (stage / "tensorboard").iterdir()
    found, purged, data = {}, [], path.read_bytes()
    while data:  # TFRecord: length u64, its checksum u32, the record, its checksum u32
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        purged += [event.step] * (event.session_log.status == event_pb2.SessionLog.START)
    log = logged(stage)
    assert found == pytest.approx(log, rel=1e-6, nan_ok=True) and len(log) > 20
    assert purged == [1]


class FakeRun:
    def __init__(self, calls):
        self.calls = calls

    def log(self, values, step):
        self.calls += [((name, step), value) for name, value in values.items()]

    def finish(self):
        self.calls.append("finished")


def test_wandb_is_offline_unless_it_is_told_otherwise_and_keeps_its_id(tmp_path, monkeypatch):
    asked, calls = [], []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: asked.append(options) or FakeRun(calls)
    fake.Settings = dict
    fake.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    stage = run(tmp_path, "wandb(project='lungs')")
    assert calls.pop() == "finished"
    assert {k: v for k, v in calls if v == v} == logged(stage)
    [first] = asked
    assert (first["mode"], first["project"], first["group"]) == ("offline", "lungs", "run")
    assert first["name"] == "run/seed_0/target_only/target" and first["config"]["seeds"] == (0,)

    again = writers.wandb(stage, tiny(), mode="online")
    again.write(1, {"loss": 1.0})
    assert asked[1]["mode"] == "online" and asked[1]["id"] == first["id"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    writers.wandb(stage, tiny()).write(1, {})
    assert asked[2]["mode"] == "disabled"


def test_wandb_itself_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    writer = writers.wandb(tmp_path, tiny())
    writer.write(1, {"loss": 1.0})
    writer.close()
    [path] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    until = time.monotonic() + 20  # a process of its own writes the file
    while b"loss" not in path.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    assert b"loss" in path.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_the_log_and_the_config(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stage = run(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    number = naming.lasting_id(stage, "mlflow")
    kept = client.get_run(number)
    assert kept.data.params["stages.target.batch_size"] == "16"
    assert kept.info.status == "FINISHED"
    log = logged(stage)
    for name in ("loss", "val/auroc"):
        history = {(name, m.step): m.value for m in client.get_metric_history(number, name)}
        assert history == {k: v for k, v in log.items() if k[0] == name}
    again = writers.mlflow(stage, tiny())
    again.write(1000, {"loss": 0.5, "recall of 50 %": 1.0})
    again.close()
    assert client.get_run(number).data.metrics["loss"] == 0.5


@pytest.mark.parametrize("name, module", [("tensorboard", "tensorboardX"), ("mlflow", "mlflow")])
def test_a_missing_library_is_named_before_anything_is_trained(name, module, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == module else find(n, *a)
    )
    config = tiny(loggers=("mine.py:Csv", name))
    wanted = rf'config.loggers\[1\] is .{name}., which needs {module}: pip install "medtl\[{name}\]'
    with pytest.raises(UserError, match=wanted):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check.check_fields(config)  # what is trained can be read without it


def test_a_wrong_name_is_refused_by_the_nearest():
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        check.check_fields(tiny(loggers=("tensorbord",)))
