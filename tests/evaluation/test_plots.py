"""Plots: what is drawn is where the numbers say."""

import re
from pathlib import Path

import numpy as np

from medtl.evaluation.report import forest, plots

ROOT = Path(__file__).parents[2]


def paths(svg):
    """The points of every unfilled line in a colour of its own."""
    found = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none;[^"]*stroke: var\(--c1', svg)
    return [np.array(re.findall(r"-?[\d.]+", d), dtype=float).reshape(-1, 2) for d in found]


def test_a_line_is_drawn_where_its_points_are():
    x, y = [0.0, 0.25, 1.0], [0.0, 0.8, 1.0]
    unit = plots.Axis("x", (0.0, 1.0))
    (drawn,) = paths(plots.lines([plots.Series(x, y, 0)], x=unit, y=unit, alt="a", prefix="p"))
    np.testing.assert_allclose(
        drawn, np.column_stack([52 + 296 * np.array(x), 250 - 240 * np.array(y)]), atol=0.01
    )


def test_a_forest_plot_keeps_proportions():
    row = forest.Row("a − b", "", [(0.03, 0.01, 0.06, 0)])
    (drawn,) = paths(
        forest.intervals([row], axis=plots.Axis("d", (-0.1, 0.1)), center=0.0, alt="a", prefix="p")
    )
    np.testing.assert_allclose(
        drawn[:, 0], 14 + 332 * (np.array([0.01, 0.06]) + 0.1) / 0.2, atol=0.01
    )


def test_a_thinned_curve_lies_on_the_whole_one():
    x = np.linspace(0, 1, 20_000)
    y = np.floor(40 * np.sqrt(x)) / 40  # steps, as a ROC curve has them
    keep = plots.thin(x, y)
    assert len(keep) <= plots.POINTS and keep[0] == 0 and keep[-1] == len(x) - 1
    assert np.all(np.diff(keep) > 0)
    assert np.max(np.abs(np.interp(x, x[keep], y[keep]) - y)) < 1 / 40 + 1e-9
    assert (
        np.mean(np.abs(np.interp(x, x[keep], y[keep]) - y)) < 1 / plots.POINTS
    )  # corners are cut by half the spacing at most
    assert list(plots.thin(np.array([1.0, np.nan]), np.array([0.0, 1.0]))) == [0, 1]


def test_colours_stand_out_from_the_ground_in_both_themes():
    style = (ROOT / "medtl/evaluation/report/templates/report.css").read_text(encoding="utf-8")
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    assert len(themes) == 2
    wanted = {
        "text": 7.0,
        "quiet": 4.5,
        "good": 4.5,
        "bad": 4.5,
        "open": 4.5,
        **{f"c{i}": 3.0 for i in range(1, 7)},
    }
    for theme in themes:
        for name, least in wanted.items():
            for ground in ("ground", "raised"):
                assert contrast(theme[name], theme[ground]) >= least, (name, ground)


def contrast(a, b):
    """WCAG 2.1, contrast ratio of two colours."""

    def luminance(colour):
        c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(
            np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
            @ [0.2126, 0.7152, 0.0722]
        )

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
