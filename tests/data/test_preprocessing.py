"""Clinical columns as inputs: against scikit-learn, and fitted on train rows alone."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from medtl.data import preprocessing, schema
from medtl.data.prepared import Tables
from medtl.data.preprocessing import Fitted, Layout
from medtl.data.schema import Column, Columns
from medtl.examples import Examples


def settings(numbers="standard", **fields):
    given = {"numbers": numbers, "bins": 4, "text_features": 64, "scale_categories": False}
    return ConfigDict(given | fields)


def columns(**cells):
    made, listed = {}, []
    for name, values in cells.items():
        role, values = values
        made[name] = np.array(values, object if isinstance(values[0], str) else float)
        listed.append(Column(name, role, "given"))
    return Columns(tuple(listed), made)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    n = 200
    age, marker = rng.normal(50, 10, n), rng.exponential(3, n)
    age[:20] = np.nan
    site = rng.choice(["a", "b", "c"], n)
    return columns(
        age=("numeric", age), marker=("numeric", marker), site=("categorical", list(site))
    )


@pytest.mark.parametrize("numbers", ["standard", "quantile"])
def test_inputs_are_those_of_scikit_learns_column_transformer(table, numbers):
    layout = Layout.of({"target": table}, settings(numbers))
    encoded = layout.encode(table, 200)
    train = np.arange(150)
    fitted = preprocessing.fit(layout, [encoded.take(train)])
    inputs = preprocessing.apply(layout, fitted, encoded)["table"]
    reference = preprocessing.transformer(layout)
    if numbers == "quantile":
        reference.transformers[0][1].set_params(quantiletransformer__n_quantiles=150)
    cells = np.concatenate([encoded.numbers, encoded.codes], axis=1)
    expected = reference.fit(cells[train]).transform(cells)
    shown = np.delete(inputs, 2, axis=1)  # the indicator of age
    np.testing.assert_allclose(shown, expected, rtol=1e-5, atol=1e-5)
    assert inputs[:, 2].tolist() == [1.0] * 20 + [0.0] * 180


def test_rows_outside_train_do_not_change_what_is_fitted(table):
    layout = Layout.of({"target": table}, settings())
    encoded = layout.encode(table, 200)
    first = preprocessing.fit(layout, [encoded.take(np.arange(100))])
    encoded.numbers[100:] *= 1000
    second = preprocessing.fit(layout, [encoded.take(np.arange(100))])
    for name, values in first.arrays.items():
        np.testing.assert_array_equal(values, second.arrays[name])


@pytest.mark.parametrize("numbers", schema.NUMBERS)
def test_the_preprocessing_survives_json(table, numbers):
    layout = Layout.of({"target": table}, settings(numbers))
    encoded = layout.encode(table, 200)
    fitted = preprocessing.fit(layout, [encoded])
    stored = json.loads(
        json.dumps({"layout": dataclasses.asdict(layout), "fitted": fitted.to_json()})
    )
    again = Layout.from_json(stored["layout"])
    assert again == layout
    np.testing.assert_array_equal(
        preprocessing.apply(again, Fitted.from_json(stored["fitted"]), encoded)["table"],
        preprocessing.apply(layout, fitted, encoded)["table"],
    )


def test_categories_are_standardized_where_the_config_asks(table):
    layout = Layout.of({"target": table}, settings(scale_categories=True))
    encoded = layout.encode(table, 200)
    fitted = preprocessing.fit(layout, [encoded])
    one_hot = preprocessing.apply(layout, fitted, encoded)["table"][:, 3:]
    np.testing.assert_allclose(one_hot.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(one_hot.std(axis=0), 1, atol=1e-5)


def test_a_category_or_missing_value_that_train_lacks_gives_zeros():
    table = columns(sex=("categorical", ["F", "M", "F", "X", ""]), age=("numeric", [1.0] * 5))
    layout = Layout.of({"target": table}, settings())
    encoded = layout.encode(table, 5)
    fitted = preprocessing.fit(layout, [encoded.take(np.arange(3))])
    inputs = preprocessing.apply(layout, fitted, encoded)["table"]
    assert inputs.tolist() == [
        [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0],
    ]  # fmt: skip
    new = columns(sex=("categorical", ["unheard of"]), age=("numeric", [1.0]))
    unknown = preprocessing.apply(layout, fitted, layout.encode(new, 1))["table"]
    assert unknown.tolist() == [[0, 0, 0, 0, 0]]


def test_a_column_that_one_domain_lacks_is_missing_there_and_named():
    both = {
        "source": columns(age=("numeric", [1.0, 2.0]), crp=("numeric", [3.0, 4.0])),
        "target": columns(age=("numeric", [5.0, 6.0])),
    }
    layout = Layout.of(both, settings())
    assert layout.lacking(both["target"]) == ["crp"]
    assert layout.lacking(both["source"]) == []
    parts = {d: layout.encode(c, 2) for d, c in both.items()}
    fitted = preprocessing.fit(layout, [parts["target"]])
    assert preprocessing.apply(layout, fitted, parts["target"])["table"].tolist() == [
        [-1.0, 0.0, 1.0],
        [1.0, 0.0, 1.0],
    ]


@pytest.mark.parametrize("scope", ["domain", "pooled"])
def test_numbers_are_standardized_by_the_train_rows_of_each_domain_or_of_both(scope):
    rng = np.random.default_rng(0)
    crp = {"source": rng.normal(5, 1, 60), "target": rng.normal(300, 40, 40)}  # mg/dl, mg/l
    examples = {}
    for domain, values in crp.items():
        n = len(values)
        examples[domain] = Examples(
            name=domain,
            inputs={},
            label=np.arange(n) % 2,
            id=np.array([f"{domain}{i}" for i in range(n)]),
            split=np.where(np.arange(n) < n // 2, "train", "test"),
            patient=None,
            weight=np.ones(n, np.float32),
            classes=("well", "ill"),
            fingerprint="",
            split_hash="",
            columns=columns(crp=("numeric", values)),
        )
    config = ConfigDict({"inputs": ("table",), "preprocessing": settings(scope=scope)})
    config.preprocessing.mask_synonyms = False
    tables = Tables.of(examples, config)
    prepared = tables.prepared(examples, tables.fitted(examples))
    train = {domain: values[: len(values) // 2] for domain, values in crp.items()}
    both = np.concatenate(list(train.values()))
    for domain, values in crp.items():
        fitted_on = train[domain] if scope == "domain" else both
        expected = (values - fitted_on.mean()) / fitted_on.std()
        np.testing.assert_allclose(prepared[domain].inputs["table"][:, 0], expected, rtol=1e-4)


def test_codes_in_one_domain_and_numbers_in_the_other_get_one_role():
    few, many = [1.0, 2.0, 3.0, 3.0], [1.0, 1.0, 2.0, 2.0]
    both = {"source": columns(cp=("categorical", few)), "target": columns(cp=("numeric", many))}
    assert Layout.of(both, settings()).features[0].categories == ("1", "2", "3")
    wide = columns(cp=("numeric", list(np.arange(40.0))))
    assert Layout.of({**both, "target": wide}, settings()).features[0].categories is None


def test_the_piecewise_linear_encoding_is_that_of_the_paper():
    edges = np.array([[0.0], [1.0], [3.0]])
    values = np.array([[-1.0], [0.5], [2.0], [5.0]])
    expected = [[-1.0, 0.0], [0.5, 0.0], [1.0, 0.5], [1.0, 2.0]]
    assert preprocessing.piecewise_linear(values, edges).tolist() == expected


def test_texts_are_weighted_by_idf_of_train_and_of_length_one():
    texts = ["fever and cough", "cough", "", "dry cough at night"]
    table = columns(notes=("text", texts))
    layout = Layout.of({"target": table}, settings(text_features=512))
    encoded = layout.encode(table, 4)
    fitted = preprocessing.fit(layout, [encoded.take(np.array([0, 1]))])
    inputs = preprocessing.apply(layout, fitted, encoded)["text"]
    assert inputs.shape == (4, 512)
    np.testing.assert_allclose(np.linalg.norm(inputs, axis=1), [1, 1, 0, 1], atol=1e-6)
    idf = fitted.arrays["idf"]  # ln((1 + 2) / (1 + n)) + 1: of both, of one, of none
    assert set(np.round(idf, 4)) == {1.0, round(np.log(1.5) + 1, 4), round(np.log(3) + 1, 4)}
