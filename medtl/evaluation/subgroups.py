"""Every metric in each group of a column, the worst group and the gap, and who is worse off.

The gap between the best and the worst of several groups is corrected for their number; differences
between arms in the groups have simultaneous intervals. Refuses to rank groups that are too small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medtl.evaluation import differences, wording
from medtl.evaluation.arm_results import Evaluated, estimate
from medtl.evaluation.bootstrap import Resampled
from medtl.evaluation.differences import Difference
from medtl.evaluation.groups import Group, Grouped
from medtl.evaluation.heterogeneity import covariance_of, largest_gap, on_log_odds, q_test
from medtl.evaluation.metrics import LOWER_IS_BETTER, PROPORTIONS, kernels

_TOO_FEW = "fewer than two groups have 10 patients of each class"


def of_arm(grouped: Grouped, arm: str) -> dict[str, Any]:
    """Return an arm's metrics in each group, its worst group and the gap.

    The gap is the metric's difference between the best and the worst group, at least 0. Its
    interval holds for the largest of all differences between two groups, see
    `heterogeneity.largest_gap`; the value itself is too large on average, as the groups are chosen
    for it.

    Args:
      grouped: the groups of a column.
      arm: its name.

    Returns:
      {"groups": {name: {"n", "patients", "metrics": {metric: estimate}, "small"}}, "worst":
      {"group", "value"} or None, "gap": {"value", "low", "high", "between": [best, worst]} or None,
      "note"}. "patients" is None where they are not known; "small", the reason why a group is not
      compared, and "note" are there only if there is something to say.
    """
    entries: dict[str, Any] = {}
    for group in grouped.groups:
        metrics = grouped.estimates(arm, group)
        entries[group.name] = {"n": group.n, "patients": group.patients, "metrics": metrics}
        if group.small:
            entries[group.name]["small"] = group.small
    groups = grouped.compared(arm)
    worst, gap = None, None
    if len(groups) > 1:
        assert grouped.resampled is not None
        sign = -1.0 if grouped.metric in LOWER_IS_BETTER else 1.0
        value, draws, units = grouped.sample(arm, groups)
        low, high = largest_gap(sign * value, sign * draws, units, level=grouped.resampled.level)
        if grouped.metric in PROPORTIONS:
            low, high = max(low, -1.0), min(high, 1.0)
        ranking = np.argsort(sign * value, kind="stable")
        i, j = int(ranking[-1]), int(ranking[0])
        worst = {"group": groups[j].name, "value": float(value[j])}
        gap = estimate(abs(float(value[i] - value[j])), low, high)
        gap["between"] = [groups[i].name, groups[j].name]
    entry = {"groups": entries, "worst": worst, "gap": gap}
    return entry | ({"note": grouped.note} if grouped.note else {})


def of_column(
    column: str,
    grouped: Grouped,
    evaluated: Mapping[str, Evaluated],
    reference: str | None,
    compared: Mapping[str, Mapping[str, Difference]],
) -> dict[str, Any]:
    """Test whether groups differ, and whether the difference between arms does.

    Args:
      column: its name.
      grouped: its groups.
      evaluated: the arms.
      reference: the arm that the others are compared with; None: there is no second one.
      compared: of `compared_in_groups`.

    Returns:
      {"heterogeneity": {arm: {"q", "df", "p", "i2"} or {"undefined"}}, "differences": {arm: {group:
      estimate with "p_adjusted"}}, "interaction": {arm: as heterogeneity}, "reference",
      "sentences"}. The intervals of all differences of the column hold simultaneously.
    """
    heterogeneity = {arm: _heterogeneity(grouped, arm) for arm in evaluated}
    interaction, sentences = {}, []
    if reference is not None:
        interaction = {a: _interaction(grouped, evaluated, a, reference) for a in compared}
        sentences = _sentences(column, grouped, compared, reference)
    return {
        "heterogeneity": heterogeneity,
        "differences": {
            arm: {group: as_estimate(d) for group, d in by_group.items()}
            for arm, by_group in compared.items()
        },
        "interaction": interaction,
        "reference": reference,
        "sentences": [*sentences, *_test_sentences(column, grouped, heterogeneity, interaction)],
    }


def _heterogeneity(grouped: Grouped, arm: str) -> dict[str, Any]:
    groups = grouped.compared(arm)
    if len(groups) < 2:
        return {"undefined": _TOO_FEW}
    value, draws, units = grouped.sample(arm, groups)
    covariance = covariance_of(draws, units, disjoint=grouped.disjoint)
    if grouped.metric in PROPORTIONS:
        value, covariance = on_log_odds(value, covariance, units)
    return q_test(value, covariance, df_each=units - 1)


def compared_in_groups(
    grouped: Grouped, evaluated: Mapping[str, Evaluated], reference: str | None
) -> dict[str, dict[str, Difference]]:
    """Compare every arm with the reference in each group: arm -> group -> difference.

    Tested as the arms are, see `differences.of_arms`, with intervals that hold simultaneously over
    arms and groups. A group that is too small has a value without an interval. Empty where
    `reference` is None.
    """
    if reference is None:
        return {}
    others = [arm for arm in evaluated if arm != reference]
    made: dict[tuple[str, str], Difference] = {}
    draws, units = {}, {}
    for group in grouped.groups:
        for arm in others:
            made[arm, group.name] = Difference(np.nan, undefined=group.small)
        if group.too_few or grouped.resampled is None:
            continue
        members, resampled = _members(grouped, evaluated, group)
        names = [grouped.key(arm, group) for arm in (*others, reference)]
        each = differences.each(members, resampled, names[-1], grouped.metric)
        m = resampled.names.index(grouped.metric)
        for arm, name in zip(others, names, strict=False):
            if group.small:
                made[arm, group.name] = Difference(each[name].value, undefined=group.small)
                continue
            made[arm, group.name] = each[name]
            draws[arm, group.name] = resampled.draws[name][:, m] - resampled.draws[names[-1]][:, m]
            support = (resampled.support[key][m] for key in (name, names[-1]))
            units[arm, group.name] = max(2.0, float(min(support)))
    if grouped.resampled is not None:
        level = grouped.resampled.level
        made = differences.jointly(
            made,
            lambda keys: _correlation([draws[key] for key in keys]),
            units,
            metric=grouped.metric,
            level=level,
        )
    return {arm: {g.name: made[arm, g.name] for g in grouped.groups} for arm in others}


def _correlation(draws: Sequence[np.ndarray]) -> np.ndarray:
    if len(draws) < 2:
        return np.eye(len(draws))
    table = np.stack(draws)
    with np.errstate(divide="ignore", invalid="ignore"):  # identical arms do not vary
        correlation = np.nan_to_num(np.corrcoef(table[:, ~np.isnan(table).any(axis=0)]))
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _members(
    grouped: Grouped, evaluated: Mapping[str, Evaluated], group: Group
) -> tuple[dict[str, Evaluated], Resampled]:
    """Return the arms in a group as arms of their own.

    Where the group's metric is undefined in a fold, as every site's is in all folds but its own,
    the folds of a seed are one model: their mean.
    """
    assert grouped.resampled is not None
    resampled, m = grouped.resampled, grouped.resampled.names.index(grouped.metric)
    members = {}
    for arm, e in evaluated.items():
        key = grouped.key(arm, group)
        members[key] = dataclasses.replace(e, arm=key)
    first = next(iter(members.values()))
    missing = any(np.isnan(resampled.by_split[key][:, m]).any() for key in members)
    if first.several_splits and missing:
        return _as_one_model_a_seed(members, resampled)
    return members, resampled


def _over_seeds(e: Evaluated, table: np.ndarray) -> np.ndarray:
    """Return the mean of each seed's rows, of float64[splits, ...]; NaN where none is defined."""
    seeds = [p.seed for p in e.predictions]
    rows = [[s == seed for s in seeds] for seed in dict.fromkeys(seeds)]
    with np.errstate(invalid="ignore"):
        return np.stack([kernels.mean_of_defined(table[of_seed], axis=0) for of_seed in rows])


