"""Damaged files of a run are named in one line that says what to do."""

import pytest
from tiny_run import tiny

from medtl.errors import UserError
from medtl.experiment import results
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
