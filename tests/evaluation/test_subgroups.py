"""Subgroups against scikit-learn on their rows, the bootstrap of each alone, and a gap that is
known."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from medtl.errors import UserError
from medtl.evaluation import bootstrap, groups, subgroups
from medtl.evaluation.metrics import ALL_NAMES, EvaluationSet, Options

CLASSES = ("well", "ill")
FEW = Options(resamples=300)


def drawn(n, *, seed=0, shift=1.5, rows=1):
    """A cell of n patients of `rows` examples each; `shift` is how far the ill are from the
    well."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n), rows)
    label = (rng.uniform(size=n) < 0.5).astype(int)[patient]
    logit = shift * (label - 0.5) + rng.normal(0, 1, n)[patient] + rng.normal(0, 0.5, n * rows)
    p = 1 / (1 + np.exp(-logit))
    return EvaluationSet(label, np.stack([1 - p, p], axis=1), patient)


def of(found, group, metric="auroc"):
    return found["arm"]["groups"][group]["metrics"][metric]


def run_arms(arms, values, *, metric="auroc", options=FEW, classes=CLASSES, **more):
    grouped = groups.grouped(arms, values, classes=classes, options=options, metric=metric, **more)
    return {arm: subgroups.of_arm(grouped, arm) for arm in arms}


def run(cells, values, **more):
    return run_arms({"arm": cells}, values, **more)


def test_each_group_agrees_with_scikit_learn_on_its_rows():
    cell, site = drawn(400), np.random.default_rng(1).choice(["a", "b", "c"], 400)
    found = run([cell], [site])
    for name in "abc":
        y, p = cell.label[site == name], cell.probability[site == name]
        assert of(found, name)["value"] == pytest.approx(sk.roc_auc_score(y, p[:, 1]), abs=1e-12)
        accuracy, loss = sk.accuracy_score(y, p.argmax(axis=1)), sk.log_loss(y, p)
        assert of(found, name, "accuracy")["value"] == pytest.approx(accuracy, abs=1e-12)
        assert of(found, name, "loss")["value"] == pytest.approx(loss, abs=1e-9)
        entry = found["arm"]["groups"][name]
        assert entry["n"] == entry["patients"] == np.sum(site == name) and "small" not in entry
        assert set(entry["metrics"]) == set(ALL_NAMES) - {"kappa_quadratic", "grade_mae"}
    value = {name: of(found, name)["value"] for name in "abc"}
    worst, best = min(value, key=value.get), max(value, key=value.get)
    assert found["arm"]["worst"] == {"group": worst, "value": value[worst]}
    gap = found["arm"]["gap"]
    assert gap["between"] == [best, worst] and gap["value"] == pytest.approx(
        value[best] - value[worst], abs=1e-15
    )
    assert gap["low"] < gap["value"] < gap["high"]


def test_intervals_are_about_those_of_the_group_resampled_alone():
    cell, site = drawn(300, rows=3), np.repeat(np.random.default_rng(2).choice(["a", "b"], 300), 3)
    options = Options(resamples=2000)
    found = run([cell], [site], options=options)
    for name in "ab":
        rows = site == name
        own = EvaluationSet(cell.label[rows], cell.probability[rows], cell.patient[rows])
        alone = bootstrap.resample({"arm": [own]}, classes=CLASSES, options=options)
        low, high = alone.interval("arm")
        for metric in ("accuracy", "auroc", "brier", "loss", "mcc", "sensitivity"):
            m, entry = alone.names.index(metric), of(found, name, metric)
            # the number of patients of the group varies here and not there: of little weight, as is
            # the noise of the draws
            assert (entry["low"], entry["high"]) == pytest.approx(
                (low[m], high[m]), abs=0.15 * (high[m] - low[m])
            )


def test_of_a_loss_the_highest_is_the_worst():
    cell, site = drawn(400), np.random.default_rng(1).choice(["a", "b"], 400)
    found = run([cell], [site], metric="loss")
    a, b = of(found, "a", "loss")["value"], of(found, "b", "loss")["value"]
    gap = found["arm"]["gap"]
    assert found["arm"]["worst"]["value"] == max(a, b) and gap["value"] == pytest.approx(
        abs(a - b), abs=1e-15
    )
    assert gap["between"] == (["a", "b"] if a < b else ["b", "a"])


