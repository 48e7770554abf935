import math

import pytest
from ml_collections import ConfigDict
from tiny_run import changed

from medtl import config as configs
from medtl.config import fields, lookup, rules
from medtl.errors import UserError


def leaves(config):
    return dict(lookup.leaves(config))


def test_every_field_of_the_default_is_declared_with_its_default():
    for path, value in leaves(configs.default()).items():
        field = lookup.node_at(path)
        assert isinstance(field, rules.Field), path
        field.check(value, path)
        assert type(field.default) is type(value), path


def test_every_field_is_described_once_with_meaning_and_values():
    rows = configs.describe()
    paths = [path for path, *_ in rows]
    assert len(set(paths)) == len(paths)
    assert all(meaning.endswith(".") and allowed for _, _, meaning, allowed in rows)
    for path in leaves(configs.default()):
        for names, word in (
            (("source", "target"), "DOMAIN" if path.startswith("data") else "STAGE"),
            (configs.default().arm, "NAME"),
            (("main",), "NAME"),
        ):
            path = ".".join(word if part in names else part for part in path.split("."))
        assert path in paths


def test_a_default_that_differs_between_the_domains_is_described_for_both():
    rows = {path: default for path, default, *_ in configs.describe()}
    assert "(source)" in rows["data.DOMAIN.kind"]
    assert "(target)" in rows["data.DOMAIN.kind"]
    assert rows["stages.STAGE.epochs"] == "10"


@pytest.mark.parametrize("path", ["stages.third.epochs", "nonsense", "name.x", "sweep.grid.x", ""])
def test_what_is_not_declared_has_no_declaration(path):
    assert lookup.node_at(path) is None
    config = configs.default()
    lookup.add_entries(config, path)
    assert config == configs.default()


def test_an_entry_of_an_open_section_comes_with_its_defaults_and_others_stay():
    config = configs.default()
    config.arm.scratch.joint = True
    lookup.add_entries(config, "arm.mine.joint")
    lookup.add_entries(config, "arm.scratch.joint")
    assert config.arm.mine == configs.arm("weights", source_stage=False, joint=False)
    assert config.arm.scratch.joint


def test_every_plugin_string_of_a_config_is_listed_by_its_key():
    config = changed(
        augment__extra=("a.py:cutout", "b.py:blur(2)"),
        evaluation__metrics__mine="m.py:brier",
        evaluation__tune=configs.grid({"stages.target.optimizer": ("adam", "o.py:lion")}),
        loggers=("l.py:csv",),
        model__encoders__table="net.py:MLP",
        objective__lambda_schedule="s.py:ramp",
        objective__terms__mmd=ConfigDict({"term": "t.py:mmd", "weight": 0.1}),
    )
    texts = configs.plugin_strings(config)
    assert texts["config.augment.extra[1]"] == "b.py:blur(2)"
    assert texts["config.evaluation.metrics.mine"] == "m.py:brier"
    assert texts["config.evaluation.tune.stages.target.optimizer[1]"] == "o.py:lion"
    assert texts["config.loggers[0]"] == "l.py:csv"
    assert texts["config.model.encoders.table"] == "net.py:MLP"
    assert texts["config.model.name"] == "cifar_resnet20"
    assert texts["config.objective.lambda_schedule"] == "s.py:ramp"
    assert texts["config.objective.losses.main.loss"] == "cross_entropy"
    assert texts["config.objective.terms.mmd.term"] == "t.py:mmd"
    assert texts["config.data.target.kind"].startswith("phantom(")
    assert texts["config.stages.source.sampler"] == "shuffled"
    # Files hold a module of the user's own; the embedded config names none.
    assert not any(".py" in text for text in configs.plugin_strings(configs.default()).values())


def test_a_grid_is_read_back_as_it_was_written():
    values = {"objective.lambda_": (0.1, 1.0), "stages.target.freeze": ("none", "layer1")}
    assert configs.paths(configs.grid(values)) == values
    assert configs.paths(ConfigDict()) == {}


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        (rules.at_least(1), (1, 2), (0, -1)),
        (rules.between(0, 1), (0, 0.5, 1), (-0.1, 1.1)),
        (rules.SHARE, (0, 0.9), (1, -0.1)),
        (rules.INSIDE, (0.1, 0.9), (0, 1)),
        (rules.UNIQUE, ((), (1, 2)), ((1, 1.0), ("a", "a"))),
        (rules.SPLIT, ((), (0.7, 0.1, 0.2), (1, 0, 0)), ((0.5, 0.5), (0, 0.5, 0.5), ("a", 1, 0))),
        (rules.SIZES, ((), (25, "all"), ("25",)), ((0,), ("most",), (25, 25))),
        (rules.NAME, ("a", "a-1.b"), ("", "a/b", ".a")),
        (rules.one_of(1, 3), (1, 3), (2, "1")),
    ],
)
def test_a_rule_accepts_its_range_and_nothing_else(rule, right, wrong):
    for value in right:
        rule.check(value, "config.x")
    for value in wrong:
        with pytest.raises(UserError, match=r"^config\.x is "):
            rule.check(value, "config.x")


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None])
def test_a_number_is_finite_and_no_other_type(value):
    with pytest.raises(UserError, match=r"^config\.x is .*; it must be a (finite )?number"):
        rules.Field(1.0, "").check(value, "config.x")


def test_sections_that_config_files_make_have_all_fields():
    assert set(configs.dataset()) == set(fields.DATASET)
    assert set(configs.stage(epochs=1)) == set(fields.STAGE)
    assert set(configs.arm("random", source_stage=False, joint=False)) == set(fields.ARM)
