"""The fate of every tensor of a weight file and of every variable of the backbone."""

from __future__ import annotations

import dataclasses

from medtl.weights.naming import Shape

Entry = tuple[str, Shape]


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Names and shapes are those of a PyTorch state_dict, e.g. ("conv1.weight", (64, 3, 7, 7)).

    Attributes:
      loaded: variables that took the file's values.
      left_random: variables of the backbone that the file lacks.
      unused: tensors of the file without a variable in the backbone.
      mismatched: (name, shape in the file, shape in the backbone), not loaded.
      notes: changes and assumptions.
    """

    loaded: tuple[Entry, ...]
    left_random: tuple[Entry, ...]
    unused: tuple[Entry, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return one line for each kind, with the first three names, and one for each note.

        >>> print(LoadReport((("conv1.weight", (64, 3, 7, 7)),), (), (), ()).summary())
        loaded: 1 (conv1.weight [64, 3, 7, 7])
        left random: 0
        unused: 0
        mismatched: 0
        """
        lines = []
        for kind in ("loaded", "left_random", "unused", "mismatched"):
            entries = getattr(self, kind)
            names = [
                f"{name} {' not '.join(str(list(s)) for s in shapes)}"
                for name, *shapes in entries[:3]
            ]
            more = f", ... {len(entries) - 3} more" if len(entries) > 3 else ""
            lines.append(
                f"{kind.replace('_', ' ')}: {len(entries)}"
                + (f" ({', '.join(names)}{more})" if names else "")
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
