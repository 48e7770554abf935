"""Faults of a run: found before training where that is possible, and the rest ends it at once."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from opened import rows_of
from tiny_run import tiny

from medtl import config as configs
from medtl.data import loading
from medtl.errors import UserError
from medtl.experiment import experiment
from medtl.models import saliency
from medtl.training.checkpoint import Store
from medtl.training.loop import order_seed

TESTS = Path(__file__).parent


def refuse(config, folder, message):
    """Assert that the config is refused before anything is written."""
    with pytest.raises(UserError, match=message):
        experiment.train(config, folder / "run")
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stages__target__optimizer", "adamm", "stages.target.optimizer.*did you mean 'adam"),
        ("stages__source__schedule", "cosine_decay(", "stages.source.schedule"),
        (
            "objective__lambda_schedule",
            "linear_schedul(0.0, 1.0, 10)",
            "lambda_schedule.*linear_schedule",
        ),
        (
            "objective__losses__main__loss",
            "crossentropy",
            "losses.main.loss.*did you mean 'cross_entropy'",
        ),
        ("objective__losses__main__loss", "cross_entropy(smoothing=0.1)", "label_smoothing"),
    ],
)
def test_what_optax_or_a_loss_refuses_is_found_before_data_is_read(
    tmp_path, monkeypatch, field, value, message
):
    monkeypatch.setattr(experiment, "load_data", lambda _: pytest.fail("data was read"))
    refuse(tiny(**{field: value}), tmp_path, message)


@pytest.mark.parametrize("section", ["evaluation__tune", "sweep__grid"])
def test_a_plug_in_string_to_try_is_refused_before_data_is_read(tmp_path, monkeypatch, section):
    """Otherwise the last trial would fail after all others were trained."""
    monkeypatch.setattr(experiment, "load_data", lambda _: pytest.fail("data was read"))
    grid = configs.grid({"stages.target.optimizer": ("adam", "adamm")})
    refuse(tiny(**{section: grid}), tmp_path, r"stages\.target\.optimizer.*did you mean 'adam")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return outputs.nothing", r"losses\.main\.loss.*line 3: AttributeError"),
        ("return None", r"returns None; it must return f32\[4\]"),
        ("return cross_entropy(outputs, batch).mean()", r"returns shape \(\); it must return one"),
        ("return outputs.logits.argmax(-1)", r"returns int32; it must return f32\[4\]"),
    ],
)
def test_a_mistake_in_a_user_s_loss_is_found_before_training(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(
        f"from medtl.losses import cross_entropy\ndef loss(outputs, batch):\n    {body}\n"
    )
    config = tiny(arms=("scratch",), objective__losses__main__loss=f"{tmp_path / 'mine.py'}:loss")
    refuse(config, tmp_path, message)


def test_a_schedule_that_makes_lambda_negative_is_refused(tmp_path):
    config = tiny(objective__lambda_schedule="linear_schedule(1.0, -5.0, 3)")
    refuse(config, tmp_path, r"λ = -1 at step 1; it must stay at least 0")


def test_a_target_without_val_and_test_is_refused(tmp_path):
    config = tiny(arms=("scratch",))
    config.data.target.split = (1.0, 0.0, 0.0)
    refuse(config, tmp_path, "neither a val nor a test split")


def test_a_batch_smaller_than_the_devices_is_refused_before_training(tmp_path):
    if jax.local_device_count() < 2:
        pytest.skip("needs several devices")
    config = tiny(parallel="pmap", arms=("scratch",))
    config.stages.target.batch_size = 1
    message = r"config\.stages\.target\.batch_size is 1, less than the 8 devices"
    refuse(config, tmp_path, message)


def row_first_seen_at_step_3(config):
    """Return a train row that the third step of the target stage is the first to take."""
    target = experiment.load_data(config)["target"]
    seed = order_seed(config.seeds[0], "target", "target")
    batches = loading.train_batches(target, "train", 16, seed=seed)
    first, second, third = (set(next(batches)["index"].tolist()) for _ in range(3))
    return min(third - second - first)


def nan_loss(folder, config):
    """Return the plug-in string of a loss that is NaN in step 3 alone."""
    (folder / "losses.py").write_text(
        "import jax.numpy as jnp\n"
        "from medtl.losses import cross_entropy\n"
        "def breaks(outputs, batch, *, row):\n"
        "    return jnp.where(batch['index'] == row, jnp.nan, cross_entropy(outputs, batch))\n"
    )
    return f"{folder / 'losses.py'}:breaks(row={row_first_seen_at_step_3(config)})"


def test_nan_stops_the_run_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny(arms=("scratch",), checkpoint__every_steps=1)
    config.objective.losses.main.loss = nan_loss(tmp_path, config)
    message = r"step 3: main/target is nan.*Last good checkpoint: .*/checkpoints/2"
    with pytest.raises(UserError, match=message):
        experiment.train(config, tmp_path / "run")
    with Store(tmp_path / "run/seed_0/scratch/target") as store:
        arrays = store.arrays(2)
    assert all(np.isfinite(a).all() for n, a in arrays.items() if n.startswith("params/"))


def test_a_parameter_that_becomes_nan_in_the_last_update_stops_the_run(tmp_path):
    """Adam without epsilon divides 0 by 0 where a gradient is 0; the loss before is finite."""
    config = tiny(arms=("scratch",))
    config.stages.target.update(optimizer="adam(eps=0.0)", epochs=1, batch_size=35)
    config.model.hidden = (64,)
    with pytest.raises(UserError, match="step 1: update_norm is nan"):
        experiment.train(config, tmp_path / "run")


def test_a_failing_grad_cam_leaves_all_results_and_a_note(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no feature map\nhere")

    monkeypatch.setattr(saliency, "grad_cam", fail)
    result = experiment.train(tiny(arms=("scratch",)), tmp_path / "run")
    note = "Note: the report shows no Grad-CAM maps: RuntimeError: no feature map here"
    assert note in capsys.readouterr().out.splitlines()
    assert len(rows_of(tmp_path / "run")) == sum(
        entry["n"] for entry in result["arms"]["scratch"].values()
    )
    written = json.loads((tmp_path / "run/metrics.json").read_text())
    assert written["evaluation"]["errors"]
    # The mistakes are shown with their images, without maps.
    [path] = tmp_path.glob("run/**/errors.json")
    mistakes = json.loads(path.read_text())
    assert all("image" in m and "saliency" not in m for m in mistakes)
    assert mistakes[0]["image"] in (tmp_path / "run/report.html").read_text()


def test_predictions_are_on_disk_before_the_report_is_made(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("medtl.experiment.results.write", fail)
    with pytest.raises(ZeroDivisionError):
        experiment.train(tiny(arms=("scratch",)), tmp_path / "run")
    assert {r["split"] for r in rows_of(tmp_path / "run")} == {"val", "test"}


# A command line whose data is streamed, so that a thread makes its batches when the fault comes.
PROGRAM = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from tiny_run import tiny
    from medtl import cli
    from medtl.training.checkpoint import Store

    def full(self, step, *args, **options):
        raise OSError({errno}, "No space left on device", str(self.folder))

    if {disk_is_full}:
        Store.save = full
    code = cli.run(sys.argv[1:])
    print("returned", time.time(), flush=True)
    sys.exit(code)
"""


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("nan", 2, "step 3: main/target is nan"),
        ("full disk", 1, "No space left on device; free space there, or give another --workdir"),
    ],
)
def test_a_failing_run_ends_its_process_within_seconds(tmp_path, fault, code, message):
    config = tiny(arms=("scratch",), data__resident="never")
    loss = nan_loss(tmp_path, config) if fault == "nan" else "cross_entropy"
    (tmp_path / "mine.py").write_text(
        "from tiny_run import tiny\n\n\ndef get_config():\n"
        "    return tiny(arms=('scratch',), data__resident='never',\n"
        f"                objective__losses__main__loss={loss!r})\n"
    )
    program = textwrap.dedent(PROGRAM).format(
        tests=str(TESTS), errno=errno.ENOSPC, disk_is_full=fault == "full disk"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--config=mine.py", "--workdir=run"],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "XLA_FLAGS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    ended = time.time()
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    returned = float(done.stdout.split("returned ")[1])
    assert ended - returned < 10


# Saves to file systems of several sizes, all of which are full before the last step.
FULL_DISKS = """
    import gc, pathlib, subprocess, sys
    import numpy as np
    from medtl import files
    from medtl.training.checkpoint import Store

    folder = pathlib.Path(sys.argv[1])
    state = {f"k{i}": np.random.rand(50, 50).astype(np.float32) for i in range(12)}
    for size in (4, 12, 20, 60, 140, 200, 260):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
        if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
            sys.exit("cannot mount")
        try:
            with Store(folder) as store:
                for step in range(1, 10):
                    store.save(step, state, {}, score=float(step))
        except Exception as error:
            print(size, files.fault(error))
        finally:
            gc.collect()
            subprocess.run(["umount", "-l", str(folder)], check=True)
"""


def test_a_full_disk_is_one_error_that_save_raises_and_nothing_else_is_printed(tmp_path):
    """Orbax and tensorstore log tracebacks of their threads, up to 40 for one full disk."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISKS), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "cannot mount" in done.stderr:
        pytest.skip("a file system of a given size needs the right to mount one")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == [4, 12, 20, 60, 140, 200, 260]
    assert all("No space left on device; free space there" in line for line in lines)
