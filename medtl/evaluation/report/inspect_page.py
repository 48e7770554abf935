"""The page of `--mode=inspect`: one HTML file that needs no other and forbids scripts.

Computes nothing. Names of columns, classes and examples are text of strangers: all are escaped.
Refuses images that are not `data:` URIs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from medtl.evaluation.report.html import IMAGE, legible, template
from medtl.evaluation.report.tables import Table


@dataclasses.dataclass(frozen=True)
class Domain:
    """One domain's part of the page.

    Attributes:
      title: its head.
      tables: in order.
      notes: sentences above them.
      pictures: (title, [(`data:` URI, alternative text)]) of each class and split.
    """

    title: str
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    pictures: Sequence[tuple[str, Sequence[tuple[str, str]]]] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """The page.

    Attributes:
      title: the experiment's name.
      headline: the finding.
      errors: for which training would stop.
      notes: other findings.
      overview: a row per domain.
      domains: their parts.
      copies: equal images within and between splits and domains; None: no domain has images.
    """

    title: str
    headline: str
    errors: Sequence[str]
    notes: Sequence[str]
    overview: Table
    domains: Sequence[Domain]
    copies: Table | None = None


def html(page: Page) -> str:
    """Write the page; the same input gives the same bytes.

    Raises:
      ValueError: an image is not a `data:` URI of an image in base64.
    """
    for domain in page.domains:
        for title, images in domain.pictures:
            if not all(IMAGE.fullmatch(source) for source, _ in images):
                raise ValueError(f"{title}: an image is not a data: URI of an image in base64")
    fields = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    return legible(template("inspect.html").render(fields))
