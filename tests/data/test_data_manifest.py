import subprocess
import sys

import numpy as np
import pytest

from medtl import data
from medtl.config import dataset
from medtl.errors import UserError

KEY = "config.data.target"
WORKING = {
    "image_size": 8,
    "channels": 1,
    "resize": "squash",
    "cache": "memory",
    "cache_dir": "",
    "key": KEY,
}


def load(spec, **options):
    return data.load(spec, **WORKING | options)


def refusal(spec, **options):
    """What `check` says; `load` must say the same."""
    with pytest.raises(UserError) as by_check:
        data.check(spec, key=KEY, **options)
    with pytest.raises(UserError) as by_load:
        load(spec, **options)
    assert str(by_check.value) == str(by_load.value)
    assert len(str(by_check.value).splitlines()) == 1
    return str(by_check.value)


def test_reads_what_the_manifest_says(write, twelve, folder, pixels):
    examples = load(write(twelve))
    assert examples.classes == ("ill", "well")
    assert examples.name == folder.name
    assert examples.label.dtype == np.int32
    assert examples.label.tolist() == [1, 0] * 6
    assert examples.split.tolist() == ["train"] * 6 + ["val"] * 2 + ["test"] * 4
    assert examples.patient.tolist() == [f"p{i}" for i in range(12)]
    assert examples.weight.tolist() == [1.0] * 12
    np.testing.assert_array_equal(examples.image[..., 0], pixels)


def test_byte_order_mark_crlf_spaces_quotes_and_absolute_paths(write, folder):
    text = f"\ufeff image_path , diagnosis,split \r\n{folder}/00.png, NA ,train\r\n"
    text += '\r\n"01.png","None, really",Validation\r\n'
    text += '02.png,"None, really",train\r\n03.png,NA,valid\r\n'
    examples = load(write(text))
    assert examples.classes == ("NA", "None, really")
    assert examples.split.tolist() == ["train", "val", "train", "val"]
    assert examples.id.tolist() == [f"{folder}/00.png", "01.png", "02.png", "03.png"]


def test_classes_that_are_numbers_are_in_the_order_of_numbers(write):
    labels = ["10", "9", "2", "9", "2"]
    rows = "".join(
        f"{i:02d}.png,{label},{'train' if i < 3 else 'val'}\n" for i, label in enumerate(labels)
    )
    assert load(write("image_path,diagnosis,split\n" + rows)).classes == ("2", "9", "10")


def test_several_diagnoses(write):
    text = "image_path,findings,split\n00.png,a|b,train\n01.png,|,train\n"
    text += "02.png,b,val\n03.png,c | a,train\n"
    examples = load(write(text, label="findings", multi_label=True))
    assert examples.classes == ("a", "b", "c")
    assert examples.multi_label
    assert examples.label.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_an_image_of_an_unknown_patient_is_a_patient_of_its_own(write, twelve):
    examples = load(write(twelve.replace(",p3\n", ",\n").replace(",p9\n", ",\n")))
    assert len(set(examples.patient)) == 12


def test_a_manifest_to_be_scored_needs_only_images(write):
    spec = write("image_path\n00.png\n01.png\n")
    data.check(spec, key="--manifest", require_label=False)
    examples = load(spec, require_label=False)
    assert examples.label.tolist() == [-1, -1]
    assert examples.split.tolist() == ["test", "test"]
    assert examples.classes == ()


def test_the_fingerprint_covers_labels_splits_and_pixels(write, twelve, folder):
    first = load(write(twelve))
    assert load(write(twelve)).fingerprint == first.fingerprint
    assert (
        load(write(twelve.replace("05.png,ill,train", "05.png,ill,val"))).fingerprint
        != first.fingerprint
    )
    assert load(write(twelve.replace("05.png,ill", "05.png,well"))).fingerprint != first.fingerprint
    (folder / "05.png").write_bytes((folder / "03.png").read_bytes())
    changed = load(write(twelve))
    assert changed.fingerprint != first.fingerprint
    assert changed.split_hash == first.split_hash


