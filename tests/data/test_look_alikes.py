"""Names that differ in spelling alone are found across splits, and rows that a quote swallows."""

import pytest

from medtl import data
from medtl.errors import UserError

OPTIONS = {"image_size": 8, "channels": 1, "resize": "squash", "cache": "memory", "key": "x"}


def load(spec, *allow, **options):
    rules = data.FileRules(allow=(*allow, "duplicate_images", "near_duplicate_images"))
    return data.load(spec, rules=rules, cache_dir="", **OPTIONS, **options)


@pytest.mark.parametrize(
    "one, two",
    [
        ("7", "7.0"),
        ("p1x", "P1X"),
        ("p1", "p\u200b1"),
        ("p1", "p1\ufeff"),
        ("Ren\u00e9", "Rene\u0301"),
        ("p1", "\uff501"),
        ("p 1", "p  1"),
        ("p 1", "p\u00a01"),
    ],
)
def test_spellings_of_one_patient_in_train_and_test_are_refused(one, two, write, twelve):
    text = twelve.replace(",p0\n", f",{one}\n").replace(",p11\n", f",{two}\n")
    words = "1 pair of patients in two parts of the data differ in spelling alone"
    with pytest.raises(UserError, match=words) as error:
        load(write(text))
    assert "line 2" in str(error.value) and "line 13" in str(error.value)
    assert str(error.value).isascii() and len(str(error.value).splitlines()) == 1
    notes = load(write(text), "look_alikes").notes
    assert [n for n in notes if words in n and n.endswith("(allowed: look_alikes)")]


def test_within_one_split_they_are_a_note_and_in_cross_validation_an_error(write, twelve):
    text = twelve.replace(",p0\n", ",P1\n")
    assert [n for n in load(write(text)).notes if "in one split differ in spelling alone" in n]
    with pytest.raises(UserError, match="differ in spelling alone"):
        load(write(text), all_held_out=True)


def test_ids_with_invisible_characters_are_found_and_case_tells_files_apart(write, twelve):
    lines = twelve.splitlines()
    ids = ["id", *(f"i{i}" for i in range(11)), "i0\u2060"]
    text = "".join(f"{line},{name}\n" for line, name in zip(lines, ids, strict=True))
    with pytest.raises(UserError, match=r"1 pair of ids .* 'i0' \(train.*'i0\\u2060' \(test"):
        load(write(text))
    assert load(write(text.replace("i0\u2060", "I0"))).notes == ()


def test_different_names_are_no_look_alikes(write, twelve):
    assert load(write(twelve)).notes == ()
    text = twelve.replace(",p0\n", ",7\n").replace(",p11\n", ",7.5\n").replace(",p10\n", ",\n")
    assert load(write(text)).notes == ()


def test_a_stray_quote_that_swallows_rows_is_named_with_its_lines(write, twelve):
    lines = twelve.splitlines()
    lines[3] = lines[3].replace("02.png", '"02.png')
    lines[5] = lines[5].replace("04.png", '04.png"')
    with pytest.raises(UserError, match=r"line 4: a cell in quotes goes on to line 6"):
        load(write("\n".join(lines) + "\n"))


def test_a_text_of_several_lines_is_read(write, twelve):
    lines = twelve.splitlines()
    notes = ["note", *['"fever, cough,\nnone, yet"'] * 12]
    text = "\n".join(f"{line},{note}" for line, note in zip(lines, notes, strict=True))
    assert len(load(write(text))) == 12
