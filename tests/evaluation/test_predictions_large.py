"""Files of many rows: exact lines, and a million rows in seconds."""

import time

import numpy as np
import pytest

from medtl.errors import UserError
from medtl.evaluation import predictions
from medtl.evaluation.predictions import Predictions

HEAD = "arm,id,label,prob_ill,prob_well\n"


def test_the_line_is_exact_far_down_the_file(tmp_path):
    path = tmp_path / "p.csv"
    rows = [
        f'x,"{i}\n",ill,0.5,0.5\n' for i in range(70_000)
    ]  # each takes two lines, and more than a chunk holds them
    path.write_text(HEAD + "".join(rows) + "x,last,ill,0.5,0.7\n")
    with pytest.raises(
        UserError, match="line 140002, columns prob_ill, prob_well: the probabilities sum to 1.2"
    ):
        predictions.read(path)


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    """In 15 s each way; memory is measured apart, since tracing it makes the reading slow."""
    n, rng = 250_000, np.random.default_rng(0)
    ids = np.char.add("images/ct/patient_", np.arange(n).astype(str))
    label, site = rng.integers(0, 3, n), rng.choice(["north", "south"], n)
    frames = []
    for arm in "abcd":
        probability = predictions.probabilities(
            rng.standard_normal((n, 3), np.float32), multi_label=False
        )
        frames.append(
            Predictions(arm, "test", ids, label, probability, patient=ids, groups={"site": site})
        )
    path = tmp_path / "p.csv"
    start = time.perf_counter()
    predictions.write(path, frames, ("u", "v", "w"))
    middle = time.perf_counter()
    back, _ = predictions.read(path)
    end = time.perf_counter()
    for one, other in zip(frames, back, strict=True):
        np.testing.assert_array_equal(one.probability, other.probability)
        np.testing.assert_array_equal(one.id, other.id)
    assert max(middle - start, end - middle) < 60  # seconds, on a busy machine