def test_groups_follow_their_images_and_are_not_part_of_what_is_trained(write, twelve):
    lines = twelve.splitlines()
    cells = [
        "site,Note,subgroup_sex",
        *(f"site {i % 3},x,{'fm'[i % 2] if i else ''}" for i in range(12)),
    ]
    text = "\n".join(f"{line},{cell}" for line, cell in zip(lines, cells, strict=True))
    examples = load(write(text))
    assert list(examples.groups) == ["site", "subgroup_sex"]
    assert examples.groups["site"].tolist() == [f"site {i % 3}" for i in range(12)]
    assert examples.groups["subgroup_sex"].tolist() == ["", *"mfmfmfmfmfm"]
    plain = load(write(twelve))
    assert plain.groups == {}
    assert (examples.fingerprint, examples.split_hash) == (plain.fingerprint, plain.split_hash)
    fewer = load(write(text, train_size=2))
    assert len(fewer) == 8
    assert fewer.groups["site"].tolist() == [f"site {int(i[:2]) % 3}" for i in fewer.id]
    assert (
        load(write(text), require_label=False).groups["site"].tolist()
        == examples.groups["site"].tolist()
    )
    assert list(load(write(text, label="site")).groups) == [
        "subgroup_sex"
    ]  # the diagnosis is not a group


HEAD = "image_path,diagnosis,split\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", ["manifest.csv is empty", "image_path"]),
        ("\n\n", ["manifest.csv is empty"]),
        (HEAD, ["has a header and no rows"]),
        (bytes(range(256)) * 20, ["manifest.csv is not a CSV file in UTF-8", "byte"]),
        (b"\0\1\2\3", ["not a CSV file"]),
        ("image_path;diagnosis\n00.png;ill\n", ["line 1", "separated by semicolons", "commas"]),
        ("image_path\tdiagnosis\n00.png\till\n", ["separated by tabs"]),
        ("image_path|diagnosis\n00.png|ill\n", ["separated by vertical bars"]),
        ("sep=,\nimage_path,diagnosis\n00.png,ill\n", ["line 1: 'sep=' is no header; remove"]),
        (
            "image_path,diagnosis\n00.png,ill\n".encode("utf-16"),
            ["it is text in UTF-16", "save it as CSV in UTF-8"],
        ),
        (b"PK\3\4" + bytes(range(256)), ["it is a workbook (.xlsx)", "save it as CSV in UTF-8"]),
        (HEAD + f"00.png,{'x' * 200_000},train\n", ["line 2", "is a closing quote missing?"]),
        (",,image_path,diagnosis\n1,2,00.png,ill\n", ["cells 1 and 2 are of columns without a"]),
        (
            "image_path,diagnose\n00.png,ill\n",
            ["line 1 has no column 'diagnosis'", f"{KEY}.label", "did you mean 'diagnose'?"],
        ),
        ("image,diagnosis\n00.png,ill\n", ["no column 'image_path'"]),
        (
            "image_path,diagnosis,Split\n00.png,ill,train\n",
            ["column 'Split'; did you mean 'split'?"],
        ),
        (
            "image_path,diagnosis,Patient\n00.png,ill,1\n",
            ["column 'Patient'; did you mean 'patient_id'?"],
        ),
        (
            "image_path,diagnosis,patientid\n00.png,ill,1\n",
            ["column 'patientid'; did you mean 'patient_id'?"],
        ),
        ("image_path,diagnosis,Site\n00.png,ill,1\n", ["column 'Site'; did you mean 'site'?"]),
        (
            "image_path,diagnosis,Subgroup_age\n00.png,ill,1\n",
            ["column 'Subgroup_age'; did you mean 'subgroup_<name>'?"],
        ),
        (
            "image_path,diagnosis,sub group\n00.png,ill,1\n",
            ["column 'sub group'; did you mean 'subgroup'?"],
        ),
        (
            "image_path,diagnosis,split,split\n00.png,ill,val,val\n",
            ["two columns are called 'split'"],
        ),
        (
            HEAD + "00.png,ill,train\n01.png,well, or not,train\n",
            ["line 3: 4 cells", "3 columns", "quotes"],
        ),
        (HEAD + '00.png,"ill,train\n', ["line 2: not a CSV file"]),
        (
            HEAD + "00.png,ill,train\n,well,train\n",
            ["line 3, column image_path: the cell is empty"],
        ),
        (
            HEAD + "00.png,ill,train\n\n01.png,,train\n",
            ["line 4, column diagnosis: the cell is empty"],
        ),
        (HEAD + '00.png,"i\nll",train\n01.png,NaN,train\n', ["line 4, column diagnosis", "'NaN'"]),
        (
            HEAD + "00.png,ill,train\n01.png,Ill,train\n",
            ["line 2, column diagnosis", "'Ill'", "'ill'", "differ in case"],
        ),
        (
            HEAD + "00.png,ill,training\n",
            ["line 2, column split: 'training' is not a split; did you mean 'train'?"],
        ),
        (HEAD + "00.png,ill,\n", ["line 2, column split: the cell is empty", "test, train, val"]),
        (
            HEAD + "00.png,ill,train\n01.png,ill,train\n",
            ["split train has 2 example(s)", "class 'ill'", "two classes"],
        ),
        (
            HEAD + "00.png,ill,train\n01.png,well,train\n02.png,ill,val\n",
            ["split val has 1 example(s)", "all of the class 'ill'"],
        ),
        (HEAD + "00.png,ill,val\n01.png,well,val\n", ["split train is empty", "it has val"]),
        (
            HEAD + "00.png,ill,train\n01.png,well,train\n02.png,worse,test\n03.png,ill,test\n",
            ["line 4: label 'worse' occurs in test but not in train", "ill, well"],
        ),
        (
            HEAD + "00.png,ill,train\n01.png,well,train\n00.png,ill,val\n",
            ["line 2 and line 4 have the same id '00.png'"],
        ),
        (
            "image_path,diagnosis,split,patient_id\n00.png,ill,train,p\n01.png,well,train,q\n02.png,ill,val,q\n03.png,well,val,\n",
            ["patient 'q' is in train (line 3) and in val (line 4)"],
        ),
        (
            HEAD
            + "".join(f"x{i}.png,{'ill' if i % 2 else 'well'},train\n" for i in range(7))
            + "00.png,ill,train\n",
            [
                "column image_path: 7 of 8 images are missing",
                "'x0.png' (line 2)",
                "'x4.png' (line 6) and 2 more",
                "relative to",
            ],
        ),
    ],
)
def test_refuses(write, text, expected):
    message = refusal(write(text))
    for words in expected:
        assert words in message, message


