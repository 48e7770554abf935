"""The page of real analyses: the first screen, what stands once, and the files beside it."""

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
from test_analysis import CLASSES, SETTINGS, split_of

from medtl.evaluation import analysis, wording
from medtl.evaluation.report import html, pack
from medtl.evaluation.report.tables import Table, TableCell


@pytest.fixture(scope="module")
def result():
    return analysis.analyse(split_of(), CLASSES, SETTINGS)


@pytest.fixture(scope="module")
def page(result):
    return html.html(result, None)


def header(page):
    return re.sub(r"\s+", " ", page[page.index("<header>") : page.index("</header>")])


def test_the_first_screen_says_what_was_asked_and_warns_before_the_verdict(result, page):
    top = header(page)
    for name in ("Positive class", "Metric", "Reference", "Margin of equivalence"):
        assert f"<dt>{name}</dt>" in top
    assert result["warnings"]
    for warning in result["warnings"]:
        assert top.index(html_text(warning)) < top.index("<h1>")
    assert top.count("<svg") == 1 and "equivalent" in top


def html_text(text):
    import markupsafe

    return str(markupsafe.escape(text))


def test_the_interval_of_the_headline_is_the_table_s_and_no_sentence_stands_twice(result, page):
    d = result["comparisons"][0]["difference"]
    between = wording.interval(d["low"], d["high"], sign=True)
    assert between in result["verdict"]["headline"]
    assert f"<small>{between}</small>" in page
    for sentence in [result["verdict"]["headline"], *result["verdict"]["sentences"]]:
        assert page.count(f">{html_text(sentence)}<") + page.count(f"> {html_text(sentence)}<") <= 1


def test_every_section_has_its_data(result, page):
    for heading in ("decisions", "flow", "differences", "calibration", "decision", "subgroups"):
        assert f'id="{heading}"' in page
    alone = analysis.analyse([p for p in split_of() if p.arm == "good"], CLASSES, SETTINGS)
    single = html.html(alone, None)
    assert "good: AUROC" in header(single)
    assert '<h2 id="differences"' not in single


def test_the_links_of_the_checklist_lead_to_headings(page):
    links = set(re.findall(r'href="#(\w+)"', page))
    assert links and links <= set(re.findall(r' id="(\w+)"', page))


def test_figures_and_tables_are_files_of_their_own(result, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/01_of_a_former_report.csv").touch()
    (tmp_path / "tables/mine.csv").touch()
    html.write(tmp_path, result, None)
    for path in (tmp_path / "figures").iterdir():
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert "mine.csv" in names and "01_of_a_former_report.csv" not in names
    text = (tmp_path / "tables" / min(names - {"mine.csv"})).read_text()
    assert text.startswith("Arm,AUROC")
    value = result["arms"]["good"]["metrics"]["auroc"]["value"]
    assert f"good,{wording.number(value)} (" in text


def test_a_cell_that_begins_like_a_formula_is_harmless_in_a_spreadsheet():
    cells = [TableCell(text) for text in ("=1+1", "@x", "-cmd", "−0.2", "+0.031")]
    text = pack.csv_text(Table("t", ("a", "b", "c", "d", "e"), [cells]))
    assert text == "a,b,c,d,e\n'=1+1,'@x,'-cmd,−0.2,+0.031\n"


def test_several_seeds_are_points(result):
    one = html.html(analysis.analyse(split_of(seeds=(0,)), CLASSES, SETTINGS), None)
    assert "AUROC of each trained model" in html.html(result, None)
    assert "AUROC of each trained model" not in one


@pytest.mark.parametrize(
    ("shown", "images", "ids"), [("pictures", 1, 1), ("ids", 0, 1), ("none", 0, 0)]
)
def test_mistakes_are_shown_with_pictures_with_ids_or_not_at_all(shown, images, ids):
    error = {
        "id": "case-7",
        "arm": "good",
        "label": "ill",
        "predicted": "well",
        "probability": 0.99,
        "patient": "p3",
        "image": "data:image/png;base64,AAAA",
    }
    settings = dataclasses.replace(SETTINGS, mistakes=shown)
    page = html.html(analysis.analyse(split_of(), CLASSES, settings, errors=[error]), None)
    assert page.count("<img ") == images
    assert page.count("<strong>case-7</strong>") == ids
