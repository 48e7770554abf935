"""predictions.csv: what is written is read back, by us and by pandas, whatever the names and the bits; what is wrong is named."""

import dataclasses
import re
import time

import numpy as np
import pandas as pd
import pytest

from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.evaluation.predictions import Predictions

IDS = ("wxyz", "stuv")
CLASSES = ('covid, "mild"', "non_covid", "naïve\nline 漢字")


def frame(
    arm="transfer", split="val", seed=None, n=6, ids=None, label=None, dtype=np.float64, **more
):
    """Rows of probabilities that sum to 1, of every magnitude down to the subnormal."""
    rng = np.random.default_rng(n)
    ids = np.array([f"image{i}.png" for i in range(n)] if ids is None else ids)
    label = rng.integers(-1, 3, n).astype(np.int32) if label is None else label
    small = 10.0 ** rng.uniform(-45, -0.5, (len(ids), 2))
    probability = np.concatenate([small, 1 - small.sum(axis=1, keepdims=True)], axis=1).astype(
        dtype
    )
    return Predictions(arm, split, ids, label, probability, seed, **more)


def four(arm="a", split="test", ids="wxyz", **more):
    """Rows of four examples of two classes."""
    return frame(arm, split, n=4, ids=list(ids), label=np.array([0, 1, 0, 1]), **more)


