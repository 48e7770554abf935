"""From predictions to the analysis: which val chooses for which test, who is compared with whom,
and that the order of rows says nothing."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from medtl.errors import UserError
from medtl.evaluation import analysis, arm_results, metrics, mistakes, to_json
from medtl.evaluation.predictions import Predictions

CLASSES = ("ill", "well")
SETTINGS = analysis.Settings(positive="ill", resamples=200)


def said(arm, split, *, skill, rng, n=90, first=0, **cell):
    """Three images a patient; "ill" is class 0."""
    number = np.arange(first, first + n)
    label = ((number // 3) % 2).astype(np.int64)
    score = 1 / (1 + np.exp(-(skill * (1 - 2 * label) + rng.normal(size=n))))
    name = (
        "test" if "fold" in cell else split
    )  # in cross-validation an example is both, at different times
    return Predictions(
        arm,
        split,
        np.array([f"{name}{i}" for i in number]),
        label,
        np.stack([score, 1 - score], axis=1),
        patient=np.array([f"{name}{i // 3}" for i in number]),
        groups={"site": np.array(["north", "south"])[number % 2]},
        **cell,
    )


def split_of(seeds=(0, 1), skills=(("good", 1.5), ("target_only", 0.3)), splits=("val", "test")):
    rng = np.random.default_rng(0)
    return [
        said(arm, split, skill=skill, rng=rng, seed=s)
        for s in seeds
        for arm, skill in skills
        for split in splits
    ]


def crossed(folds=3, repeats=2):
    """Each third is tested in turn; the first 15 of the rest are val."""
    rng = np.random.default_rng(1)
    frames = []
    for repeat in range(repeats):
        for fold in range(folds):
            for arm, skill in (("good", 1.0), ("target_only", 0.5)):
                cell = {"seed": 0, "repeat": repeat, "fold": fold}
                frames.append(
                    said(arm, "test", skill=skill, rng=rng, n=30, first=30 * fold, **cell)
                )
                frames.append(
                    said(
                        arm,
                        "val",
                        skill=skill,
                        rng=rng,
                        n=15,
                        first=30 * ((fold + 1) % folds),
                        **cell,
                    )
                )
    return frames


def shuffled(p, rng):
    order = rng.permutation(len(p.id))
    groups = {name: values[order] for name, values in p.groups.items()}
    return dataclasses.replace(
        p,
        id=p.id[order],
        label=p.label[order],
        probability=p.probability[order],
        patient=p.patient[order],
        groups=groups,
    )


@pytest.mark.parametrize("frames", [split_of(), crossed()], ids=["seeds", "folds"])
def test_the_order_of_rows_and_of_splits_says_nothing(frames):
    """Each arm and seed in an order of its own; only the rounding of sums may differ."""
    rng = np.random.default_rng(5)
    other = [shuffled(p, rng) for p in frames]
    a, b = (analysis.analyse(f, CLASSES, SETTINGS) for f in (frames, other))
    assert [t["name"] for t in a["comparisons"][0]["tests"]] == [
        t["name"] for t in b["comparisons"][0]["tests"]
    ]
    for arm in a["arms"]:
        for name, found in a["arms"][arm]["metrics"].items():
            assert found["value"] == pytest.approx(
                b["arms"][arm]["metrics"][name]["value"], abs=1e-9
            ), name
        assert a["arms"][arm]["confusion"] == b["arms"][arm]["confusion"]
        assert a["arms"][arm]["threshold"] == b["arms"][arm]["threshold"]
    one, two = (c["comparisons"][0]["difference"] for c in (a, b))
    assert one["value"] == pytest.approx(two["value"], abs=1e-12)


def test_an_estimate_is_the_mean_over_the_cells_of_scikit_learn_s_value():
    frames = split_of()
    found = analysis.analyse(frames, CLASSES, SETTINGS)["arms"]["good"]["metrics"]["auroc"]
    each = [
        roc_auc_score(p.label == 0, p.probability[:, 0])
        for p in frames
        if (p.arm, p.split) == ("good", "test")
    ]
    assert found["value"] == pytest.approx(np.mean(each), abs=1e-12)
    assert found["std"] == pytest.approx(np.std(each, ddof=1), abs=1e-12)
    assert found["low"] < found["value"] < found["high"]


def test_the_threshold_is_chosen_on_the_val_of_the_same_model_and_fixed():
    frames = split_of(seeds=(0,))
    val, test = (
        next(p for p in frames if (p.arm, p.split) == ("good", s)) for s in ("val", "test")
    )
    rule = "sensitivity=0.9"  # the default
    threshold = metrics.operating_threshold(val.label == 0, val.probability[:, 0], rule=rule)
    found = analysis.analyse(frames, CLASSES, SETTINGS)["arms"]["good"]
    assert found["threshold"]["value"] == threshold and found["threshold"]["chosen_on"] == "val"
    called = test.probability[:, 0] >= threshold
    assert found["metrics"]["sensitivity"]["value"] == pytest.approx(called[test.label == 0].mean())
    assert found["metrics"]["specificity"]["value"] == pytest.approx(
        (~called)[test.label == 1].mean()
    )
    assert np.sum(found["confusion"]) == len(test.id)
    # Whatever test says, the threshold stays.
    wrong = [dataclasses.replace(p, label=1 - p.label) if p.split == "test" else p for p in frames]
    assert (
        analysis.analyse(wrong, CLASSES, SETTINGS)["arms"]["good"]["threshold"]["value"]
        == threshold
    )


def test_without_val_the_threshold_is_one_half_and_calibration_says_why_it_is_not_there():
    frames = [p for p in split_of(seeds=(0,)) if p.split == "test"]
    found = analysis.analyse(frames, CLASSES, SETTINGS)["arms"]["good"]
    assert (found["threshold"]["value"], found["threshold"]["chosen_on"]) == (0.5, None)
    assert found["threshold"]["words"] == "0.5: there is no val with both classes to choose it on"
    assert "no predictions of val" in found["calibration"]["temperature"]["undefined"]
    assert "no predictions of val" in found["conformal"]["undefined"]
    one_class = [
        dataclasses.replace(p, label=np.zeros_like(p.label)) if p.split == "val" else p
        for p in split_of()
    ]
    card = analysis.analyse(one_class, CLASSES, SETTINGS)["arms"]["good"]["threshold"]
    assert (card["value"], card["chosen_on"]) == (0.5, None)


def test_over_folds_the_verdict_follows_nadeau_and_bengio():
    """n_test = 30, val = 15, so n_train = 90 - 45; the interval by hand."""
    found = analysis.analyse(crossed(), CLASSES, SETTINGS, sources=["good"])
    (comparison,) = found["comparisons"]
    assert comparison["method"] == "corrected resampled t"
    by_split = {}
    for p in crossed():
        if p.split == "test":
            by_split.setdefault((p.repeat, p.fold), {})[p.arm] = roc_auc_score(
                p.label == 0, p.probability[:, 0]
            )
    d = np.array([cell["good"] - cell["target_only"] for cell in by_split.values()])
    se = math.sqrt((1 / len(d) + 30 / 45) * d.var(ddof=1))
    half = stats.t.ppf(0.975, len(d) - 1) * se
    assert comparison["difference"]["value"] == pytest.approx(d.mean(), abs=1e-12)
    assert comparison["difference"]["low"] == pytest.approx(d.mean() - half, abs=1e-9)
    assert comparison["p"] == pytest.approx(
        2 * stats.t.sf(abs(d.mean() / se), len(d) - 1), abs=1e-9
    )
    assert found["design"]["words"].startswith(
        "3-fold cross-validation, repeated 2 times, grouped by patient"
    )
    assert (
        np.sum(found["arms"]["good"]["confusion"]) == 90
    )  # summed over folds, averaged over repeats


def test_harm_is_called_negative_transfer_only_of_an_arm_that_learns_from_the_source():
    frames = split_of(skills=(("pooled", 0.1), ("target_only", 2.5)))
    headlines = [
        analysis.analyse(frames, CLASSES, SETTINGS, sources=sources)["verdict"]["headline"]
        for sources in (["pooled"], None, ["pooled", "target_only"])
    ]
    assert "pooled hurts (negative transfer)" in headlines[0]
    assert all("pooled hurts:" in text and "negative" not in text for text in headlines[1:])


def test_a_single_arm_has_its_metrics_as_headline_and_no_margin_of_another():
    frames = [p for p in split_of() if p.arm == "good"]
    report = analysis.analyse(frames, CLASSES, SETTINGS)
    made = report["arms"]["good"]["metrics"]
    shown = [f"{made[name]['value']:.3f}" for name in ("auroc", "sensitivity", "specificity")]
    words = report["verdict"]["headline"]
    assert report["verdict"]["kind"] == "no_comparison" and report["comparisons"] == []
    assert words.startswith(f"good: AUROC {shown[0]} (95 % interval ")
    assert f"sensitivity {shown[1]} (" in words and f"specificity {shown[2]} (" in words
    assert report["verdict"]["sentences"][1] == (
        "The intervals cover other samples of 30 patients, not another training."
    )


def test_a_copy_of_the_reference_is_equivalent_with_a_margin_only():
    frames = [p for p in split_of(seeds=(0, 1, 2)) if p.arm == "good"]
    frames += [dataclasses.replace(p, arm="target_only") for p in frames]
    kinds = {}
    for metric, margin in (("auroc", 0.02), ("loss", 0.02), ("loss", 0.0)):
        settings = dataclasses.replace(SETTINGS, metric=metric, margin=margin)
        report = analysis.analyse(frames, CLASSES, settings)
        kinds[metric, margin] = report["verdict"]["kind"]
        loss = report["arms"]["target_only"]["metrics"]["loss"]["value"]
        wanted = margin * loss if metric == "loss" else margin
        assert report["margin"] == report["comparisons"][0]["margin"] == pytest.approx(wanted)
    # 15 patients of each class who all agree do not exclude a difference in AUROC of 0.2.
    assert kinds == {
        ("auroc", 0.02): "inconclusive",
        ("loss", 0.02): "equivalent",
        ("loss", 0.0): "inconclusive",
    }


def test_the_largest_size_is_the_whole_and_the_others_are_points_of_the_curve():
    rng = np.random.default_rng(2)
    frames = [
        said(arm, split, skill=skill * math.log10(size), rng=rng, size=size, seed=0)
        for size in (10, 100)
        for arm, skill in (("good", 1.0), ("target_only", 0.5))
        for split in ("val", "test")
    ]
    found = analysis.analyse(frames, CLASSES, SETTINGS)
    assert found["design"]["models"] == 1
    curve = found["learning_curve"]
    assert curve["sizes"] == [10, 100]
    assert curve["arms"]["good"][-1]["value"] == found["arms"]["good"]["metrics"]["auroc"]["value"]
    assert [p.size for p in arm_results.of_all_labels(frames)] == [100] * 4


def test_every_group_and_every_mistake_is_counted_once_whatever_the_number_of_repeats():
    found = analysis.analyse(crossed(), CLASSES, SETTINGS)
    groups = found["arms"]["good"]["subgroups"]["site"]["groups"]
    assert {name: g["n"] for name, g in groups.items()} == {"north": 45, "south": 45}
    assert len({e["id"] for e in found["errors"]}) == len(found["errors"]) > 0
    assert all(e["label"] != e["predicted"] for e in found["errors"])


def test_mistakes_are_ranked_by_their_confidence_and_unknown_labels_are_none():
    p = said("good", "test", skill=0.0, rng=np.random.default_rng(4))
    label = p.label.copy()
    label[::4] = -1
    found = mistakes.confident(dataclasses.replace(p, label=label), CLASSES, most=7)
    wrong = [
        (max(row), name, CLASSES[own], CLASSES[1 - own], patient)
        for row, name, own, patient in zip(
            p.probability.tolist(), p.id, label, p.patient, strict=True
        )
        if own >= 0 and row[own] < 0.5
    ]
    wanted = sorted(wrong, key=lambda entry: -entry[0])[:7]
    assert len(wrong) > 7 and {e["arm"] for e in found} == {"good"}
    assert [
        tuple(e[k] for k in ("probability", "id", "label", "predicted", "patient")) for e in found
    ] == wanted


def test_the_analysis_is_json_and_the_same_each_time():
    one, two = (to_json(analysis.analyse(split_of(), CLASSES, SETTINGS)) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "aurocx"}, "config.checkpoint.metric is 'aurocx'; did you mean 'auroc'?"),
        ({"positive": "il"}, "config.evaluation.positive is 'il'; did you mean 'ill'?"),
        ({"reference": "god"}, "config.evaluation.reference is 'god'; did you mean 'good'?"),
    ],
)
def test_what_is_not_there_is_named(change, message):
    with pytest.raises(UserError) as error:
        analysis.analyse(split_of(), CLASSES, dataclasses.replace(SETTINGS, **change))
    assert message in str(error.value)


def test_without_a_label_nothing_can_be_evaluated():
    frames = [dataclasses.replace(p, label=np.full_like(p.label, -1)) for p in split_of()]
    with pytest.raises(UserError, match="no example of split test has a label"):
        analysis.analyse(frames, CLASSES, SETTINGS)
