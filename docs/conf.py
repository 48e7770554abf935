"""Configuration of the documentation: `python -m sphinx -W -b html docs docs/_build`."""

import itertools
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from medtl import __version__  # noqa: E402
from medtl.config import describe  # noqa: E402

project = "medtl"
author = "The medtl authors"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"medtl {version}"
smartquotes = False  # quotes in the text are those of commands and values

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types and shapes are in the text
autodoc_default_options = {"members": True, "special-members": "__call__"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_custom_sections = [("Attributes", "params_style")]

COLON = "\ue000"  # stands for a colon while Napoleon reads a docstring
# Section of the config -> its heading in docs/config.md.
SECTIONS = {
    "": "The experiment",
    "arm": "Arms",
    "data": "Data",
    "augment": "Augmentation",
    "model": "Model",
    "weights": "Weights",
    "objective": "Objective",
    "stages": "Training stages",
    "checkpoint": "Checkpoints",
    "evaluation": "Evaluation",
    "sweep": "Sweeps",
    "plan": "Plan",
}


def config_reference() -> str:
    """Return Markdown with a table for each section of the config."""
    rows: dict[str, list[str]] = {}
    for path, default, meaning, allowed in describe():
        section = path.partition(".")[0] if "." in path else ""
        item = f"* - `{path}`\n  - `{default}`\n  - {meaning}\n\n    *{_escaped(allowed)}*\n"
        rows.setdefault(section, []).append(item)
    if rows.keys() != SECTIONS.keys():
        raise ValueError(f"SECTIONS in docs/conf.py lists {[*SECTIONS]}, not {[*rows]}")
    parts = []
    for section, title in SECTIONS.items():
        head = "* - field\n  - default\n  - meaning and *values*\n"
        table = f":::{{list-table}}\n:header-rows: 1\n:widths: 30 22 48\n\n{head}"
        parts.append(f"## {title}\n\n{table}{''.join(rows[section])}:::\n")
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("*", r"\*").replace("_", r"\_")


def _rest(app, what, name, obj, options, lines):
    """Turn the Markdown of docstrings (code spans, tables) into reStructuredText, in place."""
    converted: list[str] = []
    is_example = False  # from ">>>" to a blank line
    for is_table, group in itertools.groupby(lines, key=lambda line: line.lstrip().startswith("|")):
        block = list(group)
        if is_table:
            converted += _list_table(block)
            continue
        for line in block:
            is_example = (is_example or line.lstrip().startswith(">>>")) and bool(line.strip())
            converted.append(line if is_example else _inline(line))
    for i, line in enumerate(converted[:-1]):
        if line in ("Returns:", "Yields:"):  # Napoleon takes the words before a colon for a type
            converted[i + 1] = converted[i + 1].replace(":", COLON)
    lines[:] = converted


def _restore(app, what, name, obj, options, lines):
    lines[:] = [line.replace(COLON, ":") for line in lines]


def _list_table(rows: list[str]) -> list[str]:
    table = ["", ".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        if set(row.strip()) <= set("|- "):
            continue
        cells = [_inline(cell.strip()) for cell in row.strip().strip("|").split("|")]
        table += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
    return [*table, ""]


def _inline(line: str) -> str:
    """Mark code spans as literal, and escape what is markup outside them."""
    parts = re.split(r"(`[^`]+`|\*\w[\w ]*\*)", line)  # code spans and emphasis
    for i, part in enumerate(parts):
        if part.startswith("`"):
            parts[i] = f"`{part}`"
        elif i % 2 == 0:
            parts[i] = re.sub(r"(?<=\w)_(?!\w)|[|*](?=\S)|(?<= [A-Z])\.$", r"\\\g<0>", part)
    return "".join(parts)


def setup(app):
    """Write the reference of the config, and register the conversion of docstrings."""
    folder = Path(__file__).with_name("_generated")
    folder.mkdir(exist_ok=True)
    (folder / "config.md").write_text(config_reference(), encoding="utf-8")
    app.connect("autodoc-process-docstring", _rest, priority=400)  # before Napoleon's 500
    app.connect("autodoc-process-docstring", _restore, priority=600)
