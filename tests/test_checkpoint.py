"""The store of a training stage: which checkpoints it keeps, resumes from and refuses."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from medtl.errors import UserError
from medtl.training.checkpoint import Store, nested

STATE = {
    "params": {"conv1": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}},
    "step": np.zeros((), np.int32),
}
SCORES = {1: 0.5, 2: 0.7, 3: 0.6, 4: None, 5: 0.7, 6: float("nan")}


@pytest.mark.parametrize("reopen", [False, True])
def test_the_last_and_the_best_are_kept_also_when_the_run_was_interrupted(tmp_path, reopen):
    """Ties go to the earliest; NaN does not rank; a save without a score is only for resuming."""
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


@pytest.mark.parametrize("gone", ["state/ocdbt.process_0", "state", "metrics", "record", "*"])
def test_a_checkpoint_that_was_half_deleted_is_deleted(tmp_path, gone):
    """The process was killed while it deleted checkpoint 3, as 4 was written."""
    with Store(tmp_path) as store:
        for step in (2, 3):
            store.save(step, STATE, {}, score=SCORES[step])
        store.wait()
        shutil.copytree(tmp_path / "checkpoints/3", tmp_path / "copy")
        store.save(4, STATE, {})
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]
    half = tmp_path / "checkpoints/3"
    (tmp_path / "copy").rename(half)
    for path in half.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Store(tmp_path) as store:
        assert (store.chosen_step(), store.last_step) == (2, 4)
        store.prune()
        store.restore(2, STATE)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


def test_a_better_score_is_recognised_also_when_the_run_was_interrupted(tmp_path):
    with Store(tmp_path) as store:
        assert not store.improves(float("nan")) and not store.improves(None)
        store.save(1, STATE, {}, score=0.5)
        assert store.improves(0.6) and not store.improves(0.5)
        store.save(2, STATE, {}, score=0.6)
        store.save(3, STATE, {}, score=0.4)
    with Store(tmp_path) as store:
        store.save(4, STATE, {})
        assert store.improves(0.7) and not store.improves(0.6) and not store.improves(float("nan"))


def test_without_scores_the_last_is_chosen(tmp_path):
    with Store(tmp_path) as store:
        for step in (1, 2, 3):
            store.save(step, STATE, {}, score=None if step == 2 else float("nan"))
        store.wait()
        assert not store.is_ranked
        assert store.steps() == [3]
        assert store.chosen_step() == 3


def trained_state(*encoder):
    """Return a state as the trainer saves it, with an encoder at this path of the parameters."""
    kernel = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    path = (*encoder, "conv1", "kernel")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return {
        "params": traverse_util.unflatten_dict({path: kernel}),
        "opt_state": optimizer.init({path: kernel}),
        "ema": {path: kernel / 2},
    }


def assert_equal(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, state, other)


def test_a_state_comes_back_bit_for_bit_in_its_structure(tmp_path):
    state = trained_state("encoders", "image")
    with Store(tmp_path) as store:
        store.save(7, state, {"classes": ["a", "b"]})
        store.wait()
        assert_equal(store.restore(7, state), state)
        assert store.record(7)["classes"] == ["a", "b"]
        assert nested(store.arrays(7), "params").keys() == {"encoders"}


def test_a_checkpoint_of_version_0_1_which_had_other_names_is_read(tmp_path):
    """The image encoder, the values of a trial and the state of weight decay were renamed."""
    former, state = trained_state("backbone"), trained_state("encoders", "image")
    count, sizes, lambda_ = np.array(7, np.int32), {"target": np.float32(35)}, np.float32(0.5)
    former |= {"given": {"lambda_": lambda_, "sizes": sizes}}
    state |= {"values": {"objective.lambda_": lambda_, "sizes": sizes}}
    former["opt_state"] += (optax.ScaleByScheduleState(count),)
    state["opt_state"] += (optax.MaskedState(optax.ScaleByScheduleState(count)),)
    with Store(tmp_path) as store:
        store.save(7, former, {})
        store.wait()
        assert_equal(store.restore(7, state), state)


def test_a_part_of_an_encoder_may_be_called_backbone(tmp_path):
    state = trained_state("encoders", "image", "backbone")
    with Store(tmp_path) as store:
        store.save(7, state, {})
        store.wait()
        assert_equal(store.restore(7, state), state)


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


def saved(folder, *scores):
    with Store(folder) as store:
        for step, score in enumerate(scores, start=1):
            store.save(step, STATE, {}, score=score)
        store.wait()
    return folder / "checkpoints"


def test_a_checkpoint_that_a_killed_run_was_deleting_is_ignored(tmp_path):
    shutil.copytree(saved(tmp_path / "a", 0.1) / "1", saved(tmp_path, 0.2, 0.9, 0.5) / "1")
    shutil.rmtree(tmp_path / "checkpoints/1/record")
    with Store(tmp_path) as store:
        assert store.chosen_step() == 2


def test_a_damaged_best_is_named_and_without_it_the_best_left_is_used(tmp_path, capsys):
    checkpoints = saved(tmp_path, 0.9, 0.5)
    (checkpoints / "1/record/metadata").write_text("{}")
    with Store(tmp_path) as store, pytest.raises(UserError, match=r"checkpoints/1 is damaged.*del"):
        store.arrays(store.chosen_step())
    shutil.rmtree(checkpoints / "1")
    with Store(tmp_path) as store:
        assert store.chosen_step() == 2
    assert "the best checkpoint, 1, is gone" in capsys.readouterr().out


def test_a_changed_record_is_refused(tmp_path):
    record = saved(tmp_path, None) / "1/record/metadata"
    changed = json.loads(record.read_text())
    changed["tree"]["params/conv1/kernel"] = [[2, 2], "float32"]
    record.write_text(json.dumps(changed))
    with Store(tmp_path) as store, pytest.raises(UserError, match="its record has changed"):
        store.arrays(1)


def test_a_record_whose_digest_has_another_name_is_no_older_one(tmp_path):
    record = saved(tmp_path, None) / "1/record/metadata"
    record.write_text(record.read_text().replace('"digest"', '"digert"'))
    with Store(tmp_path) as store, pytest.raises(UserError, match="its record has changed"):
        store.record(1)
    older = json.loads(record.read_text())
    del older["digert"], older["checksums"]
    record.write_text(json.dumps(older))
    with Store(tmp_path) as store:
        assert store.record(1)["step"] == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_no_flipped_byte_in_any_file_changes_what_is_read(tmp_path):
    """A bit either does not matter, as Orbax keeps copies, or the checkpoint is refused."""
    checkpoints = saved(tmp_path / "good", 0.9, 0.5)
    with Store(tmp_path / "good") as store:
        expected = {step: store.arrays(step) for step in store.steps()}
    rng, refused = np.random.default_rng(0), 0
    files = sorted(path for path in checkpoints.rglob("*") if path.is_file())
    for trial in range(3 * len(files)):
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        path = tmp_path / "bad" / files[trial % len(files)].relative_to(tmp_path / "good")
        content = bytearray(path.read_bytes())
        if content:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            with Store(tmp_path / "bad") as store:
                assert store.chosen_step() == 1, path
                read = {step: store.arrays(step) for step in (1, 2)}
        except UserError as error:
            assert "is damaged" in str(error)  # noqa: PT017
            refused += 1
        else:
            for step, arrays in expected.items():
                for name, array in arrays.items():
                    assert np.array_equal(read[step][name], array), (path, name)
        shutil.rmtree(tmp_path / "bad")
    assert refused > 0