@pytest.mark.parametrize("weight", ["heavy", "-1", "nan", "inf", ""])
def test_refuses_a_weight_that_is_no_weight(write, weight):
    text = f"image_path,diagnosis,split,weight\n00.png,ill,train,1\n01.png,well,train,{weight}\n"
    assert "line 3, column weight" in refusal(write(text))


def test_refuses_weights_that_are_all_0(write):
    text = "image_path,diagnosis,split,weight\n00.png,ill,train,0\n01.png,well,train,0\n"
    text += "02.png,ill,val,1\n03.png,well,val,1\n"
    assert "weights of train are all 0" in refusal(write(text))


def test_refuses_damaged_images_and_names_the_first_five(write, twelve, folder):
    for i in range(1, 8):
        (folder / f"{i:02d}.png").write_bytes((folder / f"{i:02d}.png").read_bytes()[:40])
    (folder / "09.png").write_bytes(b"hello")
    for cache in ("memory", "disk", "stream"):
        with pytest.raises(UserError) as error:
            load(write(twelve), cache=cache, cache_dir=str(folder / "cache"))
        message = str(error.value)
        assert "8 of 12 images cannot be read" in message
        assert "'01.png' (line 3:" in message
        assert "'05.png' (line 7:" in message
        assert "and 3 more" in message
        assert "06.png" not in message


def test_refuses_paths_that_are_no_manifest(write, twelve, folder):
    write(twelve)
    assert "is a directory; did you mean" in refusal(dataset("manifest", path=str(folder)))
    assert "there is no file" in refusal(dataset("manifest", path=str(folder / "none.csv")))
    assert "config.data.target.path is empty" in refusal(dataset("manifest"))
    assert "not a CSV file" in refusal(dataset("manifest", path=str(folder / "00.png")))
    with pytest.raises(UserError, match=r"^--manifest: there is no file"):
        data.check(dataset("manifest", path="none.csv"), key="--manifest", require_label=False)


def test_refuses_an_unknown_kind():
    assert "config.data.target.kind is 'manifst'; did you mean 'manifest'?" in refusal(
        dataset("manifst")
    )


