"""Reporting checklists, filled from a run: what is in the report and where, and what is missing.

Refuses nothing: what neither the analysis nor the record of the run tells is the author's to write.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from medtl.evaluation.report.checklist_answers import ABSENT, ANSWERS, AUTHOR, FILLED, Answer
from medtl.evaluation.report.checklist_items import ITEMS, SOURCES

__all__ = ["ABSENT", "AUTHOR", "FILLED", "SOURCES", "Item", "checklist"]


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of a guideline.

    Attributes:
      guideline: a key of `SOURCES`, which has its paper.
      number: as in the guideline: "15c".
      topic: in a few words.
      state: `FILLED` ("filled"), `AUTHOR` ("you must write") or `ABSENT` ("not done").
      text: for a filled item what the report says, for one that is not done why, and for one that
        the author writes what the run knows about it, often nothing ("").
      place: the report's section, by the id of its heading, such as "calibration"; "" for none.
    """

    guideline: str
    number: str
    topic: str
    state: str
    text: str = ""
    place: str = ""


def checklist(analysis: Mapping[str, Any], record: Mapping[str, Any] | None) -> list[Item]:
    """Fill the items of all guidelines, in their order.

    Args:
      analysis: of `analysis.analyse`, or "evaluation" of metrics.json; entries of newer versions
        may be missing.
      record: as in `html.html`; None where the predictions are another tool's.

    Returns:
      144 items: 48 of STARD-AI, 52 of TRIPOD+AI and 44 of CLAIM.
    """
    answers = {name: answer(analysis, record) for name, answer in ANSWERS.items()}
    items = []
    for guideline, rows in ITEMS.items():
        for number, topic, name in rows:
            answer = answers.get(name.removesuffix("+"), Answer(AUTHOR))
            adds = name.endswith("+") and answer.state == FILLED
            state = AUTHOR if adds else answer.state
            items.append(Item(guideline, number, topic, state, answer.text, answer.place))
    return items
