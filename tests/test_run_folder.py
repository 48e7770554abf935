import contextlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from medtl import config as configs
from medtl import files, plugins
from medtl.config import check
from medtl.errors import UserError
from medtl.experiment import run_folder

# The config of benchmarks/results/covid_ct_cv.json, as a run of an older version stored it.
OLD = json.loads("""
{"arm": {"pooled": {"init": "weights", "joint": true, "source_stage": false}, "scratch": {"init":
"random", "joint": false, "source_stage": false}, "sequential": {"init": "weights", "joint":
false, "source_stage": true}, "target_only": {"init": "weights", "joint": false, "source_stage":
false}, "transfer": {"init": "weights", "joint": true, "source_stage": true}}, "arms":
["transfer", "pooled", "sequential", "target_only"], "augment": {"brightness": 0.0, "contrast":
0.0, "crop": 1.0, "flip": false, "noise": 0.0, "rotation": 0.0}, "checkpoint": {"every_steps": 0,
"metric": "auroc", "select": "last"}, "data": {"cache": "auto", "cache_dir": "", "channels": 3,
"image_size": 224, "resident": "auto", "resize": "squash", "source": {"kind": "manifest", "label":
"diagnosis", "multi_label": false, "name": "", "path": "../shared/data/sao_paulo_ct/manifest.csv",
"scanner": "a", "size": 0, "split": [0.8, 0.2, 0.0], "split_seed": 0, "train_size": 0}, "target":
{"kind": "manifest", "label": "diagnosis", "multi_label": false, "name": "", "path":
"../shared/data/covid_ct/manifest.csv", "scanner": "a", "size": 0, "split": [0.7, 0.15, 0.15],
"split_seed": 0, "train_size": 0}, "workers": 0}, "evaluation": {"batch_size": 64, "coverage":
0.9, "folds": 5, "ordinal": false, "positive": "covid", "prevalence": 0.0, "reference": "",
"repeats": 3, "resamples": 2000, "sensitivity": 0.9, "specificity": 0.9, "target_sizes": [],
"threshold": "youden", "times": 10, "tune": {"lambda_": [], "learning_rate": [], "weight_decay":
[]}}, "model": {"classifier": false, "dropout": 0.0, "dtype": "float32", "heads": "auto",
"hidden": [], "name": "resnet50", "prior_bias": false, "remat": false, "stages": 3, "stride_in":
"1x1"}, "name": "covid_ct", "objective": {"lambda_": 1.0, "lambda_schedule": "", "losses":
{"main": {"loss": "cross_entropy", "weight": 1.0}}, "reduction": "mean"}, "parallel": "pmap",
"seeds": [0], "stages": {"source": {"accumulate": 1, "batch_norm": "frozen", "batch_size": 32,
"clip_norm": 0.0, "ema": 0.0, "epochs": 10, "freeze": "backbone", "learning_rate": 0.003,
"optimizer": "adam", "schedule": "constant", "source_batch_size": 0, "warmup": 0.0,
"weight_decay": 0.3}, "target": {"accumulate": 1, "batch_norm": "frozen", "batch_size": 32,
"clip_norm": 0.0, "ema": 0.0, "epochs": 150, "freeze": "backbone", "learning_rate": 0.003,
"optimizer": "adam", "schedule": "constant", "source_batch_size": 0, "warmup": 0.0,
"weight_decay": 0.3}}, "sweep": {"arm": "", "lambda_": [], "learning_rate": [], "solver": "train",
"weight_decay": []}, "weights": {"allow": [], "normalization": "auto", "path":
"../shared/weights/resnet50_imagenet_c4.safetensors", "sha256":
"d9d92c1a0946997e6b5b532cb479d1fc9b9257a1bfebd436cb050aa223029a93"}}
""")


def prepare(folder, config):
    with run_folder.opened(folder, config):
        pass


