"""The clinical tables of an experiment: each split's inputs, made of columns. Imports no JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.data import telltale
from medtl.data.preprocessing import Encoded, Fitted, Layout, apply, fit
from medtl.data.schema import Columns
from medtl.examples import Examples

OF_CELLS = ("table", "text", "features")


def resolved_inputs(inputs: Sequence[str], examples: Mapping[str, Examples]) -> tuple[str, ...]:
    """Return the inputs of the model; "auto" means all that the data hold.

    An image is read where every domain has images, a table or text where one domain has it.
    """
    if "auto" not in inputs:
        return tuple(inputs)
    arrays = set.intersection(*(set(e.inputs) for e in examples.values()))
    cells = set().union(*(e.present for e in examples.values())) & set(OF_CELLS)
    return tuple(name for name in ("image", "table", "text", "features") if name in arrays | cells)


def with_present(examples: Examples, inputs: Sequence[str]) -> Examples:
    """Return the examples with `present` for each of several inputs; one input needs none."""
    everywhere = np.ones(len(examples), bool)
    nowhere = ~everywhere
    present = {
        name: examples.present.get(name, nowhere if name in OF_CELLS else everywhere)
        for name in inputs
    }
    return dataclasses.replace(examples, present=present if len(inputs) > 1 else {})


@dataclasses.dataclass(frozen=True, eq=False)
class Tables:
    """The clinical columns of all domains, from which each split's inputs are made.

    Attributes:
      layout: of the inputs.
      encoded: domain -> cells.
      scope: "domain" or "pooled": the train rows on which numbers and texts are fitted.
    """

    layout: Layout
    encoded: Mapping[str, Encoded]
    scope: str

    @classmethod
    def of(cls, examples: Mapping[str, Examples], config: Any) -> Tables | None:
        """Return the tables of examples; None where no domain has columns.

        Args:
          examples: domain -> examples.
          config: `config.data`.
        """
        if not any(e.columns for e in examples.values()) or not set(OF_CELLS) & set(config.inputs):
            return None
        columns = {d: e.columns or Columns((), {}) for d, e in examples.items()}
        layout = Layout.of(columns, config.preprocessing, _masked(examples, config))
        if "table" not in config.inputs:
            layout = dataclasses.replace(layout, features=())
        if "text" not in config.inputs:
            layout = dataclasses.replace(layout, texts=())
        if "features" not in config.inputs:
            layout = dataclasses.replace(layout, embeddings=())
        encoded = {d: layout.encode(c, len(examples[d])) for d, c in columns.items()}
        return cls(layout, encoded, config.preprocessing.scope)

    def fitted(self, examples: Mapping[str, Examples]) -> dict[str, Fitted]:
        """Return domain -> preprocessing, fitted on the train rows of the examples' splits."""
        train = {d: e.take(examples[d].indices("train")) for d, e in self.encoded.items()}
        if self.scope == "pooled":
            return dict.fromkeys(train, fit(self.layout, list(train.values())))
        # The target's model may have learned from the source, whose inputs no split changes.
        also = {"target": [train[d] for d in train if d == "source"]}
        return {d: fit(self.layout, [part], also.get(d, ())) for d, part in train.items()}

    def prepared(
        self, examples: Mapping[str, Examples], fitted: Mapping[str, Fitted]
    ) -> dict[str, Examples]:
        """Return the examples with the inputs that the preprocessing makes."""
        return {
            d: dataclasses.replace(
                e, inputs={**e.inputs, **apply(self.layout, fitted[d], self.encoded[d])}
            )
            for d, e in examples.items()
        }

    def record(self, fitted: Mapping[str, Fitted]) -> dict[str, Any]:
        """Return layout and fitted arrays as JSON."""
        return {
            "layout": dataclasses.asdict(self.layout),
            "fitted": {domain: f.to_json() for domain, f in fitted.items()},
        }


def _masked(examples: Mapping[str, Examples], config: Any) -> list[str]:
    """Return the words that are left out of the texts of all domains."""
    if not config.preprocessing.mask_synonyms:
        return []
    found = set()
    for domain, e in examples.items():
        key = f"config.data.{domain}.synonyms"
        for names in telltale.words(e.classes, config[domain].synonyms, key=key).values():
            found |= set(names)
    return sorted(found)
