import dataclasses
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from medtl import data
from medtl.data import loading, phantom
from medtl.data.order import Part
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
        "image": np.uint8,
        "label": np.int32,
        "mask": np.float32,
        "weight": np.float32,
        "index": np.int32,
        "position": np.int32,
    }
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
    full = itertools.islice(loading.train_batches(examples, "train", 13, seed=0), start, start + 9)
    resumed = loading.train_batches(examples, "train", 13, seed=0, start_step=start)
    assert all(equal(a, b) for a, b in zip(full, resumed, strict=False))


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
    assert not joined["weight"][n:].any()
    first = chosen[-1 - (n - 1) % 16]  # of the last batch, which padding repeats
    assert (joined["image"][n:] == examples.image[first]).all()
    assert (joined["label"][n:] == examples.label[first]).all()


def test_no_row_gives_no_batch(examples):
    assert list(loading.eval_batches(examples, np.arange(0), 16)) == []


def test_an_encoders_output_takes_the_place_of_its_input(examples):
    features = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    replaced = {"encoded_image": features}
    batch = next(loading.train_batches(examples, "train", 8, seed=0, replaced=replaced))
    assert "image" not in batch
    np.testing.assert_array_equal(batch["encoded_image"], features[batch["index"]])
    *_, last = loading.eval_batches(examples, np.arange(10), 8, replaced=replaced)
    np.testing.assert_array_equal(last["encoded_image"], features[[8, 9] + [8] * 6])
    for wrong in ("features", "image", "encoded_table"):
        with pytest.raises(ValueError, match="replaces none of the inputs"):
            loading.columns(examples, {wrong: features})


def test_a_batch_holds_every_input_an_array_or_a_source(examples):
    class Notes:
        """An input that is read on demand."""

        def __len__(self):
            return 100

        def __getitem__(self, row):
            return np.arange(row, row + 3)

    table = np.arange(200, dtype=np.float64).reshape(100, 2)
    both = dataclasses.replace(examples, inputs={"table": table, "notes": Notes()})
    *_, last = loading.eval_batches(both, np.array([7, 3, 5, 1, 2]), 3)
    assert set(last) == {"table", "notes", "label", "weight", "mask", "index", "position"}
    assert last["table"].tolist() == [[2, 3], [4, 5], [2, 3]]
    assert last["notes"].tolist() == [[1, 2, 3], [2, 3, 4], [1, 2, 3]]
    alone = loading.batch_of(loading.columns(both), np.array([1, 2]), 3)
    assert equal(last, alone)
    for batch in itertools.islice(loading.train_batches(both, "train", 9, seed=0), 20):
        np.testing.assert_array_equal(batch["table"][:, 0], 2 * batch["index"])
        np.testing.assert_array_equal(batch["notes"][:, 0], batch["index"])


def test_rows_gathered_on_the_device_are_the_batch_of_the_host(examples):
    import jax

    columns = loading.columns(examples)
    made = loading.train_batches(examples, "train", 9, seed=2, start_step=3)
    for rows in itertools.islice(loading.train_rows(examples, "train", 9, seed=2, start_step=3), 8):
        gathered = jax.device_get(jax.jit(loading.gather)(columns, rows["index"]))
        assert equal(gathered | rows, next(made))


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


@pytest.mark.parametrize("stops", [(4, 8), (3, 6, 9, 12), (8,)])
def test_parts_of_a_batch_hold_each_row_once_in_order(both, stops):
    memory, stream = both
    parts = [Part(start, stop) for start, stop in zip((0, *stops), stops, strict=False)]
    chosen = np.array([11, 3, 5, 0, 7, 1, 2])

    def real(batches):
        """Join the rows that are no padding, and check the padding."""
        for batch, part in zip(batches, parts, strict=True):
            np.testing.assert_array_equal(batch["position"], np.arange(part.start, part.stop))
            padding = batch["mask"] == 0
            assert (batch["index"][padding] == -1).all() and not batch["weight"][padding].any()
        return {k: np.concatenate([b[k][b["mask"] > 0] for b in batches]) for k in batches[0]}

    whole = loading.train_batches(memory, "train", 5, seed=1, start_step=2)
    read = [
        loading.train_batches(stream, "train", 5, seed=1, start_step=2, part=part) for part in parts
    ]
    for _ in range(9):
        assert equal(next(whole), real([next(batches) for batches in read]))
    for batches in read:
        batches.close()
    whole = loading.eval_batches(memory, chosen, 5)
    read = [loading.eval_batches(stream, chosen, 5, part=part) for part in parts]
    for one, *others in zip(whole, *read, strict=True):
        assert equal({k: v[one["mask"] > 0] for k, v in one.items()}, real(others))


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
    made, closed = [], []

    def source():
        try:
            for i in range(20):
                made.append(i)
                yield {"i": np.array(i)}
        finally:
            closed.append(True)

    assert [int(b["i"]) for b in loading.Prefetch(source())] == list(range(20))
    made.clear(), closed.clear()
    with loading.Prefetch(source(), size=2) as ahead:
        next(ahead)
    assert len(made) <= 5
    assert closed == [True]
    assert list(ahead) == []
    assert not [t for t in threading.enumerate() if t.name == "medtl-prefetch"]


def test_prefetch_passes_on_what_the_iterator_raises():
    def source():
        yield {"i": np.array(0)}
        raise UserError("the disk is gone")

    ahead = loading.Prefetch(source())
    next(ahead)
    with pytest.raises(UserError, match="the disk is gone"):
        next(ahead)
    assert list(ahead) == []


def test_a_prefetch_that_nobody_closes_ends_with_its_last_reference():
    ahead = loading.Prefetch(itertools.count())
    next(ahead)
    thread = ahead._thread
    del ahead
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ("with loading.Prefetch(itertools.count()) as ahead: next(ahead); 1 / 0", 1),
        ("ahead = loading.Prefetch(itertools.count()); next(ahead); 1 / 0", 1),
        ("ahead = loading.Prefetch(itertools.count()); next(ahead)", 0),
        ("ahead = loading.Prefetch(endless()); next(ahead); 1 / 0", 1),
    ],
)
def test_a_program_ends_whether_or_not_its_prefetch_is_closed(rest, code):
    program = f"""
import itertools, time
from medtl.data import loading

def endless():
    yield 0
    time.sleep(1000)

{rest}
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert result.returncode == code, result.stderr
    assert ("ZeroDivisionError" in result.stderr) == bool(code)
