"""The whole run on tiny phantoms: what it writes, what it resumes, what it hands on, what it refuses."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny

from medtl.config import dataset
from medtl.data import loading
from medtl.data.augment import Augmentation
from medtl.errors import UserError
from medtl.experiment import experiment, inference
from medtl.experiment.arm import Run
from medtl.training.checkpoint import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, experiment.train(tiny(), folder)


def test_files_have_the_promised_form(finished):
    folder, returned = finished
    written = json.loads((folder / "metrics.json").read_text())
    assert written["arms"].keys() == {"transfer", "scratch"}
    assert written["arms"]["transfer"].keys() == {"val", "test"}
    names = {"n", "accuracy", "balanced_accuracy", "f1_macro", "auroc", "auprc", "loss"}
    assert names <= written["arms"]["transfer"]["test"].keys()
    assert {"config", "versions", "seconds"} <= written.keys()
    assert written["arms"]["scratch"]["test"]["loss"] == returned["arms"]["scratch"]["test"]["loss"]
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = [
        "arm",
        "split",
        "id",
        "label",
        "prob_healthy",
        "prob_infiltrate",
        "prob_nodule",
        "patient_id",
    ]
    assert list(rows[0]) == columns
    sizes = {split: written["arms"]["transfer"][split]["n"] for split in ("val", "test")}
    assert len(rows) == 2 * sum(sizes.values())
    assert len({(r["arm"], r["id"]) for r in rows}) == len(rows)
    assert all(
        abs(sum(float(v) for k, v in r.items() if k.startswith("prob_")) - 1) < 1e-6 for r in rows
    )


def test_arms_take_the_same_number_of_steps(finished):
    folder, _ = finished
    transfer = sum(Store(folder / "seed_0/transfer" / s).last_step for s in ("source", "target"))
    assert Store(folder / "seed_0/scratch/target").last_step == transfer


def test_a_finished_run_is_not_trained_again(finished):
    folder, first = finished
    predictions = (folder / "predictions.csv").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("seed_*/*/*/log.jsonl")}
    for again in (experiment.train, experiment.evaluate):
        assert again(tiny(), folder)["arms"] == first["arms"]
    assert (folder / "predictions.csv").read_bytes() == predictions
    assert {p: p.stat().st_mtime_ns for p in folder.glob("seed_*/*/*/log.jsonl")} == stamps


def test_evaluate_before_training_says_so(tmp_path):
    with pytest.raises(UserError, match="train first"):
        experiment.evaluate(tiny(), tmp_path)


def test_another_config_is_refused_and_changes_nothing(finished):
    folder, _ = finished
    before = (folder / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"objective\.lambda_ is 1\.0 there and 3\.0 here"):
        experiment.train(tiny(objective__lambda_=3.0), folder)
    assert (folder / "config.json").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused_by_name(finished):
    folder, _ = finished
    other = {"params": {"backbone": {"conv2": np.zeros(3, np.float32)}}}
    expected = pytest.raises(UserError, match=r"of another model .* is not in it")
    with Store(folder / "seed_0/transfer/target") as store, expected:
        store.restore(store.chosen_step(), other)


def test_the_record_says_what_the_stage_is(finished):
    folder, _ = finished
    with Store(folder / "seed_0/transfer/target") as store:
        record = store.record(store.chosen_step())
    assert record["classes"]["target"] == ["healthy", "infiltrate", "nodule"]
    assert record["normalization"]["name"] == "centered"
    assert {"config", "versions", "split_hash", "weights", "tree", "epsilon"} <= record.keys()


def test_predict_scores_images_as_evaluation_did(finished, tmp_path):
    """The same pixels through the manifest give the same probabilities: PNG is exact."""
    from PIL import Image

    folder, _ = finished
    config = tiny()
    examples = experiment.load_data(config)["target"]
    chosen = examples.indices("test")[:7]
    with (tmp_path / "new.csv").open("w") as file:
        file.write("image_path\n")
        for i in chosen:
            Image.fromarray(examples.image[i][..., 0]).save(tmp_path / f"{i}.png")
            file.write(f"{i}.png\n")
    out = inference.predict(folder, manifest=tmp_path / "new.csv", output=tmp_path / "scored.csv")
    with out.open() as file:
        scored = list(csv.DictReader(file))
    with (folder / "predictions.csv").open() as file:
        known = {
            r["id"]: r
            for r in csv.DictReader(file)
            if r["arm"] == "transfer" and r["split"] == "test"
        }
    assert [r["id"] for r in scored] == [f"{i}.png" for i in chosen]
    assert all(r["label"] == "" for r in scored)
    for row, i in zip(scored, chosen, strict=True):
        for name in ("prob_healthy", "prob_nodule"):
            assert float(row[name]) == pytest.approx(
                float(known[str(examples.id[i])][name]), rel=1e-5
            )


def test_an_exported_backbone_is_where_the_next_run_starts(finished, tmp_path):
    folder, _ = finished
    inference.export(folder, tmp_path / "backbone.safetensors")
    stored = inference.load_checkpoint(folder)
    config = tiny(weights__path=str(tmp_path / "backbone.safetensors"), arms=("target_only",))
    config.stages.target.epochs = 0
    result = experiment.train(config, tmp_path / "next")
    again = inference.load_checkpoint(tmp_path / "next")
    for a, b in zip(
        *(map(np.asarray, _leaves(s.variables["params"]["backbone"])) for s in (stored, again)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    assert again.normalization == stored.normalization
    assert result["arms"]["target_only"]["test"]["n"] > 0


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_cached_features_give_what_images_give(finished, tmp_path, monkeypatch):
    """A frozen backbone: training the head on features computed once is training it on images."""
    folder, _ = finished
    inference.export(folder, tmp_path / "backbone.safetensors")
    found = {}
    for cached in (True, False):
        config = tiny(
            weights__path=str(tmp_path / "backbone.safetensors"),
            arms=("transfer",),
            augment__flip=False,
        )
        for name in ("source", "target"):
            config.stages[name].update(freeze="backbone", batch_norm="frozen")
        if not cached:
            # As if something were varied, so that every step runs the images through the backbone.
            monkeypatch.setattr(Augmentation, "is_identity", property(lambda _: False))
        experiment.train(config, tmp_path / str(cached))
        rows = csv.DictReader((tmp_path / str(cached) / "predictions.csv").read_text().splitlines())
        found[cached] = np.array(
            [[float(v) for k, v in r.items() if k.startswith("prob_")] for r in rows]
        )
    np.testing.assert_allclose(found[True], found[False], atol=1e-5)


def test_data_on_the_device_gives_what_data_from_the_host_gives_and_resumes_bit_for_bit(
    tmp_path, monkeypatch
):
    results = {}
    for resident in ("never", "always"):
        config = tiny(data__resident=resident, parallel="pmap")
        results[resident] = experiment.train(config, tmp_path / resident)
    for arm in ("transfer", "scratch"):
        a, b = (results[r]["arms"][arm]["test"] for r in ("never", "always"))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)

    save = Store.save
    calls = []

    def stopped(self, step, *args, **options):
        save(self, step, *args, **options)
        calls.append(step)
        if len(calls) == 3:
            self.wait()
            raise KeyboardInterrupt

    config = tiny(data__resident="always", parallel="pmap")
    monkeypatch.setattr(Store, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.train(config, tmp_path / "stopped")
    monkeypatch.setattr(Store, "save", save)
    experiment.train(config, tmp_path / "stopped")
    for name in ("predictions.csv", "seed_0/transfer/target/log.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (
            tmp_path / "always" / name
        ).read_bytes()


def test_source_and_target_with_different_classes_get_a_head_each(tmp_path):
    """A user's own source with two classes of its own, transferred to the three of the target."""
    (tmp_path / "mine.py").write_text(
        "import dataclasses\nimport numpy as np\nfrom medtl.data import phantom\n"
        "def load(spec, *, image_size, channels, resize):\n"
        "    e = phantom.examples(80, scanner='a', seed=5, image_size=image_size, channels=channels, split=(0.6, 0.2, 0.2))\n"
        "    return dataclasses.replace(e, label=np.minimum(e.label, 1).astype(np.int32), classes=('healthy', 'lesion'))\n"
    )
    config = tiny(
        arms=("transfer",),
        model__prior_bias=True,
        model__hidden=(8,),
        model__dropout=0.2,
        model__dtype="bfloat16",
    )
    config.data.source = dataset(str(tmp_path / "mine.py:load"))
    experiment.train(config, tmp_path / "run")
    variables = inference.load_checkpoint(tmp_path / "run").variables
    heads = variables["params"]["heads"]
    assert heads["source"]["logits"]["bias"].shape == (2,)
    assert heads["target"]["logits"]["bias"].shape == (3,)


