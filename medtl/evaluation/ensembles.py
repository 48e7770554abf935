"""Arms that are made of other arms' predictions: ensembles of seeds; and the names of such arms."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.predictions import Predictions

_DERIVED = re.compile(r"(\+(em|bbse|tta))|( \(ensemble of \d+ seeds\))")


def base(arm: str) -> str:
    """Return the arm whose models an arm is made of.

    >>> base("transfer+tta (ensemble of 3 seeds)+em"), base("mine")
    ('transfer', 'mine')
    """
    return _DERIVED.sub("", arm)


def is_ensemble(arm: str) -> bool:
    """Return whether an arm is an ensemble of seeds: one model, whatever number of seeds.

    >>> is_ensemble("transfer (ensemble of 3 seeds)+em")
    True
    """
    return bool(re.search(r" \(ensemble of \d+ seeds\)", arm))


def of_seeds(rows: Sequence[Predictions]) -> list[Predictions]:
    """Return for each arm of several seeds the arm "NAME (ensemble of S seeds)".

    Its probabilities are the mean over the seeds' models of the same fold, repeat and size
    (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4). It is written once for each seed,
    as arms are compared seed by seed; the S copies are one model, which the comparison knows by the
    name.

    Args:
      rows: the predictions of every arm, split and model.

    Raises:
      UserError: seeds predict different examples, so that there is no mean.

    >>> one = Predictions("a", "test", np.array(["x"]), np.array([0]), np.array([[0.2, 0.8]]), 0)
    >>> two = dataclasses.replace(one, seed=1, probability=np.array([[0.6, 0.4]]))
    >>> [(p.arm, p.seed, p.probability.round(2).tolist()) for p in of_seeds([one, two])][1]
    ('a (ensemble of 2 seeds)', 1, [[0.4, 0.6]])
    """
    groups: dict[tuple, list[Predictions]] = {}
    for p in rows:
        if p.seed is not None:
            groups.setdefault((p.arm, p.split, p.repeat, p.fold, p.size), []).append(p)
    made = []
    for members in groups.values():
        if len(members) < 2:
            continue
        first = members[0]
        total = np.zeros(first.probability.shape)
        for p in members:
            order = np.argsort(p.id)
            if not np.array_equal(p.id[order], np.sort(first.id)):
                raise UserError(
                    f"config.evaluation.ensembles: arm {p.arm!r} predicts other examples in "
                    f"{p.where} than in {first.where}, so that they have no mean; set it to false"
                )
            total += p.probability[order[np.searchsorted(p.id, first.id, sorter=order)]]
        one = dataclasses.replace(
            first,
            arm=f"{first.arm} (ensemble of {len(members)} seeds)",
            probability=total / len(members),
        )
        made += [dataclasses.replace(one, seed=p.seed) for p in members]
    return made


def models(arm: str, values: Sequence[Any]) -> list[int]:
    """Return the positions of an arm's models: of the copies of an ensemble, that of the first.

    Args:
      arm: its name.
      values: plain Python values of its models, equal in copies.

    >>> models("a", [0.5, 0.5]), models("a (ensemble of 2 seeds)", [0.5, 0.5])
    ([0, 1], [0])
    """
    if not is_ensemble(arm):
        return list(range(len(values)))
    first: dict[str, int] = {}
    for i, value in enumerate(values):
        first.setdefault(repr(value), i)  # NaN is not equal to itself, "nan" is
    return list(first.values())


def notes(rows: Sequence[Predictions]) -> list[str]:
    """Return a sentence on what a comparison with an ensemble is about; [] where there is none."""
    named = dict.fromkeys(p.arm for p in rows if is_ensemble(p.arm) and p.fold is None)
    if not named:
        return []
    return [
        f"{', '.join(named)}: an ensemble is one model, so that its verdict is about these trained "
        "models; what another training of all its seeds would change is unknown"
    ]
