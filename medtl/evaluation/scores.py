"""Every metric of a set of predictions as a function of how often each patient counts: what the bootstrap resamples.

A `Scorer` sorts a cell's predictions once; after that the metrics of thousands of resamples are sums, one sparse matrix
product and cumulative sums over the sorted examples, in which equal scores are exact. Also the operating threshold, and
the concordance of risks with times. `metrics.compute` is what training logs; the six metrics in both agree.

Refuses unknown labels and probabilities that are not numbers. What is undefined is NaN, and `Scorer.explain` says why.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from medtl.errors import UserError
from medtl.evaluation import kernels
from medtl.evaluation import ranking as ranks

NAMES = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1_weighted",
    "auroc",
    "auprc",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "sensitivity_at_specificity",
    "specificity_at_sensitivity",
    "mcc",
    "kappa_quadratic",
    "brier",
    "loss",
    "ece",
    "calibration_slope",
    "calibration_intercept",
)
LOWER_IS_BETTER = frozenset({"brier", "loss", "ece"})
# Shares of something, from 0 to 1: the others are not bounded by both, or are distances from the bound.
PROPORTIONS = frozenset(NAMES[:12])

_EPS = float(np.finfo(np.float32).eps)
_BIN = 10  # examples that a bin of the ECE must hold


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model's predictions of one evaluation set.

    Attributes:
      label: int[N], an index into the classes; or float[N, K] of 0, 1 or NaN (unknown) for several labels an example.
      probability: float64[N, K].
      patient: int64[N] from 0, the same numbering in all cells and arms.
      threshold: of the positive class's probability in two-class tasks, positive at or above it; NaN: there is none.
    """

    label: np.ndarray
    probability: np.ndarray
    patient: np.ndarray
    threshold: float = 0.5

    def __post_init__(self) -> None:
        label, probability, patient = (
            np.asarray(a) for a in (self.label, self.probability, self.patient)
        )
        n = len(label)
        if probability.ndim != 2 or len(probability) != n or patient.shape != (n,):
            raise UserError(
                f"{n} labels, probability {list(probability.shape)} and patient {list(patient.shape)} differ"
            )
        if label.ndim == 2 and label.shape != probability.shape:
            raise UserError(
                f"label is {list(label.shape)} and probability {list(probability.shape)}; they must be equal"
            )
        if label.ndim == 1 and n and not (label.min() >= 0 and label.max() < probability.shape[1]):
            raise UserError(
                f"label must be 0..{probability.shape[1] - 1}: leave out examples whose label is unknown"
            )
        if n and not (np.issubdtype(patient.dtype, np.integer) and patient.min() >= 0):
            raise UserError("patient must be whole numbers of at least 0")
        wrong = ~((probability >= 0) & (probability <= 1 + 1e-5))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise UserError(
                f"probability[{row}, {column}] is {probability[row, column]}; it must be from 0 to 1"
            )


@dataclasses.dataclass(frozen=True)
class Options:
    """What the metrics are asked for, and the bootstrap.

    Attributes:
      positive: index of the class that counts as positive in two-class tasks.
      specificity: at which `sensitivity_at_specificity` is read.
      sensitivity: at which `specificity_at_sensitivity` is read.
      prevalence: of the positive class, for `ppv` and `npv` of two-class tasks; 0: the evaluation set's own.
      ordinal: the classes are grades in rising order; adds `kappa_quadratic`.
      bins: of the ECE, at most; fewer where they would hold less than 10 examples.
      level: of the intervals.
      resamples: of the bootstrap, at most; see `bootstrap.resample`.
      seed: of the bootstrap.
    """

    positive: int = 1
    specificity: float = 0.9
    sensitivity: float = 0.9
    prevalence: float = 0.0
    ordinal: bool = False
    bins: int = 15
    level: float = 0.95
    resamples: int = 2000
    seed: int = 0