def _as_one_model_a_seed(
    evaluated: Mapping[str, Evaluated], resampled: Resampled
) -> tuple[dict[str, Evaluated], Resampled]:
    """Take the folds and repeats of a seed for one model, whose metrics are their means.

    For what is defined in few of the folds, such as the metrics of a site in the folds that test
    others: `of_arms` then goes by patients and seeds.
    """
    by_split = {arm: _over_seeds(e, resampled.by_split[arm]) for arm, e in evaluated.items()}
    merged = {}
    for arm, e in evaluated.items():
        first = {p.seed: i for i, p in reversed(list(enumerate(e.predictions)))}
        rows = sorted(first.values())
        merged[arm] = dataclasses.replace(
            e,
            predictions=[
                dataclasses.replace(e.predictions[i], repeat=None, fold=None) for i in rows
            ],
            val=[e.val[i] for i in rows],
            sets=[e.sets[i] for i in rows],
        )
    return merged, dataclasses.replace(resampled, by_split=by_split)


def _interaction(
    grouped: Grouped, evaluated: Mapping[str, Evaluated], arm: str, reference: str
) -> dict[str, Any]:
    """Test whether the difference between two arms is the same in all groups.

    The covariance of the groups' differences is that of the bootstrap and, over several seeds, of
    the mean of the seeds' differences: a seed's effect that is alike in all groups cancels.
    """
    in_other = {group.index for group in grouped.compared(reference)}
    groups = [g for g in grouped.compared(arm) if g.index in in_other]
    if len(groups) < 2:
        return {"undefined": _TOO_FEW}
    assert grouped.resampled is not None
    (value, draws, units), (other, others, fewer) = (
        grouped.sample(a, groups) for a in (arm, reference)
    )
    units = np.minimum(units, fewer)
    covariance = covariance_of(draws - others, units, disjoint=grouped.disjoint)
    m = grouped.resampled.names.index(grouped.metric)
    tables = [
        np.stack([grouped.resampled.by_split[grouped.key(a, g)][:, m] for g in groups], axis=1)
        for a in (arm, reference)
    ]
    by_seed = _over_seeds(evaluated[arm], tables[0] - tables[1])
    if len(by_seed) > 1 and not np.isnan(by_seed).any():
        covariance = covariance + np.cov(by_seed, rowvar=False) / len(by_seed)
    return q_test(value - other, covariance, df_each=units - 1)


