"""Precomputed features, and folders of images."""

import numpy as np
import pytest
from clinical_run import clinical, scores
from PIL import Image

from medtl import data
from medtl.config import check, dataset
from medtl.errors import UserError
from medtl.experiment import experiment, inference

SETTINGS = dict(
    image_size=8,
    channels=1,
    resize="squash",
    cache="memory",
    cache_dir="",
    key="config.data.target",
)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    label = np.arange(90) % 2
    return {
        "features": rng.normal(size=(90, 5)) + 2 * label[:, None],
        "labels": np.array(["well", "ill"])[label],
        "patients": np.arange(90) // 2 * 2 + label,
    }


def test_features_of_an_npz_are_an_input_as_they_are(tmp_path, arrays):
    np.savez(tmp_path / "f.npz", **arrays)
    spec = dataset("features", path=str(tmp_path / "f.npz"))
    examples = data.load(spec, **SETTINGS, inputs=("features",))
    assert examples.classes == ("ill", "well")
    np.testing.assert_array_equal(
        examples.inputs["features"], arrays["features"].astype(np.float32)
    )
    config = clinical("", data__inputs=("features",), data__target=spec, model__encoders={})
    summary = experiment.train(config, tmp_path / "run")
    assert summary["arms"]["own"]["test"]["auroc"] > 0.9


def test_features_are_scored_as_in_training(tmp_path, arrays):
    np.savez(tmp_path / "f.npz", **arrays, ids=[f"case_{i}" for i in range(90)])
    spec = dataset("features", path=str(tmp_path / "f.npz"))
    config = clinical("", data__inputs=("features",), data__target=spec, model__encoders={})
    experiment.train(config, tmp_path / "run")
    new = {"features": arrays["features"], "ids": [f"case_{i}" for i in range(90)]}
    np.savez(tmp_path / "new.npz", **new)
    scored = scores(inference.predict(tmp_path / "run", manifest=tmp_path / "new.npz"))
    reported = scores(tmp_path / "run" / "predictions.csv")
    assert {n: scored[n] for n in reported} == pytest.approx(reported, abs=1e-6)
    np.savez(tmp_path / "new.npz", **new | {"features": arrays["features"][:, :4]})
    with pytest.raises(UserError, match="has 4 features, but .* reads 5"):
        inference.predict(tmp_path / "run", manifest=tmp_path / "new.npz")


@pytest.mark.parametrize("mark", [", ", " "])
def test_a_column_of_embeddings_is_an_input_and_scored_alike(tmp_path, arrays, mark):
    rows = ["id,age,note,diagnosis"]
    for i, (row, label) in enumerate(zip(arrays["features"], arrays["labels"], strict=True)):
        vector = "" if i % 9 == 0 else "[" + mark.join(f"{x:.6f}" for x in row) + "]"
        rows.append(f'{i},{40 + i % 7},"{vector}",{label}')
    path = tmp_path / "clinical.csv"
    path.write_text("\n".join(rows))
    config = clinical(path, data__inputs=("auto",), model__modality_dropout=0.2)
    summary = experiment.train(config, tmp_path / "run")
    assert summary["config"]["data"]["inputs"] == ("table", "features")
    assert summary["arms"]["own"]["test"]["auroc"] > 0.85
    scored = scores(inference.predict(tmp_path / "run", manifest=path))
    reported = scores(tmp_path / "run" / "predictions.csv")
    assert {n: scored[n] for n in reported} == pytest.approx(reported, abs=1e-6)
    path.write_text("\n".join([rows[0], rows[1], '7,40,"[1, 2]",ill']))
    with pytest.raises(UserError, match="column 'note': the model reads embeddings of 5 numbers"):
        inference.predict(tmp_path / "run", manifest=path)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("[1.0, ..., 2.0]", "line 3, column note: .* is no list of numbers; pandas shortens"),
        ("[1, 2, 3]", "an embedding of 3 numbers, that of .*line 2, column note has 2"),
        ("[1, nan]", "holds a value that is not finite"),
    ],
)
def test_malformed_embeddings_are_refused_with_their_cell(tmp_path, cell, message):
    path = tmp_path / "clinical.csv"
    path.write_text(f'id,note,diagnosis\n0,"[1, 2]",a\n1,"{cell}",b\n')
    spec = dataset("manifest", path=str(path), columns=("note=embedding",))
    with pytest.raises(UserError, match=message):
        data.load(spec, **SETTINGS, inputs=("features",))


