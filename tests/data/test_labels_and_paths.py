import unicodedata

import numpy as np
import pytest
from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.data import labels, paths
from medtl.errors import UserError

OPTIONS = {"image_size": 8, "channels": 1, "resize": "squash", "cache": "memory", "cache_dir": ""}


def load(spec, **options):
    return data.load(spec, key="config.data.target", **OPTIONS | options)


def encode(*cells, multi_label=False):
    return labels.encode(cells, lambda row: f"line {row + 2}", multi_label=multi_label)


def rows(*diagnoses):
    return "image_path,diagnosis,split\n" + "".join(
        f"{i:02d}.png,{name},{'train' if i < 6 else 'val'}\n" for i, name in enumerate(diagnoses)
    )


def test_a_number_has_one_spelling():
    same = ["1", "1.0", "+1", "01", "1.", "1.00e+00"]
    assert {labels.spelled(name) for name in same} == {"1"}
    assert [labels.spelled(n) for n in ("-0.0", ".50", "1e-02")] == ["0", "0.5", "0.01"]
    kept = ["1E50", "1_0", "1,5", "inf", "0x1", "T1", "½", "-", "12345678901234567890"]
    assert [labels.spelled(name) for name in kept] == kept


def test_classes_that_are_numbers_are_ordered_and_shared_by_domains(write):
    one = load(write(rows("0", "1.0", "10.0", "9", "9.0", "0.0", "1", "0")))
    assert one.classes == ("0", "1", "9", "10")
    assert one.label.tolist() == [0, 1, 3, 2, 2, 0, 1, 0]
    assert encode("0", "1", "a", "1.0")[1] == ("0", "1", "a")


@pytest.mark.parametrize("cell", ["nan", "NaN", "<NA>", "null", "N/A", "#N/A", "?", "NaT"])
def test_a_missing_value_in_text_form_is_missing_in_every_column(write, twelve, cell):
    lines = twelve.splitlines()
    with pytest.raises(UserError, match=r"line 3, column diagnosis: the label is .*; every row"):
        load(write(twelve.replace("01.png,ill", f"01.png,{cell}")))
    with pytest.raises(UserError, match=r"line 3, column split: .* is not a split"):
        load(write(twelve.replace("01.png,ill,train", f"01.png,ill,{cell}")))
    with pytest.raises(UserError, match=r"line 3, column image_path: .* is a missing value"):
        load(write(twelve.replace("01.png", cell)))
    examples = load(write(twelve.replace(",p3\n", f",{cell}\n").replace(",p9\n", f",{cell}\n")))
    assert len(set(examples.patient)) == 12  # each is a patient of its own, so no split shares one
    cells = ["weight,site", *(f"1,{cell if i < 2 else 'A'}" for i in range(12))]
    text = "\n".join(map(",".join, zip(lines, cells, strict=True)))
    assert load(write(text)).groups["site"].tolist() == ["", "", *"AAAAAAAAAA"]
    with pytest.raises(UserError, match="column weight"):
        load(write(text.replace(",1,", f",{cell},", 1)))


def test_an_unknown_label_is_masked():
    label, classes = encode("?edema|effusion", "edema", "|", "? effusion", multi_label=True)
    assert classes == ("edema", "effusion")
    expected = [[np.nan, 1], [1, 0], [0, 0], [0, np.nan]]
    np.testing.assert_array_equal(label, expected)
    for cell, words in (
        ("a|?a", "'a' is both present and unknown"),
        ("a|?", "needs the unknown diagnosis after it"),
        ("a|nan", "missing value; unknown is"),
    ):
        with pytest.raises(UserError, match=rf"line 2: .*{words}"):
            encode(cell, multi_label=True)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["covid", "covid\u200b"], r"line 3: 'covid\\u200b' and 'covid' differ in spelling only"),
        (["e\u0301", "\u00e9"], r"'\\xe9' and 'e\\u0301' differ in spelling only; write one"),
        (["not well", "not  well"], "'not well' and 'not  well' differ in spelling only"),
        (["True", "FALSE", "TRUE"], "'True' and 'TRUE' differ in case only"),
        (["1", "0", "True", "False"], "'False' and '0' may be one class; write one of them"),
        (["edema", "?edema"], r"line 3: '\?edema' is written as several diagnoses; set .*multi_l"),
        (["a|b", "a"], r"line 2: 'a\|b' is written as several diagnoses"),
        (["a", "x" * 300], "line 3: the label has 300 characters, at most 200 are a name"),
        ([f"case {i}" for i in range(11)], "the 11 rows have 11 different labels, so nothing"),
    ],
)
def test_classes_that_are_none_or_look_alike_are_refused(cells, words):
    with pytest.raises(UserError, match=words):
        encode(*cells)
    assert encode("True", "False")[1] == ("False", "True")
    assert len(encode(*"abcdefghij")[1]) == 10


