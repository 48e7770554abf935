"""`--mode=export_tfds`: the domains of a config as prepared TFDS data sets. Imports no JAX."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from medtl.config import check
from medtl.data import tfds_export
from medtl.errors import UserError
from medtl.experiment import domains


def export(config: Any, data_dir: Path) -> dict[str, Path]:
    """Write the domains that the arms read, and print how a config reads them.

    Args:
      config: as `medtl.config.default` makes it.
      data_dir: the folder of data sets.

    Returns:
      domain -> the folder of its data set.

    Raises:
      UserError: the data are at fault, or a data set is there already.
    """
    check.check_fields(config)
    if config.data.task == "regression":
        raise UserError(
            "--mode=export_tfds writes classes, but config.data.task is 'regression'; keep the CSV"
        )
    folders: dict[str, Path] = {}
    for domain in check.domains(config):
        examples = domains.load(config, domain)
        name = tfds_export.dataset_name(examples.name)
        if any(folder.parent.name == name for folder in folders.values()):
            name = f"{name}_{domain}"
        folders[domain] = tfds_export.write(examples, data_dir, name=name)
        n = [len(examples.indices(split)) for split in examples.splits]
        key = f"--config.data.{domain}"
        several = f" {key}.multi_label=true" if examples.multi_label else ""
        print(
            f"{domain}: {sum(n):,} examples in {folders[domain]}; to read them:\n"
            f"  {key}.kind=tfds {key}.path={shlex.quote(str(data_dir))} {key}.name={name}{several}"
        )
    return folders
