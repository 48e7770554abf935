"""Metrics for TensorBoard, `pip install medtl[tensorboard]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Write event files into `tensorboard/` in the folder of the training stage.

    `tensorboard --logdir RUN_FOLDER` shows all of them, each under its path. A run that resumes
    replaces the steps that it repeats.

    Args:
      folder: of the training stage.
      config: of the experiment; not read.
      flush_secs: the longest time, in seconds, until metrics are on disk.
    """

    def __init__(self, folder: Path, config: Any, *, flush_secs: int = 30):
        self._folder, self._flush_secs = Path(folder) / "tensorboard", flush_secs
        self._writer: Any = None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._writer is None:
            import tensorboardX

            # TensorBoard then drops what a killed process had written from this step on.
            self._writer = tensorboardX.SummaryWriter(
                str(self._folder), purge_step=step, flush_secs=self._flush_secs
            )
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
