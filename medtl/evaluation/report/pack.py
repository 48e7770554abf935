"""The report's figures and tables as files: `figures/*.svg` and `tables/*.csv` for a paper."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtl.evaluation.report.figures import Figure
from medtl.evaluation.report.tables import Table, TableCell
from medtl.files import write_text

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes such a cell for a formula
_SVG = '<svg xmlns="http://www.w3.org/2000/svg" style="color:#1b1f23;background:#fff" '


def write(folder: Path, content: Any) -> None:
    """Write every figure and table of the page's content; those of an earlier report are replaced.

    Args:
      folder: of the report.
      content: nested mappings and sequences, which hold `Figure` and `Table`.

    Raises:
      OSError: the folder cannot be written.
    """
    parts = list(_parts(content))
    figures = [(p.title, _standalone(p)) for p in parts if isinstance(p, Figure)]
    tables = [(p.caption, csv_text(p)) for p in parts if isinstance(p, Table)]
    for name, suffix, files in (("figures", "svg", figures), ("tables", "csv", tables)):
        (folder / name).mkdir(exist_ok=True)
        for former in (folder / name).glob(f"[0-9][0-9]_*.{suffix}"):
            former.unlink()
        for number, (title, text) in enumerate(files, start=1):
            write_text(folder / name / f"{number:02d}_{_slug(title)}.{suffix}", text)


def csv_text(table: Table) -> str:
    r"""Return a table as CSV: a cell's interval follows its number in the same cell.

    A cell that a spreadsheet would take for a formula begins with an apostrophe.

    >>> csv_text(Table("Arms", ("Arm", "AUROC"), [(TableCell("=a"), TableCell("0.9", "0.8 to 1"))]))
    "Arm,AUROC\n'=a,0.9 (0.8 to 1)\n"
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_harmless, table.head))
    for row in table.rows:
        writer.writerow(_harmless(_text(cell)) for cell in row)
    return file.getvalue()


def _text(cell: TableCell) -> str:
    return f"{cell.text} ({cell.small})" if cell.small else cell.text


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"[+−-]?[\d.,]+( \(.*\))?", text))


def _standalone(figure: Figure) -> str:
    return figure.svg.replace("<svg ", _SVG, 1)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:60] or "figure"


def _parts(content: Any) -> Iterator[Any]:
    """Yield the figures and tables in a page's content, in its order."""
    if isinstance(content, Figure | Table):
        yield content
    elif isinstance(content, Mapping):
        for inner in content.values():
            yield from _parts(inner)
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for inner in content:
            yield from _parts(inner)
