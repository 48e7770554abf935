"""`--mode=embed`: features on disk stand in for the images that they were made of."""

import numpy as np
import pytest
from opened import backbone_file, probabilities_of
from PIL import Image
from tiny_run import tiny

from medtl import cli
from medtl.errors import UserError
from medtl.experiment import embedding, experiment, inference


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("backbone"))


def frozen(path, arms=("target_only",)):
    c = tiny(weights__path=path, arms=arms, augment__flip=False)
    c.stages.target.freeze = "backbone"
    c.stages.target.batch_norm = "frozen"
    return c


def test_a_head_on_embedded_features_equals_one_on_the_images(weights_path, tmp_path):
    config = frozen(weights_path)
    files = embedding.embed(config, tmp_path / "features")
    assert list(files) == ["target"]
    experiment.train(config, tmp_path / "images")
    config.data.inputs = ("features",)
    config.data.target.kind = "features"
    config.data.target.path = str(files["target"])
    config.weights.path = ""
    config.stages.target.freeze = "none"
    experiment.train(config, tmp_path / "run")
    np.testing.assert_allclose(
        probabilities_of(tmp_path / "run"), probabilities_of(tmp_path / "images"), atol=1e-5
    )


def test_the_file_names_each_example(weights_path, tmp_path):
    config = frozen(weights_path, arms=("transfer",))
    files = embedding.embed(config, tmp_path)
    assert set(files) == {"source", "target"}
    examples = experiment.load_data(config)["source"]
    with np.load(files["source"]) as file:
        np.testing.assert_array_equal(file["ids"], examples.id)
        np.testing.assert_array_equal(file["split"], examples.split)
        np.testing.assert_array_equal(file["patients"], examples.patient)
        np.testing.assert_array_equal(file["labels"], np.array(examples.classes)[examples.label])
        assert file["features"].dtype == np.float32
        assert file["features"].shape == (len(examples), 16)


def test_a_manifest_is_embedded_by_pretrained_or_trained_weights(weights_path, tmp_path, capsys):
    config = frozen(weights_path)
    examples = experiment.load_data(config)["target"]
    for i in range(3):
        Image.fromarray(examples.image[i][..., 0]).save(tmp_path / f"{i}.png")
    manifest = tmp_path / "new.csv"
    manifest.write_text("image_path\n0.png\n1.png\n2.png\n")
    embedding.embed(config, tmp_path, manifest=str(manifest), output=str(tmp_path / "a.npz"))
    of_all = np.load(embedding.embed(config, tmp_path)["target"])["features"]
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_allclose(file["features"], of_all[:3], rtol=1e-5, atol=1e-6)
        assert "labels" not in file
    experiment.train(config, tmp_path / "run")
    stored = inference.load_checkpoint(tmp_path / "run")
    embedding.embed_with(stored, str(manifest), str(tmp_path / "b.npz"))
    with np.load(tmp_path / "b.npz") as file:  # a frozen backbone is as it was
        np.testing.assert_allclose(file["features"], of_all[:3], rtol=1e-5, atol=1e-6)


def test_random_weights_and_missing_flags_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="needs config.weights.path"):
        embedding.embed(tiny(arms=("target_only",)), tmp_path)
    for flags, message in (
        (["--mode=embed", "--manifest=x.csv"], "needs --output=FILE.npz"),
        (["--mode=export"], "needs --output=FILE.safetensors"),
        (["--mode=embed", f"--checkpoint={tmp_path}", "--output=x.npz"], "needs --manifest=FILE"),
        (["--mode=train", "--output=x.npz"], "--output is for --mode=predict or embed or export"),
    ):
        assert cli.run(flags) == 2
        assert message in capsys.readouterr().err
