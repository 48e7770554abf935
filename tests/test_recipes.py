"""The recipes: which one, what it sets, what stays, and what the terminal says."""

import numpy as np
import pytest
from command_line import config_file, watch
from PIL import Image
from tiny_run import changed

from medtl import cli
from medtl import config as configs
from medtl.config import check, recipes
from medtl.errors import UserError


def written(folder, train):
    """Write a manifest of grey images, `train` of them for training and 20 for validation."""
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "i.png")
    rows = [f"{i},i.png,{'ab'[i % 2]},{'train' if i < train else 'val'}" for i in range(train + 20)]
    (folder / "m.csv").write_text("\n".join(["id,image_path,diagnosis,split", *rows]) + "\n")
    return str(folder / "m.csv")


def config_of(path, **fields):
    config = changed(weights__path="w.safetensors", recipe="auto", **fields)
    config.data.target = configs.dataset(path=path)
    return config


@pytest.mark.parametrize(("labels", "name"), [(140, "few"), (199, "few"), (200, "some")])
def test_the_number_of_train_labels_chooses(tmp_path, labels, name):
    config = config_of(written(tmp_path, labels))
    assert f"recipe {name}, as the target has {labels} train labels" in recipes.apply(config)
    assert config.recipe == f"{name} (applied)"


def test_a_cross_validation_counts_all_labels(tmp_path):
    config = config_of(written(tmp_path, 190), evaluation__folds=5)
    assert "some, as the target has 210 train labels" in recipes.apply(config)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_sets_its_fields_once_and_makes_a_config_that_can_run(name):
    config = configs.default()
    before = {path: config[path.split(".")[0]] for path in recipes.recipe(name)}
    assert before
    config.weights.path = "" if name != "few" else "w.safetensors"
    config.recipe = name
    assert recipes.apply(config)
    for path, value in recipes.recipe(name).items():
        section = config
        for part in path.split("."):
            section = section[part]
        assert section == value, path
    applied = config.copy_and_resolve_references()
    assert recipes.apply(config) == ""
    assert config == applied
    check.check_fields(config)


def test_fields_that_a_flag_or_the_file_sets_stay_and_are_named():
    config = configs.default()
    config.recipe = "some"
    config.stages.target.epochs = 3
    line = recipes.apply(config, given={"augment.flip", "stages.target.batch_size"})
    assert config.stages.target.epochs == 3
    assert config.stages.target.batch_size == configs.default().stages.target.batch_size
    assert line.endswith("your own values stay: stages.target.batch_size, stages.target.epochs")


def test_labels_are_smoothed_only_where_an_example_has_one_class():
    for fields, smoothed in (
        ({}, True),
        ({"data__task": "regression"}, False),
        ({"data__task": "ordinal"}, False),
        ({"data__target__multi_label": True}, False),
    ):
        config = changed(weights__path="w.safetensors", recipe="few", **fields)
        recipes.apply(config)
        assert ("label_smoothing" in config.objective.losses.main.loss) == smoothed, fields


def test_without_weights_nothing_is_frozen(tmp_path):
    config = config_of(written(tmp_path, 40))
    config.weights.path = ""
    assert "recipe some" in recipes.apply(config)
    assert config.stages.target.freeze == "none"
    config.recipe = "few"
    with pytest.raises(UserError, match=r"few.*names none"):
        recipes.apply(config)


def test_a_wrong_recipe_or_one_that_was_not_applied_is_refused():
    with pytest.raises(UserError, match=r"config\.recipe is 'fwe'.*did you mean 'few'"):
        recipes.apply(changed(recipe="fwe"))
    with pytest.raises(UserError, match=r"'some' and was not applied"):
        check.check(changed(recipe="some"))


def test_labels_that_cannot_be_counted_without_reading_ask_for_a_name():
    config = changed(recipe="auto", weights__path="w.safetensors")
    config.data.target.kind = "json:loads"
    with pytest.raises(UserError, match=r"name few \(under 200 labels\), some, or many"):
        recipes.apply(config)


def test_the_command_says_which_recipe_and_trains_with_it(tmp_path, monkeypatch, capsys):
    made = watch(monkeypatch, tmp_path)
    body = f"c.recipe = 'auto'\nc.data.target = config.dataset(path={written(tmp_path, 210)!r})"
    name = config_file(tmp_path, body)
    flag = "--config.stages.target.epochs=10"  # the default, which a flag keeps all the same
    assert cli.run([f"--config={name}", flag]) == 0
    assert capsys.readouterr().out.startswith("recipe some, as the target has 210 train labels")
    [(_, config, _)] = made
    assert (config.recipe, config.augment.crop) == ("some (applied)", 0.5)
    assert config.stages.target.epochs == 10
