"""The store of a stage: what it keeps, before and after it is opened again, and what it refuses."""

import json
import shutil

import numpy as np
import optax
import pytest

from medtl.errors import UserError
from medtl.training.checkpoint import Store, nested

STATE = {
    "params": {"conv1": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "step": np.zeros((), np.int32),
}
SCORES = {1: 0.5, 2: 0.7, 3: 0.6, 4: None, 5: 0.7, 6: float("nan")}


@pytest.mark.parametrize("reopen", [False, True])
def test_the_last_and_the_best_stay_also_when_the_run_was_interrupted(tmp_path, reopen):
    """The earliest of the best; NaN ranks last; a save without a score is only for resuming."""
    store = Store(tmp_path)
    for step, score in SCORES.items():
        store.save(step, STATE, {}, score=score)
        store.wait()
        if reopen:
            store.close()
            store = Store(tmp_path)
    assert store.steps() == [2, 6]
    assert store.chosen_step() == 2
    assert store.last_step == 6
    store.close()


def test_what_is_better_than_all_before_also_when_the_run_was_interrupted(tmp_path):
    with Store(tmp_path) as store:
        assert store.improves(float("nan")) and not store.improves(None)
        store.save(1, STATE, {}, score=0.5)
        assert store.improves(0.6) and not store.improves(0.5)
        store.save(2, STATE, {}, score=0.6)
        store.save(3, STATE, {}, score=0.4)
    with Store(tmp_path) as store:
        store.save(4, STATE, {})
        assert store.improves(0.7) and not store.improves(0.6) and not store.improves(float("nan"))


def test_without_scores_the_last_is_handed_on(tmp_path):
    with Store(tmp_path) as store:
        for step in (1, 2, 3):
            store.save(step, STATE, {})
        store.wait()
        assert store.steps() == [3]
        assert store.chosen_step() == 3


def test_a_state_comes_back_bit_for_bit_in_its_structure(tmp_path):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    params = {
        ("backbone", "conv1", "kernel"): np.random.default_rng(0)
        .normal(size=(3, 4))
        .astype(np.float32)
    }
    state = {
        "params": {"backbone": {"conv1": {"kernel": params[("backbone", "conv1", "kernel")]}}},
        "ema": {},
    }
    state["opt_state"] = optimizer.init(params)
    with Store(tmp_path) as store:
        store.save(7, state, {"classes": ["a", "b"]})
        store.wait()
        found, record, arrays = store.restore(7, state), store.record(7), store.arrays(7)
    import jax

    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert record["classes"] == ["a", "b"]
    assert nested(arrays, "params").keys() == {"backbone"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"conv1": {"kernel": np.zeros((2, 4), np.float32)}},
            r"params/conv1/kernel is float32\[2, 3\], not float32\[2, 4\]",
        ),
        ({"conv1": {"kernel": np.zeros((2, 3), np.float16)}}, "not float16"),
        ({"conv2": {"kernel": np.zeros((2, 3), np.float32)}}, "params/conv2/kernel is not in it"),
        ({}, "params/conv1/kernel is not in the model"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other, message):
    with Store(tmp_path) as store:
        store.save(1, STATE, {})
        store.wait()
        with pytest.raises(UserError, match=message):
            store.restore(1, {**STATE, "params": other})


def test_a_checkpoint_that_was_being_deleted_is_passed_over(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, STATE, {}, score=0.9)
        store.save(2, STATE, {}, score=0.5)
        store.wait()
    shutil.rmtree(tmp_path / "checkpoints/1/record")
    with Store(tmp_path) as store:
        assert store.chosen_step() == 2


def test_an_array_that_is_not_what_was_saved_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store.save(1, STATE, {})
        store.wait()
    record = tmp_path / "checkpoints/1/record/metadata"
    changed = json.loads(record.read_text())
    changed["tree"]["params/conv1/kernel"] = [[2, 2], "float32"]
    record.write_text(json.dumps(changed))
    with (
        Store(tmp_path) as store,
        pytest.raises(UserError, match="is damaged: params/conv1/kernel"),
    ):
        store.arrays(1)