def as_estimate(difference: Difference) -> dict[str, Any]:
    """Return a group's difference as metrics.json has it."""
    entry = estimate(difference.value, difference.low, difference.high, reason=difference.undefined)
    return entry | {"p_adjusted": difference.p_adjusted}


def _sentences(
    column: str,
    grouped: Grouped,
    compared: Mapping[str, Mapping[str, Difference]],
    reference: str,
) -> list[str]:
    """Say in which groups an arm is worse than the reference."""
    sign = -1.0 if grouped.metric in LOWER_IS_BETTER else 1.0
    name, title = wording.metric_in_a_sentence(grouped.metric), wording.column(column)
    sentences = []
    for arm, by_group in compared.items():
        shown = {group: d for group, d in by_group.items() if not d.undefined}
        worse = [(g, d) for g, d in shown.items() if max(sign * d.low, sign * d.high) < 0]
        for group, d in worse:
            interval = f"{wording.signed(d.low)} to {wording.signed(d.high)}"
            sentences.append(
                f"{arm} is worse than {reference} where {title} is {group}: {name} "
                f"{wording.signed(d.value)} ({interval})."
            )
        if shown and not worse:
            sentences.append(
                f"{arm} is not shown to be worse than {reference} in any group of {title}."
            )
    return sentences


def _test_sentences(
    column: str,
    grouped: Grouped,
    heterogeneity: Mapping[str, Mapping[str, Any]],
    interaction: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Say whether groups differ, and whether the difference between arms does."""
    name, title = wording.metric_in_a_sentence(grouped.metric), wording.column(column)
    sentences = []
    for tests, words in (
        (heterogeneity, f"{name} of {{}} {{}} between the groups of {title}"),
        (interaction, f"The difference in {name} of {{}} {{}} between the groups of {title}"),
    ):
        for arm, test in tests.items():
            if "undefined" in test:
                continue
            verb = "differs" if test["p"] < 0.05 else "is not shown to differ"
            text = words.format(arm, verb)
            sentences.append(f"{text[0].upper()}{text[1:]} (p {wording.p_relation(test['p'])}).")
    return sentences
