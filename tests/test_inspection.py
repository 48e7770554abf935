"""`--mode=inspect` and `--mode=export_tfds`: what they say is what is in the data."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import html5lib
import numpy as np
import pytest
from command_line import error_of
from PIL import Image

from medtl import cli
from medtl import config as configs
from medtl.experiment import domains, inspection, run_folder

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 40, 30), np.uint8)
HEADER = "image_path,diagnosis,split,patient_id,site,age\n"


def line(i, name="", split=""):
    split = split or ("train" if i < 8 else "test")
    age = "" if i % 2 else 40 + i
    label = "1.0" if i % 4 == 1 else str(i % 2)
    return f"{name or f'{i:02d}.png'},{label},{split},p{i // 2},{'ab'[i % 3 == 0]},{age}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(PIXELS):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "m.csv").write_text(HEADER + "".join(map(line, range(12))))
    return tmp_path


@pytest.fixture
def config(folder):
    c = configs.default()
    c.arms = ("scratch",)
    c.data.target = configs.dataset(path="m.csv")
    c.data.image_size = 16
    return c


def page_of(config):
    return inspection.make_page(config, {"target": inspection.load_in_any_case(config, "target")})


def cells(table):
    return [[cell.text for cell in row] for row in table.rows]


def tables_of(page):
    return {table.caption: table for table in page.domains[0].tables}


def test_numbers(config):
    page = page_of(config)
    assert page.headline == "The data can be trained on" and not page.errors
    assert cells(page.overview) == [["target", "12", "12", "6", "2", "2"]]
    tables = tables_of(page)
    assert cells(tables["Classes by split"]) == [
        ["0", "4 (50 %)", "2 (50 %)", "6 (50 %)"],
        ["1", "4 (50 %)", "2 (50 %)", "6 (50 %)"],
        ["all", "8", "4", "12"],
    ]
    small = [[cell.small for cell in row] for row in tables["Classes by split"].rows]
    assert small[0] == ["", "4 patients", "2 patients", "6 patients"]
    columns = {row[0]: row[1:] for row in cells(tables["Columns"])}
    assert tables["Columns"].head[4:] == ["Missing in 0", "Missing in 1"]
    assert columns["age"] == ["ignore", "6", "6", "0 %", "100 %"]
    assert columns["site"][:3] == ["site", "0", "2"]
    assert columns["diagnosis"][:3] == ["label", "0", "3"]
    texts = cells(tables["diagnosis as it is in the file"])
    assert texts == [["0", "6"], ["1.0", "3"], ["1", "3"]]
    assert cells(tables["By site"]) == [["a", "8", "4", "4"], ["b", "4", "2", "2"]]
    files = tables["Image files: 12 of 12 that were looked at"]
    (row,) = cells(files)
    assert row[:4] == ["8-bit grey PNG", "12", "30", "40"]
    assert row[4:6] == ["0", f"{np.median([np.median(image) for image in PIXELS]):g}"]


def test_pictures_are_those_that_the_model_gets(config):
    config.data.inspect_images = 2
    page = page_of(config)
    titles = [title for title, _ in page.domains[0].pictures]
    assert titles == ["train, 0 (4)", "train, 1 (4)", "test, 0 (2)", "test, 1 (2)"]
    images = page.domains[0].pictures[0][1]
    assert [alt for _, alt in images] == ["00.png: 0, train", "06.png: 0, train"]
    decoded = Image.open(io.BytesIO(base64.b64decode(images[1][0].partition(",")[2])))
    examples = domains.load(config, "target")
    np.testing.assert_array_equal(np.asarray(decoded), examples.image[6, ..., 0])
    config.data.inspect_images = 0
    assert page_of(config).domains[0].pictures == []


def test_what_training_refuses_is_shown(config, folder):
    Image.fromarray(PIXELS[0]).save(folder / "10.png")  # in test, a copy of one in train
    page = page_of(config)
    assert page.headline == "Training would stop: 1 finding"
    assert "have a copy in an earlier split" in page.errors[0]
    assert page.errors[0].endswith("; config.data.allow would accept 'duplicate_images'")
    assert ["target test", "target train", "1", "4"] in cells(page.copies)
    assert ["target train", "itself", "0", "8"] in cells(page.copies)
    config.data.allow = ("duplicate_images",)
    page = page_of(config)
    assert not page.errors and "(allowed: duplicate_images)" in page.notes[0]


def test_value_ranges_of_files_that_need_a_window(config, folder):
    for i, image in enumerate(PIXELS):
        Image.fromarray(image.astype(np.uint16) * 16).save(folder / f"{i:02d}.png")
    page = page_of(config)
    assert "states no window; set config.data.window" in page.errors[0]
    (row,) = cells(tables_of(page)["Image files: 12 of 12 that were looked at"])
    assert row[0] == "16-bit grey PNG" and row[4] == "0" and row[6] == str(255 * 16)


def test_a_clinical_table_shows_its_schema(config, folder):
    rows = [f"{i},{i % 2},{'-' if i % 3 == 0 else 50 + i},{'xy'[i % 2]}\n" for i in range(40)]
    (folder / "t.csv").write_text("id,diagnosis,age,arm\n" + "".join(rows))
    config.data.target = configs.dataset(path="t.csv", split=(0.5, 0.25, 0.25))
    config.data.inputs = ("table",)
    page = page_of(config)
    columns = tables_of(page)["Columns"]
    assert columns.head[:5] == ["Column", "Role", "Reason", "Missing", "Different values"]
    shown = {row[0]: row[1:] for row in cells(columns)}
    assert shown["age"][0] == "numeric" and shown["age"][2] == "14"
    assert shown["age"][4:] == ["35 %", "35 %"], "7 of 20 in each class"
    assert shown["id"][0] == "id" and shown["arm"][0] == "categorical"
    assert all(row[1] for row in shown.values()), "each role has a reason"
    assert page.copies is None and page.domains[0].pictures == ()


def test_a_column_that_gives_the_label_away_is_shown(config, folder):
    rows = [f"{i},{i % 2},{i % 2 + i % 7 / 10},{'' if i % 2 else 3}\n" for i in range(60)]
    (folder / "t.csv").write_text("id,diagnosis,test_result,note\n" + "".join(rows))
    config.data.target = configs.dataset(path="t.csv")
    config.data.inputs = ("table",)
    page = page_of(config)
    assert page.headline == "Training would stop: 1 finding"
    assert "values of 'test_result' predict '1' with AUROC 1.000" in page.errors[0]
    assert "missing cells of 'note'" in page.errors[0]


def test_domains_that_share_images(config):
    config.arms = ("transfer",)
    config.data.source = configs.dataset(path="m.csv")
    loaded = {d: inspection.load_in_any_case(config, d) for d in ("source", "target")}
    page = inspection.make_page(config, loaded)
    assert ["target train", "source train", "8", "8"] in cells(page.copies)
    assert ["target test", "source train", "0", "4"] in cells(page.copies)


def test_the_page_is_valid_and_escapes_what_is_in_the_file(folder, capsys):
    text = (folder / "m.csv").read_text().replace("age\n", "<script>alert(1)</script>\n", 1)
    (folder / "m.csv").write_text(text.replace(",a,", ",</td><b>\x01,"))
    flags = ["--config.data.target.path=m.csv", "--config.data.target.kind=manifest"]
    flags += ["--config.arms=scratch", "--config.data.image_size=16", "--workdir=w"]
    assert cli.run(["--mode=inspect", *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("The data can be trained on\n") and "w/inspect.html" in printed
    page = (folder / "w" / "inspect.html").read_text()
    html5lib.HTMLParser(strict=True).parse(page)
    assert "<script" not in page and "<b>" not in page and "\x01" not in page
    assert "&lt;script&gt;" in page and "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    run_folder.check(folder / "w", configs.default())  # training may use the folder


def test_errors(folder, capsys):
    assert "no file nowhere.csv" in error_of(
        capsys,
        "--mode=inspect",
        "--config.data.target.kind=manifest",
        "--config.data.target.path=nowhere.csv",
        "--config.arms=scratch",
    )
    assert "needs --workdir=FOLDER" in error_of(capsys, "--mode=export_tfds")
    message = error_of(capsys, "--mode=inspect", "--config.data.inspect_images=-1")
    assert "config.data.inspect_images" in message


def test_export_and_what_it_prints(folder, capsys):
    flags = ["--config.data.target.path=m.csv", "--config.data.target.kind=manifest"]
    flags += ["--config.arms=scratch", "--config.data.image_size=16"]
    assert cli.run(["--mode=export_tfds", *flags, "--workdir=my sets"]) == 0
    printed = capsys.readouterr().out
    assert "target: 12 examples in my sets/m/1.0.0" in printed
    spec = configs.dataset("tfds", path="my sets", name="m")
    config = configs.default()
    config.data.image_size = 16
    config.data.target = spec
    read = domains.load(config, "target")
    config.data.target = configs.dataset(path="m.csv")
    written = domains.load(config, "target")
    assert read.id.tolist() == written.id.tolist()
    np.testing.assert_array_equal(read.image, written.image)
    np.testing.assert_array_equal(read.label, written.label)


def test_neither_mode_imports_jax(folder):
    program = (
        "import sys\nfrom medtl import cli\n"
        "flags = ['--config.data.target.path=m.csv', '--config.data.target.kind=manifest',"
        "'--config.arms=scratch']\n"
        "for mode in ('inspect', 'export_tfds'):\n"
        "    assert cli.run([f'--mode={mode}', *flags, f'--workdir={mode}']) == 0\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
