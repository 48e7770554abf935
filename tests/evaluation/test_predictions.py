"""predictions.csv: what is written is read back, by us and by pandas, whatever the names and the
bits; what is wrong is named."""

import re

import numpy as np
import pandas as pd
import pytest
from prediction_rows import CLASSES, frame

from medtl.errors import UserError
from medtl.evaluation import predictions


def assert_same(one, other):
    assert (one.arm, one.split, one.model) == (other.arm, other.split, other.model)
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
    """One fold's file may lack the values that another's has: were the column lost, so were the
    whole run's subgroups."""
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
    np.testing.assert_array_equal(back.label, [[1], [0], [np.nan], [np.nan]])
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
            "line 1: the file is empty; the first line names the columns: arm, id, "
            "label, prob_<class>",
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
    with pytest.raises(UserError, match=r"there is no file .*none.csv"):
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