def test_patients_in_both_groups_are_resampled_in_both():
    one = drawn(100)
    cell = EvaluationSet(
        np.tile(one.label, 2), np.tile(one.probability, (2, 1)), np.tile(one.patient, 2)
    )
    found = run([cell], [np.repeat(["left", "right"], 100)])
    gap = found["arm"]["gap"]
    assert gap["value"] == gap["low"] == gap["high"] == 0.0
    apart = EvaluationSet(cell.label, cell.probability, np.arange(200))
    gap = run([apart], [np.repeat(["left", "right"], 100)])["arm"]["gap"]
    assert gap["value"] == 0.0 and gap["low"] < -0.05 and gap["high"] > 0.05


@pytest.mark.slow
def test_the_gaps_interval_covers_the_gap_of_two_groups_that_differ():
    # Accuracies of 0.9 and 0.6: which is the worst is never in doubt, so that the known gap is 0.3.
    rng, covered = np.random.default_rng(3), []
    site = np.repeat(["a", "b"], 80)
    for replicate in range(300):
        right = rng.uniform(size=160) < np.where(site == "a", 0.9, 0.6)
        label = rng.integers(0, 2, 160)
        p = np.where(right == (label == 1), 0.8, 0.2)
        cell = EvaluationSet(label, np.stack([1 - p, p], axis=1), np.arange(160))
        gap = run(
            [cell], [site], metric="accuracy", options=Options(resamples=200, seed=replicate)
        )["arm"]["gap"]
        covered.append(gap["low"] <= 0.3 <= gap["high"])
    assert (
        0.915 < np.mean(covered) < 0.985
    )  # 0.95 and nearly three standard errors of 300 replicates


def test_groups_that_are_small_or_of_one_class_are_said_to_be_and_not_ranked():
    cell = drawn(200)
    site = np.full(200, "main ", dtype="<U5")
    site[:9] = "tiny"
    site[9:60] = ""
    ill = np.flatnonzero((cell.label == 1) & (np.arange(200) > 60))[:20]
    site[ill] = "ill"
    found = run([cell], [site])["arm"]
    groups = found["groups"]
    assert list(groups) == ["ill", "main ", "tiny", "unknown"]
    assert groups["tiny"] == {
        "n": 9,
        "patients": 9,
        "metrics": {},
        "small": "9 patients, fewer than 10",
    }
    assert groups["ill"]["small"] == "every example is 'ill'"
    assert groups["ill"]["metrics"]["sensitivity"]["value"] >= 0
    assert (
        np.isnan(groups["ill"]["metrics"]["auroc"]["value"])
        and groups["ill"]["metrics"]["auroc"]["undefined"]
    )
    assert groups["unknown"]["n"] == 51 and "small" not in groups["unknown"]
    assert set(found["gap"]["between"]) == {"main ", "unknown"} and "note" not in found


def test_a_group_with_few_patients_of_a_class_is_never_named_the_worst():
    """The review's case: 12 rare patients with a few positives, who were called the worst group."""
    rng = np.random.default_rng(4)
    label, site = (
        (rng.uniform(size=120) < 0.3).astype(int),
        np.repeat(["rare", "common"], [12, 108]),
    )
    p = 1 / (1 + np.exp(-1.5 * label - rng.normal(size=120) + 1))
    found = run([EvaluationSet(label, np.stack([1 - p, p], axis=1), np.arange(120))], [site])["arm"]
    few = int(label[:12].sum())
    assert found["groups"]["rare"]["small"] == f"{few} of 12 patients are 'ill', fewer than 10"
    assert found["groups"]["rare"]["metrics"]["accuracy"]["value"] >= 0
    assert found["worst"] is None and found["gap"] is None


