"""Text of strangers on a terminal: control characters are shown, not obeyed. Imports no JAX.

Names of classes, patients and files come from data that somebody else wrote. An escape sequence in
them could recolour, overwrite or retitle the user's terminal, and a bidirectional control could
show a name in another order than it has.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

# Controls that turn the order of the characters around them.
BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_BIDI = re.compile(f"[{BIDI}]")
_OTHERS = re.compile(f"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{BIDI}]")


def escaped(text: str) -> str:
    r"""Return text with its control characters written out; line ends, tabs and returns stay.

    >>> escaped("\x1b[31msick\u202e\n")
    '\\x1b[31msick\\u202e\n'
    """
    return _OTHERS.sub(_written, text)


def without_bidi(text: str) -> str:
    r"""Return text with its bidirectional controls written out.

    >>> without_bidi("a\u202eb")
    'a\\u202eb'
    """
    return _BIDI.sub(_written, text)


def _written(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class _Escaping:
    """A text stream that writes control characters out."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(escaped(text))

    def writelines(self, lines: Any) -> None:
        self._stream.writelines(map(escaped, lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Write the control characters out in everything that the block prints."""
    with (
        contextlib.redirect_stdout(_Escaping(sys.stdout)),
        contextlib.redirect_stderr(_Escaping(sys.stderr)),
    ):
        yield