def assert_same(one, other):
    assert (one.arm, one.split, one.cell) == (other.arm, other.split, other.cell)
    np.testing.assert_array_equal(one.id, other.id)
    np.testing.assert_array_equal(one.label, other.label)
    assert one.label.dtype == other.label.dtype and other.probability.dtype == np.float64
    # The same number to the last bit, in the precision in which it was written.
    back = other.probability.astype(one.probability.dtype)
    np.testing.assert_array_equal(one.probability.view(np.uint8), back.view(np.uint8))
    assert (one.patient is None) == (other.patient is None)
    if one.patient is not None:
        np.testing.assert_array_equal(one.patient, other.patient)
    assert list(one.groups) == list(other.groups)
    for name, values in one.groups.items():
        np.testing.assert_array_equal(values, other.groups[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, dtype):
    ids = [f"x{i}" for i in range(500)]
    frames = [
        frame(dtype=dtype),
        frame(split="test", n=500, ids=ids, dtype=dtype),
        frame(arm="scratch", dtype=dtype),
    ]
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
        "?x",
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
    table = pd.read_csv(
        tmp_path / "predictions.csv", dtype={f"prob_{name}": str for name in CLASSES}
    )
    assert list(table.columns) == [
        "arm",
        "split",
        "id",
        "label",
        *(f"prob_{name}" for name in CLASSES),
    ]
    assert table["arm"].tolist() == ["transfer"] * 3 + ["scratch"] * 3
    assert table["label"][:2].tolist() == [CLASSES[0], CLASSES[1]] and pd.isna(table["label"][2])
    values = table.iloc[:3, 4:].to_numpy().astype(np.float64)
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
    assert texts == ["edema|mass", "|", "?edema|?effusion|?mass", "?effusion|mass"]
    for known in (True, None):
        assert_same(predictions.read(path, multi_label=known)[0][0], frame(n=4, label=label))
    for name in ("a|b", "?mass"):
        with pytest.raises(UserError, match="a class is called"):
            predictions.write(path, [frame(n=4, label=label)], ("edema", "effusion", name))


def test_a_write_that_fails_leaves_the_former_file(tmp_path):
    path = tmp_path / "predictions.csv"
    predictions.write(path, [frame()], CLASSES)
    before = path.read_bytes()
    with pytest.raises(IndexError):
        predictions.write(path, [frame(), frame(arm="scratch", label=np.full(6, 3))], CLASSES)
    with pytest.raises(ValueError, match=r"transfer, val: the arrays differ in length: \[5, 6\]"):
        predictions.write(path, [frame(label=np.zeros(5, int))], CLASSES)
    assert path.read_bytes() == before


def test_equal_predictions_make_equal_files(tmp_path):
    for name in ("one.csv", "two.csv"):
        predictions.write(tmp_path / name, [frame(n=50)], CLASSES)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_models_patients_and_groups_are_read_back(tmp_path):
    n = 6
    patient = np.array(["p1", "p1", "p,2", "p3\r", "p4", "p4"])
    groups = {
        "subgroup_sex": np.array(["f", "m", "", "f", "f", "m"]),
        "site": np.array(["São Paulo"] * n),
    }
    label = np.zeros(n, np.int32)
    cells = [
        {"fold": k, "repeat": r, "size": size}
        for r in range(2)
        for k in range(2)
        for size in (25, None)
    ]
    frames = [
        frame(arm, "test", label=label, patient=patient, groups=groups, **c)
        for arm in "ab"
        for c in cells
    ]
    path = tmp_path / "predictions.csv"
    predictions.write(path, frames, CLASSES)
    columns = pd.read_csv(path).columns.tolist()
    assert columns[7:] == ["patient_id", "subgroup_sex", "site", "size", "repeat", "fold"]
    for one, other in zip(frames, predictions.read(path)[0], strict=True):
        assert_same(one, other)


def test_a_group_is_kept_where_no_example_has_a_value(tmp_path):
    """One fold's file may lack the values that another's has: were the column lost, so were the whole run's subgroups."""
    empty = np.full(6, "")
    path = tmp_path / "predictions.csv"
    written = frame(patient=empty, groups={"site": empty})
    predictions.write(path, [written], CLASSES)
    assert pd.read_csv(path).columns.tolist()[7:] == ["patient_id", "site"]
    back = predictions.read(path)[0][0]
    assert (
        back.groups["site"].tolist() == [""] * 6 and back.patient is None
    )  # no patient is known in the whole file
    predictions.write(path, [written, frame("scratch", patient=empty)], CLASSES)
    assert [list(p.groups) for p in predictions.read(path)[0]] == [["site"], ["site"]]
    predictions.write(path, [frame()], CLASSES)
    assert pd.read_csv(path).columns.tolist()[7:] == []
    with pytest.raises(UserError, match="a group is called 'age'"):
        predictions.write(path, [frame(groups={"age": empty})], CLASSES)


def test_the_columns_may_stand_in_any_order_and_a_file_of_pandas_is_read(tmp_path):
    table = pd.DataFrame(
        {
            "prob_well": [0.25, 0.5, 1.0, 1.0],
            "label": ["ill", None, "well", "well"],
            "fold": [0, 0, None, None],
            "prob_ill": [0.75, 0.5, 0.0, 0.0],
            "id": [7, 8, 7 + 2, 10],
            "site": ["north", None, None, "south"],
            "patient_id": ["p", None, None, None],
            "arm": ["x"] * 4,
        }
    )
    path = tmp_path / "theirs.csv"
    table.to_csv(path, index=False, encoding="utf-8-sig")
    (one, two), classes = predictions.read(path)
    assert classes == ("well", "ill")
    assert (one.arm, one.split, one.seed, one.fold, two.fold) == ("x", "test", None, 0, None)
    assert one.label.tolist() == [1, -1] and two.label.tolist() == [0, 0]
    assert one.id.tolist() == ["7", "8"] and one.probability.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    # An unknown patient is one of its own, also where none of a fold's is known.
    assert one.patient.tolist() == ["p", "?8"] and two.patient.tolist() == ["?9", "?10"]
    assert one.groups["site"].tolist() == ["north", ""] and two.groups["site"].tolist() == [
        "",
        "south",
    ]


def test_models_are_told_apart_in_the_order_in_which_they_appear(tmp_path):
    rng = np.random.default_rng(0)
    keys = [(arm, seed, fold) for arm in "ab" for seed in (0, 1) for fold in (0, 1)]
    rows = [(arm, seed, fold, f"id{i}") for i in range(30) for arm, seed, fold in keys]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    path = tmp_path / "p.csv"
    lines = [
        f"{arm},{'0' * (len(i) % 2)}{seed},{fold},{i},u,0.5,0.5" for arm, seed, fold, i in rows
    ]
    path.write_text("\n".join(["arm,seed,fold,id,label,prob_u,prob_v", *lines]))
    expected = {}
    for arm, seed, fold, i in rows:
        expected.setdefault((arm, seed, fold), []).append(i)
    back = predictions.read(path)[0]
    assert [(p.arm, p.seed, p.fold) for p in back] == list(expected)
    assert [p.id.tolist() for p in back] == list(expected.values())


def test_the_aliases_of_val_are_val(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        f"split,{HEAD}valid,{GOOD}validation,x,2,ill,1,0\nval,x,3,ill,1,0\npredict,x,4,ill,1,0\n"
    )
    assert [(p.split, p.id.tolist()) for p in predictions.read(path)[0]] == [
        ("val", ["1", "2", "3"]),
        ("predict", ["4"]),
    ]


def test_float32_softmax_above_one_is_one(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("arm,id,label,prob_u,prob_v\nx,1,u,1.0000001192092896,0\n")
    assert predictions.read(path)[0][0].probability.tolist() == [[1.0, 0.0]]


def test_one_class_is_enough_where_labels_are_several(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("arm,id,label,prob_edema\nx,1,edema,0.9\nx,2,|,0.1\nx,3,,0.1\nx,4,?edema,0.5\n")
    back = predictions.read(path)[0][0]
    np.testing.assert_array_equal(back.label, [[1], [0], [0], [np.nan]])
    with pytest.raises(UserError, match="line 1: the only class is 'edema'"):
        predictions.read(path, multi_label=False)


def test_a_bar_in_a_class_name_is_no_separator(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("arm,id,label,prob_a|b,prob_c\nx,1,a|b,0.9,0.1\nx,2,c,0.2,0.8\n")
    assert predictions.read(path)[0][0].label.tolist() == [0, 1]


HEAD = "arm,id,label,prob_ill,prob_well\n"
GOOD = "x,1,ill,0.75,0.25\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "",
            "line 1: the file is empty; the first line names the columns: arm, id, label, prob_<class>",
        ),
        (HEAD, "has a header and no rows"),
        (
            HEAD.replace("label", "labels") + GOOD,
            "line 1 has no column 'label'; did you mean 'labels'?",
        ),
        (HEAD.replace("arm,", "") + GOOD, "line 1 has no column 'arm'"),
        ("arm,id,label\nx,1,ill\n", "line 1 has no column prob_<class>"),
        (HEAD.replace("prob_well", "probwell") + GOOD, "line 1: column 'probwell' is not known"),
        (
            HEAD.replace("prob_well", "patient") + GOOD,
            "line 1: column 'patient' is not known; did you mean 'patient_id'?",
        ),
        (
            HEAD.replace("prob_well", "sub_group") + GOOD,
            "column 'sub_group' is not known; did you mean 'subgroup'?",
        ),
        (HEAD.replace("prob_well", "prob_") + GOOD, "line 1: column 'prob_' is not known"),
        ("," + HEAD + "0," + GOOD, "line 1, column 1 has no name"),
        (HEAD.replace("prob_well", "prob_ill") + GOOD, "line 1: two columns are called 'prob_ill'"),
        ((HEAD + GOOD).replace(",", ";"), "line 1: the columns are separated by semicolons"),
        (HEAD + GOOD + "x,2,ill,0.5\n", "line 3: 4 cells, but the header has 5 columns"),
        (HEAD + GOOD + "x,2,ill,0,5,0,5\n", "line 3: 7 cells, but the header has 5 columns"),
        (HEAD + GOOD + 'x,"2,ill,0.5,0.5\n', "line 3: not a CSV file"),
        (b"arm,id,label,prob_a\n\xff\xfe", "is not a CSV file in UTF-8"),
        (HEAD + '"x\ny",1,ill,1,0\n\n,2,ill,0.5,0.5\n', "line 5, column arm: the cell is empty"),
        (HEAD + GOOD + "x,,ill,0.5,0.5\n", "line 3, column id: the cell is empty"),
        (HEAD + GOOD + "x,2,ill,0.5,high\n", "line 3, column prob_well: 'high' is not a number"),
        (HEAD + GOOD + "x,2,ill,,0.5\n", "line 3, column prob_ill: the cell is empty"),
        (
            HEAD + GOOD + "x,2,ill,0.5,nan\n",
            "line 3, column prob_well: nan is not a probability from 0 to 1",
        ),
        (
            HEAD + GOOD + "x,2,ill,inf,0.5\n",
            "line 3, column prob_ill: inf is not a probability from 0 to 1",
        ),
        (
            HEAD + GOOD + "x,2,ill,0.5,-0.5\n",
            "-0.5 is not a probability from 0 to 1; these look like logits",
        ),
        (
            HEAD + GOOD + "x,2,ill,3.1,-2\n",
            "column prob_ill: 3.1 is not a probability from 0 to 1; these look like logits",
        ),
        (HEAD + "x,2,ill,87.5,12.5\n", "these look like percentages: divide by 100"),
        (
            HEAD + GOOD + "x,2,ill,0.5,0.498\n",
            "line 3, columns prob_ill, prob_well: the probabilities sum to 0.998, not to 1",
        ),
        (
            HEAD + GOOD + "x,2,healthy,0.5,0.5\n",
            "line 3, column label: there is no column 'prob_healthy' for 'healthy'",
        ),
        (
            HEAD + GOOD + "x,2,wel,0.5,0.5\n",
            "there is no column 'prob_wel' for 'wel'; did you mean 'well'?",
        ),
        (
            HEAD + GOOD + "x,2,ill|wel,0.5,0.9\n",
            "there is no column 'prob_wel' for 'wel'; did you mean 'well'?",
        ),
        (
            HEAD + GOOD + "x,2,ill|well,-3,9\n",
            "line 3, column prob_ill: -3 is not .* logits: write their sigmoid",
        ),
        (
            HEAD + GOOD + "x,2,ill,3.1,2.5\ny,2,ill,4,2\n",
            "3.1 is not .* logits: write their softmax",
        ),
        (
            HEAD + GOOD + "x,2,ill,1.5,0.5\n",
            "line 3, column prob_ill: 1.5 is not a probability from 0 to 1",
        ),
        (HEAD + GOOD + " ,2,ill,0.5,0.5\n", "line 3, column arm: the cell holds only blanks"),
        (
            "split," + HEAD + "val," + GOOD + "valid," + GOOD,
            "line 3, column id: '1' is already in line 2",
        ),
        (
            HEAD + GOOD + "y,1,ill,1,0\nx,1,ill,1,0\n",
            "line 4, column id: '1' is already in line 2, with the same arm",
        ),
        (
            HEAD + GOOD + "y,1,well,1,0\n",
            "line 3, column label: '1' has 'well' here and 'ill' in line 2",
        ),
        (HEAD + GOOD + "y,1,,1,0\n", "line 3, column label: '1' has '' here and 'ill' in line 2"),
        (
            "fold," + HEAD + "0," + GOOD + "1.5," + GOOD,
            "line 3, column fold: '1.5' is not a whole number",
        ),
        (
            "seed," + HEAD + "0," + GOOD + "one," + GOOD,
            "line 3, column seed: 'one' is not a whole number",
        ),
        (
            "size," + HEAD + "-1," + GOOD,
            "line 2, column size: '-1' is not a whole number of at least 1",
        ),
        (
            "size," + HEAD + "1," + GOOD + "0," + GOOD,
            "line 3, column size: '0' is not a whole number of at least 1",
        ),
        (
            "patient_id," + HEAD + "p," + GOOD + "q," + GOOD.replace("x", "y"),
            "column patient_id: '1' has 'q' here and 'p'",
        ),
        (
            "site," + HEAD + "p," + GOOD + "q," + GOOD.replace("x", "y"),
            "column site: '1' has 'q' here and 'p' in line 2",
        ),
    ],
)
def test_another_file_is_refused_by_line_and_column(tmp_path, text, said):
    path = tmp_path / "predictions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="^" + re.escape(str(path))) as error:
        predictions.read(path)
    pattern = said if ".*" in said else re.escape(said)
    assert re.search(pattern, str(error.value)), str(error.value)
    assert ("logits" in str(error.value)) == ("logits" in said)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["1_0", " 1", "1 ", "+1", "-1", "1.", "1e2", "\N{ARABIC-INDIC DIGIT THREE}", "9" * 5000],
    ids=len,
)
@pytest.mark.parametrize("name", ["seed", "repeat", "fold", "size"])
def test_whole_numbers_are_digits(tmp_path, name, text):
    (tmp_path / "p.csv").write_text(f"{name},{HEAD}1.0,{GOOD}{text},{GOOD}", encoding="utf-8")
    with pytest.raises(
        UserError,
        match=f"line 3, column {name}: {re.escape(repr(text))} is not a whole number of at",
    ):
        predictions.read(tmp_path / "p.csv")