def test_several_diagnoses_an_example_with_moving_average_and_accumulation(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 40), ("val", 20), ("test", 20)):
        label = rng.integers(0, 2, (n, 3)).astype(np.uint8)
        image = rng.integers(0, 100, (n, 16, 16), dtype=np.uint8) + (
            80 * label[:, :1, None]
        ).astype(np.uint8)
        arrays |= {f"{split}_images": image, f"{split}_labels": label}
    np.savez(tmp_path / "chest.npz", **arrays)
    config = tiny(arms=("scratch",))
    config.data.target = dataset("npz", path=str(tmp_path / "chest.npz"), multi_label=True)
    config.stages.target.update(
        ema=0.9, accumulate=2, clip_norm=1.0, optimizer="sgd(momentum=0.9)", weight_decay=0.01
    )
    with pytest.raises(UserError, match="use 'sigmoid_binary_cross_entropy'"):
        experiment.train(config, tmp_path / "refused")
    config.objective.losses.main.loss = "sigmoid_binary_cross_entropy"
    result = experiment.train(config, tmp_path / "run")
    assert result["arms"]["scratch"]["test"]["n"] == 20
    assert 0 <= result["arms"]["scratch"]["test"]["auroc"] <= 1
    averaged = inference.load_checkpoint(tmp_path / "run")
    with Store(tmp_path / "run/seed_0/scratch/target") as store:
        arrays = store.arrays(store.chosen_step())
    np.testing.assert_array_equal(
        averaged.variables["params"]["backbone"]["conv1"]["kernel"],
        arrays["ema/backbone/conv1/kernel"],
    )


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_an_evaluation_that_is_not_the_best_is_not_saved_unless_it_is_time(
    seconds, tmp_path, monkeypatch
):
    saved, scores = [], iter([0.5, 0.4, 0.6, 0.6, 0.1])
    save = Store.save
    monkeypatch.setattr(
        Store,
        "save",
        lambda self, step, *rest, **kw: (saved.append(step), save(self, step, *rest, **kw)),
    )
    monkeypatch.setattr("medtl.train.SAVE_SECONDS", seconds)
    monkeypatch.setattr(Run, "_evaluate", lambda *_, **__: ({}, next(scores)))
    config = tiny(arms=("scratch",), evaluation__times=5)
    config.stages.target.epochs = 5
    experiment.train(config, tmp_path / "run")
    every = saved[0]
    expected = [1, 2, 3, 4, 5] if seconds == 0 else [1, 3, 5]
    assert saved == [k * every for k in expected]
    with Store(tmp_path / "run/seed_0/scratch/target") as store:
        assert store.steps() == [3 * every, 5 * every] and store.chosen_step() == 3 * every


