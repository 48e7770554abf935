"""An exported data set is read back, by TFDS and by the kind `tfds`, as what it was."""

import subprocess
import sys

import numpy as np
import pytest

from medtl import data
from medtl.config import dataset
from medtl.data import tfds_export
from medtl.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

WORKING = {
    "image_size": 8,
    "resize": "squash",
    "cache": "memory",
    "cache_dir": "",
    "key": "config.data.target",
}


def load(spec, channels=1):
    return data.load(spec, channels=channels, **WORKING)


@pytest.fixture
def spec(write):
    lines = ["image_path,diagnosis,split,patient_id,weight,site,id"]
    for i in (3, 0, 7, 11, 1, 9, 5, 2, 10, 4, 8, 6):
        split = "train" if i < 6 else "val" if i < 8 else "test"
        patient = "" if i == 4 else f"p{i}"
        lines.append(
            f"{i:02d}.png,{'ill' if i % 2 else 'well é'},{split},{patient},{i / 8},s{i % 3},x{i}"
        )
    return write("\n".join(lines) + "\n")


def by_id(examples):
    order = np.argsort(examples.id)
    facts = [examples.id, examples.label, examples.split, examples.weight, examples.patient]
    return [fact[order].tolist() for fact in (*facts, examples.groups["site"])]


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(spec, tmp_path, channels):
    written = load(spec, channels)
    folder = tfds_export.write(written, tmp_path / "sets", name="tiny")
    assert folder == tmp_path / "sets" / "tiny" / "1.0.0"
    read = load(dataset("tfds", path=str(tmp_path / "sets"), name="tiny"), channels)
    assert (read.name, read.classes) == ("tiny", ("ill", "well é"))
    assert by_id(read) == by_id(written)
    np.testing.assert_array_equal(
        read.image[np.argsort(read.id)], written.image[np.argsort(written.id)]
    )
    assert read.split_hash == written.split_hash


def test_tfds_reads_it(spec, tmp_path, pixels):
    folder = tfds_export.write(load(spec), tmp_path / "sets")
    builder = tfds.builder_from_directory(folder)
    counts = {name: info.num_examples for name, info in builder.info.splits.items()}
    assert counts == {"train": 6, "validation": 2, "test": 4}
    assert builder.info.features["label"].names == ["ill", "well é"]
    rows = list(builder.as_data_source(split="test"))
    assert [row["id"].decode() for row in rows] == ["x11", "x9", "x10", "x8"], "in the file's order"
    np.testing.assert_array_equal(rows[0]["image"][..., 0], pixels[11])
    assert [int(row["label"]) for row in rows] == [0, 0, 1, 1]
    assert rows[0]["weight"] == 11 / 8 and rows[0]["patient_id"] == b"p11"


def test_several_diagnoses(write, tmp_path):
    lines = [f"{i:02d}.png,{('|', 'a', 'b', 'a|b')[i % 4]}" for i in range(12)]
    text = "\n".join(["image_path,diagnosis", *lines])
    written = load(write(text, multi_label=True))
    tfds_export.write(written, tmp_path, name="several")
    spec = dataset("tfds", path=str(tmp_path), name="several", multi_label=True)
    read = load(spec)
    assert read.classes == ("a", "b")
    np.testing.assert_array_equal(
        read.label[np.argsort(read.id)], written.label[np.argsort(written.id)]
    )
    unknown = load(write(text.replace("a|b", "a|?b"), multi_label=True))
    with pytest.raises(UserError, match=r"'03.png' has an unknown label, .* leave it out"):
        tfds_export.write(unknown, tmp_path, name="unknown")


def test_shards_and_what_is_there_already(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_export, "_SHARD", 4 * 64)
    folder = tfds_export.write(load(spec), tmp_path, name="tiny")
    assert len(list(folder.glob("tiny-train.array_record-*-of-00002"))) == 2
    assert len(load(dataset("tfds", path=str(tmp_path), name="tiny"))) == 12
    with pytest.raises(UserError, match=r"1.0.0 exists; delete it, or give another folder"):
        tfds_export.write(load(spec), tmp_path, name="tiny")


def test_a_failed_export_leaves_nothing(spec, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfds_export, "_png", full)
    with pytest.raises(OSError, match="No space"):
        tfds_export.write(load(spec), tmp_path / "sets", name="tiny")
    assert list((tmp_path / "sets" / "tiny").iterdir()) == []


def test_tensorflow_is_not_imported(spec, tmp_path):
    program = (
        "import sys\n"
        "from medtl import config, data\nfrom medtl.data import tfds_export\n"
        f"examples = data.load(config.dataset(path={spec.path!r}), channels=1, **{WORKING!r})\n"
        f"tfds_export.write(examples, {str(tmp_path / 'sets')!r})\n"
        "sys.exit(str({'tensorflow', 'jax'} & set(sys.modules) or 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() in ("", "0"), done.stderr
