"""The table on the terminal: its columns, the reasons of what is undefined, and the verdict."""

import math

from medtl.evaluation import metrics, summarize
from medtl.evaluation.table import render


def entry(value, metric="auroc", n=118):
    undefined = {"undefined": {metric: "no example has the label 'x'"}} if math.isnan(value) else {}
    return (
        {"n": n}
        | dict.fromkeys(metrics.NAMES, 0.5)
        | {metric: value, "confusion": [[1]]}
        | undefined
    )


def rendered(by_arm, split="val", headline="", sentences=(), **options):
    """The table of arm -> one value per seed."""
    seeds = range(len(next(iter(by_arm.values()))))
    results = {
        s: {arm: {split: entry(values[s], **options)} for arm, values in by_arm.items()}
        for s in seeds
    }
    verdict = {"headline": headline, "sentences": list(sentences)}
    return render({**summarize(results), "evaluation": {"verdict": verdict}})


def test_one_seed_and_the_verdict():
    said = (
        "transfer helps: AUROC +0.123 (95 % interval +0.05 to +0.20, p = 0.002) against scratch.",
    )
    lines = rendered(
        {"transfer": [0.9], "scratch": [0.777]}, split="test", sentences=said, headline=said[0]
    )
    assert lines.splitlines() == [
        "                                balanced     f1",
        "arm       split    n  accuracy  accuracy  macro  auroc  auprc   loss",
        "transfer  test   118     0.500     0.500  0.500  0.900  0.500  0.500",
        "scratch   test   118     0.500     0.500  0.500  0.777  0.500  0.500",
        "",
        *said,
    ]


def test_several_seeds_show_mean_and_spread():
    text = rendered({"transfer": [0.8, 0.9, 1.0], "scratch": [0.70, 0.75, 0.80]}, split="test")
    assert "0.900±0.100" in text and "0.750±0.050" in text


def test_a_long_sentence_is_wrapped():
    text = rendered(
        {"transfer": [0.8], "scratch": [0.7]}, headline="A sentence " + "of words " * 30
    )
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("words") == 30


def test_undefined_is_said_with_its_reason():
    text = rendered({"transfer": [math.nan], "scratch": [0.7]})
    assert "undefined" in text.splitlines()[2] and "nan" not in text
    assert "transfer, val: auroc undefined: no example has the label 'x'" in text


def test_the_table_is_at_most_100_columns_wide_and_aligned():
    names = ("target_only_long", "transfer", "scratch")
    results = {
        s: {
            arm: {split: entry(0.6 + 0.1 * s, n=12345) for split in ("train", "val", "test")}
            for arm in names
        }
        for s in range(3)
    }
    verdict = {"headline": "", "sentences": []}
    lines = (
        render({**summarize(results), "evaluation": {"verdict": verdict}})
        .split("\n\n")[0]
        .splitlines()
    )
    assert len(lines) == 11 and {len(line) for line in lines[1:]} <= set(range(101))
    assert len({len(line) for line in lines[1:]}) == 1