def test_the_config_comes_back_equal_and_of_equal_types(tmp_path):
    config = configs.default()
    config.objective.lambda_ = 0.1 + 0.2
    config.model.hidden = (1024, 256)
    prepare(tmp_path / "a" / "run", config)

    stored = run_folder.load_config(tmp_path / "a" / "run")

    assert stored.to_dict() == config.to_dict()
    assert type(stored.model.hidden) is tuple
    assert type(stored.objective.lambda_) is float
    assert type(stored.stages.target.epochs) is int
    assert stored.is_locked


def test_the_file_is_sorted_json_and_the_only_one(tmp_path):
    prepare(tmp_path, configs.default())

    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]
    text = (tmp_path / "config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_an_equal_config_resumes_and_changes_nothing(tmp_path):
    prepare(tmp_path, configs.default())
    (tmp_path / "metrics.json").write_text("{}")
    before = (tmp_path / "config.json").stat().st_mtime_ns

    prepare(tmp_path, configs.default())

    assert (tmp_path / "config.json").stat().st_mtime_ns == before


def test_another_config_is_refused_with_the_first_three_fields_that_differ(tmp_path):
    prepare(tmp_path, configs.default())
    other = configs.default()
    other.seeds = (0, 1)
    other.stages.target.epochs = 2
    other.augment.flip = False
    other.name = "other"
    other.stages.source.optimizer = "sgd"

    with pytest.raises(UserError) as error:
        prepare(tmp_path, other)

    message = str(error.value)
    assert (
        "augment.flip is True there and False here; name is 'phantom' there and 'other' here; "
        in message
    )
    assert "seeds is (0, 1, 2) there and (0, 1) here; and 2 more\n" in message
    assert "another --workdir" in message
    assert run_folder.load_config(tmp_path).to_dict() == configs.default().to_dict()


def test_a_field_that_one_config_lacks_is_a_difference():
    old = configs.default()
    del old.evaluation.times

    assert run_folder.differences(old, configs.default()) == [
        "evaluation.times is absent there and 10 here"
    ]


@pytest.mark.parametrize("name", ["notes.txt", "metrics.json"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")

    with pytest.raises(UserError, match="is not empty and holds no run"):
        prepare(tmp_path, configs.default())

    assert os.listdir(tmp_path) == [name]


def test_hidden_files_do_not_make_a_folder_somebody_elses(tmp_path):
    (tmp_path / ".DS_Store").touch()
    prepare(tmp_path, configs.default())
    assert (tmp_path / "config.json").exists()


def test_check_writes_nothing(tmp_path):
    run_folder.check(tmp_path / "new", configs.default())
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        prepare(tmp_path / "run", configs.default())
    with pytest.raises(UserError, match="is a file; give a folder"):
        prepare(tmp_path / "run" / "inner", configs.default())


def test_no_run_names_the_nearest(tmp_path):
    prepare(tmp_path / "covid", configs.default())
    with pytest.raises(
        UserError,
        match=r"there is no run in .*/covdi: it holds no config.json; did you mean '.*/covid'\?",
    ):
        run_folder.load_config(tmp_path / "covdi")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[1]"])
def test_a_damaged_config_is_the_users_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is (damaged|not a config)"):
        run_folder.load_config(tmp_path)


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("", "seeds", 2**63, "config.seeds is 9223372036854775808; it must be a tuple"),
        ("", "arms", [{}], "config.arms is .*; it must be names of arms"),
        ("", "arms", [["a"]], "config.arms is .*; it must be names of arms"),
        ("", "evaluation", [], "config.evaluation is .*; it must be a section"),
        ("data", "allow", [{}, {}], "config.data.allow is"),
        ("model", "name", {"a": 1}, "config.model.name is|unhashable"),
    ],
)
def test_a_stored_config_whose_values_no_field_can_have_is_named(
    tmp_path, section, name, value, words
):
    stored = configs.default().to_dict()
    (stored[section] if section else stored)[name] = value
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=rf"config\.json is damaged.*({words})"):
        run_folder.load_config(tmp_path)
    assert all(isinstance(t, str) for t in configs.plugin_strings(ConfigDict(stored)).values())


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path):
    path = tmp_path / "figures.txt"
    files.write_text(path, "first λ\r\n")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "x" * 100_000 + "\udc80")

    assert path.read_bytes() == "first λ\r\n".encode()
    assert os.listdir(tmp_path) == ["figures.txt"]