def test_nan_stops_the_run_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    """A loss that is NaN for one example, which the third step is the first to see."""
    config = tiny(arms=("scratch",), checkpoint__every_steps=1)
    target = experiment.load_data(config)["target"]
    batches = loading.train_batches(
        target, "train", 16, seed=3
    )  # seed 0, target stage, target domain
    seen = [set(next(batches)["index"].tolist()) for _ in range(3)]
    row = min(seen[2] - seen[1] - seen[0])
    (tmp_path / "losses.py").write_text(
        "import jax.numpy as jnp\nfrom medtl.losses import cross_entropy\n"
        "def breaks(outputs, batch, *, row):\n"
        "    return jnp.where(batch['index'] == row, jnp.nan, cross_entropy(outputs, batch))\n"
    )
    config.objective.losses.main.loss = f"{tmp_path / 'losses.py'}:breaks(row={row})"
    with pytest.raises(
        UserError, match=r"step 3: main/target is nan.*Last good checkpoint: .*/checkpoints/2"
    ):
        experiment.train(config, tmp_path / "run")
    with Store(tmp_path / "run/seed_0/scratch/target") as store:
        arrays = store.arrays(2)
    assert all(np.isfinite(a).all() for n, a in arrays.items() if n.startswith("params/"))


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
def test_what_optax_or_a_loss_refuses_is_found_before_anything_is_read(
    tmp_path, field, value, message
):
    with pytest.raises(UserError, match=message):
        experiment.train(tiny(**{field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return outputs.nothing", r"losses\.main\.loss .*line 3: AttributeError"),
        ("return None", "gives None; it must give f32"),
        ("return cross_entropy(outputs, batch).mean()", r"gives shape \(\)"),
        ("return outputs.logits.argmax(-1)", "it must give f32"),
    ],
)
def test_a_mistake_in_a_loss_of_ones_own_is_found_before_training(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(
        f"from medtl.losses import cross_entropy\ndef loss(outputs, batch):\n    {body}\n"
    )
    config = tiny(arms=("scratch",), objective__losses__main__loss=f"{tmp_path / 'mine.py'}:loss")
    with pytest.raises(UserError, match=message):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_makes_lambda_negative_is_refused(tmp_path):
    config = tiny(objective__lambda_schedule="linear_schedule(1.0, -5.0, 3)")
    with pytest.raises(UserError, match=r"λ = -1 at step 1; it must stay at least 0"):
        experiment.train(config, tmp_path / "run")


def test_a_parameter_that_becomes_nan_in_the_last_update_stops_the_run(tmp_path):
    """Adam without epsilon divides 0 by 0 where a gradient is 0; the loss, taken before the update, is still finite."""
    config = tiny(arms=("scratch",))
    config.stages.target.update(optimizer="adam(eps=0.0)", epochs=1, batch_size=35)
    config.model.hidden = (64,)
    with pytest.raises(UserError, match="step 1: update_norm is nan"):
        experiment.train(config, tmp_path / "run")


def test_other_data_under_a_finished_run_is_refused(tmp_path):
    """The same command, but train and test have changed places: the test rows were trained on."""
    from PIL import Image

    examples = experiment.load_data(tiny())["target"]
    lines = []
    for i in range(40):
        Image.fromarray(examples.image[i][..., 0]).save(tmp_path / f"{i}.png")
        lines.append((f"{i}.png", examples.classes[examples.label[i]]))

    def write(splits):
        rows = [f"{p},{d},{splits[i % 2]}" for i, (p, d) in enumerate(lines)]
        (tmp_path / "m.csv").write_text("image_path,diagnosis,split\n" + "\n".join(rows) + "\n")

    config = tiny(arms=("scratch",))
    config.data.target = dataset("manifest", path=str(tmp_path / "m.csv"))
    write(("train", "test"))
    experiment.train(config, tmp_path / "run")
    write(("test", "train"))
    with pytest.raises(UserError, match="the split has changed since"):
        experiment.train(config, tmp_path / "run")


def test_a_target_without_val_and_test_is_refused(tmp_path):
    config = tiny(arms=("scratch",))
    config.data.target.split = (1.0, 0.0, 0.0)
    with pytest.raises(UserError, match="neither a val nor a test split"):
        experiment.train(config, tmp_path / "run")


def test_a_batch_smaller_than_the_devices_is_refused_before_training(tmp_path):
    import jax

    if jax.local_device_count() < 2:
        pytest.skip("needs several devices")
    config = tiny(parallel="pmap", arms=("scratch",))
    config.stages.target.batch_size = 1
    with pytest.raises(
        UserError, match=r"config\.stages\.target\.batch_size is 1, less than the 8 devices"
    ):
        experiment.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path):
    """SIGKILL in mid-epoch, the same command again: parameters, metrics and predictions agree bit for bit."""
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        "--config.data.image_size=16",
        "--config.data.source.size=90",
        "--config.data.target.size=90",
        "--config.data.target.split=0.4,0.3,0.3",
        "--config.model.stages=1",
        "--config.model.dropout=0.2",
        "--config.augment.noise=0.02",
        "--config.stages.source.epochs=20",
        "--config.stages.target.epochs=60",
        "--config.stages.target.ema=0.9",
        "--config.checkpoint.every_steps=7",
        "--config.arms=transfer",
        "--config.evaluation.times=5",
    ]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}

    def start(folder):
        return subprocess.Popen(
            [*command, f"--workdir={folder}"],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    whole = start(tmp_path / "whole")
    output = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, output

    killed = start(tmp_path / "killed")
    log = tmp_path / "killed/seed_0/transfer/target/log.jsonl"
    deadline = time.monotonic() + 300
    # Past an evaluation, so that there is a best checkpoint to keep, and before the next.
    while not (log.exists() and log.read_text().count('"val"') >= 2):
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed/metrics.json").exists(), "it was not killed in time"

    again = start(tmp_path / "killed")
    output = again.communicate(timeout=300)[0]
    assert again.returncode == 0, output
    a, b = (tmp_path / name for name in ("whole", "killed"))
    assert (a / "predictions.csv").read_bytes() == (b / "predictions.csv").read_bytes()
    metrics = [json.loads((f / "metrics.json").read_text()) for f in (a, b)]
    assert metrics[0]["arms"] == metrics[1]["arms"]
    for name in ("source", "target"):
        states = []
        for folder in (a, b):
            with Store(folder / "seed_0/transfer" / name) as store:
                assert store.steps() == Store(a / "seed_0/transfer" / name).steps()
                states.append({s: store.arrays(s) for s in store.steps()})
            states[-1]["log"] = (folder / "seed_0/transfer" / name / "log.jsonl").read_text()
        assert states[0].pop("log") == states[1].pop("log")
        for step, arrays in states[0].items():
            for key, value in arrays.items():
                np.testing.assert_array_equal(
                    value, states[1][step][key], err_msg=f"{name} {step} {key}"
                )