@pytest.mark.parametrize("split", ["Test", "tset", " test", "vali", "fold"])
def test_a_split_of_another_name_is_refused(tmp_path, split):
    (tmp_path / "p.csv").write_text(f"split,{HEAD}test,{GOOD}{split},x,2,ill,1,0\n")
    meant = {"vali": "; did you mean 'val'?", "fold": "; it can be predict, test, train, val"}
    with pytest.raises(UserError) as error:
        predictions.read(tmp_path / "p.csv")
    said = f"line 3, column split: {split!r} is not a split" + meant.get(
        split, "; did you mean 'test'?"
    )
    assert str(error.value).endswith(said)


def test_a_file_that_is_not_there_and_arms_that_were_not_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none.csv"):
        predictions.read(tmp_path / "none.csv")
    path = tmp_path / "p.csv"
    path.write_text(HEAD + GOOD + GOOD.replace("x", "scratch"))
    assert [p.arm for p in predictions.read(path, arms=["scratch", "x"])[0]] == ["x", "scratch"]
    with pytest.raises(
        UserError,
        match="line 3, column arm: 'scratch' is not an arm that was asked for; it can be x",
    ):
        predictions.read(path, arms=["x"])
    with pytest.raises(UserError, match="there is no arm 'scratsh'; did you mean 'scratch'?"):
        predictions.read(path, arms=["x", "scratch", "scratsh"])