class Scorer:
    """The metrics of one cell as a function of how often each unit (patient) counts.

    One label an example; macro is the mean over one-against-the-rest of each class, NaN where one class's is:

    - accuracy, balanced_accuracy, f1_macro, f1_weighted, mcc, kappa_quadratic: of the class of the largest probability,
      as scikit-learn's `accuracy_score`, `balanced_accuracy_score`, `f1_score`, `matthews_corrcoef` and
      `cohen_kappa_score(weights="quadratic")`, but NaN where those put 0 for 0/0.
    - auroc: K = 2: `roc_auc_score`; above: macro. auprc: macro `average_precision_score`, K = 2 included.
    - sensitivity, specificity, ppv, npv: K = 2: of the positive class at the cell's threshold; above: macro, of the class
      of the largest probability. At a stated prevalence q, Bayes: ppv = se q / (se q + (1 - sp)(1 - q)).
    - sensitivity_at_specificity: the largest sensitivity of any threshold whose specificity is at least the given one,
      so a corner of the ROC curve, not a point between two; specificity_at_sensitivity likewise. Above K = 2 macro.
    - brier: sum over the classes of (y - p)², halved for K = 2 (Brier 1950; `brier_score_loss`).
    - loss: mean -log p of the label's class, p clipped to [eps, 1 - eps] of float32 (`log_loss`).
    - ece: see `kernels.expected_calibration_error`; of the positive class for K = 2, of the predicted class's probability above.
    - calibration_slope: b of logit P(y) = a + b logit(p) by maximum likelihood (Cox 1958); 1 is right, below 1 too sure.
      calibration_intercept: a of logit P(y) = a + logit(p), calibration in the large; 0 is right, above 0 the predictions
      are too low. K = 2: the positive class; above: macro. p clipped as in the loss.

    Several labels an example, predicted where p > 0.5: each metric per label over the examples where it is known, then the
    mean over the labels for which it is defined (f1_weighted: weighted by positives); the loss as in training, see
    `metrics.compute`.

    Attributes:
      names: the M metrics, in the order of `NAMES`.
      size: N.
      sides: bool[4, K, units], which units have an example that is the class, is not, is called so, is not called so.
    """

    def __init__(
        self, cell: Cell, *, classes: Sequence[str], options: Options, units: int | None = None
    ):
        """Sorts and sums the cell.

        Args:
          cell: the predictions.
          classes: the K names.
          options: see there.
          units: number of patients; None: the largest of the cell's and one more.

        Raises:
          UserError: the options do not fit the task.
        """
        self.classes, self.options = tuple(classes), options
        self._label, self._probability = (
            np.asarray(cell.label),
            np.asarray(cell.probability, np.float64),
        )
        self._threshold = cell.threshold
        self.multi_label = self._label.ndim == 2
        _check(self._probability.shape[1], self.multi_label, self.classes, options)
        self.names = tuple(n for n in NAMES if n != "kappa_quadratic" or options.ordinal)
        unit = np.asarray(cell.patient, np.intp)
        self.units = int(unit.max(initial=-1)) + 1 if units is None else units
        known, positive, self._called = self._questions()
        table = _Table(self.units)
        (self._add_labels if self.multi_label else self._add_one_label)(table, unit)
        self._matrix, self._columns = table.matrix(), table.columns
        columns = enumerate(known.T)
        self._rankings = [
            ranks.Ranking.of(positive[s, j], self._probability[s, j], unit[s]) for j, s in columns
        ]
        self.size = len(unit)
        self.sides = np.zeros((4, len(self.classes), self.units), bool)
        for side, rows in enumerate((positive, ~positive, self._called, ~self._called)):
            for j, chosen in enumerate((rows & known).T):
                self.sides[side, j, unit[chosen]] = True

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """The metrics of resamples.

        Args:
          counts: float64[R, units], how often each unit counts in each resample; any weights of at least 0.

        Returns:
          float64[R, M].
        """
        counts = np.asarray(counts, np.float64)
        sums = np.ascontiguousarray((self._matrix @ np.ascontiguousarray(counts.T)).T)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self._by_sums({name: sums[:, c] for name, c in self._columns.items()})
            values |= self._by_rank(counts)
        return np.stack([values[name] for name in self.names], axis=1)

    def explain(self, values: np.ndarray) -> dict[str, str]:
        """Metric -> why it is NaN, of the metrics float64[M] of this cell with every unit counted once."""
        missing = [n for n, v in zip(self.names, values, strict=True) if math.isnan(v)]
        if not len(self._label):
            return dict.fromkeys(missing, "there is no labelled example")
        if self.multi_label:
            return dict.fromkeys(missing, "it is undefined for each class")
        return {name: self._reason(name) for name in missing}

    def _questions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bool[N, K] each: is the label known, is it the class's, is the class what is predicted."""
        label, p = self._label, self._probability
        if self.multi_label:
            return ~np.isnan(label), label == 1, p > 0.5
        classes = np.arange(p.shape[1])
        called = p.argmax(axis=1)[:, None] == classes
        if len(classes) == 2:
            called[:, self.options.positive] = p[:, self.options.positive] >= self._threshold
            called[:, 1 - self.options.positive] = ~called[:, self.options.positive]
        return np.ones(p.shape, bool), label[:, None] == classes, called

    def _add_one_label(self, table: _Table, unit: np.ndarray) -> None:
        label, p, k = self._label, self._probability, len(self.classes)
        guess, row = p.argmax(axis=1), np.arange(len(label))
        table.add("n", unit)
        table.add("confusion", unit, column=label * k + guess, width=k * k)
        error = np.sum(np.square(p), axis=1) - 2 * p[row, label] + 1
        table.add("brier", unit, error / 2 if k == 2 else error)
        table.add("loss", unit, -np.log(np.clip(p[row, label], _EPS, 1 - _EPS)))
        if k == 2:
            positive, score = label == self.options.positive, p[:, self.options.positive]
            table.add(
                "threshold",
                unit,
                column=2 * positive + self._called[:, self.options.positive],
                width=4,
            )
        else:
            positive, score = label == guess, p.max(axis=1)
        self._add_bins(table, "bins", unit, positive, score)

    def _add_labels(self, table: _Table, unit: np.ndarray) -> None:
        known, p = ~np.isnan(self._label), self._probability
        clipped = np.clip(p, _EPS, 1 - _EPS)
        entropy = np.where(
            known, np.where(self._label == 1, -np.log(clipped), -np.log1p(-clipped)), 0.0
        ).sum(axis=1)
        told = known.any(axis=1)
        table.add("n", unit[told])
        table.add("loss", unit[told], entropy[told] / known[told].sum(axis=1))
        for j, seen in enumerate(known.T):
            positive, score, who = self._label[seen, j] == 1, p[seen, j], unit[seen]
            table.add(f"confusion{j}", who, column=2 * positive + (score > 0.5), width=4)
            table.add(f"brier{j}", who, np.square(positive - score))
            self._add_bins(table, f"bins{j}", who, positive, score)

    def _add_bins(
        self, table: _Table, name: str, unit: np.ndarray, positive: np.ndarray, score: np.ndarray
    ) -> None:
        bins = max(1, min(self.options.bins, len(score) // _BIN))
        place = kernels.equal_mass_bins(score, bins)
        for part, value in (
            ("n", np.ones(len(score))),
            ("y", positive.astype(np.float64)),
            ("p", score),
        ):
            table.add(f"{name}.{part}", unit, value, column=place, width=bins)

    def _by_sums(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The metrics that are functions of sums, float64[R] each."""
        k, r = len(self.classes), len(sums["n"])
        values, mean = {"loss": sums["loss"][:, 0] / sums["n"][:, 0]}, self._mean

        def ece(name: str) -> np.ndarray:
            return kernels.expected_calibration_error(*(sums[f"{name}.{part}"] for part in "nyp"))

        if self.multi_label:
            tables = np.stack([sums[f"confusion{j}"].reshape(r, 2, 2) for j in range(k)], axis=1)
            called = tables
            values["accuracy"] = mean(kernels.accuracy(tables))
            values["balanced_accuracy"] = mean(kernels.balanced_accuracy(tables))
            values["mcc"] = mean(kernels.matthews(tables))
            values["brier"] = mean(
                np.stack([sums[f"brier{j}"][:, 0] for j in range(k)], 1) / tables.sum(axis=(2, 3))
            )
            values["ece"] = mean(np.stack([ece(f"bins{j}") for j in range(k)], axis=1))
        else:
            confusion = sums["confusion"].reshape(r, k, k)
            tables = kernels.one_against_rest(confusion)
            called = sums["threshold"].reshape(r, 1, 2, 2) if k == 2 else tables
            values |= {
                f.__name__: f(confusion) for f in (kernels.accuracy, kernels.balanced_accuracy)
            }
            values |= {
                "mcc": kernels.matthews(confusion),
                "kappa_quadratic": kernels.quadratic_kappa(confusion),
            }
            values |= {"brier": sums["brier"][:, 0] / sums["n"][:, 0], "ece": ece("bins")}
            if k == 2 and math.isnan(self._threshold):
                called = np.full_like(called, np.nan)
        f1, share = kernels.f1_score(tables), tables[..., 1, :].sum(axis=-1)
        values["f1_macro"] = mean(f1)
        values["f1_weighted"] = np.sum(np.where(share > 0, f1, 0.0) * share, axis=1) / share.sum(
            axis=1
        )
        rates = kernels.diagnostic_rates(called, prevalence=self.options.prevalence)
        return values | {name: mean(rate) for name, rate in rates.items()}

    def _by_rank(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics that need the order of the examples, or each of them, float64[R] each."""
        two = not self.multi_label and len(self.classes) == 2
        each: dict[str, list[np.ndarray]] = {}
        for j, ranking in enumerate(self._rankings):
            weights = ranks.Weights.of(ranking, counts)
            found = {"auprc": ranks.average_precision(ranking, weights)}
            if not two or j == 1:
                found["auroc"] = ranks.auroc(ranking, weights)
            if not two or j == self.options.positive:
                found["sensitivity_at_specificity"] = ranks.sensitivity_at(
                    ranking, weights, self.options.specificity
                )
                found["specificity_at_sensitivity"] = ranks.specificity_at(
                    ranking, weights, self.options.sensitivity
                )
                found["calibration_slope"] = ranks.calibration_slope(ranking, weights)
                found["calibration_intercept"] = ranks.calibration_intercept(ranking, weights)
            for name, value in found.items():
                each.setdefault(name, []).append(value)
        return {name: self._mean(np.stack(values, axis=1)) for name, values in each.items()}

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """[R, classes] -> [R]; of several labels an example the mean over those for which the metric is defined."""
        return kernels.mean_of_defined(values, axis=1) if self.multi_label else values.mean(axis=1)

    def _reason(self, name: str) -> str:
        """Why a metric of one label an example is NaN."""
        k, classes, two = len(self.classes), self.classes, len(self.classes) == 2
        seen, guess = np.bincount(self._label, minlength=k) > 0, self._probability.argmax(axis=1)
        guessed = np.bincount(guess, minlength=k) > 0
        absent = [c for c, s in zip(classes, seen, strict=True) if not s]
        if name in ("sensitivity", "specificity", "ppv", "npv") and two:
            if math.isnan(self._threshold):
                return "there is no operating threshold"
            if name in ("ppv", "npv") and not (self.options.prevalence and absent):
                side = classes[
                    self.options.positive if name == "ppv" else 1 - self.options.positive
                ]
                return f"no example is called {side!r} at the threshold"
        elif name == "f1_macro":
            unused = [c for c, s, g in zip(classes, seen, guessed, strict=True) if not s and not g]
            return f"no example has the label or the prediction {', '.join(map(repr, unused))}"
        elif name == "ppv":
            unused = [c for c, g in zip(classes, guessed, strict=True) if not g]
            return f"no example is predicted {', '.join(map(repr, unused))}"
        elif name in ("npv", "mcc", "kappa_quadratic"):
            return "every example has the same label or every prediction is the same"
        elif name == "calibration_slope" and not absent:
            return "the probabilities separate a class from the rest without overlap, or are all the same"
        return f"no example has the label {', '.join(map(repr, absent))}"


def support(scorers: Sequence[Scorer]) -> np.ndarray:
    """int64[M], the units that bear on each metric: on the sensitivity those with a positive, for example.

    Of the class that has the fewest where a metric is a mean over several; in any of the cells.
    """
    first = scorers[0]
    sides = np.logical_or.reduce([scorer.sides for scorer in scorers])
    two = not first.multi_label and len(first.classes) == 2
    chosen = [first.options.positive] if two else list(range(len(first.classes)))
    positive, negative, called, refused = (int(n) for n in sides[:, chosen].sum(axis=2).min(axis=1))
    of = dict.fromkeys(NAMES, min(positive, negative))
    of |= dict.fromkeys(
        ("accuracy", "f1_weighted", "brier", "loss", "ece"), int(sides[:2].any(axis=(0, 1)).sum())
    )
    of |= dict.fromkeys(("sensitivity", "sensitivity_at_specificity"), positive)
    of |= dict.fromkeys(("specificity", "specificity_at_sensitivity"), negative)
    of |= {"ppv": called, "npv": refused}
    return np.array([of[name] for name in first.names])


def operating_threshold(label: np.ndarray, score: np.ndarray, *, rule: str) -> float:
    """The score from which on an example is called positive, chosen on data that is not the test set.

    Halfway between the lowest score that is called positive and the next lower one, so that neither is nearer to being
    called otherwise; at the lowest score of all, where all are called, and just above the highest where none is.

    Args:
      label: bool[N].
      score: float[N], higher for positive.
      rule: "youden", the largest sensitivity + specificity - 1 (Youden 1950), of equals the one with the highest
        specificity; "sensitivity=0.95", the highest specificity at a sensitivity of at least that;
        "specificity=0.9" the reverse, of equals the one with the highest specificity; or the threshold itself, "0.5".

    Returns:
      The threshold; NaN where a class that the rule needs has no example.

    Raises:
      UserError: the rule is none of these.
    """
    kind, wanted = _threshold_rule(rule)
    if kind == "fixed":
        return wanted
    label, score = np.asarray(label, bool), np.asarray(score, np.float64)
    levels = np.unique(score)[::-1]
    high, low = np.sort(score[label]), np.sort(score[~label])
    if (kind != "specificity" and not len(high)) or (kind != "sensitivity" and not len(low)):
        return math.nan
    # Called positive: none, then those of at least the first level, the second, ...
    true = np.append(0, len(high) - np.searchsorted(high, levels, "left"))
    false = np.append(0, len(low) - np.searchsorted(low, levels, "left"))
    if kind == "youden":
        chosen = int(np.argmax(true * len(low) - false * len(high)))
    elif kind == "sensitivity":
        chosen = int(np.argmax(true >= (wanted - 1e-12) * len(high)))
    else:
        fine = false <= (1 - wanted + 1e-12) * len(low)
        chosen = int(np.argmax(np.where(fine, true, -1)))
    if not chosen:
        return float(np.nextafter(levels[0], np.inf))
    if chosen == len(levels):
        return float(levels[-1])
    middle = (levels[chosen - 1] + levels[chosen]) / 2
    return float(middle if middle > levels[chosen] else levels[chosen - 1])


def concordance_index(time: np.ndarray, score: np.ndarray, event: np.ndarray) -> float:
    """The share of pairs whose order in time the scores foretell (Harrell et al. 1982).

    A pair counts where it is known who had the event first: the times differ and the earlier one is an event, or they are
    equal and one of them alone is an event. It is right where that one has the higher score; equal scores are half.
    Takes O(N²) time, about 2 s for 20,000, and O(N) memory.

    Args:
      time: float[N], of the event or of the last sight.
      score: float[N], the risk: higher for earlier.
      event: bool[N], False where censored.

    Returns:
      From 0 to 1, 0.5 by chance; NaN where no pair counts.
    """
    order = np.lexsort((~np.asarray(event, bool), time))
    time, score, event = (np.asarray(a)[order] for a in (time, score, np.asarray(event, bool)))
    # Sorted by time and events first: the later ones are those behind the last event of the same time.
    behind = np.searchsorted(time, time, "right")
    censored = np.append(np.cumsum(~event[::-1])[::-1], 0)
    first = behind - (censored[np.searchsorted(time, time, "left")] - censored[behind])
    right = pairs = 0.0
    for i in np.flatnonzero(event):
        later = score[first[i] :]
        right += np.count_nonzero(later < score[i]) + np.count_nonzero(later == score[i]) / 2
        pairs += len(later)
    return right / pairs if pairs else math.nan


@dataclasses.dataclass(frozen=True)
class _Table:
    """Sums over a unit's examples, built column by column."""

    units: int
    columns: dict[str, slice] = dataclasses.field(default_factory=dict)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = dataclasses.field(default_factory=list)

    def add(
        self,
        name: str,
        unit: np.ndarray,
        value: np.ndarray | None = None,
        *,
        column: np.ndarray | None = None,
        width: int = 1,
    ) -> None:
        """Adds `value` (1) of each example to `column` (0) of `width`, in its unit's row."""
        start = max((c.stop for c in self.columns.values()), default=0)
        self.columns[name] = slice(start, start + width)
        value = np.ones(len(unit)) if value is None else value
        self.parts.append(
            (unit, np.full(len(unit), start) if column is None else start + column, value)
        )

    def matrix(self):
        """float64[columns, units], sparse: most units have few examples."""
        from scipy.sparse import coo_array

        unit, column, value = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        width = max(c.stop for c in self.columns.values())
        return coo_array(
            (value, (column.astype(np.int32), unit.astype(np.int32))), shape=(width, self.units)
        ).tocsr()


def _threshold_rule(rule: str) -> tuple[str, float]:
    if rule == "youden":
        return rule, math.nan
    kind, _, number = rule.partition("=") if "=" in rule else ("fixed", "", rule)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("fixed", "sensitivity", "specificity") or not 0 <= value <= 1:
        wanted = "'youden', 'sensitivity=0.95', 'specificity=0.9' or a threshold such as '0.5'"
        raise UserError(f"threshold rule {rule!r} is none of {wanted}, with a number from 0 to 1")
    return kind, value


def _check(k: int, multi_label: bool, classes: tuple[str, ...], options: Options) -> None:
    if k != len(classes) or (k < 2 and not multi_label):
        raise UserError(
            f"probability has {k} columns for {len(classes)} classes; one label an example wants at least 2"
        )
    if k == 2 and options.positive not in (0, 1):
        raise UserError(
            f"positive is {options.positive}; it is the index of one of the two classes, 0 or 1"
        )
    if options.prevalence and (multi_label or k != 2 or not 0 < options.prevalence < 1):
        raise UserError(
            f"prevalence is {options.prevalence}; it is from 0 to 1 and that of the one positive class of two"
        )
    if options.ordinal and multi_label:
        raise UserError("ordinal: several labels an example have no grades")
