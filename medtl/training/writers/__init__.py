"""Metric writers, `writer(folder, config, **options)` with `write(step, scalars)` and `close()`.

`config.loggers` names them. Each needs an extra of medtl, imports it when the first metrics come,
and creates nothing before. Nothing leaves the machine unless an option or the environment says so.
"""

from medtl.training.writers.mlflow import Mlflow
from medtl.training.writers.tensorboard import TensorBoard
from medtl.training.writers.wandb import Wandb

mlflow, tensorboard, wandb = Mlflow, TensorBoard, Wandb  # as config.loggers names them

__all__ = ["mlflow", "tensorboard", "wandb"]