@pytest.mark.parametrize(("well", "named"), [(10, True), (9, False)])
def test_ten_patients_of_each_class_are_enough_and_images_are_not_counted(well, named):
    label = np.repeat(np.tile([0, 1], [2]), [well, 15, 30, 30]).repeat(3)
    n = len(label)
    p = np.clip(0.3 + 0.3 * label + np.random.default_rng(0).normal(0, 0.2, n), 0.01, 0.99)
    site = np.repeat(["a", "b"], [3 * (well + 15), 180])
    cell = EvaluationSet(label, np.stack([1 - p, p], axis=1), np.arange(n) // 3)
    found = run([cell], [site])["arm"]
    assert (found["gap"] is not None) == named
    reason = f"{well} of {well + 15} patients are 'well', fewer than 10"
    assert found["groups"]["a"].get("small") == (None if named else reason)


@pytest.mark.slow
def test_the_gap_of_twelve_equal_groups_excludes_0_in_at_most_7_percent():
    excluded = []
    site = np.repeat([f"s{i:02d}" for i in range(12)], 60)
    for replicate in range(200):
        options = Options(resamples=200, seed=replicate)
        cell = drawn(720, seed=1000 + replicate)
        excluded.append(run([cell], [site], options=options)["arm"]["gap"]["low"] > 0)
    assert np.mean(excluded) <= 0.07


@pytest.mark.parametrize(
    "site",
    [np.full(60, "a"), np.repeat(["a", "b"], [55, 5]), np.array([f"s{i % 12}" for i in range(60)])],
)
def test_fewer_than_two_groups_have_no_gap(site):
    found = run([drawn(60)], [site])["arm"]
    assert found["worst"] is None and found["gap"] is None
    assert sum(group["n"] for group in found["groups"].values()) == 60


def test_more_than_twelve_values_are_joined():
    site = np.array([f"s{i:02d}" for i in range(14) for _ in range(20 + i)])
    site[-5:] = ""
    found = run([drawn(len(site))], [site])["arm"]
    groups = found["groups"]
    assert len(groups) == 12 and list(groups)[-2:] == ["other", "unknown"]
    assert groups["other"]["n"] == 20 + 21 + 22 + 23 and groups["unknown"]["n"] == 5
    assert (
        found["note"] == "15 values; the 4 with fewest examples are joined into 'other': "
        "'s00', 's01', 's02', 's03'"
    )


def test_folds_and_repeats_are_counted_once_and_a_fold_without_the_group_is_left_out():
    whole, site = drawn(120, rows=2), np.repeat(np.repeat(["a", "b"], 60), 2)
    halves = [np.flatnonzero(whole.patient % 2 == part) for part in range(2)]
    halves[0] = halves[0][site[halves[0]] == "a"]  # group b is in the second fold alone
    halves[1] = np.setdiff1d(np.arange(240), halves[0])
    cells = [EvaluationSet(whole.label[h], whole.probability[h], whole.patient[h]) for h in halves]
    again = [dataclasses.replace(c, probability=c.probability[:, ::-1]) for c in cells]
    found = run(cells + again, [site[h] for h in halves] * 2, once=[0, 1])
    groups = found["arm"]["groups"]
    assert {name: (g["n"], g["patients"]) for name, g in groups.items()} == {
        "a": (120, 60),
        "b": (120, 60),
    }
    rows = halves[1][site[halves[1]] == "b"]
    auroc = sk.roc_auc_score(whole.label[rows], whole.probability[rows, 1])
    assert of(found, "b")["value"] == pytest.approx((auroc + 1 - auroc) / 2, abs=1e-12)
    assert of(found, "b")["std"] == pytest.approx(abs(2 * auroc - 1) / np.sqrt(2), abs=1e-12)


def test_arms_have_the_same_groups_and_their_own_worst():
    cell, site = drawn(200), np.repeat(["a", "b"], 100)
    p = cell.probability.copy()
    p[:100] = p[:100, ::-1]  # wrong in a
    turned = p.copy()
    turned[:] = p[:, ::-1]  # wrong in b
    arms = {
        "one": [dataclasses.replace(cell, probability=p)],
        "two": [dataclasses.replace(cell, probability=turned)],
    }
    found = run_arms(arms, [site])
    assert (found["one"]["worst"]["group"], found["two"]["worst"]["group"]) == ("a", "b")
    assert found["one"]["gap"]["low"] > 0


def test_several_labels_an_example_and_unknown_patients():
    rng = np.random.default_rng(4)
    label = rng.integers(0, 2, (200, 3)).astype(float)
    label[rng.uniform(size=label.shape) < 0.1] = np.nan
    p, site = rng.uniform(0.01, 0.99, (200, 3)), rng.choice(["a", "b"], 200)
    cell = EvaluationSet(label, p, np.arange(200))
    found = run([cell], [site], classes=("x", "y", "z"), unit="examples")
    own, known = site == "a", ~np.isnan(label)
    each = [
        sk.roc_auc_score(label[own & known[:, k], k], p[own & known[:, k], k]) for k in range(3)
    ]
    assert of(found, "a")["value"] == pytest.approx(np.mean(each), abs=1e-12)
    assert found["arm"]["groups"]["a"]["patients"] is None
    few = run([cell], [np.repeat(["a", "b"], [195, 5])], classes=("x", "y", "z"), unit="examples")
    assert few["arm"]["groups"]["b"]["small"] == "5 examples, fewer than 10"


def test_mistakes_are_named():
    cell = drawn(50)
    with pytest.raises(UserError, match="shapes"):
        run([cell], [np.full(49, "a")])
    with pytest.raises(UserError, match="'auc'.*auroc"):
        run([cell], [np.full(50, "a")], metric="auc")
