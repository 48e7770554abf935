"""The learning curve: the metric by number of target labels, its law, and the labels saved.

Each number of labels is an evaluation of its own, in which arms are compared by the test of the
headline. A law that cannot be fitted is undefined, with the reason. Refuses nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.evaluation import arm_results, bootstrap, comparisons, differences, verdict, wording
from medtl.evaluation.arm_results import Evaluated
from medtl.evaluation.intervals import UNDEFINED_DRAWS
from medtl.evaluation.metrics import ALL_NAMES, LOWER_IS_BETTER, QUANTITY_CRITERIA, Options
from medtl.evaluation.predictions import Predictions

_FEWEST = 3  # sizes: as many as a law has parameters
_EXPONENTS = (0.05, 3.0)  # the range of a law's c
_GRID, _ROUNDS = 30, 4  # values of c that are tried at a time, and how often
_POINTS = 41  # of a law that is drawn


@dataclasses.dataclass(frozen=True)
class Size:
    """The evaluation of all arms with one number of target labels."""

    labels: int
    evaluated: dict[str, Evaluated]
    resampled: bootstrap.Resampled


@dataclasses.dataclass(frozen=True)
class Law:
    """R inverse power laws, error = a + b n^-c, by `fit`; float64[R] each."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def error(self, n: np.ndarray) -> np.ndarray:
        """Return the errors with float64[S] labels, float64[R, S]."""
        return self.a[:, None] + self.b[:, None] * n ** -self.c[:, None]

    def labels(self, error: np.ndarray) -> np.ndarray:
        """Return with how many labels each error is reached, float64[R, S]; infinity: with none."""
        above = error - self.a[:, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            n = (self.b[:, None] / above) ** (1 / self.c[:, None])
        return np.where(above > 0, n, np.inf)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An arm's law: of its estimates (R = 1), and of its draws; None with the reason."""

    law: Law | None = None
    drawn: Law | None = None
    undefined: str = ""


def curve(
    rows: Sequence[Predictions],
    split: str,
    classes: Sequence[str],
    *,
    metric: str,
    options: Options,
    rule: str,
    margin: float,
    reference: str | None,
) -> dict[str, Any] | None:
    """Return the learning curve as metrics.json has it; None where no size is known.

    Args:
      rows: the predictions of all arms, sizes and models.
      split: the one that is evaluated.
      classes: the K names.
      metric: in which the arms are compared.
      options: of metrics and bootstrap.
      rule: of the operating threshold.
      margin: of equivalence, see `verdict.margin_of`.
      reference: the arm with which the others are compared; None: there is no second one.
    """
    sizes = _evaluate(rows, split, classes, options, rule)
    if not sizes:
        return None
    arms = list(sizes[0].evaluated)
    laws = {arm: _fitted(sizes, arm, metric) for arm in arms}
    made: dict[str, Any] = {
        "metric": metric,
        "sizes": [s.labels for s in sizes],
        "arms": {arm: [_estimate(s, arm, metric) for s in sizes] for arm in arms},
        "fit": {arm: _drawn(sizes, laws[arm], metric, options.level) for arm in arms},
        "differences": {},
        "labels_saved": {},
        "sentences": [],
    }
    for arm in arms if reference is not None else ():
        if arm == reference:
            continue
        names = (arm, str(reference), metric)
        points = [_difference(s, *names, margin) for s in sizes]
        saved = _labels_saved(sizes, laws[arm], laws[names[1]], options.level)
        one_model = differences.one_model(sizes[0].evaluated[arm])
        made["differences"][arm], made["labels_saved"][arm] = points, saved
        made["sentences"].append(sentence(*names, points=points, one_model=one_model))
        if "undefined" not in saved and (saved["low"][0] or math.isfinite(saved["high"][0])):
            made["sentences"].append(saved_sentence(*names, saved=saved, level=options.level))
    return made


def fit(n: np.ndarray, error: np.ndarray, weight: np.ndarray) -> Law:
    """Fit inverse power laws, error = a + b n^-c with a and b of at least 0, by least squares.

    The learning curve of classifiers (Figueroa et al. 2012, BMC Med Inform Decis Mak 12:8). For
    each c, from 0.05 to 3, a and b have a closed form; c is searched on a grid that narrows.

    Args:
      n: float64[S], rising numbers of labels; at least 3.
      error: float64[R, S], of R curves.
      weight: float64[S], of each number of labels.

    >>> n = np.array([20.0, 50.0, 100.0, 400.0])
    >>> law = fit(n, (0.1 + 2 * n**-0.7)[None], np.ones(4))
    >>> f"{law.a[0]:.3f} {law.b[0]:.2f} {law.c[0]:.2f}"
    '0.100 2.00 0.70'
    """
    scaled, w = np.log(n / n[0]), weight / weight.sum()
    rows = np.arange(len(error))
    c = np.geomspace(*_EXPONENTS, _GRID)[None]
    for _ in range(_ROUNDS):
        x = np.exp(-c[..., None] * scaled)  # [1 or R, C, S]
        mean_x, mean_y = x @ w, (error @ w)[:, None]
        spread = np.square(x - mean_x[..., None]) @ w
        product = np.einsum("rs,ics,s->rc" if len(x) == 1 else "rs,rcs,s->rc", error, x, w)
        b = np.maximum((product - mean_x * mean_y) / spread, 0.0)
        a = mean_y - b * mean_x
        b = np.where(a < 0, np.maximum(product / (np.square(x) @ w), 0.0), b)
        a = np.maximum(a, 0.0)
        residual = error[:, None] - a[..., None] - b[..., None] * x
        best = (np.square(residual) @ w).argmin(axis=1)
        grid = np.broadcast_to(c, a.shape)
        law = Law(a[rows, best], b[rows, best], grid[rows, best])
        below, above = np.maximum(best - 1, 0), np.minimum(best + 1, _GRID - 1)
        c = np.geomspace(grid[rows, below], grid[rows, above], _GRID, axis=1)
    return dataclasses.replace(law, b=law.b * n[0] ** law.c)


def sentence(
    arm: str,
    reference: str,
    metric: str,
    *,
    points: Sequence[dict[str, Any]],
    one_model: bool = False,
    level: float = 0.95,
) -> str:
    """Say at which numbers of labels an arm pays, and where it is equivalent.

    Args:
      arm: its name.
      reference: the name of the arm it is compared with.
      metric: the metric's name.
      points: rising "size" with the "value" of the difference and its "verdict", see
        `verdict.zone`.
      one_model: each arm was trained once at each size, so the sentence is about these models.
      level: of the intervals, which are not corrected for the number of sizes.
    """
    sizes, kinds = [p["size"] for p in points], [p["verdict"] for p in points]
    verbs = ("scores better", "scores worse") if one_model else ("pays", "hurts")
    parts = []
    for kind, verb in zip(("better", "worse"), verbs, strict=True):
        chosen = [i for i, other in enumerate(kinds) if other == kind]
        if chosen:
            most = max(chosen, key=lambda i: abs(points[i]["value"]))
            shown = wording.signed_alike([points[most]["value"]])[0]
            parts.append(f"{verb} {_where(chosen, sizes)} ({shown} with {sizes[most]:,})")
    same = [i for i, other in enumerate(kinds) if other == "equivalent"]
    if same:
        parts.append(f"is equivalent within the margin {_where(same, sizes)}")
    name = wording.metric_in_a_sentence(metric)
    basis = f"in {name} against {reference}, by the {wording.percent(level)} interval at each size"
    if not parts:
        several = f"at any size from {sizes[0]:,} to {sizes[-1]:,}"
        span = several if len(sizes) > 1 else f"with {sizes[0]:,}"
        return f"Inconclusive: no difference of {arm} is shown {span} labels, {basis}."
    rest = "; inconclusive at the other sizes" if "inconclusive" in kinds else ""
    who = f"The trained model of {arm}" if one_model else arm
    return f"{who} {wording.listed(parts)}, {basis}{rest}."


def saved_sentence(
    arm: str, reference: str, metric: str, *, saved: dict[str, Any], level: float
) -> str:
    """Say how many labels the reference needs for what the arm reaches with the fewest.

    >>> saved = {"sizes": [25, 400], "labels": [90.0, math.inf], "low": [50.0, 300.0],
    ...          "high": [math.inf, math.inf]}
    >>> print(saved_sentence("transfer", "scratch", "auroc", saved=saved, level=0.95))
    scratch needs 90 labels (95 % interval 50 to more than 400) to reach the AUROC of transfer
    with 25, by the fitted laws.
    """
    fewest, most = (f"{saved['sizes'][i]:,}" for i in (0, -1))

    def count(x: float) -> str:
        return (
            f"more than {most}" if math.isinf(x) else f"{x:,.0f}" if x else f"fewer than {fewest}"
        )

    value, low, high = (count(saved[part][0]) for part in ("labels", "low", "high"))
    ends = f"from {low}" if low == high else f"{low} to {high}"
    name = wording.metric_in_a_sentence(metric)
    return (
        f"{reference} needs {value} labels ({wording.percent(level)} interval {ends}) to "
        f"reach the {name} of {arm} with {fewest}, by the fitted laws."
    )


def _evaluate(
    rows: Sequence[Predictions], split: str, classes: Sequence[str], options: Options, rule: str
) -> list[Size]:
    """Evaluate each number of target labels, all of them last."""
    sizes: list[int | None] = [*sorted({p.size for p in rows if p.size is not None})]
    if sizes and any(p.size is None for p in rows):
        sizes.append(None)
    made = []
    for size in sizes:
        of_size = [p for p in rows if p.size == size]
        evaluated = arm_results.collect(of_size, split, options, rule=rule)
        sets = {arm: e.sets for arm, e in evaluated.items()}
        resampled = bootstrap.resample(sets, classes=classes, options=options)
        labels = size if size is not None else next(iter(evaluated.values())).train_size
        made.append(Size(labels, evaluated, resampled))
    return made


def _estimate(size: Size, arm: str, metric: str) -> dict[str, Any]:
    return {"size": size.labels, **arm_results.estimates(size.resampled, arm)[metric]}


def _difference(size: Size, arm: str, reference: str, metric: str, margin: float) -> dict[str, Any]:
    d = differences.of_arms(size.evaluated, size.resampled, reference, metric)[arm]
    value = float(size.resampled.value[reference][size.resampled.names.index(metric)])
    kind = verdict.zone(
        d.low,
        d.high,
        margin=verdict.margin_of(metric, margin, value),
        lower_is_better=metric in LOWER_IS_BETTER,
    )
    return {"size": size.labels, **comparisons.as_estimate(d), "verdict": kind}


def _fitted(sizes: Sequence[Size], arm: str, metric: str) -> Fitted:
    """Fit the law of an arm to its estimates, and to draws of patients and of trainings."""
    if metric not in (*ALL_NAMES, *QUANTITY_CRITERIA):
        return Fitted(undefined=f"the best value of {metric} is unknown")
    if len(sizes) < _FEWEST:
        return Fitted(undefined=f"{len(sizes)} numbers of labels do not tell it; {_FEWEST} do")
    m = sizes[0].resampled.names.index(metric)
    value = np.array([s.resampled.value[arm][m] for s in sizes])
    draws = _draws(sizes, arm, m)
    unknown = np.isnan(draws).any(axis=1)
    if np.isnan(value).any() or np.mean(unknown) > UNDEFINED_DRAWS:
        return Fitted(undefined="the metric is undefined at a number of labels")
    draws[unknown] = value  # so that the draws of all arms have the same patients
    if metric not in LOWER_IS_BETTER:
        value, draws = 1 - value, 1 - draws
    variance = draws.var(axis=0)
    weight = 1 / variance if variance.min() > 0 else np.ones(len(sizes))
    n = np.array([float(s.labels) for s in sizes])
    return Fitted(fit(n, value[None], weight), fit(n, draws, weight))


def _draws(sizes: Sequence[Size], arm: str, m: int) -> np.ndarray:
    """Return draws of a metric at all sizes, float64[R, sizes], that share patients and trainings.

    The patients are those of the bootstrap. The J deviations of the trainings (seeds) are weighted
    by multivariate t variables of J - 1 degrees of freedom, scaled such that they would have the
    variance of `differences.standard_error` if they were normal; over folds they hold the patients,
    too.
    """
    count = min(len(s.resampled.draws[arm]) for s in sizes)
    trainings = [
        differences.independent(s.evaluated[arm], s.resampled.by_split[arm][:, m]) for s in sizes
    ]
    rng = np.random.default_rng(0)
    df = max(map(len, trainings)) - 1
    student = rng.normal(size=(count, df + 1))
    student /= np.sqrt(rng.chisquare(max(df, 1), size=(count, 1)) / max(df, 1))
    columns = []
    for size, each in zip(sizes, trainings, strict=True):
        e, j = size.evaluated[arm], len(each)
        column = size.resampled.draws[arm][:count, m]
        factor = 1 / j
        if e.several_splits:
            column, factor = np.full(count, size.resampled.value[arm][m]), 1 / j + e.test_share
        if j > 1:
            noise = student[:, :j] @ (each - each.mean())
            column = column + noise * math.sqrt(factor / (j - 1))
        columns.append(column)
    return np.stack(columns, axis=1)


def _drawn(sizes: Sequence[Size], fitted: Fitted, metric: str, level: float) -> dict[str, Any]:
    """Return a law and its band at numbers of labels, as metrics.json has it."""
    if fitted.law is None or fitted.drawn is None:
        return {"undefined": fitted.undefined}
    x = np.geomspace(sizes[0].labels, sizes[-1].labels, _POINTS)
    y, draws = fitted.law.error(x)[0], fitted.drawn.error(x)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if metric not in LOWER_IS_BETTER:
        y, low, high = 1 - y, 1 - high, 1 - low
    points = {"x": x, "y": y, "low": np.minimum(low, y), "high": np.maximum(high, y)}
    law = {name: float(getattr(fitted.law, name)[0]) for name in ("a", "b", "c")}
    return law | {name: column.tolist() for name, column in points.items()}


def _labels_saved(
    sizes: Sequence[Size], arm: Fitted, reference: Fitted, level: float
) -> dict[str, Any]:
    """Return how many labels the reference needs for what an arm reaches with each number.

    Laws are not extrapolated: infinity is more than the largest number that was tried, and 0 fewer
    than the smallest.
    """
    if arm.law is None or arm.drawn is None or reference.law is None or reference.drawn is None:
        return {"undefined": arm.undefined or reference.undefined}
    n = np.array([float(s.labels) for s in sizes])
    needed = reference.law.labels(arm.law.error(n))
    drawn = reference.drawn.labels(arm.drawn.error(n))
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = np.quantile(drawn, tails, axis=0, method="inverted_cdf")
    columns = {"labels": needed[0], "low": low, "high": high}
    limited = {
        name: np.where(x > n[-1], np.inf, np.where(x < n[0] - 1e-9, 0.0, x)).tolist()
        for name, x in columns.items()
    }
    return {"sizes": [s.labels for s in sizes], **limited}


def _where(chosen: Sequence[int], sizes: Sequence[int]) -> str:
    """Put the chosen sizes in words, e.g. "up to 50 labels"."""
    first, last, run = chosen[0], chosen[-1], chosen[-1] - chosen[0] + 1 == len(chosen)
    if len(chosen) == len(sizes) > 1:
        return f"at every size from {sizes[0]:,} to {sizes[-1]:,} labels"
    if run and first == 0 and len(chosen) > 1:
        return f"up to {sizes[last]:,} labels"
    if run and last == len(sizes) - 1 and len(chosen) > 1:
        return f"from {sizes[first]:,} labels on"
    return f"with {wording.listed([f'{sizes[i]:,}' for i in chosen])} labels"
