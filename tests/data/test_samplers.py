"""Samplers draw each class as often as they promise, and a wrong one is named."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from medtl import data, plugins
from medtl.data import loading, order, phantom, samplers
from medtl.errors import UserError


@pytest.fixture(scope="module")
def examples():
    return phantom.examples(100, scanner="a", seed=0, image_size=6, split=(0.5, 0.25, 0.25))


def draw(labels, seed=0):
    return samplers.balanced(labels, np.ones(len(labels)), "target", np.random.default_rng(seed))


@pytest.mark.parametrize("counts", [(90, 10), (50, 50), (61, 7, 1), (5,)])
def test_balanced_takes_each_class_as_often_and_each_row_of_a_class_too(counts):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    n = len(labels)
    for seed in range(5):
        rows = draw(labels, seed)
        assert len(rows) == n
        assert np.ptp(np.bincount(labels[rows])) <= 1
        taken = np.bincount(rows, minlength=n)
        assert all(np.ptp(taken[labels == c]) <= 1 for c in range(len(counts)))


def test_balanced_takes_every_row_of_a_class_equally_often_in_the_mean():
    labels = np.array([0] * 7 + [1] * 2)
    taken = np.mean([np.bincount(draw(labels, seed), minlength=9) for seed in range(4000)], axis=0)
    np.testing.assert_allclose(taken, [4.5 / 7] * 7 + [4.5 / 2] * 2, atol=0.05)


def test_balanced_of_equal_classes_takes_each_row_once():
    np.testing.assert_array_equal(np.sort(draw(np.arange(30) % 3)), np.arange(30))


def test_balanced_mixes_the_classes():
    labels = np.repeat([0, 1], 50)
    assert 30 < np.sum(np.diff(labels[draw(labels)]) != 0) < 70


def test_balanced_leaves_out_rows_without_a_label_unless_none_has_one():
    labels = np.array([-1, 0, 0, 0, 1, -1])
    assert set(draw(labels)) <= {1, 2, 3, 4}
    np.testing.assert_array_equal(np.sort(draw(np.full(6, -1))), np.arange(6))


def test_balanced_with_several_diagnoses_shares_out_by_their_rarity():
    """Rows without a diagnosis are a class of their own, and NaN is no diagnosis."""
    labels = np.zeros((60, 2), np.float32)
    labels[:40, 0], labels[35:45, 1], labels[59] = 1, 1, np.nan
    share = labels[:, 0] / 40 + labels[:, 1] / 10
    share[45:] = 1 / 15
    taken = np.mean([np.bincount(draw(labels, seed), minlength=60) for seed in range(500)], axis=0)
    np.testing.assert_allclose(taken, np.nan_to_num(share, nan=1 / 15) * 60 / 3, atol=0.1)


def test_a_sampler_decides_on_the_order_of_each_epoch(examples):
    train, seen = examples.indices("train"), []

    def odd(labels, weights, domain, rng):
        seen.append(domain)
        np.testing.assert_array_equal(labels, examples.label[train])
        np.testing.assert_array_equal(weights, examples.weight[train])
        return 2 * rng.integers(0, len(labels) // 2, len(labels)) + 1

    batches = loading.train_batches(
        examples, "train", len(train), seed=0, sampler=odd, domain="source"
    )
    first, second = (b["index"] for b in itertools.islice(batches, 2))
    assert set(first) | set(second) <= set(train[1::2])
    assert (first != second).any()
    assert seen == ["source"] * 2
    rows = loading.train_rows(examples, "train", len(train), seed=0, sampler=odd, domain="source")
    np.testing.assert_array_equal(next(rows)["index"], first)


def test_the_default_is_shuffled(examples):
    default = loading.train_rows(examples, "train", 30, seed=5)
    named = loading.train_rows(examples, "train", 30, seed=5, sampler=samplers.shuffled)
    for _ in range(5):
        np.testing.assert_array_equal(next(default)["index"], next(named)["index"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda n: np.arange(n - 1), r"'wrong' returned int64\[{less}\] for the {n} train rows"),
        (lambda n: np.arange(n) / 1.0, r"'wrong' returned float64\[{n}\]"),
        (lambda n: np.arange(n)[:, None], r"returned int64\[{n}, 1\]"),
        (lambda n: None, r"returned object\[\]"),
        (lambda n: np.arange(n) + 1, r"returned the position {n} .* from 0 to {less}"),
        (lambda n: -np.arange(n), "returned the position -1"),
    ],
)
def test_a_sampler_that_returns_no_positions_is_named(examples, returned, message):
    def wrong(labels, weights, domain, rng):
        return returned(len(labels))

    n = len(examples.indices("train"))
    with pytest.raises(UserError, match=message.format(n=n, less=n - 1)):
        next(loading.train_rows(examples, "train", 4, seed=0, sampler=wrong))


@pytest.fixture
def plugin(tmp_path):
    """A sampler in a user's file, with an option."""
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def last(labels, weights, domain, rng, n=1):\n"
        "    return np.full(len(labels), len(labels) - n)\n"
    )
    return plugins.resolve(
        f"{tmp_path}/mine.py:last(n=2)", "medtl.data.samplers", key="config.stages.target.sampler"
    )


