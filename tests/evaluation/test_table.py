"""The table's words: what is above what, where the source hurt, and what cannot be told."""

import math

import pytest

from medtl.evaluation import metrics, summarize
from medtl.evaluation.table import render


def entry(value, metric="auroc", n=118):
    undefined = {"undefined": {metric: "no example has the label 'x'"}} if math.isnan(value) else {}
    return {"n": n} | dict.fromkeys(metrics.NAMES, 0.5) | {metric: value, "confusion": [[1]]} | undefined


def table(by_arm, split="val", metric="auroc", **options):
    """The rendered table of arm -> one value per seed."""
    seeds = range(len(next(iter(by_arm.values()))))
    results = {s: {arm: {split: entry(values[s], metric)} for arm, values in by_arm.items()} for s in seeds}
    return render(summarize(results), metric=metric, **options)


def test_one_seed_and_its_difference():
    lines = table({"transfer": [0.9], "scratch": [0.777]}, split="test").splitlines()
    assert lines == [
        "                                balanced     f1",
        "arm       split    n  accuracy  accuracy  macro  auroc  auprc   loss",
        "transfer  test   118     0.500     0.500  0.500  0.900  0.500  0.500",
        "scratch   test   118     0.500     0.500  0.500  0.777  0.500  0.500",
        "",
        "transfer - scratch: +0.123 auroc on test (1 seed)",
    ]


def test_several_seeds_show_mean_and_spread():
    text = table({"transfer": [0.8, 0.9, 1.0], "scratch": [0.70, 0.75, 0.80]}, split="test")
    assert "0.900±0.100" in text and "0.750±0.050" in text
    assert "transfer - scratch: +0.150 auroc on test (3 of 3 seeds)" in text
    assert "hurt" not in text


def test_a_source_that_hurts_in_every_seed_is_named():
    text = table({"transfer": [0.80, 0.81, 0.82], "target_only": [0.84, 0.85, 0.863]})
    assert "transfer - target_only: -0.041 auroc on val (3 of 3 seeds)" in text
    assert text.endswith("transfer is below target_only by 0.041 auroc on val: the source hurt (negative transfer)")


def test_the_order_of_the_arms_does_not_hide_the_harm():
    text = table({"target_only": [0.84, 0.85, 0.863], "transfer": [0.80, 0.81, 0.82]})
    assert "target_only - transfer: +0.041 auroc on val (3 of 3 seeds)" in text
    assert "transfer is below target_only by 0.041 auroc on val: the source hurt (negative transfer)" in text


def test_one_seed_cannot_tell():
    text = table({"transfer": [0.80], "target_only": [0.84]})
    assert "transfer is below target_only by 0.040 auroc on val: one seed cannot tell whether the source hurt" in text
    assert "negative transfer" not in text


def test_a_difference_within_the_spread_cannot_be_told():
    text = table({"transfer": [0.80, 0.86, 0.80], "target_only": [0.84, 0.82, 0.83]})
    assert "transfer - target_only: -0.010 auroc on val (2 of 3 seeds, within the spread of 0.044 over seeds)" in text
    verdict = "transfer is below target_only by 0.010 auroc on val, within the spread over seeds, which cannot tell"
    assert f"{verdict} whether the source hurt" in " ".join(text.split())
    assert "negative transfer" not in text


def test_seeds_are_compared_pairwise():
    # Seeds differ more than arms, but in each seed the arm is lower by 0.02.
    text = table({"transfer": [0.58, 0.68, 0.78], "target_only": [0.60, 0.70, 0.801]})
    assert "the source hurt (negative transfer)" in text


def test_below_scratch_it_is_the_transfer_that_hurt():
    text = table({"transfer": [0.5, 0.51], "scratch": [0.7, 0.71]})
    assert "transfer is below scratch by 0.200 auroc on val: the transfer hurt (negative transfer)" in text


def test_only_arms_that_learn_from_the_source_are_blamed():
    by_arm = {"target_only": [0.5, 0.51], "scratch": [0.7, 0.71]}
    assert "hurt" not in table(by_arm)
    assert "hurt" in table(by_arm, uses_source=("target_only",))


def test_a_higher_loss_is_worse():
    text = table({"transfer": [0.9, 0.91], "target_only": [0.5, 0.51]}, metric="loss")
    assert "transfer - target_only: +0.400 loss on val (2 of 2 seeds)" in text
    assert "transfer is above target_only by 0.400 loss on val: the source hurt (negative transfer)" in text
    assert "hurt" not in table({"transfer": [0.4, 0.41], "target_only": [0.5, 0.51]}, metric="loss")


def test_undefined_is_said_with_its_reason():
    text = table({"transfer": [math.nan], "scratch": [0.7]})
    assert "undefined" in text.splitlines()[2] and "nan" not in text
    assert "transfer, val: auroc undefined: no example has the label 'x'" in text
    assert "transfer - scratch: undefined auroc on val" in text


@pytest.mark.parametrize(
    "splits, chosen", [(("train", "val", "test"), "test"), (("train", "val"), "val"), (("train",), "train")]
)
def test_the_comparison_is_on_the_split_held_out_longest(splits, chosen):
    results = {0: {arm: {split: entry(0.6) for split in splits} for arm in ("a", "b")}}
    text = render(summarize(results))
    assert f"a - b: +0.000 auroc on {chosen} (1 seed)" in text
    assert sum(line.startswith("a ") and " - " not in line for line in text.splitlines()) == len(splits)


def test_the_table_is_at_most_100_columns_wide_and_aligned():
    names = ("target_only_long", "transfer", "scratch")
    results = {
        s: {arm: {split: entry(0.6 + 0.1 * s, n=12345) for split in ("train", "val", "test")} for arm in names}
        for s in range(3)
    }
    lines = render(summarize(results)).split("\n\n")[0].splitlines()
    assert len(lines) == 11 and {len(line) for line in lines[1:]} <= set(range(101))
    assert len({len(line) for line in lines[1:]}) == 1