def test_the_line_is_exact_far_down_the_file(tmp_path):
    path = tmp_path / "p.csv"
    rows = [
        f'x,"{i}\n",ill,0.5,0.5\n' for i in range(70_000)
    ]  # each takes two lines, and more than a chunk holds them
    path.write_text(HEAD + "".join(rows) + "x,last,ill,0.5,0.6\n")
    with pytest.raises(
        UserError, match="line 140002, columns prob_ill, prob_well: the probabilities sum to 1.1"
    ):
        predictions.read(path)


def test_one_class_splits_are_told_and_not_refused():
    ill, both = np.zeros(4, np.int32), np.array([0, 1, 0, -1])
    frames = [
        frame(arm, "test", n=4, label=label, seed=k)
        for arm in "ab"
        for k, label in enumerate((both, ill))
    ]
    frames += [
        frame("a", "val", n=4, ids=list("wxyz"), label=np.full(4, -1), seed=k) for k in (0, 1)
    ]
    assert predictions.check(frames, ("ill", "well", "worse")) == [
        "test, seed 1: all of 4 labelled examples are 'ill' (arms: a, b); what needs two classes is undefined",
        "val, seed 0: none of 4 examples has a label (arms: a); what needs two classes is undefined",
        "val, seed 1: none of 4 examples has a label (arms: a); what needs two classes is undefined",
        "there is val of some arms only (with: a; without: b); thresholds and calibration are fitted on it where it is, so what "
        "rests on them is not compared alike",
    ]
    many = [frame("a", "test", n=4, label=ill, seed=k) for k in range(9)]
    notes = predictions.check(many, ("ill", "well", "worse"))
    assert len(notes) == 6 and notes[-1] == "and 4 more such"
    nothing = np.full((4, 3), np.nan)
    assert (
        "none of 4 examples has a label"
        in predictions.check([frame("a", "test", n=4, label=nothing)], CLASSES)[0]
    )


