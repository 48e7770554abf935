import json
import os
import stat
import subprocess
import sys

import pytest

from medtl import config as configs
from medtl import files
from medtl.errors import UserError
from medtl.experiment import run_folder


def test_the_config_comes_back_equal_and_of_equal_types(tmp_path):
    config = configs.default()
    config.objective.lambda_ = 0.1 + 0.2
    config.model.hidden = (1024, 256)
    run_folder.prepare(tmp_path / "a" / "run", config)

    stored = run_folder.load_config(tmp_path / "a" / "run")

    assert stored.to_dict() == config.to_dict()
    assert type(stored.model.hidden) is tuple
    assert type(stored.objective.lambda_) is float
    assert type(stored.stages.target.epochs) is int
    assert stored.is_locked


def test_the_file_is_sorted_json_and_the_only_one(tmp_path):
    run_folder.prepare(tmp_path, configs.default())

    assert os.listdir(tmp_path) == ["config.json"]
    text = (tmp_path / "config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_an_equal_config_resumes_and_changes_nothing(tmp_path):
    run_folder.prepare(tmp_path, configs.default())
    (tmp_path / "metrics.json").write_text("{}")
    before = (tmp_path / "config.json").stat().st_mtime_ns

    run_folder.prepare(tmp_path, configs.default())

    assert (tmp_path / "config.json").stat().st_mtime_ns == before


def test_another_config_is_refused_with_the_first_three_fields_that_differ(tmp_path):
    run_folder.prepare(tmp_path, configs.default())
    other = configs.default()
    other.seeds = (0, 1)
    other.stages.target.epochs = 2
    other.augment.flip = False
    other.name = "other"
    other.stages.source.optimizer = "sgd"

    with pytest.raises(UserError) as error:
        run_folder.prepare(tmp_path, other)

    message = str(error.value)
    assert (
        "augment.flip is True there and False here; name is 'phantom' there and 'other' here; "
        in message
    )
    assert "seeds is (0,) there and (0, 1) here; and 2 more\n" in message
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
        run_folder.prepare(tmp_path, configs.default())

    assert os.listdir(tmp_path) == [name]


def test_hidden_files_do_not_make_a_folder_somebody_elses(tmp_path):
    (tmp_path / ".DS_Store").touch()
    run_folder.prepare(tmp_path, configs.default())
    assert (tmp_path / "config.json").exists()


def test_check_writes_nothing(tmp_path):
    run_folder.check(tmp_path / "new", configs.default())
    assert not (tmp_path / "new").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        run_folder.prepare(tmp_path / "run", configs.default())
    with pytest.raises(UserError, match="is a file; give a folder"):
        run_folder.prepare(tmp_path / "run" / "inner", configs.default())


def test_no_run_names_the_nearest(tmp_path):
    run_folder.prepare(tmp_path / "covid", configs.default())
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
    code = f"from medtl import workdir\nwith run_folder.locked({str(tmp_path)!r}): pass"
    with run_folder.locked(tmp_path):
        second = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
    assert "is in use by another run" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