def test_a_function_of_ones_own(folder):
    (folder / "mine.py").write_text(
        "from medtl.data import phantom\n"
        "def mine(spec, *, image_size, channels, resize, n=60):\n"
        "    size = image_size + (n == 61)\n"
        "    return phantom.examples(n, scanner='a', seed=0, image_size=size, channels=channels)\n"
    )
    assert len(load(dataset(f"{folder}/mine.py:mine"))) == 60
    assert len(load(dataset(f"{folder}/mine.py:mine(n=90)"))) == 90
    with pytest.raises(
        UserError, match=r"returned images of uint8\[9, 9, 1\]; they must be uint8\[8, 8, 1\]"
    ):
        load(dataset(f"{folder}/mine.py:mine(n=61)"))
    (folder / "grouped.py").write_text(
        "import dataclasses\nfrom medtl.data import phantom\n"
        "def mine(spec, *, image_size, channels, resize, name='site', n=60):\n"
        "    e = phantom.examples(60, scanner='a', seed=0, image_size=image_size)\n"
        "    return dataclasses.replace(e, groups={name: e.split[:n]})\n"
    )
    assert list(load(dataset(f"{folder}/grouped.py:mine")).groups) == ["site"]
    with pytest.raises(UserError, match="returned 60 ids but 59 of the group 'site'"):
        load(dataset(f"{folder}/grouped.py:mine(n=59)"))
    with pytest.raises(
        UserError, match="returned a group 'age'; it must be site, subgroup or subgroup_<name>"
    ):
        load(dataset(f"{folder}/grouped.py:mine(name='age')"))
    assert "did you mean 'mine'?" in refusal(dataset(f"{folder}/mine.py:min"))


@pytest.fixture
def tabular(folder):
    """tabular(line): the spec of a function whose examples that line changes."""

    def tabular(line):
        (folder / "tabular.py").write_text(
            "import dataclasses\nimport numpy as np\nfrom medtl.data import phantom\n"
            "def load(spec, *, image_size, channels, resize):\n"
            "    e = phantom.examples(60, scanner='a', seed=0, image_size=image_size)\n"
            "    table = np.arange(120, dtype=np.float32).reshape(60, 2)\n"
            f"    return dataclasses.replace(e, {line})\n"
        )
        return dataset(f"{folder}/tabular.py:load")

    return tabular


def test_a_function_of_ones_own_gives_any_inputs(tabular):
    only = load(tabular("inputs={'table': table}"))
    assert list(only.inputs) == ["table"]
    assert only.inputs["table"].dtype == np.float32
    both = load(tabular("inputs={'table': table, 'notes': table.astype(int), **e.inputs}"))
    assert list(both.inputs) == ["table", "notes", "image"]
    data.check_domains(both, only)  # which share no images that could be compared


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("inputs={'table': table[:59]}", "returned 60 ids but 59 of the input 'table'"),
        (
            "inputs={'table': table.astype(str)}",
            "the input 'table' of <U32[2]; it must hold numbers",
        ),
        ("inputs={'image': table}", r"images of float32[2]; they must be uint8[8, 8, 1]"),
        ("inputs={}", "returned no inputs"),
        ("patient=e.patient[1:]", "returned 60 ids but 59 of `patient`"),
        ("weight=e.weight[1:]", "returned 60 ids but 59 of `weight`"),
        *(
            (f"inputs={{{name!r}: table}}", f"returned an input {name!r}; a name is an identifier")
            for name in ("label", "key", "position", "encoded_image", "two words", "1st", "")
        ),
    ],
)
def test_inputs_of_ones_own_that_are_refused(tabular, line, message):
    with pytest.raises(UserError) as error:
        load(tabular(line))
    assert message in str(error.value)


def test_leakage_between_the_domains(write, twelve):
    source = load(write(twelve))
    target = load(write(twelve))
    # 00 and 01 are in train of the source and in val of this one.
    moved = twelve.replace("00.png,well,train", "00.png,well,val").replace(
        "01.png,ill,train", "01.png,ill,val"
    )
    moved = moved.replace("06.png,well,val", "06.png,well,train").replace(
        "07.png,ill,val", "07.png,ill,train"
    )
    leaking = load(write(moved))
    with pytest.raises(
        UserError,
        match=r"^2 of the 6 val and test .* '00.png' \(val\) = '00.png', '01.png' \(val\)",
    ):
        data.check_domains(source, leaking)
    data.check_domains(source, target)
    data.check_domains(None, target)


def test_a_bad_manifest_is_refused_without_jax(write):
    spec = write("image_path,diagnose\n00.png,ill\n")
    program = (
        "import sys\nfrom medtl import config, data, errors\n"
        f"spec = config.dataset('manifest', path={spec.path!r})\n"
        "try:\n    data.check(spec, key='config.data.target')\n"
        "except errors.UserError:\n    pass\nelse:\n    sys.exit('it was not refused')\n"
        "slow = {'jax', 'grain', 'tensorflow', 'tensorflow_datasets', 'sklearn', 'pandas'}\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
