"""The report shows what the analysis holds, says why what is missing is missing, and cannot be
broken by a name."""

import contextlib
import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import html5lib
import matplotlib
import pytest
from analysis_example import minimal, multi_class, multi_label, renamed, two_class
from record_example import record

from medtl.evaluation import to_json, wording
from medtl.evaluation.metrics import LOWER_IS_BETTER
from medtl.evaluation.report import html

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "transfer": '<script>alert("t")</script>',
    "target_only": "a & b \"q\" 's' $x$ _|`*",
    "pooled": "_pooled\x07\ud800",
    "covid": "<img src=x onerror=alert(1)>",
    "other": "averyverylongnamewithoutanyspaceinitthatgoesonandonandonandon",
    "site": '"><i>',
    "Wuhan": "</svg><b>&amp;",
    "sao_paulo": "</caption>",
    "resnet50.pth": "</dd><script>",
    "patient_000/slice_0.png": '"><script>',
}


def hostile():
    analysis, run = renamed(two_class(), HOSTILE), renamed(record(), HOSTILE)
    return analysis, run | {"name": "</title><script>", "command": 'medtl "</code><script>" ```'}


CASES = {
    "two_class": lambda: (two_class(), record()),
    "multi_class": lambda: (multi_class(), record()),
    "multi_label": lambda: (multi_label(), None),
    "minimal": lambda: (minimal(), None),
    "hostile": hostile,
}


@pytest.fixture(scope="module")
def pages():
    return {name: html.html(*make()) for name, make in CASES.items()}


