"""A run on small phantoms: the files that it writes, exports, predictions and cached features."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from opened import probabilities_of, rows_of
from PIL import Image
from tiny_run import tiny

from medtl.config import dataset
from medtl.data.augment import Augmentation
from medtl.errors import UserError
from medtl.experiment import experiment, inference
from medtl.training.checkpoint import Store
from medtl.training.evaluator import Validation


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, experiment.train(tiny(), folder)


def log_times(folder):
    return {p: p.stat().st_mtime_ns for p in folder.glob("seed_*/*/*/log.jsonl")}


def test_metrics_json_has_the_documented_form(finished):
    folder, returned = finished
    written = json.loads((folder / "metrics.json").read_text())
    assert written["arms"].keys() == {"transfer", "scratch"}
    assert written["arms"]["transfer"].keys() == {"val", "test"}
    names = {"n", "accuracy", "balanced_accuracy", "f1_macro", "auroc", "auprc", "loss"}
    assert names <= written["arms"]["transfer"]["test"].keys()
    assert {"config", "versions", "seconds"} <= written.keys()
    assert written["arms"]["scratch"]["test"]["loss"] == returned["arms"]["scratch"]["test"]["loss"]


def test_the_flow_of_a_run_holds_the_train_split_that_it_does_not_predict(finished):
    flow = finished[1]["evaluation"]["flow"]
    assert list(flow["splits"]) == ["train", "val", "test"]
    counted = sum(split["examples"] for split in flow["splits"].values())
    assert flow["labelled"] == counted and flow["rows"] == counted + flow["unlabelled"]
    assert flow["splits"]["train"]["examples"] > 0


def test_predictions_csv_has_one_row_for_each_arm_and_example(finished):
    folder, returned = finished
    rows = rows_of(folder)
    probabilities = ["prob_healthy", "prob_infiltrate", "prob_nodule"]
    assert list(rows[0]) == ["arm", "split", "id", "label", *probabilities, "patient_id"]
    sizes = [returned["arms"]["transfer"][split]["n"] for split in ("val", "test")]
    assert len(rows) == 2 * sum(sizes)
    assert len({(r["arm"], r["id"]) for r in rows}) == len(rows)
    np.testing.assert_allclose(probabilities_of(folder).sum(axis=1), 1, atol=1e-6)


def test_arms_take_the_same_number_of_steps(finished):
    folder, _ = finished
    transfer = sum(Store(folder / "seed_0/transfer" / s).last_step for s in ("source", "target"))
    assert Store(folder / "seed_0/scratch/target").last_step == transfer


def test_a_finished_run_is_not_trained_again(finished):
    folder, first = finished
    predictions, times = (folder / "predictions.csv").read_bytes(), log_times(folder)
    for again in (experiment.train, experiment.evaluate):
        result = again(tiny(), folder)
        assert result["arms"] == first["arms"]
        assert result["seconds"] == first["seconds"]
    assert (folder / "predictions.csv").read_bytes() == predictions
    assert log_times(folder) == times


def test_evaluation_before_training_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no finished stage \(0 of 4 steps\); train first"):
        experiment.evaluate(tiny(), tmp_path)


def test_a_checkpoint_records_its_origin(finished):
    folder, _ = finished
    with Store(folder / "seed_0/transfer/target") as store:
        record = store.record(store.chosen_step())
    assert (record["seed"], record["arm"], record["stage"]) == (0, "transfer", "target")
    assert record["classes"]["target"] == ["healthy", "infiltrate", "nodule"]
    assert record["normalization"]["name"] == "centered"
    assert {"config", "versions", "split_hash", "weights", "tree", "epsilon"} <= record.keys()


def test_predict_scores_images_as_evaluation_did(finished, tmp_path):
    """The same pixels through a manifest give the same probabilities: PNG is exact."""
    folder, _ = finished
    examples = experiment.load_data(tiny())["target"]
    chosen = examples.indices("test")[:7]
    for i in chosen:
        Image.fromarray(examples.image[i][..., 0]).save(tmp_path / f"{i}.png")
    names = [f"{i}.png" for i in chosen]
    (tmp_path / "new.csv").write_text("\n".join(["image_path", *names]))
    path = inference.predict(folder, manifest=tmp_path / "new.csv", output=tmp_path / "scored.csv")
    with path.open() as file:
        scored = list(csv.DictReader(file))
    assert [r["id"] for r in scored] == names
    assert all(r["label"] == "" for r in scored)
    by_id = {r["id"]: r for r in rows_of(folder) if (r["arm"], r["split"]) == ("transfer", "test")}
    for row, i in zip(scored, chosen, strict=True):
        for name in ("prob_healthy", "prob_nodule"):
            evaluated = float(by_id[str(examples.id[i])][name])
            assert float(row[name]) == pytest.approx(evaluated, rel=1e-5)


def test_the_next_run_starts_from_an_exported_backbone(finished, tmp_path):
    folder, _ = finished
    inference.export(folder, tmp_path / "backbone.safetensors")
    config = tiny(weights__path=str(tmp_path / "backbone.safetensors"), arms=("target_only",))
    config.stages.target.epochs = 0
    result = experiment.train(config, tmp_path / "next")
    first, second = (inference.load_checkpoint(f) for f in (folder, tmp_path / "next"))
    encoders = [stored.variables["params"]["encoders"] for stored in (first, second)]
    jax.tree.map(np.testing.assert_array_equal, *encoders)
    assert second.normalization == first.normalization
    assert result["arms"]["target_only"]["test"]["n"] > 0


def test_a_head_trained_on_cached_features_equals_one_trained_on_images(
    finished, tmp_path, monkeypatch
):
    folder, _ = finished
    inference.export(folder, tmp_path / "backbone.safetensors")
    config = tiny(
        weights__path=str(tmp_path / "backbone.safetensors"),
        arms=("transfer",),
        augment__flip=False,
    )
    for stage in config.stages.values():
        stage.update(freeze="backbone", batch_norm="frozen")
    experiment.train(config, tmp_path / "features")
    # As if images were augmented, so that every step runs them through the backbone.
    monkeypatch.setattr(Augmentation, "is_identity", property(lambda _: False))
    experiment.train(config, tmp_path / "images")
    np.testing.assert_allclose(
        *(probabilities_of(tmp_path / name) for name in ("features", "images")), atol=1e-5
    )


def test_a_user_s_source_with_other_classes_gets_a_head_of_its_own(tmp_path):
    """Two classes of the source are transferred to the three of the target."""
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "import numpy as np\n"
        "from medtl.data import phantom\n"
        "def load(spec, *, image_size, channels, resize):\n"
        "    e = phantom.examples(80, scanner='a', seed=5, image_size=image_size,\n"
        "                         channels=channels, split=(0.6, 0.2, 0.2))\n"
        "    label = np.minimum(e.label, 1).astype(np.int32)\n"
        "    return dataclasses.replace(e, label=label, classes=('healthy', 'lesion'))\n"
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
    heads = inference.load_checkpoint(tmp_path / "run").variables["params"]["heads"]
    assert heads["source"]["logits"]["bias"].shape == (2,)
    assert heads["target"]["logits"]["bias"].shape == (3,)


def write_several_diagnoses(path):
    """Write 80 images with three diagnoses each, of which the first shows in the brightness."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 40), ("val", 20), ("test", 20)):
        label = rng.integers(0, 2, (n, 3)).astype(np.uint8)
        image = rng.integers(0, 100, (n, 16, 16), dtype=np.uint8)
        image += (80 * label[:, :1, None]).astype(np.uint8)
        arrays |= {f"{split}_images": image, f"{split}_labels": label}
    np.savez(path, **arrays)


