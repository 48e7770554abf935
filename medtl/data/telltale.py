"""Texts that name the diagnosis, and words that predict it. Imports no JAX.

A note that was written after the diagnosis often names it ("transferred to intensive care"). A
model of such notes reads the answer, so a text with the name of a class or one of its synonyms is
refused, unless `config.data.allow` accepts it or the words are left out of the texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from medtl.data.schema import Columns, is_missing
from medtl.data.values import settle
from medtl.errors import UserError, nearest

CHECK = "text_names_class"
MASK = "config.data.preprocessing.mask_synonyms"
_SHORTEST = 3  # letters of a class's name that is sought; "no" and "0" are in most texts


def words(classes: Iterable[str], synonyms: Iterable[str], *, key: str) -> dict[str, list[str]]:
    """Return class -> the words that name it: its name, and its synonyms.

    Args:
      classes: the names.
      synonyms: "CLASS=WORDS"; a word that ends in "*" is the beginning of one.
      key: the config's key of the synonyms, for errors.

    Raises:
      UserError: there is no such class.

    >>> words(["icu", "no_icu"], ["icu=intubat*", "icu=intensive care"], key="")
    {'icu': ['icu', 'intubat*', 'intensive care'], 'no_icu': ['no icu']}
    """
    names = {name: name.replace("_", " ").strip() for name in classes}
    found = {name: [text] if _is_sought(text) else [] for name, text in names.items()}
    for text in synonyms:
        name, _, word = (part.strip() for part in text.partition("="))
        if name not in found:
            raise UserError(f"{key}: {text!r}: there is no class {name!r}{nearest(name, found)}")
        found[name].append(word)
    return found


def _is_sought(name: str) -> bool:
    return sum(map(str.isalpha, name)) >= _SHORTEST


def pattern(sought: Iterable[str]) -> re.Pattern[str] | None:
    """Return the expression that finds words whatever their case, None for no words.

    >>> bool(pattern(["intensive care"]).search("in Intensive-Care now"))
    True
    >>> bool(pattern(["icu"]).search("difficult")), bool(pattern(["intub*"]).search("Intubated"))
    (False, True)
    """
    # The longest first, so that all of "intensive care unit" is found.
    longest = sorted({word for word in sought if word.strip("* ")}, key=len, reverse=True)
    parts = [
        r"[\W_]+".join(re.escape(part) for part in word.rstrip("*").split())
        + (r"\w*" if word.endswith("*") else "")
        for word in longest
    ]
    joined = rf"(?<![^\W_])(?:{'|'.join(parts)})(?![^\W_])"
    return re.compile(joined, re.IGNORECASE) if parts else None


def masked(values: np.ndarray, sought: Iterable[str]) -> np.ndarray:
    """Return texts object[N] without the words that are sought.

    >>> masked(np.array(["was intubated", ""], object), ["intubat*"]).tolist()
    ['was  ', '']
    """
    expression = pattern(sought)
    if expression is None:
        return values
    return np.array([expression.sub(" ", text) for text in values], object)


def check(
    columns: Columns,
    texts: Iterable[str],
    label: np.ndarray,
    names: Mapping[str, Iterable[str]],
    *,
    ids: np.ndarray,
    where: str,
    allow: Sequence[str] = (),
    mask: bool = False,
) -> list[str]:
    """Refuse texts that name a class; return lines on those that are allowed or masked.

    Args:
      columns: of all rows.
      texts: the columns with the role text.
      label: int[N], or float[N, K] of 0, 1 or NaN.
      names: from `words`, for the K classes.
      ids: str[N], for messages.
      where: the data set, for messages.
      allow: names of `values.CHECKS`.
      mask: the words are left out of the texts.

    Raises:
      UserError: names the column, the class, the words and the first example.
    """
    lines = []
    for column in texts:
        values = columns.cells.get(column)
        if values is None or values.dtype != object:
            continue
        for k, (name, sought) in enumerate(names.items()):
            finding = _finding(column, values, name, sought, _is_class(label, k), ids)
            if not finding:
                continue
            finding = f"{where}: {finding}"
            if mask:
                lines.append(f"{finding}; the words are left out ({MASK})")
                continue
            advice = f"leave the column out (columns=({f'{column}=ignore'!r},)), set {MASK}=True"
            lines.append(settle(finding, advice, CHECK, allow))
    return lines


def _is_class(label: np.ndarray, k: int) -> np.ndarray:
    return label[:, k] == 1 if label.ndim == 2 else label == k


def _finding(
    column: str,
    values: np.ndarray,
    name: str,
    sought: Iterable[str],
    is_class: np.ndarray,
    ids: np.ndarray,
) -> str:
    """Return the words on the texts that name a class, "" where none does."""
    expression = pattern(sought)
    if expression is None:
        return ""
    hits = {i: match for i, text in enumerate(values) if (match := expression.search(text))}
    if not hits:
        return ""
    row, first = next(iter(hits.items()))
    found = sorted({m[0].lower() for i in hits for m in expression.finditer(values[i])})
    n = int(np.sum(~is_missing(values)))
    return (
        f"{len(hits)} of {n} texts of {column!r} name the class {name!r} "
        f"({', '.join(found[:5])}{', ...' * (len(found) > 5)}), and {int(is_class[[*hits]].sum())} "
        f"of these are of it: {str(ids[row])!r} has {_around(values[row], first)!r}"
    )


def _around(text: str, match: re.Match[str], width: int = 25) -> str:
    """Return the word with the text around it."""
    start, end = max(0, match.start() - width), match.end() + width
    shown = text[start:end].replace("\n", " ")
    return f"{'...' * (start > 0)}{shown}{'...' * (end < len(text))}"


def best_word(values: np.ndarray, y: np.ndarray) -> tuple[str, float]:
    """Return the word whose presence predicts a class best, and its AUROC.

    That of a word is `1/2 + |p(word | class) - p(word | other classes)| / 2`.

    Args:
      values: texts object[N].
      y: bool[N], both values occur.

    >>> best_word(np.array(["he died", "died", "he left", "left"], object), np.arange(4) < 2)
    ('died', 1.0)
    """
    vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    try:
        counts = vectorizer.fit_transform(values)
    except ValueError:  # no text has a word
        return "", 0.5
    shares = [np.asarray(counts[rows].mean(axis=0)).reshape(-1) for rows in (y, ~y)]
    area = 0.5 + np.abs(shares[0] - shares[1]) / 2
    best = int(np.argmax(area))
    return str(vectorizer.get_feature_names_out()[best]), float(area[best])
