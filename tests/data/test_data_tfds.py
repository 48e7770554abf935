import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

KEY = "config.data.target"
WORKING = {
    "image_size": 8,
    "channels": 1,
    "resize": "squash",
    "cache": "memory",
    "cache_dir": "",
    "key": KEY,
}
COUNTS = {"train": 6, "validation": 4, "test": 2}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def prepare(folder, *, counts=COUNTS, patients=True):
    """Write a TFDS data set `tiny` of 8x8 PNGs with ArrayRecord; return its pixels by split."""
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    features = {
        "image": tfds.features.Image(shape=(None, None, 1)),
        "label": tfds.features.ClassLabel(names=["well", "ill"]),
        "findings": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"])),
        "grade": tfds.features.Scalar(np.int64),
    }
    if patients:
        features["patient_id"] = tfds.features.Text()
    features = tfds.features.FeaturesDict(features)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels, infos = {}, []
    for split, n in counts.items():
        pixels[split] = rng.integers(0, 256, (n, 8, 8), np.uint8)
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="tiny", split=split, filetype_suffix="array_record"
        )
        path = template.sharded_filepath(shard_index=0, num_shards=1)
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for i in range(n):
            example = {
                "image": png(pixels[split][i]),
                "label": i % 2,
                "findings": list(range(i % 3)),
                "grade": 10 * (i % 2),
            }
            if patients:
                example["patient_id"] = f"{split}{i // 2}"
            writer.write(serializer.serialize_example(features.encode_example(example)))
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[n], num_bytes=1, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, check_data=False
    )
    return pixels


def test_by_folder_and_by_name(tmp_path, monkeypatch):
    pixels = prepare(tmp_path / "tiny" / "1.0.0")
    by_folder = dataset("tfds", path=str(tmp_path / "tiny" / "1.0.0"))
    by_name = dataset("tfds", path=str(tmp_path), name="tiny:1.0.0")
    newest = dataset("tfds", path=str(tmp_path), name="tiny")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    specs = (by_folder, by_name, newest, dataset("tfds", name="tiny"))
    loaded = [data.load(spec, **WORKING) for spec in specs]
    assert len({e.fingerprint for e in loaded}) == 1
    examples = loaded[0]
    assert examples.classes == ("well", "ill")
    assert examples.label.tolist() == [0, 1] * 6
    assert examples.split.tolist() == ["train"] * 6 + ["val"] * 4 + ["test"] * 2
    assert examples.id[[0, 6, 10]].tolist() == ["train/0", "validation/0", "test/0"]
    assert examples.patient[:3].tolist() == ["train0", "train0", "train1"]
    np.testing.assert_array_equal(examples.image[..., 0], np.concatenate(list(pixels.values())))


def test_other_labels(tmp_path):
    prepare(tmp_path / "1.0.0")
    grade = data.load(dataset("tfds", path=str(tmp_path / "1.0.0"), label="grade"), **WORKING)
    assert grade.classes == ("0", "10")
    spec = dataset("tfds", path=str(tmp_path / "1.0.0"), label="findings", multi_label=True)
    findings = data.load(spec, **WORKING)
    assert findings.classes == ("a", "b", "c")
    assert findings.label[:3].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    spec.multi_label = False
    with pytest.raises(
        UserError,
        match=r"row 0, feature findings: 0 labels; set config.data.target.multi_label to True",
    ):
        data.load(spec, **WORKING)
    with pytest.raises(
        UserError, match=r"target.label: .* has no feature 'lable'; did you mean 'label'\?"
    ):
        data.load(dataset("tfds", path=str(tmp_path / "1.0.0"), label="lable"), **WORKING)


def test_a_set_with_train_only_is_split_by_patients(tmp_path):
    prepare(tmp_path / "1.0.0", counts={"train": 40})
    examples = data.load(
        dataset("tfds", path=str(tmp_path / "1.0.0"), split=(0.5, 0.25, 0.25)), **WORKING
    )
    assert [len(examples.indices(s)) for s in ("train", "val", "test")] == [20, 10, 10]
    assert all(len(set(examples.split[examples.patient == p])) == 1 for p in examples.patient)


def test_streams_and_pickles(tmp_path):
    prepare(tmp_path / "1.0.0", patients=False)
    spec = dataset("tfds", path=str(tmp_path / "1.0.0"))
    memory = data.load(spec, **WORKING)
    stream = data.load(spec, **WORKING | {"cache": "stream", "cache_dir": str(tmp_path / "cache")})
    copy = pickle.loads(pickle.dumps(stream.image))
    np.testing.assert_array_equal([copy[i] for i in range(12)], memory.image)
    assert memory.patient is None


def test_tensorflow_is_never_imported(tmp_path):
    prepare(tmp_path / "1.0.0")
    program = (
        "import importlib.machinery, sys\n"
        "find = importlib.machinery.PathFinder.find_spec\n"
        "def hidden(name, *a, **k):\n"
        "    return None if name.split('.')[0] == 'tensorflow' else find(name, *a, **k)\n"
        "importlib.machinery.PathFinder.find_spec = hidden\n"
        "from medtl import config, data\n"
        f"spec = config.dataset('tfds', path={str(tmp_path / '1.0.0')!r})\n"
        f"assert len(data.load(spec, **{WORKING!r})) == 12\n"
        "sys.exit(str([name for name in ('tensorflow', 'jax') if name in sys.modules] or 0) if "
        "{'tensorflow', 'jax'} & set(sys.modules) else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_missing_shard_is_an_error_of_one_line(tmp_path):
    prepare(tmp_path / "1.0.0")
    (shard,) = (tmp_path / "1.0.0").glob("tiny-validation*")
    shard.unlink()
    with pytest.raises(
        UserError,
        match=r"config.data.target: cannot read .*1.0.0 \(validation record 0: .*tiny-validation",
    ):
        data.load(dataset("tfds", path=str(tmp_path / "1.0.0")), **WORKING)


def test_refuses_what_is_not_prepared(tmp_path):
    def message_of(**fields):
        with pytest.raises(UserError) as error:
            data.check(dataset("tfds", **fields), key=KEY)
        return str(error.value)

    assert "needs name" in message_of()
    how = "prepare it with `tfds build breast_mnist --file_format=array_record`"
    message = message_of(path=str(tmp_path), name="breast_mnist:1.0.0")
    assert "'breast_mnist:1.0.0' is not prepared in" in message
    assert how in message
    assert "has no readable dataset_info.json" in message_of(path=str(tmp_path))
    prepare(tmp_path / "tiny" / "1.0.0")
    info = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    assert "is in the format tfrecord, which is not read; prepare it with" in message_of(
        path=str(info.parent)
    )
