"""Atomic writing of files, and reading of CSV files with line numbers. Imports no JAX."""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from medtl.errors import UserError, quoted

try:
    import fcntl

    _HAS_LOCKS = True
except ImportError:  # Windows
    _HAS_LOCKS = False

_TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")
_DISK_FULL = "free space there, or give another --workdir or --config.data.cache_dir"
_LONG_AGO = 86_400.0  # seconds
_LONGEST_END = 22 + 0xFFFF  # bytes of a ZIP's last record, with its comment
_NOT_ALLOWED = "allow access, or give another --workdir or --config.data.cache_dir"
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _DISK_FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _NOT_ALLOWED),
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.EIO: "the disk or the network in front of it fails; give another --workdir",
}


def fault(error: BaseException) -> str | None:
    """Return one line on a fault of the machine under a file, with advice; None for other errors.

    >>> fault(OSError(errno.EROFS, "Read-only file system", "run")).partition(";")[0]
    'run: Read-only file system'
    >>> fault(FileNotFoundError("run")) is None
    True
    """
    if isinstance(error, OSError) and error.errno in _ADVICE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {_ADVICE[error.errno]}"
    if "No space left on device" in str(error):  # the writer of checkpoints raises other classes
        return f"No space left on device; {_DISK_FULL}"
    return None


@contextlib.contextmanager
def atomic(
    path: str | os.PathLike, mode: str = "wb", *, permissions: int = 0o666
) -> Iterator[IO[Any]]:
    """Open a hidden file beside `path` that replaces it when the block ends without an error.

    A reader finds the former file or the complete new one, whenever the program is stopped. Where
    the block raises, the former file stays and the temporary one is removed.

    Args:
      path: the file; its folder exists.
      mode: "wb", or "w" for UTF-8 text whose line ends are written as they are.
      permissions: of the file, before the process's umask; 0o600 for the user alone.

    Yields:
      The open file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic(path, "w") as file:
    ...     _ = file.write("whole")
    >>> path.read_text()
    'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    _sweep(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    try:
        with open(
            temporary, mode, opener=lambda name, flags: _locked(name, flags, permissions), **text
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if _HAS_LOCKS:
                os.replace(temporary, path)  # while it is locked
        if not _HAS_LOCKS:
            os.replace(temporary, path)  # Windows renames no open file
    finally:
        temporary.unlink(missing_ok=True)


def sweep_temporary(folder: str | os.PathLike) -> None:
    """Delete the temporary files that killed writers left in a folder and the folders below.

    A file that is still being written is locked by its writer, and stays. Where the system has no
    locks (Windows), files of the last day stay.
    """
    _sweep(Path(folder).rglob(".*.tmp"))


def _sweep(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            if not _TEMPORARY.fullmatch(path.name):
                continue
            if not _HAS_LOCKS:
                if path.stat().st_mtime < time.time() - _LONG_AGO:
                    path.unlink()
                continue
            with open(path, "rb+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError: its writer lives
                path.unlink()


def _locked(name: str, flags: int, permissions: int) -> int:
    """Open a new file and lock it until it is closed, however its process ends."""
    while True:
        descriptor = os.open(name, flags, permissions)
        with contextlib.suppress(OSError):  # some file systems have no locks
            if _HAS_LOCKS:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _HAS_LOCKS or os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # another process swept it before it was locked


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically; see `atomic`."""
    with atomic(path, "w") as file:
        file.write(text)


def digest(value: Any, content: bytes = b"") -> str:
    """Return the sha256 of a file's content, if any, and of a value that JSON can hold.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(content + json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_members(archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile where an archive holds fewer or more members than its last record counts.

    A damaged length in the directory swallows the entries after it; `zipfile` does not notice.
    """
    file: Any = archive.fp
    file.seek(max(0, file.seek(0, os.SEEK_END) - _LONGEST_END))
    end = file.read()
    at = end.rfind(b"PK\5\6") + 10
    counted = int.from_bytes(end[at : at + 2], "little")
    found = len(archive.infolist())
    if counted not in (found, 0xFFFF):  # the latter: ZIP64 counts elsewhere
        raise zipfile.BadZipFile(f"it counts {counted} members, but {found} are found")


