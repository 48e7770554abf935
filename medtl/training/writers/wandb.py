"""Metrics for Weights & Biases, `pip install medtl[wandb]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtl.training.writers import naming


class Wandb:
    """Write a run of Weights & Biases for each training stage, grouped by run folder.

    The config, with its paths, goes along. A run that resumes goes on with the same id.

    Args:
      folder: of the training stage; files go into `wandb/` in it.
      config: of the experiment.
      project: the project; empty: the experiment's name.
      entity: the user or team; empty: the account's own.
      mode: "offline": `wandb sync FOLDER` sends it later. "online": send it now. "disabled".
        Empty: $WANDB_MODE, or else "offline", since the data of patients may not leave a hospital.
    """

    def __init__(
        self, folder: Path, config: Any, *, project: str = "", entity: str = "", mode: str = ""
    ):
        self._folder, self._config = Path(folder), config
        self._options: dict[str, Any] = {
            "project": project or config.name,
            "entity": entity or None,
            "mode": mode or os.environ.get("WANDB_MODE", "offline"),
        }
        self._run: Any = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._run is None:
            import wandb

            self._run = wandb.init(
                **self._options,
                id=naming.lasting_id(self._folder, "wandb"),
                resume="allow",
                name=naming.name_of(self._folder),
                group=naming.run_folder(self._folder).name,
                config=self._config.to_dict(),
                dir=str(self._folder),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
