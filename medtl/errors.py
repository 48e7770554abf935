"""The error for a user's mistake, and the suggestion that comes with it. Imports no JAX."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

_LONGEST = 60  # characters of a cell that an error quotes
_MOST_CHOICES, _LONGEST_NAME = 40, 255


class UserError(Exception):
    """A mistake in a flag, a config, a manifest or a weight file.

    The message says in one or two lines what is wrong, where, and what would be right; the command
    line prints it without a traceback.
    """


def quoted(text: str) -> str:
    """Return text of a file in quotes as an error shows it: at most 60 characters, no line ends.

    >>> quoted("sick"), quoted("9" * 5000)[-6:]
    ("'sick'", "99...'")
    """
    return repr(_short(text, _LONGEST))


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


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
    shown = [_short(choice, _LONGEST_NAME) for choice in choices[:_MOST_CHOICES]]
    more = f" and {len(choices) - _MOST_CHOICES} more" if len(choices) > _MOST_CHOICES else ""
    return f"; it can be {', '.join(shown)}{more}" if choices else ""


@contextlib.contextmanager
def damaged(words: str) -> Iterator[None]:
    """Turn whatever a reader raises for a damaged file into one line; headers can hold anything.

    Args:
      words: the file, and what it is not; the reader's own reason follows in brackets.

    Raises:
      UserError: the block raised an exception. One for lack of memory is raised as it is, since
        the file may be whole.

    >>> with damaged("a.npz is not a readable .npz"):
    ...     raise IndexError("list index out of range")
    Traceback (most recent call last):
    medtl.errors.UserError: a.npz is not a readable .npz (list index out of range)
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = (text.splitlines() or [""])[0][:160] or type(error).__name__
        raise UserError(f"{words} ({reason})") from error
