import dataclasses
import itertools
import threading

import numpy as np
import pytest

from medtl import data
from medtl.data import loading, phantom
from medtl.errors import UserError


@pytest.fixture(scope="module")
def examples():
    return phantom.examples(100, scanner="a", seed=0, image_size=6, split=(0.5, 0.25, 0.25))


def rows(batches, n):
    return np.concatenate([b["index"] for b in itertools.islice(batches, n)])


def equal(one, other):
    return all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k])
        for k in one.keys() | other.keys()
    )


def test_a_batch(examples):
    batch = next(loading.train_batches(examples, "train", 16, seed=0))
    index = batch["index"]
    np.testing.assert_array_equal(batch["image"], examples.image[index])
    np.testing.assert_array_equal(batch["label"], examples.label[index])
    np.testing.assert_array_equal(batch["position"], np.arange(16))
    assert {k: v.dtype for k, v in batch.items()} == {
        "image": np.uint8, "label": np.int32, "mask": np.float32, "weight": np.float32, "index": np.int32, "position": np.int32,
    }  # fmt: skip
    assert batch["mask"].tolist() == batch["weight"].tolist() == [1.0] * 16


@pytest.mark.parametrize("batch_size", [1, 7, 16, 130])
def test_every_epoch_takes_each_row_once_in_another_order(examples, batch_size):
    train = examples.indices("train")
    n = len(train)
    epochs = rows(loading.train_batches(examples, "train", batch_size, seed=3), 4 * n)[
        : 4 * n
    ].reshape(4, n)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), train)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_a_function_of_the_seed_and_the_epoch(examples):
    train = examples.indices("train")
    n = len(train)
    drawn = rows(loading.train_batches(examples, "train", n, seed=11), 3).reshape(3, n)
    for e in range(3):
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((11, e))))
        np.testing.assert_array_equal(drawn[e], train[generator.permutation(n)])


@pytest.mark.parametrize("start", [1, 3, 4, 1000])
def test_a_resumed_run_sees_the_batches_of_one_that_was_not_stopped(examples, start):
    whole = itertools.islice(loading.train_batches(examples, "train", 13, seed=0), start, start + 9)
    resumed = loading.train_batches(examples, "train", 13, seed=0, start_step=start)
    assert all(equal(a, b) for a, b in zip(whole, resumed, strict=False))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48])
def test_evaluation_takes_each_row_once_and_pads_the_last_batch(examples, n):
    chosen = np.random.default_rng(0).permutation(100)[:n]
    batches = list(loading.eval_batches(examples, chosen, 16))
    assert len(batches) == loading.steps_per_epoch(n, 16) == -(-n // 16)
    joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    assert all(len(b[k]) == 16 for b in batches for k in b)
    np.testing.assert_array_equal(joined["index"][:n], chosen)
    np.testing.assert_array_equal(joined["image"][:n], examples.image[chosen])
    np.testing.assert_array_equal(joined["mask"], [1.0] * n + [0.0] * (len(batches) * 16 - n))
    assert (joined["index"][n:] == -1).all()
    for key in ("image", "label", "weight"):
        assert not joined[key][n:].any()


def test_no_row_gives_no_batch(examples):
    assert list(loading.eval_batches(examples, np.arange(0), 16)) == []


def test_features_take_the_place_of_images(examples):
    features = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    batch = next(loading.train_batches(examples, "train", 8, seed=0, features=features))
    assert "image" not in batch
    np.testing.assert_array_equal(batch["features"], features[batch["index"]])
    *_, last = loading.eval_batches(examples, np.arange(10), 8, features=features)
    assert last["features"].shape == (8, 5)
    assert not last["features"][2:].any()


def test_an_empty_split_is_refused(examples):
    none = dataclasses.replace(examples, split=np.full(100, "train"))
    with pytest.raises(UserError, match="split val is empty; it has train"):
        next(loading.train_batches(none, "val", 4, seed=0))


@pytest.fixture
def both(write, twelve, folder):
    """The same examples in memory and streamed."""
    spec = write(twelve)
    working = {
        "image_size": 8,
        "channels": 3,
        "resize": "squash",
        "cache_dir": str(folder / "cache"),
        "key": "key",
    }
    return data.load(spec, cache="memory", **working), data.load(spec, cache="stream", **working)


def assert_equal_streams(memory, stream, workers):
    one = loading.train_batches(memory, "train", 4, seed=1, start_step=2)
    other = loading.train_batches(stream, "train", 4, seed=1, start_step=2, workers=workers)
    for _ in range(25):
        assert equal(next(one), next(other))
    other.close()
    if workers:  # starting them takes seconds
        return
    chosen = np.array([11, 3, 5, 0, 7])
    one = list(loading.eval_batches(memory, chosen, 3))
    other = list(loading.eval_batches(stream, chosen, 3, workers=workers))
    assert len(one) == len(other) == 2
    assert all(equal(a, b) for a, b in zip(one, other, strict=True))


def test_grain_threads_give_the_batches_of_memory(both):
    assert_equal_streams(*both, workers=0)


@pytest.mark.slow
def test_grain_processes_give_the_batches_of_memory(both):
    assert_equal_streams(*both, workers=2)


def test_a_damaged_image_stops_the_stream(both, folder):
    _, stream = both
    (folder / "03.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"'03.png' \(line 5: not an image\)"):
        list(itertools.islice(loading.train_batches(stream, "train", 4, seed=0), 9))


def test_prefetch_gives_the_same_batches_ahead_and_in_order():
    made = []

    def source():
        for i in range(20):
            made.append(i)
            yield {"i": np.array(i)}

    assert [int(b["i"]) for b in loading.prefetch(source())] == list(range(20))
    made.clear()
    ahead = loading.prefetch(source(), size=2)
    next(ahead)
    ahead.close()
    assert len(made) <= 5
    assert not [t for t in threading.enumerate() if t.name == "medtl-prefetch"]


def test_prefetch_passes_on_what_the_iterator_raises():
    def source():
        yield {"i": np.array(0)}
        raise UserError("the disk is gone")

    ahead = loading.prefetch(source())
    next(ahead)
    with pytest.raises(UserError, match="the disk is gone"):
        next(ahead)
