"""A program at the end of the standard error of one of several processes.

JAX ends a process whose peers died by an abort in a thread of its own, with twenty lines that no
Python can catch. This program writes one line instead, and passes all others on. It imports nothing
of medtl.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterable, Iterator

_HEADER = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d")  # of a message from C++
_NOISE = re.compile(rb"coordination_service|\bclient\.h:")
_OWN = re.compile(rb"medtl: |Traceback ")


def lines(given: Iterable[bytes], lost: bytes) -> Iterator[bytes]:
    r"""Yield the lines to show.

    Args:
      given: lines of the standard error.
      lost: what to say, once, where the process is aborted because another one ended.

    >>> aborted = [b"a\n", b"F1126 04:13:09.8 client.h:86] Terminating process\n", b"  @ 0x7\n"]
    >>> list(lines(aborted, b"lost"))
    [b'a\n', b'medtl: error: lost\n']
    """
    is_noise = is_lost = False
    for line in given:
        if is_lost:  # threads that wait for the others fail, too, until the process is gone
            continue
        if _HEADER.match(line):
            is_noise = bool(_NOISE.search(line))
            is_lost = is_noise and line.startswith(b"F")
        elif _OWN.match(line):
            is_lost, is_noise = lost in line, False
        if is_lost:
            yield b"medtl: error: " + lost + b"\n"
        elif not is_noise:
            yield line


def main() -> None:
    """Copy standard input to standard output until it ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the process that writes
    for line in lines(sys.stdin.buffer, sys.argv[1].encode()):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
