"""The files of a plan: `plan.html`, the curves as SVG, and `plan.csv`.

The page needs no other file and forbids scripts and the network. Computes nothing.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from medtl.errors import UserError
from medtl.evaluation import plan, wording
from medtl.evaluation.plan import Need, Plan
from medtl.evaluation.report import plots
from medtl.evaluation.report.figures import Figure
from medtl.evaluation.report.html import template
from medtl.evaluation.report.methods import Method
from medtl.evaluation.report.plots import GUIDE, Axis, Series
from medtl.files import write_text

METHODS = (
    Method(
        "Interval of the AUROC",
        "Normal, with the variance of exponential scores. Newcombe's variance takes half of the "
        "examples in each class in its brackets.",
        [
            "Hanley JA, McNeil BJ. Radiology 1982;143:29.",
            "Newcombe RG. Stat Med 2006;25:559.",
        ],
    ),
    Method(
        "Intervals of sensitivity and specificity",
        "Wilson's score interval, at the expected number of positive and negative examples.",
        ["Wilson EB. J Am Stat Assoc 1927;22:209."],
    ),
    Method(
        "Intervals of O:E and calibration slope",
        "O:E, the number of positive examples over the sum of their probabilities, is expected to "
        "be 1 and has an interval on the logarithmic scale. The slope is expected to be 1; logits "
        "of each class are normal, as far apart as the AUROC says.",
        ["Riley RD, et al. Stat Med 2021;40:4230.", "Riley RD, et al. BMJ 2024;384:e074821."],
    ),
    Method(
        "Power",
        "Student's t test of the difference between two correlated AUROC. Its variance is that of "
        "the patients and, with several seeds, of training; degrees of freedom by Satterthwaite. "
        "Equivalence is by two one-sided tests of arms that do not differ.",
        [
            "Hanley JA, McNeil BJ. Radiology 1983;148:839.",
            "Satterthwaite FE. Biometrics Bull 1946;2:110.",
            "Schuirmann DJ. J Pharmacokinet Biopharm 1987;15:657.",
        ],
    ),
    Method(
        "Several images of a patient",
        "m images with an intraclass correlation ICC inflate a variance by 1 + (m - 1) ICC.",
        ["Obuchowski NA. Biometrics 1997;53:567.", "Rao JNK, Scott AJ. Biometrics 1992;48:577."],
    ),
)


def write(folder: str | os.PathLike[str], made: Plan) -> list[str]:
    """Write the files of a plan, each atomically.

    Args:
      folder: where; it is made.
      made: the plan.

    Returns:
      The names of the files.

    Raises:
      UserError: the folder cannot be made.
      OSError: it cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--workdir={folder} cannot be made: {error.strerror}; give another folder"
        ) from None
    drawn = figures(made)
    texts = {
        "plan.html": html(made, drawn),
        "plan.csv": table(made),
        **dict(zip(("plan_width.svg", "plan_power.svg"), map(_standalone, drawn), strict=False)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return list(texts)


def html(made: Plan, drawn: Sequence[Figure]) -> str:
    """Write a plan as one HTML page.

    Args:
      made: the plan.
      drawn: its `figures`.
    """
    return template("plan.html").render(
        title="Plan: how many patients to evaluate on",
        headline=made.headline,
        notes=made.notes,
        assumed=plan.assumed(made.assumptions),
        head=plan.table_head(made),
        rows=plan.table_rows(made),
        figures=drawn,
        methods=METHODS,
    )


def table(made: Plan) -> str:
    """Write the curve as CSV: a row for each number of patients."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(made.curve)
    for row in zip(*made.curve.values(), strict=True):
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    return file.getvalue()


def figures(made: Plan) -> list[Figure]:
    """Draw the width of every interval, and the power, if any, against the number of patients."""
    widths = [need for need in made.needs if not need.goal.rises]
    powers = [need for need in made.needs if need.goal.rises]
    drawn = [_figure(made, widths, "Width of the interval", "width", "plan-width")]
    if powers:
        drawn.append(_figure(made, powers, "Power of the comparison", "power", "plan-power"))
    return drawn


def _figure(made: Plan, needs: Sequence[Need], title: str, label: str, prefix: str) -> Figure:
    patients = made.curve["patients"]
    targets = sorted({need.goal.target for need in needs})
    series = [Series([patients[0], patients[-1]], [t, t], GUIDE) for t in targets]
    series += [Series(patients, made.curve[need.goal.key], i) for i, need in enumerate(needs)]
    described = (
        f"{need.goal.name}: {need.goal.wanted} with "
        f"{need.undefined or f'{need.patients:,} patients'}"
        for need in needs
    )
    top = 1.0 if label == "power" else min(1.0, 5 * max(targets))
    svg = plots.lines(
        series,
        x=Axis("patients evaluated on", (patients[0], patients[-1]), _ticks(patients), log=True),
        y=Axis(label, (0.0, top)),
        alt=f"{title} against the number of patients. {'; '.join(described)}.",
        prefix=prefix,
    )
    legend = [(plots.swatch(i), need.goal.name) for i, need in enumerate(needs)]
    wanted = wording.listed([f"{target:g}" for target in targets])
    return Figure(svg, title, [*legend, (plots.swatch(GUIDE), f"wanted: {wanted}")])


def _ticks(patients: Sequence[float]) -> list[tuple[float, str]]:
    """Return 1, 3 and 10 times each power of ten within the axis."""
    low, high = (math.floor(math.log10(n)) for n in (patients[0], patients[-1]))
    ticks = [digit * 10**power for power in range(low, high + 1) for digit in (1, 3)]
    return [(n, f"{n:,}") for n in ticks if patients[0] <= n <= patients[-1]]


def _standalone(figure: Figure) -> str:
    """Return a figure as an SVG file of its own: with its legend, a size and plain colours."""
    rows = []
    for i, (swatch, name) in enumerate(figure.legend):
        y = plots.HEIGHT + 16 * i
        line = swatch.replace("<svg ", f'<svg x="52" y="{y}" width="36" height="12" ', 1)
        rows.append(f'{line}<text x="96" y="{y + 10}" fill="currentColor">{escape(name)}</text>')
    height = plots.HEIGHT + 16 * len(rows) + 4
    svg = re.sub(r'viewBox="[^"]*"', f'viewBox="0 0 {plots.WIDTH} {height}"', figure.svg, count=1)
    size = f'xmlns="http://www.w3.org/2000/svg" width="{plots.WIDTH}" height="{height}"'
    svg = svg.replace("<svg ", f"<svg {size} ", 1).removesuffix("</svg>")
    return re.sub(r"var\(--c\d, (#[0-9a-f]{6})\)", r"\1", f"{svg}{''.join(rows)}</svg>\n")
