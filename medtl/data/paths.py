r"""Finds the files that a manifest names, also where the disk spells them differently.

"\" counts as "/", and case and Unicode form (NFC, NFD) need not be equal where one file fits.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Mapping

_FRAME = re.compile(r"(.+)#(\d+)", re.ASCII | re.DOTALL)


class Finder:
    """Looks up files below one folder; each folder is listed once."""

    def __init__(self, folder: str | os.PathLike):
        self._folder = os.fspath(folder)
        self._listings: dict[str, Mapping[str, list[str]]] = {}

    def find(self, name: str) -> tuple[str, int | None] | None:
        """Return the path and the frame of an image, None where there is no such file.

        Args:
          name: absolute, or relative to the folder; "file.dcm#3" is frame 3, counted from 0.
        """
        if path := self._path(name):
            return path, None
        if (match := _FRAME.fullmatch(name)) and (path := self._path(match[1])):
            return path, int(match[2])
        return None

    def near(self, name: str) -> str:
        """Return the name of a similar file in the same folder, "" where there is none."""
        head, _, tail = name.replace("\\", "/").rpartition("/")
        listing = self._listing(self._walk(os.path.join(self._folder, head)) or os.devnull)
        names = [name for twins in listing.values() for name in twins]
        stem = tail.rpartition(".")[0] or tail
        same = sorted(n for n in names if _folded(n).rpartition(".")[0] == _folded(stem))
        close = same or difflib.get_close_matches(tail, names, n=1)
        return (f"{head}/{close[0]}" if head else close[0]) if close else ""

    def _path(self, name: str) -> str | None:
        if "\0" in name:
            return None
        path = os.path.join(self._folder, name)
        if os.path.isfile(path):
            return path
        path = self._walk(os.path.join(self._folder, name.replace("\\", "/"))) or ""
        return path if os.path.isfile(path) else None

    def _walk(self, path: str) -> str | None:
        """Return the path as the disk spells it, None where there is none or more than one."""
        found = "/" if os.path.isabs(path) else ""
        for part in path.split("/"):
            if part in ("", ".", "..") or os.path.lexists(os.path.join(found, part)):
                found = os.path.join(found, part)
                continue
            twins = self._listing(found).get(_folded(part), [])
            if len(twins) != 1:
                return None
            found = os.path.join(found, twins[0])
        return found

    def _listing(self, folder: str) -> Mapping[str, list[str]]:
        """Return folded name -> the names in a folder."""
        if folder not in self._listings:
            listing: dict[str, list[str]] = {}
            try:
                names = sorted(os.listdir(folder or "."))
            except OSError:
                names = []
            for name in names:
                listing.setdefault(_folded(name), []).append(name)
            self._listings[folder] = listing
        return self._listings[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
