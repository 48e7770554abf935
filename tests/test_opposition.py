"""The sentence that the source's gradient opposes the target's, during training."""

import json

import flax
import numpy as np
import pytest
from scipy import stats

from medtl.experiment import results
from medtl.training import conflicts, loop
from medtl.training.checkpoint import Store
from medtl.training.progress import Progress


def test_the_interval_is_students_over_the_means_of_blocks():
    values = np.random.default_rng(0).normal(-0.1, 0.3, 57)
    means = [block.mean() for block in np.array_split(values, 10)]
    low, high = stats.t.interval(0.95, 9, np.mean(means), stats.sem(means))
    mean, *ends = conflicts.mean_interval(values)
    assert mean == pytest.approx(values.mean())
    np.testing.assert_allclose(np.subtract(ends, mean), np.subtract((low, high), np.mean(means)))
    assert conflicts.mean_interval([-1.0] * 4)[1:] == (-np.inf, np.inf)


@pytest.mark.parametrize(("sign", "is_said"), [(-1, True), (1, False)])
def test_a_mean_below_0_with_its_interval_is_said_once_and_the_same_after_resuming(
    sign, is_said, tmp_path
):
    values = sign * (0.3 + 0.01 * np.arange(20))
    whole = conflicts.Watch(tmp_path / "absent", 40)
    log = tmp_path / "log.jsonl"
    lines = [{"step": 40, "cosine/head": 9.0}]
    for step, value in enumerate(values, 41):
        whole.write(step, {"cosine/head": value})
        if step <= 50:
            lines.append({"step": step, "cosine/head": value})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    resumed = conflicts.Watch(log, 40)
    for step, value in enumerate(values[10:], 51):
        resumed.write(step, {"cosine/head": value})
    sentence = whole.finding(60)
    assert ("opposes" in sentence) == is_said
    assert resumed.finding(60) == sentence
    assert whole.finding(70) == ""  # nothing was logged since
    straddles = conflicts.Watch(tmp_path / "absent", 0)
    for step, value in enumerate([-0.5, 0.5, -0.6, 0.5, -0.5, 0.4], 1):
        straddles.write(step, {"cosine/shared": value, "cosine/head": -1.0})
    assert straddles.finding(6) == ""


@flax.struct.dataclass
class State:
    step: np.ndarray


class Feed:
    """Takes two steps a dispatch, whose cosine is negative."""

    def __call__(self, state, most):
        cosine = np.array([-0.4, -0.5], np.float32)
        metrics = {"loss": np.ones(2), "cosine/head": cosine}
        return loop.Taken(State(state.step + 2), metrics, 2, 8)

    def close(self):
        pass


def test_the_loop_writes_the_sentence_on_the_terminal_and_into_the_log(tmp_path, capsys):
    with Store(tmp_path) as store:
        loop.fit(
            State(np.zeros((), np.int32)),
            Feed(),
            loop.Schedule(20, 10),
            evaluate=lambda state: ({}, None),
            record={},
            store=store,
            progress=Progress("transfer", 20),
        )
    notes = results._logged(tmp_path / "log.jsonl")["notes"]
    assert len(notes) == 2
    assert notes[0].startswith("The source's gradient opposes the target's: mean cosine -0.45")
    assert "in steps 11 to 20" in notes[1]
    text = capsys.readouterr().out
    assert all(note in text for note in notes)