def test_a_class_that_two_domains_write_in_two_ways_is_refused(write, twelve):
    here = load(write(twelve))
    there = load(write(twelve.replace(",ill,", ",Ill,")))
    assert data.check_domains(None, here) == ()
    words = r"classes of the source .* and the target .*: 'ill' and 'Ill' differ in case only"
    with pytest.raises(UserError, match=words):
        data.check_domains(there, here)


def test_a_quantity_is_told_from_grades():
    assert len(encode(*map(str, range(8)), *map(str, range(8)))[1]) == 8
    assert len(encode(*["1.5", "2.5", "3"] * 5)[1]) == 3
    assert len(encode(*[f"type {i}" for i in range(60)] * 2)[1]) == 60
    for values in (np.linspace(40, 258.3, 60).round(1), np.arange(60) * 3, [*range(51)] * 9):
        with pytest.raises(UserError, match="line 2: this looks continuous.*asks for regression"):
            encode(*map(str, values))


@pytest.fixture
def finder(tmp_path):
    (tmp_path / unicodedata.normalize("NFD", "Müller")).mkdir()
    for name in ("Müller/a.JPG", "Müller/b.png", "twin.png", "Twin.png"):
        (tmp_path / unicodedata.normalize("NFD", name)).write_bytes(b"")
    return paths.Finder(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["Müller/a.JPG", "Müller\\a.JPG", "müller/A.jpg", unicodedata.normalize("NFD", "Müller/a.jpg")],
)
def test_a_path_that_differs_in_form_is_found(finder, name, tmp_path):
    name = unicodedata.normalize("NFC", name) if "\\" in name else name
    path, frame = finder.find(name)
    assert frame is None
    assert path == str(tmp_path / unicodedata.normalize("NFD", "Müller/a.JPG"))
    assert finder.find(f"{name}#12") == (path, 12)
    assert finder.find(str(tmp_path / name)) == (path, None)


def test_a_path_with_two_near_files_or_none_is_not_guessed(finder):
    assert finder.find("TWIN.png") is None
    assert finder.find("Müller/b.jpeg") is None
    assert unicodedata.normalize("NFC", finder.near("Müller/b.jpeg")) == "Müller/b.png"
    assert finder.find("nowhere/c.png") is None
    assert finder.near("nowhere/c.png") == ""
    assert finder.find("a\0b") is None


def test_the_near_name_is_offered(write, twelve, folder):
    with pytest.raises(UserError, match=r"'03.jpg' \(line 5\).*; did you mean '03.png'\?"):
        load(write(twelve.replace("03.png", "03.jpg")))
    upper = write(twelve.replace("03.png", "03.PNG"))
    np.testing.assert_array_equal(
        load(upper).image[3, ..., 0], np.asarray(Image.open(folder / "03.png"))
    )


def test_one_hot_labels_and_absent_classes_of_an_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    number = np.array([1, 2, 4] * 4)

    def examples(label, **more):
        arrays = {"train_images": images[:6], "val_images": images[6:]}
        arrays |= {"train_labels": label[:6], "val_labels": label[6:]} | more
        np.savez(tmp_path / "scans.npz", **arrays)
        return load(dataset("npz", path=str(tmp_path / "scans.npz")))

    numbered, one_hot = examples(number[:, None]), examples(np.eye(5)[number])
    assert numbered.classes == one_hot.classes == ("1", "2", "4")
    assert numbered.label.tolist() == one_hot.label.tolist() == [0, 1, 2] * 4
    assert "no example has '0', '3': 2 of 5 classes are left out" in numbered.notes[0]
    named = examples(number, classes=np.array(list("abcde")))
    assert named.classes == ("b", "c", "e")
    with pytest.raises(UserError, match="has 5 columns; set config.data.target.multi_label"):
        examples(np.eye(5)[number] + np.eye(5)[0])
    with pytest.raises(UserError, match="row 0: 1.5 is not a class number.*'features' can"):
        examples(number + 0.5)
