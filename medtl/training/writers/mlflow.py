"""Metrics for MLflow, `pip install medtl[mlflow]`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtl.config.lookup import leaves
from medtl.training.writers import naming

_OTHER = re.compile(r"[^\w.\-/ ]")  # characters that MLflow refuses in a name
_LONGEST = 500  # characters of a parameter's value that every store takes
_MOST = 100  # parameters in one call


class Mlflow:
    """Write a run of MLflow for each training stage, with the config as its parameters.

    A run that resumes goes on with the same id.

    Args:
      folder: of the training stage.
      config: of the experiment.
      uri: of the tracking store; empty: $MLFLOW_TRACKING_URI, or else `mlruns/` in the run folder:
        `mlflow ui --backend-store-uri RUN_FOLDER/mlruns`.
      experiment: the name of MLflow's experiment; empty: the experiment's name.
    """

    def __init__(self, folder: Path, config: Any, *, uri: str = "", experiment: str = ""):
        self._folder, self._config = Path(folder), config
        store = naming.run_folder(self._folder) / "mlruns"
        self._uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or store.as_uri()
        self._experiment = experiment or config.name
        self._client: Any = None
        self._id = ""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        # Newer versions refuse a store of files unless they are told that it is meant.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric

        if self._client is None:
            import mlflow

            self._client = mlflow.MlflowClient(tracking_uri=self._uri)
            self._id = naming.lasting_id(self._folder, "mlflow", self._created)
        now = int(1000 * time.time())
        values = [Metric(_OTHER.sub("_", n), float(v), now, step) for n, v in scalars.items()]
        self._client.log_batch(self._id, metrics=values)

    def _created(self) -> str:
        """Create a run with the config's fields; return its id."""
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        run = self._client.create_run(number, run_name=naming.name_of(self._folder))
        fields = [
            Param(_OTHER.sub("_", path), str(value)[:_LONGEST])
            for path, value in leaves(self._config)
        ]
        for start in range(0, len(fields), _MOST):
            self._client.log_batch(run.info.run_id, params=fields[start : start + _MOST])
        return run.info.run_id

    def close(self) -> None:
        if self._id:
            self._client.set_terminated(self._id)
