"""The role of each column, from its name and its cells."""

import numpy as np
import pytest

from medtl.data import schema
from medtl.errors import UserError


def inferred(columns, given=(), label="diagnosis"):
    header = list(columns)
    roles = schema.overrides(given, header, key="config.data.target.columns")
    return schema.infer(
        header,
        lambda name: list(columns[name]),
        roles,
        label=label,
        where=lambda row, column: f"a.csv, line {row + 2}, column {column}",
    )


def role_of(cells, name="x", **settings):
    return inferred({name: cells}, **settings).schema[0].role


@pytest.mark.parametrize(
    ("cells", "role"),
    [
        (["1.5", "2.5", "", "NA"], "numeric"),
        (["0", "1", "1", "0"], "numeric"),
        (["1", "2", "3", "3", "1"], "categorical"),
        (["1.0", "2.0", "4.0", "4.0"], "categorical"),
        ([str(i) for i in range(30)], "numeric"),
        (["M", "F", "M", "?"], "categorical"),
        (["", "NA", "unknown"], "ignore"),
        (["2020-01-31", "2020-02-01", "2021-03-04"], "ignore"),
        (["2020/01/31", "01.02.2020", "3 Mar 2024", "4-May-21"], "ignore"),
        ([f"{i} Mar 2024" for i in range(1, 31)], "ignore"),
        ([f"fever and cough for {i} days" for i in range(30)], "text"),
        ([f"a{i}" for i in range(30)], "ignore"),
    ],
)
def test_the_cells_show_the_role(cells, role):
    assert role_of(cells) == role


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("image_path", "image"),
        ("id", "id"),
        ("patient_id", "patient_id"),
        ("split", "split"),
        ("weight", "weight"),
        ("site", "site"),
        ("subgroup_sex", "subgroup"),
        ("diagnosis", "label"),
        ("study_id", "ignore"),
    ],
)
def test_the_name_shows_the_role(name, role):
    assert role_of(["101", "102", "103"], name=name) == role


def test_every_column_has_a_reason_and_its_share_of_missing_cells():
    columns = inferred({"age": ["40", "", "60.5", "50"], "diagnosis": ["a", "b", "a", "b"]})
    assert all(column.reason for column in columns.schema)
    assert columns.schema[0].missing == 0.25
    shown = schema.lines("clinic", columns)
    assert shown[1].split() == ["age", "numeric", "numbers,", "25%", "missing"]


def test_the_config_overrides_roles_and_a_pattern_leaves_the_other_roles():
    columns = {"age": ["1", "2"], "sex": ["0", "1"], "id": ["a", "b"], "diagnosis": ["a", "b"]}
    result = inferred(columns, given=["*=ignore", "sex=categorical"])
    assert [c.role for c in result.schema] == ["ignore", "categorical", "id", "label"]
    assert list(result.cells) == ["sex"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age=number", "the role is 'number'; did you mean 'numeric'"),
        ("agee=numeric", "there is no column 'agee'; did you mean 'age'"),
        ("*=label", "belongs to one column"),
    ],
)
def test_a_wrong_override_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        inferred({"age": ["1", "2"]}, given=[text])


def test_a_few_words_among_numbers_are_refused_with_their_line():
    cells = [str(i / 2) for i in range(20)]
    cells[7] = "<0.01"
    with pytest.raises(UserError, match=r"a\.csv, line 9, column crp: '<0\.01' is not a number"):
        inferred({"crp": cells})
    assert role_of(cells, name="crp", given=["crp=categorical"]) == "categorical"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["0,5", "12,25", ""], "'0,5' reads as a number with a comma; write a point"),
        (["7", "1,234.5", "12,345"], "'1,234.5' reads as a number with a comma"),
        (["1.234,5", "7"], "'1.234,5' reads as a number with a comma"),
        (['="40"', '="41"'], "reads as a spreadsheet's formula; write the number alone"),
        ([f"{i} mg/l" for i in range(12)], "'0 mg/l' reads as a number with a unit"),
        ([f"{i}.5%" for i in range(12)], "'0.5%' reads as a number with a unit"),
    ],
)
def test_numbers_that_are_written_in_another_way_are_no_identifiers(cells, words):
    with pytest.raises(UserError, match=f"a.csv, line ., column crp: .*{words}"):
        inferred({"crp": cells})
    assert role_of(cells, name="crp", given=["crp=categorical"]) == "categorical"


def test_doses_and_bands_are_categories():
    assert role_of(["10 mg", "20 mg", "10 mg", "40 mg"]) == "categorical"
    assert role_of(["40-49", "50-59", "60-69", "40-49"]) == "categorical"
    assert role_of([f"{i}{'ab'[i % 2]}" for i in range(5)] * 5) == "categorical"


def test_none_is_missing_among_numbers_and_an_answer_among_words():
    assert np.isnan(inferred({"x": ["1.5", "None", "2"]}).cells["x"]).tolist() == [0, 1, 0]
    cells = inferred({"x": ["none", "mild", "none", "NA"]}).cells["x"]
    assert schema.is_missing(cells).tolist() == [False, False, False, True]


def test_numbers_written_differently_are_one_category():
    assert schema.canonical(np.array(["1.0", "1", "01"], object)).tolist() == ["1"] * 3
    assert schema.canonical(np.array([1.0, np.nan, 0.5])).tolist() == ["1", "", "0.5"]