def test_a_users_sampler_gets_its_options_and_reaches_another_process(examples, plugin):
    train = examples.indices("train")
    endless = order.order_of(examples, "train", 0, plugin, "target")
    assert (endless.span(0, 100) == train[-2]).all()
    assert (pickle.loads(pickle.dumps(endless)).span(0, 100) == train[-2]).all()


@pytest.mark.slow
def test_a_users_sampler_orders_what_worker_processes_read(write, twelve, folder, plugin):
    working = {"image_size": 8, "channels": 1, "resize": "squash", "key": "key"}
    stream = data.load(write(twelve), cache="stream", cache_dir=str(folder / "cache"), **working)
    batches = loading.train_batches(stream, "train", 4, seed=0, workers=1, sampler=plugin)
    batch = next(batches)
    batches.close()
    assert (batch["index"] == 4).all()
    np.testing.assert_array_equal(batch["image"], np.stack([stream.image[4]] * 4))


def test_plugins_name_the_samplers(examples):
    plugin = plugins.resolve("balanced", "medtl.data.samplers", key="key")
    n = len(examples.indices("train"))
    batch = next(loading.train_batches(examples, "train", n, seed=0, sampler=plugin))
    assert np.ptp(np.bincount(batch["label"])) <= 1
    with pytest.raises(UserError, match="did you mean 'balanced'"):
        plugins.resolve("balance", "medtl.data.samplers", key="key")


def test_square_root_draws_a_class_in_proportion_to_the_root_of_its_size():
    labels = np.repeat([0, 1, 2], [144, 16, 4])  # roots 12 : 4 : 2 of 164 rows
    for seed in range(5):
        rows = samplers.square_root(labels, np.ones(164), "target", np.random.default_rng(seed))
        np.testing.assert_allclose(
            np.bincount(labels[rows]), 164 * np.array([12, 4, 2]) / 18, atol=1
        )
        assert np.ptp(np.bincount(rows, minlength=164)[:144]) <= 1


@pytest.fixture
def images_of_patients():
    patients = np.repeat(["a", "b", "c", "d"], [50, 5, 5, 20])
    labels = np.repeat([0, 0, 1, 1], [50, 5, 5, 20])
    return labels, np.random.default_rng(0).permutation(80), patients


def test_by_patient_takes_each_patient_as_often(images_of_patients):
    labels, order, patients = (images_of_patients[0], *images_of_patients[1:])
    labels, patients = labels[order], patients[order]
    for balance, expected in ((False, [20, 20, 20, 20]), (True, [20, 20, 20, 20])):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            rows = samplers.by_patient(
                labels, np.ones(80), "target", rng, patients=patients, balance=balance
            )
            counts = [np.sum(patients[rows] == p) for p in "abcd"]
            np.testing.assert_allclose(counts, expected, atol=1)


def test_by_patient_balances_the_classes_first():
    """Three patients of one class and one of the other: 10, 10, 10 and 30 of 60 rows."""
    patients = np.repeat(["a", "b", "c", "d"], 15)
    labels = np.repeat([0, 0, 0, 1], 15)
    labels[0] = -1
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rows = samplers.by_patient(
            labels, np.ones(60), "target", rng, patients=patients, balance=True
        )
        counts = [np.sum(patients[rows] == p) for p in "abcd"]
        np.testing.assert_allclose(counts, [10, 10, 10, 30], atol=1)
        assert 0 not in rows


def test_an_epoch_gives_the_sampler_its_patients(examples):
    patients = np.array([f"p{i % 7}" for i in range(len(examples))])
    known = dataclasses.replace(examples, patient=patients)
    plugin = plugins.resolve("by_patient", "medtl.data.samplers", key="key")
    endless = order.order_of(known, "train", 0, plugin, "target")
    counts = np.unique(patients[endless.epoch(0)], return_counts=True)[1]
    assert len(counts) == 7 and np.ptp(counts) <= 1
    again = pickle.loads(pickle.dumps(endless))
    np.testing.assert_array_equal(again.epoch(3), endless.epoch(3))
    without = dataclasses.replace(examples, patient=None)
    with pytest.raises(UserError, match="by_patient needs patients, but the source data has none"):
        order.order_of(without, "train", 0, plugin, "source").epoch(0)
