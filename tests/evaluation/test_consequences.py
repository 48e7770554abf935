"""Decisions at thresholds against counts by hand, dcurves' definition and the bootstrap."""

import math

import numpy as np
import pytest
from scipy import stats

from medtl.evaluation import analysis, to_json
from medtl.evaluation.predictions import Predictions

CLASSES = ("well", "ill")
SETTINGS = analysis.Settings(resamples=200, threshold="0.5")


def rows_of(seeds=1, n=240, per_patient=2, skills=(("good", 1.6), ("scratch", 0.8)), fold=None):
    rng = np.random.default_rng(0)
    label = (np.arange(n) // per_patient) % 4 == 0  # a quarter is ill
    patient = np.array([f"p{i // per_patient}" for i in range(n)])
    ids = np.array([f"i{i}" for i in range(n)])
    hard = rng.normal(size=n)
    rows = []
    for seed in range(seeds):
        for arm, skill in skills:
            z = (skill + 0.3 * rng.normal()) * (label - 0.5) * 2 + hard + 0.5 * rng.normal(size=n)
            p = 1 / (1 + np.exp(-z))
            rows.append(
                Predictions(
                    arm, "test", ids, label.astype(int), np.c_[1 - p, p], seed=seed, patient=patient
                )
            )
    return rows


def compared(rows, **settings):
    chosen = {**vars(SETTINGS), **settings}
    return analysis.analyse(rows, CLASSES, analysis.Settings(**chosen))


def score(rows, arm, seed=0):
    return next(p.probability[:, 1] for p in rows if (p.arm, p.seed) == (arm, seed))


def test_the_difference_in_net_benefit_is_that_of_its_definition():
    """Vickers & Elkin: TP / n - FP / n · t / (1 - t); dcurves weights the rates at a prevalence."""
    rows = rows_of()
    label = rows[0].label == 1
    for q in (0.0, 0.02):
        made = compared(rows, prevalence=q)["comparisons"][0]["net_benefit"]
        t = np.array(made["threshold"])
        assert len(t) == 46 and t[[0, -1]].tolist() == [0.05, 0.5]
        share, wanted = q or label.mean(), 0.0
        for arm, sign in (("good", 1), ("scratch", -1)):
            called = score(rows, arm)[:, None] >= t
            tpr, fpr = called[label].mean(axis=0), called[~label].mean(axis=0)
            wanted = wanted + sign * (share * tpr - (1 - share) * fpr * t / (1 - t))
        np.testing.assert_allclose(made["difference"], wanted, atol=1e-12)
        assert all(low < high for low, high in zip(made["low"], made["high"], strict=True))


def test_the_interval_of_the_net_benefit_is_the_patient_bootstraps():
    rows = rows_of()
    label, number = rows[0].label == 1, np.arange(240) // 2
    made = compared(rows, net_benefit_range=(0.1, 0.4))["comparisons"][0]["net_benefit"]
    t = np.array(made["threshold"])
    gain = np.where(label[:, None], 1.0, -t / (1 - t))
    change = sum(
        sign * gain * (score(rows, arm)[:, None] >= t)
        for arm, sign in (("good", 1), ("scratch", -1))
    )
    by_patient = np.stack([np.bincount(number, column) for column in change.T], axis=1)
    rng = np.random.default_rng(1)
    draws = [by_patient[rng.integers(0, 120, 120)].sum(axis=0) / 240 for _ in range(4000)]
    half = (np.array(made["high"]) - made["low"]) / 2
    np.testing.assert_allclose(half, stats.t.ppf(0.975, 119) * np.std(draws, axis=0), rtol=0.06)


def test_several_seeds_add_the_variance_of_training_to_the_net_benefit():
    rows = rows_of(seeds=3)
    single = [compared([p for p in rows if p.seed == s]) for s in range(3)]
    each = np.array([r["comparisons"][0]["net_benefit"]["difference"] for r in single])
    made = compared(rows)["comparisons"][0]["net_benefit"]
    np.testing.assert_allclose(made["difference"], each.mean(axis=0), atol=1e-12)
    trained = each.std(axis=0, ddof=1) / math.sqrt(3)
    half = (np.array(made["high"]) - made["low"]) / 2
    assert (half > stats.norm.ppf(0.975) * trained).all()


def test_reclassified_patients_are_counted_by_hand():
    rows = rows_of()
    label = rows[0].label == 1
    good, scratch = (score(rows, arm) >= 0.5 for arm in ("good", "scratch"))
    for q in (0.0, 0.1):
        report = compared(rows, prevalence=q)
        made, share = report["comparisons"][0]["reclassified"], q or label.mean()
        for name, side, moved, n in (
            ("newly_found", label, good & ~scratch, share),
            ("newly_missed", label, scratch & ~good, share),
            ("newly_false_alarm", ~label, good & ~scratch, 1 - share),
            ("newly_cleared", ~label, scratch & ~good, 1 - share),
        ):
            assert made[name]["value"] == pytest.approx(1000 * n * moved[side].mean())
            assert 0 <= made[name]["low"] <= made[name]["value"] <= made[name]["high"] <= 1000 * n
        # Found less missed is the difference of the sensitivities, per 1,000.
        net = made["newly_found"]["value"] - made["newly_missed"]["value"]
        change = report["comparisons"][0]["all_metrics"]["sensitivity"]["value"]
        assert net == pytest.approx(1000 * share * change)


def test_nobody_who_is_reclassified_keeps_what_the_patients_do_not_exclude():
    rows = rows_of(per_patient=1)
    same = [p for p in rows if p.arm == "scratch"]
    copied = [Predictions("good", "test", p.id, p.label, p.probability, 0) for p in same]
    made = compared([*copied, *same], prevalence=0.25)["comparisons"][0]["reclassified"]
    t = stats.t.ppf(0.975, 59)  # Wilson's upper end of 0 of 60: t² / (n + t²)
    assert made["newly_found"]["value"] == made["newly_found"]["low"] == 0
    assert made["newly_found"]["high"] == pytest.approx(250 * t**2 / (60 + t**2))


def test_the_table_of_1000_patients_is_at_the_stated_prevalence_and_has_the_metrics_intervals():
    rows = rows_of()
    for q in (0.0, 0.02):
        arm = compared(rows, prevalence=q)["arms"]["good"]
        table, rate = arm["per_1000"], arm["metrics"]["sensitivity"]
        share = q or 0.25
        assert table["prevalence"] == pytest.approx(share)
        assert table["true_positive"]["low"] == pytest.approx(1000 * share * rate["low"])
        assert table["false_negative"]["high"] == pytest.approx(1000 * share * (1 - rate["low"]))
        cells = ("true_positive", "false_negative", "false_positive", "true_negative")
        assert sum(table[cell]["value"] for cell in cells) == pytest.approx(1000)
        ppv = table["true_positive"]["value"] / sum(
            table[cell]["value"] for cell in ("true_positive", "false_positive")
        )
        assert arm["metrics"]["ppv"]["value"] == pytest.approx(ppv)


def test_folds_use_the_test_of_the_folds_and_a_fold_without_a_class_says_so():
    whole = rows_of(per_patient=1)
    rows = [
        Predictions(p.arm, "test", p.id[i::4], p.label[i::4], p.probability[i::4], 0, fold=i)
        for p in rows_of(per_patient=1)
        for i in range(4)
    ]
    assert len({tuple(p.id) for p in rows}) == 4 and len(whole) == 2
    made = compared(rows, prevalence=0.1)["comparisons"][0]
    assert made["reclassified"]["newly_found"]["undefined"] == "a split lacks a class"
    assert made["net_benefit"]["undefined"] == "a split lacks a class"
    rows = [
        Predictions(p.arm, "test", p.id[r], p.label[r], p.probability[r], 0, fold=i)
        for p in rows_of(per_patient=1)
        for i in range(4)
        for r in [np.arange(240) % 60 // 15 == i]
    ]
    made = compared(rows)["comparisons"][0]["net_benefit"]
    t = np.array(made["threshold"])
    folds = []
    for i in range(4):
        by_arm = {p.arm: p for p in rows if p.fold == i}
        label = by_arm["good"].label == 1
        gain = np.where(label[:, None], 1.0, -t / (1 - t))
        called = {arm: p.probability[:, 1][:, None] >= t for arm, p in by_arm.items()}
        folds.append((gain * called["good"] - gain * called["scratch"]).mean(axis=0))
    half = stats.t.ppf(0.975, 3) * np.sqrt((1 / 4 + 1 / 3) * np.var(folds, axis=0, ddof=1))
    np.testing.assert_allclose(np.array(made["high"]) - made["difference"], half, atol=1e-12)


def test_only_two_classes_have_decisions_and_all_of_it_is_json():
    rows = rows_of()
    to_json(compared(rows))
    third = [
        Predictions(p.arm, "test", p.id, p.label, np.c_[p.probability * 0.9, np.full(240, 0.1)], 0)
        for p in rows
    ]
    report = analysis.analyse(third, ("well", "ill", "other"), SETTINGS)
    assert "per_1000" not in report["arms"]["good"]
    assert "reclassified" not in report["comparisons"][0]
