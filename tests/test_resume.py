"""A run that was stopped ends as if it had not been, and refuses to go on with anything changed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from opened import backbone_file
from PIL import Image
from tiny_run import tiny

from medtl.config import dataset
from medtl.errors import UserError
from medtl.experiment import experiment, inference, run_folder
from medtl.training.checkpoint import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, experiment.train(tiny(arms=("transfer",)), folder)


def train_until(save_number, config, folder, monkeypatch):
    """Train, and stop the run as Ctrl-C does after this many checkpoints."""
    save, steps = Store.save, []

    def stopped(self, step, *args, **options):
        save(self, step, *args, **options)
        steps.append(step)
        if len(steps) == save_number:
            self.wait()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            experiment.train(config, folder)


def change_json(path, change):
    """Rewrite a JSON file; `change(content)` changes it in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def records(folder):
    return list(folder.glob("seed_*/**/checkpoints/*/record/metadata"))


def test_resident_data_trains_like_streamed_data_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    config = tiny(data__resident="always", parallel="pmap")
    resident = experiment.train(config, tmp_path / "resident")
    streamed = experiment.train(
        tiny(data__resident="never", parallel="pmap"), tmp_path / "streamed"
    )
    for arm in ("transfer", "scratch"):
        a, b = (result["arms"][arm]["test"]["loss"] for result in (streamed, resident))
        assert a == pytest.approx(b, rel=1e-4)
    train_until(3, config, tmp_path / "stopped", monkeypatch)
    experiment.train(config, tmp_path / "stopped")
    for name in ("predictions.csv", "seed_0/transfer/target/log.jsonl"):
        stopped, straight = (tmp_path / folder / name for folder in ("stopped", "resident"))
        assert stopped.read_bytes() == straight.read_bytes()


def test_a_checkpoint_that_a_killed_run_half_deleted_is_gone_after_the_next(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    checkpoints = folder / "seed_0/transfer/target/checkpoints"
    kept = sorted(path.name for path in checkpoints.iterdir())
    shutil.copytree(checkpoints / kept[0], checkpoints / "1")
    shutil.rmtree(checkpoints / "1/state")
    experiment.train(tiny(arms=("transfer",)), folder)
    assert sorted(path.name for path in checkpoints.iterdir()) == kept


def test_another_config_is_refused_and_changes_nothing(finished):
    folder, _ = finished
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"objective\.lambda_ is 1\.0 there and 3\.0 here"):
        experiment.train(tiny(arms=("transfer",), objective__lambda_=3.0), folder)
    assert (folder / "config.json").read_bytes() == before


def test_a_config_json_that_was_edited_by_hand_does_not_continue_the_checkpoints(tmp_path):
    config = tiny(arms=("transfer",))
    experiment.train(config, tmp_path)
    change_json(tmp_path / "config.json", lambda c: c["objective"].update(lambda_=3.0))
    edited = run_folder.load_config(tmp_path)
    assert edited.objective.lambda_ == 3.0
    expected = (
        r"the settings have changed since .*/transfer/source was trained: "
        r"objective\.lambda_ is 1\.0 there and 3\.0 here; put them back, or give another --workdir"
    )
    for again in (experiment.train, experiment.evaluate):
        with pytest.raises(UserError, match=expected):
            again(edited, tmp_path)


def as_version_0_1(config):
    """Turn a config, as JSON, into one of the fields that version 0.1 had."""
    for name in ("loggers", "sweep"):
        del config[name]
    for stage in config["stages"].values():
        del stage["sampler"]
    for path in ("augment.extra", "objective.terms", "model.encoders", "evaluation.metrics"):
        section, name = path.split(".")
        del config[section][name]
    del config["model"]["last_layer"]
    config["model"] |= {"stages": 1, "stride_in": "3x3", "classifier": False}
    phantoms = {
        "source": {"size": 90, "scanner": "a", "split": (0.6, 0.2, 0.2), "split_seed": 0},
        "target": {"size": 90, "scanner": "b", "split": (0.4, 0.3, 0.3), "split_seed": 1},
    }
    for domain, options in phantoms.items():
        config["data"][domain] |= {"kind": "phantom"} | options


NEWER = ("plugins", "checksums", "digest", "best")


def make_old(folder):
    """Rewrite the records of a run as version 0.1 wrote them."""
    change_json(folder / "config.json", as_version_0_1)
    for path in records(folder):
        change_json(path, lambda r: (as_version_0_1(r["config"]), [r.pop(n) for n in NEWER]))


def test_a_run_of_an_older_version_is_evaluated(finished, tmp_path):
    config = tiny(arms=("transfer",))
    first = experiment.train(config, tmp_path)
    make_old(tmp_path)
    stored = run_folder.load_config(tmp_path)
    assert run_folder.differences(stored, config) == []
    assert experiment.evaluate(stored, tmp_path)["arms"] == first["arms"]
    assert inference.load_checkpoint(tmp_path).config.to_dict() == config.to_dict()


