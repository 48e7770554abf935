"""Damaged files of a run are named in one line that says what to do."""

import json

import numpy as np
import pytest
from tiny_run import tiny

from medtl import files
from medtl.data import arrays
from medtl.errors import UserError
from medtl.experiment import results
from medtl.training import adabn, conflicts
from medtl.training.log import Log

READERS = {
    "metrics.json": lambda folder: results.provenance_of(folder),
    "seed_0/scratch/errors.json": lambda folder: results._errors(folder),
    "seed_0/scratch/target/log.jsonl": lambda folder: results.training(
        folder, tiny(arms=("scratch",))
    ),
}
CONTENTS = (b"", b"{", b"\xff", b"3", b"null", b"[[]]", b'{"step": ' + b"[" * 10**5)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_a_report_names_a_damaged_file(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if (name, content) == ("seed_0/scratch/target/log.jsonl", b""):  # no step was logged yet
        assert READERS[name](tmp_path)[0]["steps"] == []
        return
    with pytest.raises(UserError, match=f"{path} is damaged; delete it, and the report is made"):
        READERS[name](tmp_path)


@pytest.mark.parametrize("line", [b"{\n", b"3\n", b"\xff\n", b"{}\n"])
def test_a_damaged_log_stops_a_run_that_resumes(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line)
    with pytest.raises(UserError, match=f"{path} is damaged; delete it, and the same command"):
        Log(path, 2, [])
    assert path.read_bytes() == b'{"step": 1}\n' + line


def test_a_damaged_log_stops_a_run_that_collects_its_cosines_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 3, "cosine/shared": []}\n')
    with pytest.raises(UserError, match=f"{path} is damaged; delete it, and the same command"):
        conflicts.Watch(path, 2)


def _as_written(folder):
    """Write what a report takes over, with its digest, as a run does."""
    written = {"command": "python launch.py", "data": {"target": {"classes": ["a", "b"]}}}
    text = json.dumps({"arms": {}, **written, "digest": files.digest(written)})
    (folder / "metrics.json").write_text(text)
    return written, text


def test_a_report_notices_every_change_of_what_it_takes_over(tmp_path):
    written, text = _as_written(tmp_path)
    assert results.provenance_of(tmp_path) == written
    for old, new in (("launch.py", "launch.pz"), ('{"target"', '{"tarfet"'), ('["a", "b"]', "5")):
        (tmp_path / "metrics.json").write_text(text.replace(old, new))
        with pytest.raises(UserError, match="it has changed since it was written"):
            results.provenance_of(tmp_path)


MISTAKE = {"id": "a", "arm": "scratch", "predicted": "well", "label": "ill", "probability": 0.9}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": "data:image/png;base64,%%"}, "no data: URI"),
        ({"saliency": 5}, "expected string"),
        ({"probability": "0.9"}, "a probability is '0.9'"),
        ({"probability": 2**70}, "a probability is"),
        ({"label": ...}, "no label"),
    ],
)
def test_a_mistake_that_a_report_cannot_show_is_named(tmp_path, change, words):
    path = tmp_path / "seed_0/scratch/errors.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([MISTAKE]))
    assert results._errors(tmp_path) == [MISTAKE]
    entry = {name: value for name, value in {**MISTAKE, **change}.items() if value is not ...}
    path.write_text(json.dumps([entry]))
    with pytest.raises(UserError, match=f"errors.json is damaged; delete it.*{words}"):
        results._errors(tmp_path)


def test_every_damaged_header_of_a_cached_array_is_computed_again(tmp_path):
    path = tmp_path / "a.npy"
    values = np.arange(6, dtype=np.float32)
    arrays.write(path, (6,), np.float32, [values])
    whole = path.read_bytes()
    np.testing.assert_array_equal(arrays.read(path, np.float32), values)
    for bit in range(8 * 128):  # the header: NumPy's parser raises half a dozen types for it
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        read = arrays.read(path, np.float32)
        assert read is None or np.array_equal(read, values)


def test_a_flipped_bit_by_which_statistics_lose_a_member_is_noticed(tmp_path):
    written = {"encoders": {"image": {"bn1": {"mean": np.ones(3), "var": np.zeros(3)}}}}
    adabn.write(tmp_path, written)
    content = bytearray((tmp_path / adabn.FILE).read_bytes())
    first = content.index(b"PK\1\2")  # of the directory; bytes 32 and 33: length of the comment
    content[first + 32] ^= 0x80  # the comment swallows the entry of `var`
    (tmp_path / adabn.FILE).write_bytes(content)
    with pytest.raises(UserError, match="it counts 2 members, but 1 are found"):
        adabn.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_damaged_statistics_are_named(tmp_path, content):
    (tmp_path / adabn.FILE).write_bytes(content)
    with pytest.raises(UserError, match="statistics by adapt_batch_norm, cannot be read; run the"):
        adabn.read(tmp_path)
