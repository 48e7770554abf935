"""The evaluator: the way of a validation batch, and what it gives."""

import inspect

import numpy as np
from tiny_run import tiny

from medtl.experiment import experiment
from medtl.training import parallel


def test_a_validation_batch_passes_at_most_nine_frames(tmp_path, monkeypatch):
    """From the training loop to the compiled program, both included."""
    depths = []
    evaluate = parallel.Parallel.evaluate

    def counted(self, step):
        run = evaluate(self, step)

        def compiled(variables, batch):
            names = [frame.function for frame in inspect.stack()]
            if "fit" in names:
                depths.append(names.index("fit") + 1)
            return run(variables, batch)

        return compiled

    monkeypatch.setattr(parallel.Parallel, "evaluate", counted)
    experiment.train(tiny(arms=("scratch",)), tmp_path / "run")
    assert depths
    assert max(depths) <= 9


def test_the_log_holds_the_metrics_of_the_report(tmp_path):
    """One engine: the val metrics of the last evaluation are those of the run's predictions."""
    config = tiny(arms=("scratch",), checkpoint__select="last")
    summary = experiment.train(config, tmp_path / "run")
    from medtl.experiment.results import training

    [logged] = training(tmp_path / "run", config)
    reported = summary["arms"]["scratch"]["val"] if "arms" in summary else None
    assert reported is not None
    for name in ("auroc", "accuracy", "loss"):
        np.testing.assert_allclose(logged["val"][name][-1], reported[name], rtol=1e-6)
