"""Class labels as text: one spelling for each number, missing values, numbers that are no classes.

A number is one class however it is written ("1", "1.0", "+01"), so that files and domains agree.
Other names that look alike are refused: they may be one class.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal

import numpy as np

from medtl.errors import UserError, nearest, quoted

# Missing values as pandas, R, SQL, Excel and the UCI repository write them.
MISSING = frozenset({"", "nan", "<na>", "nat", "null", "n/a", "#n/a", "?"})
# Without an explicit sign an exponent may be a code, such as ICD-11's 1E50.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]\d{1,2})?", re.ASCII | re.IGNORECASE)
_MOST_FRACTIONS, _MOST_INTEGERS = 10, 50  # different numbers that may still be classes
_LONGEST, _FEW_ROWS = 200, 10  # characters of a name; rows whose labels may all differ
_AS_NUMBERS = {"true": "1", "false": "0"}


def is_missing(cell: str) -> bool:
    """Return whether a cell holds a missing value.

    >>> is_missing(""), is_missing("NaN"), is_missing("None")
    (True, True, False)
    """
    return cell.strip().lower() in MISSING


def spelled(name: str) -> str:
    """Return the one spelling of a number; other text as it is.

    >>> [spelled(name) for name in ("1.0", "+01", "0.50", "1.00e+01", "-0", "1E50", "grade 1")]
    ['1', '1', '0.5', '10', '0', '1E50', 'grade 1']
    """
    return format(Decimal(name).normalize() + 0, "f") if _NUMBER.fullmatch(name) else name


def plain(text: str) -> str:
    r"""Return text in one Unicode form, without invisible characters and repeated spaces.

    >>> plain("p\u200b1"), plain("ﬁ  1"), plain("e\u0301") == plain("é")
    ('p1', 'fi 1', True)
    """
    if text.isascii():
        return " ".join(text.split())
    composed = unicodedata.normalize("NFKC", text)
    return " ".join("".join(c for c in composed if unicodedata.category(c) != "Cf").split())


def twins(classes: Sequence[str]) -> tuple[str, str] | None:
    """Return the first name that may be the class of a name before it, and that one; None: none.

    They differ in case, spaces, Unicode form or invisible characters alone, or one is a truth value
    and the other its number.

    >>> twins(["ill", "well", "Ill"]), twins(["0", "True", "1"]), twins(["1", "one"])
    (('Ill', 'ill'), ('1', 'True'), None)
    """
    seen: dict[str, str] = {}
    for name in classes:
        folded = plain(name).casefold()
        other = seen.setdefault(_AS_NUMBERS.get(folded, folded), name)
        if other != name:
            return name, other
    return None


def twin_words(one: str, other: str) -> str:
    """Return the words of an error about two names from `twins`.

    >>> twin_words("Ill", "ill"), twin_words("1", "True")[:30]
    ("'Ill' and 'ill' differ in case only; write one of them", "'1' and 'True' may be one clas")
    """
    how = "differ in spelling only"
    if one.lower() == other.lower():
        how = "differ in case only"
    elif plain(one).casefold() != plain(other).casefold():
        how = "may be one class"
    return f"{one!a} and {other!a} {how}; write one of them"


def sorted_classes(names: Collection[str]) -> tuple[str, ...]:
    """Sort names as numbers if all are, else as text.

    >>> sorted_classes({"10", "9.5"}), sorted_classes({"b", "a", "10"})
    (('9.5', '10'), ('10', 'a', 'b'))
    """
    return tuple(sorted(names, key=Decimal if all(map(_NUMBER.fullmatch, names)) else None))


def encode(
    cells: Sequence[str], where: Callable[[int], str], *, multi_label: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn cells into labels.

    Args:
      cells: the text of each row; with several labels, names joined by "|", a "?" before a name
        that is unknown.
      where: row -> the words by which an error names its cell.
      multi_label: whether a row may have several labels.

    Returns:
      int32[N], or float32[N, K] of 0, 1 and NaN (unknown); and the K classes.

    Raises:
      UserError: a missing value, names that look alike, a diagnosis that is both known and unknown,
        several diagnoses where one is expected, or numbers or texts that are no classes.

    >>> encode(["a|?b", "|"], str, multi_label=True)[0].tolist()
    [[1.0, nan], [0.0, 0.0]]
    """
    for row, cell in enumerate(cells):
        if is_missing(cell):
            problem = f"the label is {quoted(cell)}" if cell else "the cell is empty"
            raise UserError(f"{where(row)}: {problem}; every row needs a diagnosis")
    if multi_label:
        return _several(cells, where)
    names = [spelled(cell) for cell in cells]
    classes = sorted_classes(set(names))
    _refuse_several(names, where)
    _refuse_twins(classes, [{name} for name in names], where)
    _refuse_continuous(classes, len(names), where(0))
    _refuse_texts(classes, names, where)
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for name in names], np.int32), classes


def quantities(cells: Sequence[str], where: Callable[[int], str]) -> np.ndarray:
    """Return the numbers float64[N] that a model is to predict.

    Args:
      cells: the text of each row.
      where: row -> the words by which an error names its cell.

    Raises:
      UserError: a missing value, text, or an infinite number.

    >>> quantities(["1", "-0.5e1"], str).tolist()
    [1.0, -5.0]
    """
    values = [_finite(cell) for cell in cells]
    for row, (cell, value) in enumerate(zip(cells, values, strict=True)):
        if value is None:
            problem = f"{quoted(cell)} is no finite number" if cell else "the cell is empty"
            raise UserError(
                f"{where(row)}: {problem}, which config.data.task='regression' predicts; write it "
                "as 12.5, or leave the row out"
            )
    return np.array(values, np.float64)


