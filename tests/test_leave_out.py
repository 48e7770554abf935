"""Cross-validation that leaves out one site at a time: its parts, its refusals, and a run."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from opened import rows_of
from PIL import Image
from test_splits import target
from tiny_run import tiny

from medtl.config import dataset
from medtl.config.check import check
from medtl.errors import UserError
from medtl.experiment import experiment, splits
from medtl.experiment.arm import Arm


def by_site(**fields):
    settings = {"evaluation__leave_out": "site", "data__target__split": (0.7, 0.1, 0.2)}
    return tiny(**(settings | fields))


def with_sites(sites, **fields):
    """120 images of 40 patients; a patient's images are of one site."""
    examples = target(**fields)
    patient = np.arange(len(examples)) // 3
    return dataclasses.replace(examples, groups={"site": np.array(sites)[patient % len(sites)]})


def test_each_site_is_tested_on_once_and_val_is_drawn_from_the_others():
    examples = with_sites(["north", "south", "east"])
    site, made = examples.groups["site"], splits.splits_of(by_site(), examples, seed=0)
    assert [(s.repeat, s.fold) for s in made] == [(0, 0), (0, 1), (0, 2)]
    for name, split in zip(["east", "north", "south"], made, strict=True):
        assert ((split.part == "test") == (site == name)).all()
        train, val = (set(examples.patient[split.part == part]) for part in ("train", "val"))
        assert train and val and not train & val
        # val has the share of what is not tested that the config's fractions give it: 0.1 / 0.8.
        assert np.sum(split.part == "val") == pytest.approx(np.sum(site != name) / 8, abs=3)
    (again, *_), (other, *_) = (
        splits.splits_of(by_site(data__target__split_seed=seed), examples, seed=5)
        for seed in (0, 7)
    )
    assert (again.part == made[0].part).all() and (other.part != made[0].part).any()


def test_a_site_without_both_classes_is_trained_on_and_not_tested_on():
    examples = with_sites(["north", "south", "east"])
    label = np.where(examples.groups["site"] == "east", 0, examples.label).astype(np.int32)
    examples = dataclasses.replace(examples, label=label)
    made = splits.splits_of(by_site(), examples, seed=0)
    east = examples.groups["site"] == "east"
    assert len(made) == 2
    assert all(set(split.part[east]) <= {"train", "val"} for split in made)
    lines = list(splits.summary(by_site(), examples, made))
    assert lines[0].startswith("2 folds, each tests one site; examples in the first fold: ")
    assert lines[1:] == ["site 'east' has no 'b': it is trained on and not tested on"]


def test_images_at_other_sites_of_a_tested_patient_are_not_used():
    examples = with_sites(["north", "south"])
    patient = np.where(np.isin(np.arange(120), [0, 3]), "both", examples.patient)
    examples = dataclasses.replace(examples, patient=patient)
    north, south = splits.splits_of(by_site(), examples, seed=0)
    assert np.flatnonzero(north.part == splits.UNUSED).tolist() == [3]
    assert np.flatnonzero(south.part == splits.UNUSED).tolist() == [0]
    assert (
        "2 times an example is left out of training"
        in list(splits.summary(by_site(), examples, [north, south]))[-1]
    )


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (target(), "leave_out is 'site', but clinic has no such column; .* groups: none"),
        (with_sites(["north"]), "1 of the 1 values of site in clinic have every class; .* 2"),
        (with_sites(["north", ""]), "60 examples without a value .* first is 'i3'; fill it in"),
        (
            with_sites(["north", "south", "east"], classes=6, seed=3, n=45),
            "0 of the 3 values of site in clinic have every class",
        ),
    ],
)
def test_sites_that_cannot_be_left_out_are_refused_before_training(examples, message):
    with pytest.raises(UserError, match=message):
        splits.splits_of(by_site(), examples, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluation__folds": 5}, "folds is 5 and leave_out is 'site'; give one of them"),
        ({"evaluation__repeats": 2}, "repeats is 2, but folds is 0"),
        ({"evaluation__leave_out": "hospital"}, 'leave_out is \'hospital\'; it must be "", "site"'),
        ({"evaluation__patient_rule": "median"}, "patient_rule is 'median'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        check(by_site(**fields))


@pytest.fixture
def manifest(tmp_path):
    """48 images of 24 patients at four sites; class 1 is brighter; the last site has one class."""
    rng = np.random.default_rng(0)
    lines = ["image_path,diagnosis,patient_id,site"]
    for i in range(48):
        patient, site = i // 2, "abcd"[i // 2 % 4]
        ill = patient // 4 % 2 and site != "d"
        pixels = rng.integers(0, 120, (16, 16)) + 100 * ill
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i:02d}.png")
        lines.append(f"{i:02d}.png,{'ill' if ill else 'well'},p{patient},{site}")
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines))
    return path


def test_a_run_tests_each_site_once_is_resumed_and_pools_them(manifest, monkeypatch, capsys):
    config = by_site(arms=("target_only", "scratch"), evaluation__resamples=100)
    config.data.target = dataset("manifest", path=str(manifest), split=(0.7, 0.2, 0.1))
    folder, outcome, calls = manifest.parent / "run", Arm.outcome, []

    def interrupted(self):
        calls.append(self.split.path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return outcome(self)

    with monkeypatch.context() as patch:
        patch.setattr(Arm, "outcome", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.train(config, folder)
    done = {p: p.stat().st_mtime_ns for p in folder.glob("seed_*/**/done.json")}
    assert len(done) == 3
    experiment.train(config, folder)
    assert all(p.stat().st_mtime_ns == time for p, time in done.items())
    assert "site 'd' has no 'ill': it is trained on and not tested on" in capsys.readouterr().out
    tested = {(row["fold"], row["site"]) for row in rows_of(folder) if row["split"] == "test"}
    assert tested == {("0", "a"), ("1", "b"), ("2", "c")}
    with (folder / "folds.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert len(rows) == 36
    evaluation = json.loads((folder / "metrics.json").read_text())["evaluation"]
    assert evaluation["design"]["left_out"] == "site" and evaluation["design"]["folds"] == 3
    sites = evaluation["sites"]
    assert sites["left_out"] and list(sites["arms"]["scratch"]["per_site"]) == ["a", "b", "c"]
    few = "0 sites have 10 patients of each class; it takes at least 3"
    assert sites["arms"]["scratch"]["pooled"]["undefined"] == few
    assert evaluation["per_patient"]["n"] == 18