def test_several_diagnoses_train_with_moving_average_and_accumulation(tmp_path):
    write_several_diagnoses(tmp_path / "chest.npz")
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
    stored = inference.load_checkpoint(tmp_path / "run")
    with Store(tmp_path / "run/seed_0/scratch/target") as store:
        arrays = store.arrays(store.chosen_step())
    np.testing.assert_array_equal(
        stored.variables["params"]["encoders"]["image"]["conv1"]["kernel"],
        arrays["ema/encoders/image/conv1/kernel"],
    )


@pytest.mark.parametrize(("seconds", "evaluations"), [(0.0, [1, 2, 3, 4, 5]), (30.0, [1, 3, 5])])
def test_an_evaluation_that_is_not_the_best_is_saved_only_after_some_time(
    seconds, evaluations, tmp_path, monkeypatch
):
    saved, scores, save = [], iter([0.5, 0.4, 0.6, 0.6, 0.1]), Store.save

    def save_and_note(self, step, *args, **options):
        saved.append(step)
        save(self, step, *args, **options)

    monkeypatch.setattr(Store, "save", save_and_note)
    monkeypatch.setattr("medtl.training.loop.SAVE_SECONDS", seconds)
    monkeypatch.setattr(Validation, "__call__", lambda *_: ({}, next(scores)))
    config = tiny(arms=("scratch",), evaluation__times=5)
    config.stages.target.epochs = 5
    experiment.train(config, tmp_path / "run")
    interval = saved[0]
    assert saved == [k * interval for k in evaluations]
    with Store(tmp_path / "run/seed_0/scratch/target") as store:
        assert store.steps() == [3 * interval, 5 * interval]
        assert store.chosen_step() == 3 * interval


def test_a_run_that_selects_checkpoints_and_reports_on_val_says_so(tmp_path, monkeypatch, capsys):
    load_data = experiment.load_data

    def without_test(config):
        target = load_data(config)["target"]
        split = np.where(target.split == "test", "train", target.split)
        return {"target": dataclasses.replace(target, split=split)}

    monkeypatch.setattr(experiment, "load_data", without_test)
    experiment.train(tiny(arms=("target_only",)), tmp_path / "run")
    output = " ".join(capsys.readouterr().out.split())
    assert "Scores are optimistic: val chose the checkpoint and is also evaluated" in output
