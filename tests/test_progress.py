"""The progress of training on a terminal and in a pipe."""

import io

from clinical_run import clinical, write_clinical

from medtl.experiment import experiment
from medtl.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_gets_plain_lines_and_a_terminal_one_line_that_renews_itself(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("medtl.training.progress.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setenv("COLUMNS", "200")
    written = []
    for stream in (io.StringIO(), Terminal()):
        progress = Progress("seed 0", 100, stream=stream, every=0)
        for step in (1, 2, 3):
            progress.count(step, 32)
            progress.show(
                step, {"loss": 0.5, "main/target": 0.25, "lambda": 2.0, "gradient_norm": 1.0}
            )
        progress.line(3, {"loss": 0.5, "auroc": 0.75, "n": 10})
        written.append(stream.getvalue())
    plain, live = written
    assert "\r" not in plain
    assert plain.count("\n") == 5
    assert plain.startswith("seed 0  step 0/100  compiling\n")
    assert "step 2/100" in plain
    assert "loss 0.5  lambda 2  main/target 0.25" in plain
    assert "auroc 0.7500" in plain
    assert live.count("\n") == 1
    assert live.startswith("\r")


def test_the_rate_leaves_out_the_first_step_which_compiles(monkeypatch):
    times = iter([0.0, 100.0, 100.0, 101.0])
    monkeypatch.setattr("medtl.training.progress.time.monotonic", lambda: next(times))
    stream = io.StringIO()
    progress = Progress("s", 11, stream=stream, every=0)
    for step in (1, 2):
        progress.count(step, 32)
        progress.show(step, {"loss": 1.0})
    assert "32 images/s, 0% waiting for data  9s left" in stream.getvalue()


def test_the_share_of_waiting_leaves_out_the_first_batch(monkeypatch):
    times = iter([0.0, 100.0, 104.0])
    monkeypatch.setattr("medtl.training.progress.time.monotonic", lambda: next(times))
    stream = io.StringIO()
    progress = Progress("s", 11, stream=stream, every=1)
    progress.waited(50.0)
    progress.count(1, 32)
    progress.waited(1.0)
    progress.count(2, 32)
    progress.show(2, {"loss": 1.0})
    assert "25% waiting for data" in stream.getvalue()


def test_evaluation_counts_for_the_time_left_but_not_for_the_rate(monkeypatch):
    times = iter([0.0, 10.0, 11.0, 19.0, 20.0])
    monkeypatch.setattr("medtl.training.progress.time.monotonic", lambda: next(times))
    stream = io.StringIO()
    progress = Progress("s", 12, stream=stream, every=1)
    progress.count(1, 32)
    progress.waited(0.5)
    with progress.apart():
        pass
    progress.count(2, 32)
    progress.show(2, {"loss": 1.0})
    assert "16 images/s, 25% waiting for data  1m40s left" in stream.getvalue()


def test_waiting_is_shown_for_training_only(monkeypatch):
    times = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr("medtl.training.progress.time.monotonic", lambda: next(times))
    stream = io.StringIO()
    progress = Progress("features of x", 96, stream=stream, every=1, unit="image")
    progress.count(32, 32)
    progress.count(64, 32)
    progress.show(64, {})
    progress.end("done")
    assert "features of x  image 64/96  16 images/s  2s left" in stream.getvalue()
    assert stream.getvalue().endswith("done\n")


def test_rows_of_a_table_are_not_called_images(tmp_path, capsys):
    path = write_clinical(tmp_path / "data", 60, images=False)
    experiment.train(clinical(path, stages__target__epochs=2), tmp_path / "run")
    output = capsys.readouterr().out
    assert " examples/s" in output
    assert "images/s" not in output
