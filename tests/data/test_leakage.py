"""Columns that give the label away."""

import numpy as np
import pytest
from clinical_run import clinical
from sklearn.metrics import roc_auc_score

from medtl.config import dataset
from medtl.data import leakage, schema
from medtl.errors import UserError
from medtl.experiment.preview import preview

CLASSES = ("ill", "well")


def columns(**cells):
    listed = tuple(schema.Column(name, "numeric", "given") for name in cells)
    return schema.Columns(listed, cells)


@pytest.fixture
def label():
    return np.arange(100) % 2


def test_the_area_is_that_of_scikit_learn(label):
    x = np.random.default_rng(0).integers(0, 5, 100) + label
    assert leakage.auroc(label == 1, x) == pytest.approx(roc_auc_score(label, x))


def test_values_and_missing_cells_that_give_the_label_away_are_refused(label):
    rng = np.random.default_rng(0)
    table = columns(
        noise=rng.normal(size=100),
        drug=label + rng.normal(size=100) * 0.01,
        age=np.where(label == 1, np.nan, 50.0),
        ward=np.array(["icu", "home"], object)[label],
    )
    for name, kind in (("drug", "values"), ("age", "missing cells"), ("ward", "values")):
        with pytest.raises(UserError, match=f"the {kind} of '{name}' predict"):
            leakage.check(table, [name], label, CLASSES, where="target a")
        lines = leakage.check(table, [name], label, CLASSES, where="target a", allow=[name])
        assert lines[0].endswith("(allowed: allow_columns)")
    assert leakage.check(table, ["noise"], label, CLASSES, where="target a") == []


def test_a_column_above_090_is_a_warning(label):
    x = np.random.default_rng(0).normal(size=100) + 2.4 * label
    lines = leakage.check(columns(x=x), ["x"], label, CLASSES, where="target a")
    assert len(lines) == 1
    assert "is it known at prediction?" in lines[0]


def test_categories_with_one_example_each_do_not_separate(label):
    rare = np.array([f"c{i // 2}" for i in range(100)], object)
    assert leakage.check(columns(rare=rare), ["rare"], label, CLASSES, where="") == []


def test_the_age_and_sex_of_covid_ct_are_refused_as_inputs(shared):
    path = shared / "data" / "covid_ct" / "manifest.csv"
    config = clinical(
        path,
        data__target=dataset("manifest", path=str(path)),
        data__inputs=("image", "table"),
    )
    with pytest.raises(UserError, match="all 87 known cells of 'age' are of the class 'covid'"):
        preview(config)
    config.data.target.columns = ("age=ignore", "sex=ignore")
    with pytest.raises(UserError, match="no numeric or categorical column"):
        preview(config)
