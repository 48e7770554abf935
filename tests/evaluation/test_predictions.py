"""predictions.csv: what is written is read back, by us and by pandas, whatever the names and the bits."""

import numpy as np
import pandas as pd
import pytest

from medtl.base import UserError
from medtl.evaluation import predictions
from medtl.evaluation.predictions import Predictions

CLASSES = ('covid, "mild"', "non_covid", "naïve\nline 漢字")


def frame(arm="transfer", split="val", seed=None, n=6, ids=None, label=None):
    rng = np.random.default_rng(n)
    ids = np.array([f"image{i}.png" for i in range(n)] if ids is None else ids)
    label = rng.integers(-1, 3, n).astype(np.int32) if label is None else label
    bits = rng.integers(0, 0x3F800000, (len(ids), 3), dtype=np.uint32)  # every float32 from 0 to 1, subnormals too
    return Predictions(arm, split, ids, label, bits.view(np.float32), seed)


def assert_same(one, other):
    assert (one.arm, one.split, one.seed) == (other.arm, other.split, other.seed)
    np.testing.assert_array_equal(one.id, other.id)
    np.testing.assert_array_equal(one.label, other.label)
    assert one.label.dtype == other.label.dtype and one.probability.dtype == np.float32
    np.testing.assert_array_equal(one.probability.view(np.uint32), other.probability.view(np.uint32))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    frames = [frame(), frame(split="test", n=500), frame(arm="scratch")]
    predictions.write(tmp_path / "predictions.csv", frames, CLASSES)
    back, classes = predictions.read(tmp_path / "predictions.csv")
    assert classes == CLASSES
    for one, other in zip(frames, back, strict=True):
        assert_same(one, other)


def test_awkward_ids_survive(tmp_path):
    ids = [
        "a,b",
        'say "x"',
        "two\nlines",
        "carriage\rreturn",
        "both\r\n",
        " spaces ",
        "漢字 é 🩺",
        "001",
        "",
        "=1+1",
        "nan",
        "\t",
    ]
    written = frame(ids=ids, label=np.arange(12, dtype=np.int32) % 3)
    predictions.write(tmp_path / "predictions.csv", [written], CLASSES)
    assert_same(predictions.read(tmp_path / "predictions.csv")[0][0], written)


def test_columns_and_what_pandas_reads(tmp_path):
    label = np.array([0, 1, -1], np.int32)
    written = [frame(n=3, label=label), frame(arm="scratch", n=3, label=label)]
    predictions.write(tmp_path / "predictions.csv", written, CLASSES)
    table = pd.read_csv(tmp_path / "predictions.csv", dtype={f"prob_{name}": str for name in CLASSES})
    assert list(table.columns) == ["arm", "split", "id", "label", *(f"prob_{name}" for name in CLASSES)]
    assert table["arm"].tolist() == ["transfer"] * 3 + ["scratch"] * 3
    assert table["label"][:2].tolist() == [CLASSES[0], CLASSES[1]] and pd.isna(table["label"][2])
    values = table.iloc[:3, 4:].to_numpy().astype(np.float32)
    np.testing.assert_array_equal(values, written[0].probability)


def test_the_seed_is_the_last_column_only_where_there_are_several(tmp_path):
    path = tmp_path / "predictions.csv"
    predictions.write(path, [frame(seed=3)], CLASSES)
    assert "seed" not in pd.read_csv(path).columns
    several = [frame(seed=3), frame(seed=4), frame(seed=3, split="test")]
    predictions.write(path, several, CLASSES)
    assert pd.read_csv(path).columns[-1] == "seed"
    for one, other in zip(several, predictions.read(path)[0], strict=True):
        assert_same(one, other)


def test_several_labels_keep_positive_negative_and_unknown_apart(tmp_path):
    classes = ("edema", "effusion", "mass")
    label = np.array([[1, 0, 1], [0, 0, 0], [np.nan] * 3, [0, np.nan, 1]], np.float32)
    path = tmp_path / "predictions.csv"
    predictions.write(path, [frame(n=4, label=label)], classes)
    texts = pd.read_csv(path, keep_default_na=False)["label"].tolist()
    assert texts == ["edema|mass", "", "?edema|?effusion|?mass", "?effusion|mass"]
    assert_same(predictions.read(path, multi_label=True)[0][0], frame(n=4, label=label))
    for name in ("a|b", "?mass"):
        with pytest.raises(UserError, match="a class is called"):
            predictions.write(path, [frame(n=4, label=label)], ("edema", "effusion", name))


def test_a_write_that_fails_leaves_the_former_file(tmp_path):
    path = tmp_path / "predictions.csv"
    predictions.write(path, [frame()], CLASSES)
    before = path.read_bytes()
    broken = frame(n=5)
    with pytest.raises(ValueError, match="shorter"):
        predictions.write(
            path, [frame(), Predictions("a", "b", broken.id, broken.label[:3], broken.probability)], CLASSES
        )
    assert path.read_bytes() == before


def test_equal_predictions_make_equal_files(tmp_path):
    for name in ("one.csv", "two.csv"):
        predictions.write(tmp_path / name, [frame(n=50)], CLASSES)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", ":1: the columns are"),
        ("arm,split,id,label\n", ":1: the columns are"),
        ("arm,split,id,diagnosis,prob_a\n", ":1: the columns are"),
        ("arm,split,id,label,prob_a\nx,val,1,b,0.5\n", ":2: the label is 'b'"),
        ("arm,split,id,label,prob_a\nx,val,1,a,0.5\nx,val,2,a,high\n", ":3: could not convert"),
        ("arm,split,id,label,prob_a\nx,val,1,a\n", ":2: 4 columns where the header has 5"),
        ("arm,split,id,label,prob_a,seed\nx,val,1,a,0.5,one\n", ":2: invalid literal"),
    ],
)
def test_another_file_is_refused_by_line(tmp_path, text, message):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        predictions.read(path)