@pytest.fixture(scope="module")
def trees(pages):
    """Parsed by the rules of the standard; any mistake in the HTML raises."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return {name: parser.parse(page) for name, page in pages.items()}


each = pytest.mark.parametrize("case", CASES)


def local(element):
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def elements(tree, *names):
    return [e for e in tree.iter() if local(e) in names]


def text(element):
    return "".join(element.itertext())


def cells(tree, caption):
    """row head -> column head -> (text, small text) of the table whose caption begins so."""
    table = next(
        t for t in elements(tree, "table") if text(elements(t, "caption")[0]).startswith(caption)
    )
    head = [text(th) for th in elements(elements(table, "thead")[0], "th")]
    found = {}
    for row in elements(elements(table, "tbody")[0], "tr"):
        shown = [
            (
                "".join([c.text or "", *(s.text for s in c if local(s) == "sup")]),
                *map(text, elements(c, "small")),
            )
            for c in row
        ]
        found[shown[0][0]] = dict(zip(head, shown, strict=True))
    return found


@each
def test_ids_are_unique_and_references_lead_somewhere(trees, case):
    ids = [e.get("id") for e in trees[case].iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    attributes = [(k, v) for e in trees[case].iter() for k, v in e.attrib.items()]
    wanted = {v for k, v in attributes if k == "aria-labelledby"}
    wanted |= {v[1:] for k, v in attributes if str(k).endswith("href") and v.startswith("#")}
    wanted |= {m for _, v in attributes for m in re.findall(r"url\(#([^)]+)\)", v)}
    assert wanted <= set(ids)


@each
def test_nothing_is_fetched_or_run(trees, case):
    for e in trees[case].iter():
        assert local(e) not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in e.attrib.items():
            assert not str(name).startswith("on")
            if str(name) in ("src", "href", "action", "data") or str(name).endswith("}href"):
                assert value.startswith(("data:", "#"))
            assert not re.search(r"url\((?!#)", value)
    style = text(elements(trees[case], "style")[0])
    assert "@import" not in style and "url(" not in style
    policy = next(e for e in elements(trees[case], "meta") if e.get("http-equiv"))
    assert policy.get("content").startswith("default-src 'none'")


@each
def test_every_picture_has_its_words(trees, case):
    for image in elements(trees[case], "img"):
        assert len(image.get("alt")) > 10
    for svg in elements(trees[case], "svg"):
        if svg.get("aria-hidden") != "true":
            assert svg.get("role") == "img"
            assert re.search(r"\d", svg.get("aria-label")), "it tells the numbers"


@each
def test_no_value_is_shown_as_a_program_would_say_it(trees, case):
    for e in trees[case].iter():
        if isinstance(e.tag, str) and local(e) not in ("style", "code"):
            shown = [
                e.text or "",
                e.get("aria-label") or "",
                e.get("alt") or "",
                *(c.tail or "" for c in e),
            ]
            assert not re.search(r"\b(nan|None|inf|null)\b|Cell\(|Markup\(|\{'", " ".join(shown))


def test_names_of_strangers_are_shown_as_they_are(trees):
    tree = trees["hostile"]
    assert list(cells(tree, "Main metrics")) == [
        HOSTILE["transfer"],
        "_pooled ",
        HOSTILE["target_only"],
        "scratch",
    ]
    assert HOSTILE["Wuhan"] in cells(tree, f"AUROC by {HOSTILE['site']}")
    shown = {text(e) for e in elements(tree, "text", "dd", "strong", "title", "code", "h3")}
    assert {HOSTILE["Wuhan"], HOSTILE["resnet50.pth"], HOSTILE["patient_000/slice_0.png"]} <= shown
    assert {
        "</title><script>: evaluation on test",
        'medtl "</code><script>" ```',
        f"By {HOSTILE['site']}",
    } <= shown
    assert "\x07" not in text(tree) and "\ud800" not in text(tree)
    assert sorted({local(e) for e in tree.iter()}) == sorted(
        {local(e) for e in trees["two_class"].iter()}
    )


def test_every_metric_of_every_arm_is_in_the_tables(trees):
    analysis, tree = two_class(), trees["two_class"]
    shown = cells(tree, "All metrics, with 95 % intervals")
    for arm, result in analysis["arms"].items():
        for name, e in result["metrics"].items():
            head = wording.metric(name) + (" ↓" if name in LOWER_IS_BETTER else "")
            cell = shown[head][arm]
            if math.isnan(e["value"]):
                assert cell == ("undefineda",)
            else:
                read = [
                    float(v.replace("−", "-")) for v in re.findall(r"[−+]?\d+\.\d+", " ".join(cell))
                ]
                assert read == pytest.approx(
                    [e["value"], e["low"], e["high"], e["std"]], abs=5.01e-4
                )
    comparison = analysis["comparisons"][1]
    row = cells(tree, "Differences in AUROC")["pooled − target_only"]
    assert row["AUROC"][0] == f"−{-comparison['difference']['value']:.3f}"
    assert (row["p"][0], row["p, adjusted"][0], row["First arm"][0]) == ("0.004", "0.008", "Worse")


def test_what_is_undefined_says_why(trees):
    body = text(trees["two_class"])
    for reason in (
        "repeat 2, fold 3: the probabilities separate the labels",
        "val has 3 examples of covid; temperature scaling wants 5",
        "fold 2: an example has probability 0",
        "in 2 of 15 splits val has fewer than 20 examples",
        "Lyon has 52 examples of 9 patients: too few to tell",
    ):
        assert reason in body
    shown = cells(trees["minimal"], "All metrics")
    assert shown["AUROC"]["net"] == ("undefinedb",) and shown["Accuracy"]["net"] == ("0.800a",)
    assert "only covid is in the labels" in text(trees["minimal"]) and wording.NO_INTERVAL in text(
        trees["minimal"]
    )


def test_an_empty_row_of_a_confusion_matrix_has_no_shares(trees):
    shown = cells(trees["minimal"], "net")
    assert shown["other"]["covid"] == ("0",)
    assert shown["covid"]["covid"] == ("4", "80 %")


def test_sections_are_there_only_with_their_data(trees):
    headings = {case: [text(h) for h in elements(tree, "h2")] for case, tree in trees.items()}
    assert headings["two_class"] == [
        "The arms",
        "Differences",
        "Learning curve: number of target labels",
        "Discrimination",
        "Calibration",
        "Net benefit",
        "Confusion matrices",
        "Subgroups",
        "Prediction sets",
        "Errors worth a look",
        "Training",
        "Data card",
        "Model card",
        "Do it again",
        "Methods",
    ]
    assert headings["minimal"] == ["The model", "Confusion matrices", "Methods"]
    assert (
        "Net benefit" not in headings["multi_class"] and "Training" not in headings["multi_label"]
    )


def test_the_verdict_says_the_main_difference_once(trees):
    analysis = two_class()
    shown = [text(p) for p in elements(trees["two_class"], "p") if p.get("class") == "difference"]
    d = analysis["comparisons"][0]["difference"]
    assert len(shown) == 1 and wording.interval(d["low"], d["high"], sign=True) in shown[0]
    analysis["verdict"]["sentences"] = [f"transfer: AUROC {shown[0]}"]
    page = html.markdown(analysis, None)
    assert page.count(wording.interval(d["low"], d["high"], sign=True)) == 2, (
        "in the sentence and in the table"
    )


def test_methods_are_those_that_were_used(trees):
    assert "DeLong" in text(trees["two_class"]) and "Forman" in text(trees["two_class"])
    for name in ("DeLong", "Forman", "Guo", "Vickers", "Selvaraju", "Field"):
        assert name not in text(trees["minimal"])


def test_metrics_json_gives_the_same_report(pages):
    analysis, run = json.loads(to_json(two_class())), json.loads(to_json(record()))
    assert html.html(analysis, run) == pages["two_class"]
    assert html.markdown(analysis, run) == html.markdown(two_class(), record())


def test_the_same_input_gives_the_same_bytes_whatever_matplotlib_is_set_to(pages):
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30.0, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert html.html(two_class(), record()) == pages["two_class"]
        assert dict(matplotlib.rcParams) == before
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from analysis_example import multi_label; from medtl.evaluation.report import html\n"
        "sys.stdout.buffer.write(html.html(multi_label(), None).encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), str(Path(__file__).parent)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode() == pages["multi_label"]


def test_size(pages):
    assert len(re.sub(r'"data:image[^"]*"', "", pages["two_class"]).encode()) < 600_000
    large = multi_class(tuple(f"class {i}" for i in range(15)))
    large["arms"] = {f"{arm} {i}": result for arm, result in large["arms"].items() for i in (1, 2)}
    assert len(html.html(large, record()).encode()) < 3_000_000


def test_images_are_data_and_nothing_else():
    analysis = minimal() | {"errors": two_class()["errors"]}
    for source in (
        "https://example.org/a.png",
        "javascript:alert(1)",
        'data:image/png;base64,AA" onerror="x',
        "data:text/html;base64,AA",
    ):
        analysis["errors"][0]["image"] = source
        with pytest.raises(ValueError, match="patient_000/slice_0.png"):
            html.html(analysis, None)


def test_nothing_slow_is_imported_before_it_is_needed():
    program = (
        "import sys, medtl.evaluation.report; print(*{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"matplotlib", "jinja2", "scipy", "sklearn", "jax"} & set(done.stdout.split())


def test_write_leaves_the_former_report_where_it_fails(tmp_path):
    html.write(tmp_path, minimal(), None)
    former = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(former) == ["report.html", "report.md"]
    assert former["report.html"].decode() == html.html(minimal(), None)
    broken = copy.deepcopy(two_class())
    broken["errors"][0]["image"] = "file.png"
    with pytest.raises(ValueError, match="data: URI"):
        html.write(tmp_path, broken, None)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == former


@each
def test_markdown_tables_are_whole_and_hold_no_html(case):
    lines = html.markdown(*CASES[case]()).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows
    for line in rows:
        assert "<" not in line and line.endswith(" |")
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in rows]
    heads = [i for i, line in enumerate(rows) if line.startswith("| ---")]
    for start, end in zip(heads, [h - 1 for h in heads[1:]] + [len(rows)], strict=True):
        assert len(set(widths[start - 1 : end])) == 1


def test_markdown_begins_with_the_verdict_and_ends_with_the_command():
    analysis, run = two_class(), record()
    shown = html.markdown(analysis, run)
    assert shown.split("\n\n")[1] == f"**{analysis['verdict']['headline']}**"
    assert shown.endswith(f"```sh\n{run['command']}\n```\n")
    assert "| pooled − target_only | −0.053 (−0.081 to −0.025) | 0.004 | 0.008 | Worse |" in shown
    assert "543 examples of 216 patients" in shown
    assert "````sh\n" in html.markdown(*hostile())


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    f"--{flag}"
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-sync",
        "hide-scrollbars",
    )
]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
LOOK = """
return {
  wide: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
  silent: [...document.images].filter(i => !i.alt || !i.naturalWidth).length
    + [...document.querySelectorAll('svg:not([aria-hidden])')]
      .filter(s => !s.getAttribute('aria-label')).length,
  empty: [...document.querySelectorAll('svg')]
    .filter(s => s.checkVisibility() && s.getBoundingClientRect().height < 5).length,
  drawn: document.querySelectorAll('svg.plot').length,
}"""


def ask(method, address, **body):
    data = json.dumps(body).encode() if method == "POST" else None
    request = urllib.request.Request(
        address, data=data, method=method, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["value"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """The address of a WebDriver session of a headless Chromium."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver")
    flags = [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]
    wanted = {
        "goog:loggingPrefs": {"browser": "ALL"},
        "goog:chromeOptions": {"args": flags, "binary": CHROMIUM},
    }
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            started = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
            address = f"http://127.0.0.1:{next(filter(None, started))[1]}/session"
            opened = ask("POST", address, capabilities={"alwaysMatch": wanted})
            session = f"{address}/{opened['sessionId']}"
            yield session
            with contextlib.suppress(OSError):
                ask("DELETE", session)
        finally:
            driver.terminate()


@pytest.mark.parametrize("width", [390, 1280])
@each
def test_in_a_browser(pages, browser, tmp_path, case, width):
    path = tmp_path / "report.html"
    path.write_text(pages[case].replace("<details>", "<details open>"), encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    ask(
        "POST", f"{browser}/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size
    )
    ask("POST", f"{browser}/url", url=path.as_uri())
    found = ask("POST", f"{browser}/execute/sync", script=LOOK, args=[])
    assert found["wide"][0] <= found["wide"][1] == width
    assert found["silent"] == found["empty"] == 0
    assert found["drawn"] == pages[case].count('<svg class="plot"')
    assert ask("POST", f"{browser}/se/log", type="browser") == []