def test_arms_must_predict_the_same_examples():
    def one(arm, ids, **cell):
        return four(arm, ids=ids, **cell)

    assert (
        predictions.check([one("a", "wxyz"), one("b", "zyxw")], CLASSES) == []
    )  # the order does not matter
    with pytest.raises(
        UserError,
        match=r"f.csv: test: 1 of the 4 examples of arm 'a' .* 4 of arm 'b', the first is 'w'",
    ):
        predictions.check([one("a", "wxyz"), one("b", "xyzu")], CLASSES, name="f.csv")
    subset = Predictions("b", "test", np.array(["x"]), np.array([0]), np.ones((1, 3)) / 3)
    with pytest.raises(UserError, match="3 of the 4 examples of arm 'a'"):
        predictions.check([subset, one("a", "wxyz")], CLASSES)
    with pytest.raises(
        UserError, match="arm 'b' has predictions of test, seed 1, fold 0, and arm 'a' has none"
    ):
        predictions.check(
            [one("a", "wxyz", seed=0, fold=0), one("b", "wxyz", seed=1, fold=0)][::-1], CLASSES
        )
    with pytest.raises(
        UserError, match=r"^f.csv: arm 'b' has predictions of test, seed 1, and arm 'a' has none"
    ):
        predictions.check(
            [one("b", "wxyz", seed=1), one("a", "wxyz", seed=0)], CLASSES, name="f.csv"
        )
    with pytest.raises(
        UserError, match=r"predictions.csv has no split 'tset'; did you mean 'test'?"
    ):
        predictions.check([one("a", "wxyz")], CLASSES, split="tset")
    with pytest.raises(
        UserError, match=r"^f.csv: arm 'transfer' has no predictions of split 'test'"
    ):
        predictions.check([one("a", "wxyz"), frame()], CLASSES, name="f.csv")