def open_npz(file: Any) -> Any:
    """Return NumPy's reader of an .npz file: no pickles, and no member lost without a word.

    Args:
      file: a path, or a file that is open for reading bytes.

    Raises:
      ValueError: it holds a single array; or what NumPy and zipfile raise for damage.
    """
    arrays = np.load(file, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array")
    try:
        check_members(cast(zipfile.ZipFile, arrays.zip))
    except BaseException:
        arrays.close()
        raise
    return arrays


def read_csv(path: str | os.PathLike, *, key: str = "") -> Iterator[tuple[int, list[str]]]:
    """Read a comma-separated file in UTF-8, with or without a byte order mark, row by row.

    Args:
      path: the file.
      key: the flag or config key that names it, for errors; "": none does.

    Yields:
      The line on which a row starts, and its cells as text. The header is the first row; rows
      whose cells are all empty are left out.

    Raises:
      UserError: the file is absent, cannot be read, is not UTF-8, or has a malformed row, or one
        that a stray quote made of several.
    """
    line, named = 1, f"{key}: " if key else ""
    if "\0" in str(path) or (os.path.exists(path) and not os.path.isfile(path)):
        raise UserError(f"{named}{str(path)!r} is not a regular file; give a CSV file on disk")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader, width = csv.reader(file, strict=True), 0
            for row in reader:
                width = width or len(row)
                if reader.line_num > line and _has_swallowed(row, width):
                    raise UserError(
                        f"{path}, line {line}: a cell in quotes goes on to line {reader.line_num}, "
                        "and its lines look like rows of their own; a stray quote swallows them, "
                        "so remove it"
                    )
                if any(row):
                    yield line, row
                line = reader.line_num + 1
    except FileNotFoundError:
        raise UserError(f"{named}there is no file {path}") from None
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}{_kind(path)}"
        raise UserError(
            f"{path} is not a CSV file in UTF-8 ({where}); save it as CSV in UTF-8"
        ) from None
    except csv.Error as error:
        hint = "; is a closing quote missing?" if "larger than field limit" in str(error) else ""
        raise UserError(f"{path}, line {line}: not a CSV file ({error}){hint}") from None
    except OSError as error:
        raise UserError(f"{named}cannot read {path} ({error.strerror})") from None


def _kind(path: str | os.PathLike) -> str:
    """Return words for what a file is by its first bytes, "" where they do not say."""
    with open(path, "rb") as file:
        head = file.read(4)
    kinds = {b"PK\3\4": "a workbook (.xlsx) or ZIP archive", b"\xd0\xcf\x11\xe0": "a workbook"}
    kinds |= {b"\xff\xfe": "text in UTF-16", b"\xfe\xff": "text in UTF-16"}
    kind = kinds.get(head) or kinds.get(head[:2])
    return f": it is {kind}" if kind else ""


def _has_swallowed(row: list[str], width: int) -> bool:
    """Return whether each line of a row that spans several would be a row of `width` cells."""
    lines = ",".join(row).splitlines()
    return width > 2 and len(lines) > 1 and all(x.count(",") == width - 1 for x in lines)


def check_csv(path: str | os.PathLike, line: int, header: list[str]) -> None:
    """Refuse a header that shows another separator than the comma, or names a column twice.

    Raises:
      UserError: names the line and the separator or the column.
    """
    if len(header) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
            if mark in header[0]:
                raise UserError(
                    f"{path}, line {line}: the columns are separated by {word}; "
                    "separate them by commas"
                )
    if header[0].lower().startswith("sep="):
        raise UserError(f"{path}, line {line}: {quoted(header[0])} is no header; remove the line")
    for i, name in enumerate(header):
        if name and name in header[:i]:
            raise UserError(
                f"{path}, line {line}: two columns are called {quoted(name)}; rename one"
            )


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d*\.?\d+", re.ASCII)


def harmless(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula: one that would be gets an apostrophe.

    `as_written` undoes it, also for cells that begin with apostrophes themselves.

    >>> harmless("=HYPERLINK(1)"), harmless("'=a"), harmless("-1"), harmless("a-b")
    ("'=HYPERLINK(1)", "''=a", '-1', 'a-b')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def as_written(cell: str) -> str:
    """Return the text that `harmless` was given.

    >>> as_written("'=a"), as_written("'a'")
    ('=a', "'a'")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def check_length(path: str | os.PathLike, line: int, row: list[str], header: list[str]) -> None:
    """Refuse a row that has another number of cells than the header.

    Raises:
      UserError: names the line.
    """
    if len(row) != len(header):
        raise UserError(
            f"{path}, line {line}: {len(row)} cells, but the header has {len(header)} columns; "
            "a cell that holds a comma needs quotes"
        )