def test_a_written_file_has_the_modes_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    files.write_text(tmp_path / "written", "")
    assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


def test_a_folder_in_use_is_refused(tmp_path):
    """A second process, because a lock is a process's."""
    pytest.importorskip("fcntl")
    code = (
        "from medtl import config\nfrom medtl.experiment import run_folder\n"
        f"with run_folder.opened({str(tmp_path)!r}, config.default()): pass"
    )
    with run_folder.opened(tmp_path, configs.default()):
        second = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert "is in use by another run" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_lock_is_held_when_the_config_is_compared_and_written(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    order = []
    flock, write = fcntl.flock, files.write_text

    def locking(file, operation):
        if getattr(file, "name", "") == str(tmp_path / ".lock"):  # not that of a temporary file
            order.append("lock")
        return flock(file, operation)

    def writing(*args):
        order.append("write")
        return write(*args)

    compare = run_folder.differences
    monkeypatch.setattr(fcntl, "flock", locking)
    monkeypatch.setattr(files, "write_text", writing)
    monkeypatch.setattr(
        run_folder, "differences", lambda *a: order.append("compare") or compare(*a)
    )
    prepare(tmp_path, configs.default())
    assert order == ["lock", "write"]
    prepare(tmp_path, configs.default())
    assert order[2:] == ["compare", "lock", "compare"]


def test_another_config_that_arrives_before_the_lock_is_refused(tmp_path, monkeypatch):
    """The first of two commands writes its config between the second one's check and its lock."""
    fcntl = pytest.importorskip("fcntl")
    other = configs.default()
    other.name = "other"

    def late(*_):
        (tmp_path / "config.json").write_text(json.dumps(other.to_dict()))

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(UserError, match="name is 'other' there and 'phantom' here"):
        prepare(tmp_path, configs.default())


def test_the_lock_is_released_when_the_run_fails(tmp_path):
    with contextlib.suppress(ZeroDivisionError), run_folder.opened(tmp_path, configs.default()):
        raise ZeroDivisionError
    prepare(tmp_path, configs.default())


def test_a_run_of_an_older_version_is_opened_in_todays_fields(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    config = run_folder.load_config(tmp_path)

    assert config.model.name == "resnet50(stride_in='1x1')"
    assert config.model.last_layer == "layer3"
    assert config.data.source.split == (0.8, 0.2, 0.0)
    assert config.data.target.split == ()  # 70:15:15, now the kind's default
    assert config.seeds == (0,)
    assert config.stages.source.sampler == "shuffled"
    assert config.loggers == ()
    assert {"pooled", "scratch", "sequential", "target_only", "transfer"} < set(config.arm)
    for domain in ("source", "target"):  # the files are not part of the repository
        with config.unlocked():
            config.data[domain] = configs.dataset("phantom(size=90)")
    with config.unlocked():
        config.weights.path = config.weights.sha256 = ""
    check.check(config)
    prepare(tmp_path, run_folder.load_config(tmp_path))  # resumes


def test_a_config_of_an_older_version_equals_todays_config_of_the_same_experiment():
    path = Path(__file__).parents[1] / "configs/covid_ct.py"
    config = plugins.load_file(path, key="--config").get_config()
    config.evaluation.folds, config.evaluation.repeats, config.seeds = 5, 3, (0,)
    config.evaluation.threshold = "youden"  # the default of that time
    assert run_folder.differences(ConfigDict(configs.upgrade(OLD)), config) == []


@pytest.mark.parametrize(
    ("section", "old", "path", "new"),
    [
        (
            "model",
            {"name": "vgg16", "stages": 2, "classifier": False},
            "model.last_layer",
            "block2",
        ),
        (
            "model",
            {"name": "vgg16", "stages": 0, "classifier": True},
            "model.name",
            "vgg16(classifier=True)",
        ),
        ("model", {"name": "resnet18", "stages": 0, "stride_in": "3x3"}, "model.name", "resnet18"),
        ("stages", {"target": {"freeze": "2"}}, "stages.target.freeze", "layer2"),
        ("stages", {"target": {"freeze": "backbone"}}, "stages.target.freeze", "backbone"),
        (
            "data",
            {
                "target": {
                    "kind": "phantom",
                    "size": 700,
                    "scanner": "b",
                    "split": [0.1, 0.1, 0.8],
                    "split_seed": 1,
                }
            },
            "data.target",
            configs.default().data.target.to_dict(),
        ),
        ("data", {"target": {"kind": "npz", "size": 0, "scanner": "a"}}, "data.target.kind", "npz"),
        (
            "evaluation",
            {"tune": {"lambda_": [0.1, 1.0], "weight_decay": []}},
            "evaluation.tune",
            {"objective": {"lambda_": (0.1, 1.0)}},
        ),
        (
            "sweep",
            {"lambda_": [1], "learning_rate": [0.1]},
            "sweep.grid",
            configs.grid(
                {"objective.lambda_": (1,), "stages.target.learning_rate": (0.1,)}
            ).to_dict(),
        ),
    ],
)
def test_a_renamed_field_is_translated(section, old, path, new):
    stored = {"model": {"name": "cifar_resnet20", "stages": 0}} | {section: old}
    value = configs.upgrade(stored)
    for part in path.split("."):
        value = value[part]
    assert value == new


def test_todays_config_comes_back_equal_from_an_upgrade():
    config = configs.default()
    config.sweep.grid = configs.grid({"stages.target.freeze": ("none", "layer1")})
    config.objective.terms.mmd = {"term": "mine.py:mmd", "weight": 0.1}
    config.data.target = configs.dataset("npz", split=(0.7, 0.15, 0.15))
    assert configs.upgrade(json.loads(json.dumps(config.to_dict()))) == config.to_dict()
    assert ConfigDict(configs.upgrade({})) == configs.default()


def test_a_new_folder_is_the_user_s_alone_and_one_made_beforehand_keeps_its_mode(tmp_path):
    prepare(tmp_path / "new", configs.default())
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    prepare(tmp_path / "shared", configs.default())
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o755


def test_temporary_files_of_killed_writers_are_deleted_and_others_stay(tmp_path):
    prepare(tmp_path, configs.default())
    (tmp_path / "seed_0").mkdir()
    left = tmp_path / "seed_0" / ".predictions.csv.4711.0a1b2c3d.tmp"
    kept = [tmp_path / ".notes.tmp", tmp_path / "seed_0" / "log.jsonl"]
    for path in (left, *kept):
        path.touch()
    prepare(tmp_path, configs.default())
    assert not left.exists()
    assert all(path.exists() for path in kept)


def test_writing_a_file_again_deletes_what_a_killed_writer_of_it_left_and_no_other_s(tmp_path):
    left = tmp_path / ".report.html.4711.0a1b2c3d.tmp"
    other = tmp_path / ".report.md.4711.0a1b2c3d.tmp"
    for path in (left, other):
        path.touch()
    files.write_text(tmp_path / "report.html", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", other.name}


def test_two_writers_of_one_file_leave_each_other_s_temporary_files_alone(tmp_path):
    path = tmp_path / "report.html"
    with files.atomic(path, "w") as first:
        first.write("first")
        files.write_text(path, "second")  # meets the first writer's file, which is locked
        files.sweep_temporary(tmp_path)
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