@pytest.mark.parametrize("others", [(50,), (25,), (None,), (25, 50, 75)])
def test_an_arm_of_other_sizes_is_refused_and_does_not_vanish(others):
    sizes = {"a": (25, 50), "b": others}
    frames = [four(arm, size=size) for arm in "ab" for size in sizes[arm]]
    with pytest.raises(
        UserError,
        match=r"^f.csv: arm '[ab]' has predictions of test.*, and arm '[ab]' has none; .* sizes",
    ):
        predictions.check(frames, CLASSES, name="f.csv")


def test_every_row_has_its_size_outside_of_cross_validation():
    def sizes(*found, **cell):
        return [four(size=size, **cell) for size in found]

    with pytest.raises(
        UserError,
        match="f.csv: arm 'a' has predictions of test, size 25, .* give every row its size",
    ):
        predictions.check(sizes(25, None), CLASSES, name="f.csv")
    with pytest.raises(UserError, match="give every row its size"):
        predictions.check([*sizes(25), four(split="val", ids="stuv")], CLASSES)
    assert (
        predictions.check(sizes(25, 50), CLASSES)
        == predictions.check(sizes(25, None, fold=0), CLASSES)
        == []
    )


def test_val_is_of_the_models_that_are_evaluated():
    def rows(split, arm="a", **cell):
        return four(arm, split, "wxyz" if split == "test" else "stuv", **cell)

    test = [rows("test", seed=k) for k in (0, 1)]
    with pytest.raises(
        UserError,
        match=r"^f.csv: arm 'a' has predictions of val, but of test none .* such as test, seed 0",
    ):
        predictions.check([*test, rows("val")], CLASSES, name="f.csv")
    with pytest.raises(
        UserError,
        match=r"^f.csv: arm 'a' .* val, seed 0, but none of val for test, seed 1 \(1 of 2 ",
    ):
        predictions.check([*test, rows("val", seed=0)], CLASSES, name="f.csv")
    both = [*test, rows("val", seed=0), rows("val", seed=1)]
    assert predictions.check(both, CLASSES) == []
    assert (
        predictions.check([*test, rows("val")], CLASSES, split="val") == []
    )  # then val is what is evaluated
    # An arm without val is told and not refused.
    notes = predictions.check([*both, *(rows("test", "b", seed=k) for k in (0, 1))], CLASSES)
    assert len(notes) == 1 and notes[0].startswith(
        "there is val of some arms only (with: a; without: b)"
    )