def _finite(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None


def in_order(
    label: np.ndarray, classes: Sequence[str], grades: Sequence[str], *, origin: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Put the classes of an ordinal label into rising order.

    Args:
      label: int[N], an index into `classes`.
      classes: the K names.
      grades: all names in rising order; (): the classes are numbers, which are sorted already.
      origin: the data set, for errors.

    Returns:
      The label, and the classes in order.

    Raises:
      UserError: several labels an example, names without an order, or names that are not listed.

    >>> label, grades = in_order(np.array([0, 1]), ("bad", "ok"), ("ok", "bad"), origin="a.csv")
    >>> label.tolist(), grades
    ([1, 0], ('ok', 'bad'))
    """
    key = "config.data.task is 'ordinal', but"
    if label.ndim == 2:
        raise UserError(f"{key} {origin} has several diagnoses an example, which have no order")
    if not grades:
        if text := [name for name in classes if not _NUMBER.fullmatch(name)]:
            raise UserError(
                f"{key} {origin} has the label {quoted(text[0])}, no number; config.data.grades "
                f"gives the order, such as {tuple(classes)!r}"
            )
        return label, tuple(classes)
    for name in classes:
        if name not in grades:
            raise UserError(
                f"config.data.grades lacks {quoted(name)}, a label of {origin}"
                f"{nearest(name, grades)}"
            )
    kept = tuple(grade for grade in map(spelled, grades) if grade in classes)
    place = np.array([kept.index(name) for name in classes])
    return place[label].astype(np.int32), kept


def _several(
    cells: Sequence[str], where: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    present, unknown = [], []
    for row, cell in enumerate(cells):
        parts = {part.strip() for part in cell.split("|")} - {""}
        unknown.append({spelled(part[1:].strip()) for part in parts if part.startswith("?")})
        present.append({spelled(part) for part in parts if not part.startswith("?")})
        if "" in unknown[-1]:
            raise UserError(
                f"{where(row)}: a '?' needs the unknown diagnosis after it, as in ?edema"
            )
        if any(map(is_missing, present[-1])):
            raise UserError(f"{where(row)}: {quoted(cell)} holds a missing value; unknown is ?NAME")
        if both := sorted(present[-1] & unknown[-1]):
            raise UserError(f"{where(row)}: {both[0]!r} is both present and unknown; write one")
    sets = [one | other for one, other in zip(present, unknown, strict=True)]
    classes = sorted_classes(set().union(*sets))
    _refuse_twins(classes, sets, where)
    index = {name: i for i, name in enumerate(classes)}
    label = np.zeros((len(cells), len(classes)), np.float32)
    for names_of_row, value in ((present, 1.0), (unknown, np.nan)):
        for row, names in enumerate(names_of_row):
            label[row, [index[name] for name in names]] = value
    return label, classes


def _refuse_twins(
    classes: Sequence[str], sets: Sequence[set[str]], where: Callable[[int], str]
) -> None:
    if pair := twins(classes):
        row = next(i for i, names in enumerate(sets) if pair[0] in names)
        raise UserError(f"{where(row)}: {twin_words(*pair)}")


def _refuse_several(names: Sequence[str], where: Callable[[int], str]) -> None:
    """Refuse the notation of several diagnoses, which would make a class of each combination."""
    for row, name in enumerate(names):
        if name.startswith("?") or "|" in name:
            raise UserError(
                f"{where(row)}: {quoted(name)} is written as several diagnoses; set "
                "config.data.DOMAIN.multi_label=True, or write one name without '|' and '?'"
            )


def _refuse_texts(
    classes: Sequence[str], names: Sequence[str], where: Callable[[int], str]
) -> None:
    """Refuse what is no diagnosis: a text, or a name of each row's own."""
    for row, name in enumerate(names):
        if len(name) > _LONGEST:
            raise UserError(
                f"{where(row)}: the label has {len(name)} characters, at most {_LONGEST} are a "
                "name; config.data.DOMAIN.label names the column of the diagnosis"
            )
    if len(classes) == len(names) > _FEW_ROWS:
        raise UserError(
            f"{where(0)}: the {len(names)} rows have {len(names)} different labels, so nothing can "
            "be learned; config.data.DOMAIN.label names the column of the diagnosis"
        )


def _refuse_continuous(classes: Sequence[str], n: int, where: str) -> None:
    """Refuse many different numbers: a quantity to be predicted, not a diagnosis."""
    if not all(map(_NUMBER.fullmatch, classes)):
        return
    is_whole = all("." not in name for name in classes)
    most = min(_MOST_INTEGERS, max(_MOST_FRACTIONS, n // 2)) if is_whole else _MOST_FRACTIONS
    if len(classes) > most:
        raise UserError(
            f"{where}: this looks continuous: {n} rows have {len(classes)} different numbers from "
            f"{classes[0]} to {classes[-1]}, which asks for regression: set "
            "config.data.task='regression', or divide the range into a few classes"
        )
