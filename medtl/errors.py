"""The error for a user's mistake, and the suggestion that comes with it. Imports no JAX."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a flag, a config, a manifest or a weight file.

    The message says in one or two lines what is wrong, where, and what would be right; the command
    line prints it without a traceback.
    """


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a hint: "; did you mean 'x'?", or the sorted choices where none is similar.

    >>> nearest("adm", ["adam", "sgd"])
    "; did you mean 'adam'?"
    """
    choices = sorted(names)
    same = [choice for choice in choices if choice.lower() == name.lower()]
    close = same or difflib.get_close_matches(name, choices, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; it can be {', '.join(choices)}" if choices else ""
