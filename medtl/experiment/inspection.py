"""`--mode=inspect`: the data as one page, before anything is trained. Imports no JAX.

The data are loaded as training loads them. A finding that would stop training is shown, and the
page is then made with all findings allowed; an error that leaves nothing to be shown is raised.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medtl import data, files
from medtl.config import check, is_cross_validated
from medtl.data import summary, values
from medtl.data.prepared import Tables, resolved_inputs
from medtl.errors import UserError
from medtl.evaluation import wording
from medtl.evaluation.report import inspect_page
from medtl.evaluation.report.tables import Table, TableCell
from medtl.examples import Examples, class_counts, known
from medtl.experiment import domains, run_folder

_LOOKED_OVER = tuple(
    c for c in values.CHECKS if c not in ("identifying_tags", "burned_in_annotation")
)
_SIDE = 128  # pixels of a picture on the page
_WIDTH = 400  # characters of a finding on the terminal
_MOST_CLASSES, _MOST_ROWS = 6, 40  # that a table shows


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One domain.

    Attributes:
      examples: its examples.
      error: the finding for which training would stop, "" for none.
    """

    examples: Examples
    error: str = ""


def inspect(config: Any, folder: Path) -> Path:
    """Write FOLDER/inspect.html, and print its findings and the numbers of each class.

    Args:
      config: as `medtl.config.default` makes it.
      folder: it is made.

    Returns:
      The file.

    Raises:
      UserError: the data cannot be read at all.
    """
    check.check_fields(config)
    loaded = {domain: load_in_any_case(config, domain) for domain in check.domains(config)}
    page = make_page(config, loaded)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be made: {error.strerror}") from None
    path = folder / run_folder.INSPECTION
    files.write_text(path, inspect_page.html(page))
    lines = [
        textwrap.shorten(line, _WIDTH, placeholder=" ...") for line in (*page.errors, *page.notes)
    ]
    print("\n".join([page.headline, *lines]))
    print("\n".join(_text(page.overview)))
    for domain in page.domains:
        print("\n".join(["", domain.title, *_text(domain.tables[0])]))
    print(f"\n{path}")
    return path


def load_in_any_case(config: Any, domain: str) -> Loaded:
    """Load a domain; where training would refuse it, with every finding of the checks allowed.

    Raises:
      UserError: it cannot be loaded even so.
    """
    rules = data.FileRules.of(config.data)
    try:
        return Loaded(domains.load(config, domain))
    except UserError as error:
        lenient = dataclasses.replace(
            rules, allow=(*rules.allow, *_LOOKED_OVER), window=rules.window or ("0%", "100%")
        )
        try:
            return Loaded(domains.load(config, domain, rules=lenient), str(error))
        except UserError:
            raise error from None


def make_page(config: Any, loaded: dict[str, Loaded]) -> inspect_page.Page:
    """Make the page of loaded domains."""
    errors, notes = [], []
    for domain, one in loaded.items():
        refused, accepted = _findings(one, config.data.allow)
        errors += [f"{domain}: {finding}" for finding in refused]
        notes += [f"{domain}: {note}" for note in accepted]
    examples = {domain: one.examples for domain, one in loaded.items()}
    try:
        notes += data.check_domains(
            examples.get("source"),
            examples["target"],
            allow=config.data.allow,
            all_held_out=is_cross_validated(config),
        )
    except UserError as error:
        errors.append(str(error))
    of_columns = _column_findings(config, examples)
    errors, notes = errors + of_columns[0], notes + of_columns[1]
    notes += [f"{d}: a program drew the images" for d, e in examples.items() if e.synthetic]
    equal = _copies(examples)
    n = len(errors)
    return inspect_page.Page(
        title=f"{config.name}: data",
        headline=f"Training would stop: {n} finding{'s' * (n > 1)}"
        if errors
        else "The data can be trained on",
        errors=errors,
        notes=notes,
        overview=_overview(examples),
        domains=[_domain(config, domain, one) for domain, one in examples.items()],
        copies=equal if equal.rows else None,
    )