def test_a_run_of_an_older_version_is_resumed(finished, tmp_path, monkeypatch):
    folder, first = finished
    config = tiny(arms=("transfer",))
    train_until(2, config, tmp_path, monkeypatch)
    assert records(tmp_path)
    make_old(tmp_path)
    assert experiment.train(config, tmp_path)["arms"] == first["arms"]
    again, straight = (f / "seed_0/transfer/target/log.jsonl" for f in (tmp_path, folder))
    assert again.read_bytes() == straight.read_bytes()


def test_a_checkpoint_of_another_model_is_refused_by_name(finished):
    folder, _ = finished
    other = {"params": {"encoders": {"image": {"conv2": np.zeros(3, np.float32)}}}}
    with (
        Store(folder / "seed_0/transfer/target") as store,
        pytest.raises(UserError, match=r"of another model .* is not in it"),
    ):
        store.restore(store.chosen_step(), other)


def write_manifest(folder, examples, splits):
    """Write a manifest of 40 images, whose splits alternate."""
    lines = ["image_path,diagnosis,split"]
    for i in range(40):
        Image.fromarray(examples.image[i][..., 0]).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{examples.classes[examples.label[i]]},{splits[i % 2]}")
    (folder / "m.csv").write_text("\n".join(lines) + "\n")


def test_a_run_is_refused_when_train_and_test_have_changed_places(tmp_path):
    """Otherwise the test rows were trained on."""
    examples = experiment.load_data(tiny())["target"]
    config = tiny(arms=("scratch",))
    config.data.target = dataset("manifest", path=str(tmp_path / "m.csv"))
    write_manifest(tmp_path, examples, ("train", "test"))
    experiment.train(config, tmp_path / "run")
    write_manifest(tmp_path, examples, ("test", "train"))
    with pytest.raises(UserError, match="the split has changed since"):
        experiment.train(config, tmp_path / "run")


def test_a_run_is_refused_when_its_weights_have_changed(tmp_path):
    path, other = (Path(backbone_file(tmp_path / f"{seed}", seed)) for seed in (0, 1))
    config = tiny(arms=("target_only",), weights__path=str(path))
    experiment.train(config, tmp_path / "run")
    path.write_bytes(other.read_bytes())
    with pytest.raises(UserError, match="the weights have changed since"):
        experiment.train(config, tmp_path / "run")


def test_a_run_is_refused_when_a_file_of_its_plug_ins_has_changed(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from medtl.losses import cross_entropy\nloss = cross_entropy\n")
    config = tiny(arms=("target_only",), objective__losses__main__loss=f"{file}:loss")
    experiment.train(config, tmp_path / "run")
    file.write_text(f"{file.read_text()}# another formula\n")
    with pytest.raises(UserError, match=r"mine\.py has changed since .* was trained; put it"):
        experiment.train(config, tmp_path / "run")


FLAGS = (
    "--config.data.image_size=16",
    "--config.data.source.kind=phantom(size=90)",
    "--config.data.target.kind=phantom(size=90, scanner='b', split=(0.4, 0.3, 0.3), seed=1)",
    "--config.model.last_layer=layer1",
    "--config.model.dropout=0.2",
    "--config.augment.noise=0.02",
    "--config.stages.source.epochs=20",
    "--config.stages.target.epochs=60",
    "--config.stages.target.ema=0.9",
    "--config.checkpoint.every_steps=7",
    "--config.arms=transfer",
    "--config.evaluation.times=5",
)


def start_run(folder):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *FLAGS, f"--workdir={folder}"],
        env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(run):
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output


def kill_after_an_evaluation(run, log):
    """Kill a run that has a best checkpoint and is not done: after its second evaluation."""
    deadline = time.monotonic() + 300
    while not (log.exists() and log.read_text().count('"val"') >= 2):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    run.communicate()


def checkpoints_and_log(folder):
    with Store(folder) as store:
        arrays = {step: store.arrays(step) for step in store.steps()}
    return arrays, (folder / "log.jsonl").read_text()


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been_killed(tmp_path):
    """SIGKILL in the middle of an epoch, then the same command again."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start_run(straight))
    kill_after_an_evaluation(start_run(killed), killed / "seed_0/transfer/target/log.jsonl")
    assert not (killed / "metrics.json").exists(), "it was not killed in time"
    finish(start_run(killed))
    first, again = ((f / "predictions.csv").read_bytes() for f in (straight, killed))
    assert first == again
    first, again = (json.loads((f / "metrics.json").read_text()) for f in (straight, killed))
    assert first["arms"] == again["arms"]
    for stage in ("source", "target"):
        (first, first_log), (again, again_log) = (
            checkpoints_and_log(f / "seed_0/transfer" / stage) for f in (straight, killed)
        )
        assert first_log == again_log
        assert first.keys() == again.keys()
        for step, arrays in first.items():
            assert arrays.keys() == again[step].keys()
            for name, values in arrays.items():
                np.testing.assert_array_equal(values, again[step][name], err_msg=f"{step} {name}")
