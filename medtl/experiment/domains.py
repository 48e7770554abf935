"""Loads the examples of a domain as its config says, and checks them. Imports no JAX."""

from __future__ import annotations

from typing import Any

from medtl import data
from medtl.config import is_cross_validated
from medtl.data import leakage, telltale
from medtl.data.prepared import Tables
from medtl.data.schema import Columns
from medtl.examples import Examples


def load(config: Any, domain: str, *, rules: data.FileRules | None = None) -> Examples:
    """Load one domain, checked and decoded.

    Args:
      config: as `medtl.config.default` makes it.
      domain: "source" or "target".
      rules: how image files are read, and what the checks accept; None: as the config says.

    Raises:
      UserError: the data are at fault.
    """
    c = config.data
    return data.load(
        c[domain],
        image_size=c.image_size,
        channels=c.channels,
        resize=c.resize,
        cache=c.cache,
        cache_dir=c.cache_dir,
        key=f"config.data.{domain}",
        rules=rules or data.FileRules.of(c),
        all_held_out=domain == "target" and is_cross_validated(config),
        inputs=c.inputs,
    )


def column_notes(config: Any, domain: str, examples: Examples, tables: Tables) -> list[str]:
    """Return notes on columns that a domain lacks, or that may give the diagnosis away.

    Args:
      config: as in `load`.
      domain: as in `load`.
      examples: the domain's.
      tables: of all domains.

    Raises:
      UserError: columns give the diagnosis away and are not allowed.
    """
    columns, train = examples.columns or Columns((), {}), examples.indices("train")
    layout, key = tables.layout, f"config.data.{domain}.synonyms"
    lacking = layout.lacking(columns)
    where = f"{domain} {examples.name}"
    notes = [f"{where} lacks {', '.join(lacking)}: missing there"] if lacking else []
    notes += telltale.check(
        columns,
        layout.texts,
        examples.label,
        telltale.words(examples.classes, config.data[domain].synonyms, key=key),
        ids=examples.id,
        where=where,
        allow=config.data.allow,
        mask=config.data.preprocessing.mask_synonyms,
    )
    read = {
        name: telltale.masked(columns.cells[name], layout.masked)
        for name in layout.texts
        if name in columns.cells
    }
    columns = Columns(columns.schema, {**columns.cells, **read})
    return notes + leakage.check(
        columns.take(train),
        layout.roles,
        examples.label[train],
        examples.classes,
        where=where,
        texts=layout.texts,
        allow=config.data.allow_columns,
    )