def _findings(one: Loaded, allow: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the findings for which training would stop, and the other notes."""
    refused, accepted = [], []
    for note in one.examples.notes:
        finding, _, name = note.removesuffix(")").rpartition(" (allowed: ")
        if not finding or name in allow:
            accepted.append(note)
        else:
            refused.append(f"{finding}; config.data.allow would accept {name!r}")
    heads = [finding.partition(": '")[0].partition(";")[0] for finding in refused]
    if one.error and not any(one.error.startswith(head) for head in heads):
        refused.insert(0, one.error)
    return refused, accepted


def _column_findings(config: Any, examples: dict[str, Examples]) -> tuple[list[str], list[str]]:
    """Return the findings about clinical columns for which training would stop, and the notes."""
    section = config.data.copy_and_resolve_references()
    section.inputs = resolved_inputs(section.inputs, examples)
    tables = Tables.of(examples, section)
    errors: list[str] = []
    notes: list[str] = []
    if tables is None:
        return errors, notes
    for domain, one in examples.items():
        try:
            notes += domains.column_notes(config, domain, one, tables)
        except UserError as error:
            errors.append(str(error))
    return errors, notes


def _domain(config: Any, domain: str, examples: Examples) -> inspect_page.Domain:
    spec, tables, notes = config.data[domain], [_classes(examples)], []
    if spec.kind == "manifest":
        columns, texts = summary.manifest_cells(spec.path, spec.label)
        columns = [summary.with_schema(column, examples) for column in columns]
        tables.append(_columns(examples, columns, spec.label))
        tables.append(_label_texts(spec.label, texts))
    tables += [_groups(examples, name) for name in examples.groups]
    pictures: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()
    if "image" in examples.inputs:
        files_table, problem = _image_files(config, domain)
        tables += files_table
        notes += problem
        pictures = _pictures(examples, config.data.inspect_images)
    title = f"{domain.capitalize()}: {examples.name}"
    return inspect_page.Domain(title, tables, notes, pictures)


def _image_files(config: Any, domain: str) -> tuple[list[Table], list[str]]:
    """Return the table of a domain's image files, and the reason where some cannot be read."""
    key, rules = f"config.data.{domain}", data.FileRules.of(config.data)
    try:
        images = summary.stored_images(
            config.data[domain], key=key, image_size=config.data.image_size
        )
    except UserError as error:  # a clinical table with rows that lack an image
        return [], [f"The image files were not looked at: {error}"]
    if images is None:
        return [], []
    kinds, reasons = summary.file_kinds(images, rules=rules)
    notes = [f"{len(reasons)} cannot be read, such as: {reasons[0]}"] if reasons else []
    return [_files(kinds, len(images))], notes


def _number(value: int, small: str = "") -> TableCell:
    return TableCell(wording.count(value), small=small, numeric=True)


def _overview(examples: dict[str, Examples]) -> Table:
    head = ("Domain", "Examples", "Labelled", "Patients", "Most images of a patient", "Classes")
    rows = []
    for domain, e in examples.items():
        labelled = known(e.label)
        patients = TableCell("unknown", numeric=True)
        most = TableCell("–", numeric=True)
        if e.patient is not None:
            _, sizes = np.unique(e.patient, return_counts=True)
            patients, most = _number(len(sizes)), _number(int(sizes.max()))
        first = TableCell(domain, small=e.name)
        numbers = (_number(len(e)), _number(int(labelled.sum())))
        rows.append((first, *numbers, patients, most, _number(len(e.classes))))
    return Table("The data", head, rows)


def _in_class(examples: Examples, index: int) -> np.ndarray:
    label = examples.label
    if examples.is_quantity:  # all have the number that is the only "class"
        return known(label)
    return label[:, index] == 1 if examples.multi_label else label == index


def _counted(examples: Examples, rows: np.ndarray) -> TableCell:
    """Return a number of examples, and below it the number of their patients."""
    small = ""
    if examples.patient is not None and rows.any():
        n = len(np.unique(examples.patient[rows]))
        small = f"{wording.count(n)} patient{'s' * (n != 1)}"
    return _number(int(rows.sum()), small)


def _classes(examples: Examples) -> Table:
    splits = examples.splits
    parts = {s: examples.split == s for s in splits}
    rest = ~np.isin(examples.split, splits)
    parts |= {"no split": rest} if rest.any() else {}
    parts |= {"all": np.ones(len(examples), bool)}
    rows: list[tuple[TableCell, ...]] = []
    if examples.is_quantity:
        for name, of in (("mean", np.mean), ("SD", np.std), ("least", np.min), ("most", np.max)):
            values = (f"{of(examples.label[part]):.4g}" for part in parts.values())
            rows.append((TableCell(name), *(TableCell(v, numeric=True) for v in values)))
        rows.append((TableCell("all"), *(_counted(examples, part) for part in parts.values())))
        return Table(f"{examples.classes[0]} by split", ("", *parts), rows)
    for i, name in enumerate(examples.classes):
        members = _in_class(examples, i)
        cells = [_counted(examples, members & part) for part in parts.values()]
        shares = [members[part].mean() for part in parts.values()]
        cells = [
            dataclasses.replace(cell, text=f"{cell.text} ({wording.percent(share)})")
            for cell, share in zip(cells, shares, strict=True)
        ]
        rows.append((TableCell(name), *cells))
    rows.append((TableCell("all"), *(_counted(examples, part) for part in parts.values())))
    return Table("Classes by split", ("Class", *parts), rows)


def _columns(examples: Examples, columns: Sequence[summary.Cells], label: str) -> Table:
    roles = summary.roles(examples, [c.name for c in columns], label)
    classes = (
        () if examples.multi_label or examples.is_quantity else examples.classes[:_MOST_CLASSES]
    )
    has_reasons = any(reason for _, reason in roles.values())
    rows = []
    for column in columns:
        role, reason = roles[column.name]
        n = sum(size for _, size in column.missing_by_class.values())
        cells = [TableCell(column.name), TableCell(role)]
        cells += [TableCell(reason)] if has_reasons else []
        cells.append(_number(column.missing, wording.percent(column.missing / n)))
        cells.append(_number(column.different))
        for name in classes:
            missing, size = column.missing_by_class[name]
            cells.append(TableCell(wording.percent(missing / size), numeric=True))
        rows.append(cells)
    head = ["Column", "Role", *(["Reason"] if has_reasons else []), "Missing", "Different values"]
    return Table("Columns", [*head, *(f"Missing in {name}" for name in classes)], rows)


def _label_texts(label: str, texts: dict[str, int]) -> Table:
    rows = [[TableCell(text or "(empty)"), _number(n)] for text, n in texts.items()]
    more = f", the first {_MOST_ROWS} of {len(rows)}" if len(rows) > _MOST_ROWS else ""
    return Table(f"{label} as it is in the file{more}", ("Text", "Rows"), rows[:_MOST_ROWS])


def _groups(examples: Examples, name: str) -> Table:
    values_, rows = examples.groups[name], []
    classes = examples.classes[:_MOST_CLASSES]
    for value in np.unique(values_)[:_MOST_ROWS]:
        part = values_ == value
        cells = [_counted(examples, part & _in_class(examples, i)) for i in range(len(classes))]
        rows.append((TableCell(str(value) or "unknown"), _counted(examples, part), *cells))
    return Table(f"By {wording.column(name)}", (wording.column(name), "All", *classes), rows)


def _files(found: Sequence[summary.FileKind], n: int) -> Table:
    looked_at = sum(len(kind.width) for kind in found)
    head = ("Image files", "Images", "Width", "Height", "Least value", "Median value", "Most value")
    rows = []
    for kind in found:
        least, median, most = kind.values.T
        numbers = (least.min(), np.median(median), most.max())
        rows.append(
            (
                TableCell(kind.words),
                _number(len(kind.width)),
                TableCell(_range(kind.width), numeric=True),
                TableCell(_range(kind.height), numeric=True),
                *(TableCell(f"{number:g}", numeric=True) for number in numbers),
            )
        )
    return Table(f"Image files: {looked_at:,} of {n:,} that were looked at", head, rows)


def _range(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"{low} to {high}, median {np.median(sizes):g}"


def _copies(examples: dict[str, Examples]) -> Table:
    rows = [
        (TableCell(one), TableCell("itself" if one == other else other), _number(equal), _number(n))
        for one, other, equal, n in summary.copies(examples)
    ]
    return Table("Images with an equal one", ("In", "Equal to one in", "Images", "Of"), rows)


def _pictures(examples: Examples, most: int) -> list[tuple[str, list[tuple[str, str]]]]:
    pictures = []
    for split in examples.splits if most else ():
        part = examples.split == split
        counts = class_counts(examples.label[part], examples.classes)
        part = part & examples.present.get("image", np.ones(len(part), bool))
        for i, name in enumerate(examples.classes):
            rows = np.flatnonzero(_in_class(examples, i) & part)
            images = [
                (_uri(np.asarray(examples.image[row])), f"{examples.id[row]}: {name}, {split}")
                for row in rows[summary.spaced(len(rows), most)].tolist()
            ]
            if images:
                pictures.append((f"{split}, {name} ({counts.get(name, len(rows)):,})", images))
    return pictures


def _uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _text(table: Table) -> list[str]:
    rows = [
        [cell.text + (f" [{cell.small}]" if cell.small else "") for cell in r] for r in table.rows
    ]
    return wording.text_table([list(table.head), *rows])