def test_an_example_is_tested_on_in_one_fold():
    for twice in ({"fold": 1}, {}):
        with pytest.raises(
            UserError, match=r"^f.csv: arm 'a': 'z' is in test, seed 2, fold 0 and in test, seed 2"
        ):
            predictions.check(
                [four(seed=2, fold=0), four(ids="zuvs", seed=2, **twice)], CLASSES, name="f.csv"
            )
    # Other seeds, repeats and sizes test on the same examples again, and so do other folds' val.
    again = [
        {"seed": s, "repeat": r, "size": size}
        for s in (0, 1)
        for r in (0, 1)
        for size in (25, None)
    ]
    frames = [
        four(arm, ids=ids, fold=k, **cell)
        for arm in "ab"
        for cell in again
        for k, ids in enumerate(IDS)
    ]
    frames += [dataclasses.replace(p, split="val", id=np.array(list("klmn"))) for p in frames]
    assert predictions.check(frames, CLASSES) == []


def test_folds_that_share_patients_are_told():
    patients = [["p", "p", "q", "r"], ["r", "q", "q", "s"], ["t", "u", "s", "s"]]
    frames = [
        four(arm, ids=[f"{k}{i}" for i in range(4)], patient=np.array(who), fold=k, **cell)
        for arm in "ab"
        for cell in ({"repeat": 0, "seed": 0}, {"repeat": 0, "seed": 1}, {"repeat": 1, "seed": 0})
        for k, who in enumerate(
            patients if cell["repeat"] == 0 else (["p"] * 4, ["q"] * 4, ["r"] * 4)
        )
    ]
    said = "the folds are not grouped by patient, so scores flatter"
    assert predictions.check(frames, CLASSES) == [
        f"test, repeat 0: fold 0 and 1 share 2 patients, the first is 'q': {said}",
        f"test, repeat 0: fold 1 and 2 share 1 patients, the first is 's': {said}",
    ]


def test_patients_of_test_that_are_also_in_val_are_told():
    patients = {"test": np.array(["p", "p", "q", "r"]), "val": np.array(["q", "s", "r", "r"])}
    frames = [
        four(split=split, ids=[f"{split}{i}" for i in range(4)], patient=patient)
        for split, patient in patients.items()
    ]
    assert predictions.check(frames, CLASSES) == [
        "test: 2 patients are also in val, the first is 'q' (arms: a); what is chosen on val has seen them"
    ]
    # What another fold's model was tuned on is no concern of this one's.
    folds = [four(ids=ids, fold=k) for k, ids in enumerate(IDS)]
    folds += [dataclasses.replace(p, split="val", fold=1 - p.fold) for p in folds]
    assert predictions.check(folds, CLASSES) == []


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    """In 15 s each way; memory is measured apart, since tracing it makes the reading slow."""
    n, rng = 250_000, np.random.default_rng(0)
    ids = np.char.add("images/ct/patient_", np.arange(n).astype(str))
    label, site = rng.integers(0, 3, n), rng.choice(["north", "south"], n)
    frames = []
    for arm in "abcd":
        probability = predictions.probabilities(
            rng.standard_normal((n, 3), np.float32), multi_label=False
        )
        frames.append(
            Predictions(arm, "test", ids, label, probability, patient=ids, groups={"site": site})
        )
    path = tmp_path / "p.csv"
    start = time.perf_counter()
    predictions.write(path, frames, ("u", "v", "w"))
    middle = time.perf_counter()
    back, _ = predictions.read(path)
    end = time.perf_counter()
    for one, other in zip(frames, back, strict=True):
        np.testing.assert_array_equal(one.probability, other.probability)
        np.testing.assert_array_equal(one.id, other.id)
    assert max(middle - start, end - middle) < 60  # seconds, on a busy machine