def test_features_of_a_csv_file_are_the_columns_of_a_pattern(tmp_path, arrays):
    lines = ["id,f_0,f_1,other,diagnosis"]
    for i, (row, label) in enumerate(zip(arrays["features"], arrays["labels"], strict=True)):
        lines.append(f"{i},{row[0]},{row[1]},9,{label}")
    path = tmp_path / "f.csv"
    path.write_text("\n".join(lines))
    spec = dataset("features(columns='f_*')", path=str(path))
    examples = data.load(spec, **SETTINGS, inputs=("features",))
    assert examples.inputs["features"].shape == (90, 2)
    path.write_text("\n".join([*lines[:3], "x,1.0,,9,ill", *lines[3:]]))
    with pytest.raises(UserError, match=r"line 4, column f_1: '' is not a number"):
        data.load(spec, **SETTINGS, inputs=("features",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros(90)}, "must be numbers"),
        ({"labels": np.zeros(3)}, "`features` has 90 rows, `labels` 3"),
        ({"features": np.full((90, 2), np.inf)}, "row 0: a feature is not a finite number"),
        ({"split": np.full(90, "trian")}, "'trian' is no split; did you mean 'train'"),
    ],
)
def test_malformed_features_are_refused(tmp_path, arrays, changes, message):
    np.savez(tmp_path / "f.npz", **(arrays | changes))
    spec = dataset("features", path=str(tmp_path / "f.npz"))
    with pytest.raises(UserError, match=message):
        data.load(spec, **SETTINGS, inputs=("features",))


def test_features_need_the_input_of_that_name(tmp_path, arrays):
    np.savez(tmp_path / "f.npz", **arrays)
    config = clinical("", data__target=dataset("features", path=str(tmp_path / "f.npz")))
    with pytest.raises(UserError, match="'features' reads features alone"):
        check.check(config)


def images(root, *folders):
    rng = np.random.default_rng(0)
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 255, (8, 8))
            Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"{i}.png")


def test_a_folder_for_each_class_is_a_data_set(tmp_path):
    images(tmp_path, "10", "9")
    examples = data.load(dataset("folder", path=str(tmp_path)), **SETTINGS)
    assert examples.classes == ("9", "10")
    assert len(examples) == 12
    assert examples.image.shape == (12, 8, 8, 1)
    assert set(examples.id) == {f"{name}/{i}.png" for name in ("9", "10") for i in range(6)}


def test_folders_of_splits_hold_those_of_classes(tmp_path):
    names = [f"{s}/{c}" for s in ("train", "valid", "test") for c in ("ill", "well")]
    images(tmp_path, *names)
    examples = data.load(dataset("folder", path=str(tmp_path)), **SETTINGS)
    assert examples.classes == ("ill", "well")
    assert [int(np.sum(examples.split == s)) for s in ("train", "val", "test")] == [12, 12, 12]


def test_a_class_without_images_and_a_file_that_is_none_are_refused(tmp_path):
    images(tmp_path, "ill", "well")
    (tmp_path / "ill" / "notes.docx").write_text("")
    spec = dataset("folder", path=str(tmp_path))
    with pytest.raises(UserError, match=r"notes\.docx is no image"):
        data.load(spec, **SETTINGS)
    (tmp_path / "ill" / "notes.docx").unlink()
    (tmp_path / "odd").mkdir()
    with pytest.raises(UserError, match="odd holds no image"):
        data.load(spec, **SETTINGS)
