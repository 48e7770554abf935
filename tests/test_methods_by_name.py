"""Losses, terms and samplers of medtl by their names in a config, from the start of a run on."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_run import tiny

from medtl.config import check, tasks
from medtl.errors import UserError
from medtl.experiment import experiment, preflight
from medtl.experiment.setup import Experiment
from medtl.training.factory import Components

TERMS = {
    "coral": "coral",
    "mmd": "mmd(scales=(0.5, 1.0))",
    "dann": "DANN(hidden=(8,))",
    "contrast": "contrastive",
    "l2": "l2_sp(heads=0.1)",
    "f1": "soft_f1(domain='source')",
    "auc": "auc_margin",
}


def with_terms(names, **fields):
    config = tiny(arms=("transfer",), **fields)
    for name in names:
        config.objective.terms[name] = ConfigDict({"term": TERMS[name], "weight": 0.1})
    return config


def opened(config, folder, examples=None):
    """Open the experiment and check it, with these examples in place of the config's."""
    check.check(config)
    examples = examples or experiment.load_data(config)
    made = Experiment.create(
        config, folder, Components.create(config), examples, training=True, train_size=30
    )
    preflight.check(made, config.arms, [], [made.split])


def steps(folder, stage):
    """Return the logged training steps of a stage."""
    lines = (folder / "seed_0" / "transfer" / stage / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.slow
def test_all_terms_and_a_loss_with_counts_train_alike_on_one_device_and_on_eight(tmp_path):
    for parallel in ("none", "pmap"):
        config = with_terms(TERMS, parallel=parallel, stages__target__sampler="square_root")
        config.objective.losses.main.loss = "ldam(deferred=0.5)"
        experiment.train(config, tmp_path / parallel)
    one, eight = (steps(tmp_path / parallel, "target") for parallel in ("none", "pmap"))
    for name in TERMS:
        values = [[line[f"term/{name}"] for line in lines] for lines in (one, eight)]
        assert np.isfinite(values).all()
        np.testing.assert_allclose(*values, rtol=0.02, atol=1e-3)
    assert 0 < one[0]["term/f1"] <= 1
    assert one[0]["term/dann"] == pytest.approx(np.log(2), abs=0.3)
    source = steps(tmp_path / "none", "source")
    assert "term/f1" in source[0]
    assert "term/coral" not in source[0]


def test_a_term_that_no_training_stage_can_use_is_refused(tmp_path):
    config = with_terms(["coral"])
    config.arm.transfer.joint = False
    with pytest.raises(UserError, match=r"objective\.terms\.coral applies to no training stage"):
        opened(config, tmp_path)
    config = with_terms(["l2"])
    config.arms = ("scratch",)
    with pytest.raises(UserError, match=r"terms\.l2 .* of scratch: the stage starts from random"):
        opened(config, tmp_path)


@pytest.mark.parametrize("loss", ["balanced_softmax", "ldam", "class_weighted", "logit_adjusted"])
def test_a_class_that_train_lacks_is_named_at_the_start(loss, tmp_path):
    config = tiny(arms=("transfer",))
    config.objective.losses.main.loss = loss
    examples = dict(experiment.load_data(config))
    target = examples["target"]
    split = np.where(target.label == 2, "test", target.split)
    examples["target"] = dataclasses.replace(target, split=split)
    message = f"{loss}', which counts .* but target has none of '{target.classes[2]}'"
    with pytest.raises(UserError, match=message):
        opened(config, tmp_path, examples)
    config.objective.losses.main.loss = f"{loss}(class_counts=(10, 5, 1))"
    opened(config, tmp_path, examples)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("objective.losses.main.loss", "focall", "did you mean 'focal'"),
        ("objective.losses.main.loss", "focal(gama=1.0)", "did you mean 'gamma'"),
        ("objective.losses.main.loss", "ldam(deferred=2.0)", "deferred is 2"),
        ("objective.losses.main.loss", "ldam(class_counts=(1, 2))", "each of the 3 classes"),
        ("objective.terms.x.term", "korall", "medtl.losses.terms has no 'korall'"),
        ("objective.terms.x.term", "dann", "did you mean 'DANN'"),
        ("objective.terms.x.term", "mmd(scales=1.0)", "scales is 1.0"),
        ("objective.terms.x.term", "DANN(hidden=0)", "hidden is 0"),
        ("stages.target.sampler", "by_patien", "did you mean 'by_patient'"),
        ("stages.target.sampler", "by_patient", "the target data has none"),
    ],
)
def test_a_wrong_name_or_option_is_one_clear_error(path, text, message, tmp_path):
    config = tiny(arms=("transfer",))
    if "terms" in path:
        config.objective.terms.x = ConfigDict({"term": "coral", "weight": 1.0})
    *parents, name = path.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[name] = text
    examples = dict(experiment.load_data(config))
    examples["target"] = dataclasses.replace(examples["target"], patient=None)
    with pytest.raises(UserError, match=message):
        opened(config, tmp_path, examples)


@pytest.mark.parametrize("loss", tasks.ONE_DIAGNOSIS)
def test_a_loss_for_one_diagnosis_is_refused_for_several(loss):
    config = tiny()
    config.data.target.multi_label = True
    config.objective.losses.main.loss = loss
    with pytest.raises(UserError, match="use 'sigmoid_binary_cross_entropy', 'sigmoid_focal'"):
        check.check(config)
