"""All metrics of a set of predictions as a function of how often each patient counts.

A `Scorer` sorts the predictions of an evaluation set once; after that the metrics of thousands of
resamples are sums, one sparse matrix product and cumulative sums over the sorted examples, in which
equal scores are exact. Refuses unknown labels and probabilities that are not numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from medtl.errors import UserError
from medtl.evaluation.metrics import kernels
from medtl.evaluation.metrics import ranking as ranks
from medtl.evaluation.metrics.inputs import EvaluationSet, Options
from medtl.evaluation.metrics.names import ALL_NAMES
from medtl.evaluation.metrics.sums import SumTable
from medtl.evaluation.metrics.user import value_of

_Ranked = Callable[[ranks.Ranking, ranks.Weights], np.ndarray]
_EPS = float(np.finfo(np.float32).eps)
_AT_THRESHOLD = frozenset(ALL_NAMES[:4]) | {"sensitivity", "specificity", "ppv", "npv", "mcc"}


class Scorer:
    """The metrics of one evaluation set as a function of how often each unit (patient) counts.

    One label per example; "macro" is the mean over the classes of one against the rest, NaN where
    one class's is:

    - accuracy, balanced_accuracy, f1_macro, f1_weighted, mcc, kappa_quadratic: K = 2: of the class
      that is called at the set's threshold; above: of the class of the largest probability; as
      scikit-learn's `accuracy_score`, `balanced_accuracy_score`,
      `f1_score`, `matthews_corrcoef` and `cohen_kappa_score(weights="quadratic")`, but NaN where
      those put 0 for 0/0.
    - grade_mae: mean distance between the grade that is called and the label, in grades.
    - auroc: K = 2: `roc_auc_score`; above: macro. auprc: K = 2: `average_precision_score` of the
      positive class; above: macro.
    - sensitivity, specificity, ppv, npv: K = 2: of the positive class at the set's threshold;
      above: macro, of the class of the largest probability. At a stated prevalence q, by Bayes:
      ppv = se q / (se q + (1 - sp)(1 - q)).
    - sensitivity_at_specificity: the largest sensitivity of any threshold whose specificity is at
      least the given one, so a corner of the ROC curve, not a point between two;
      specificity_at_sensitivity likewise. Above K = 2 macro.
    - brier: sum over the classes of (y - p)², halved for K = 2 (Brier 1950; `brier_score_loss`).
    - loss: mean -log p of the label's class, p clipped to [eps, 1 - eps] of float32 (`log_loss`).
    - ece: see `kernels.expected_calibration_error`, above 0 for a perfect model, too; of the
      positive class for K = 2, of the predicted class's probability above.
    - calibration_slope: b of logit P(y) = a + b logit(p) by maximum likelihood (Cox 1958); 1 is
      right, below 1 the model is too sure. calibration_intercept: a of logit P(y) = a + logit(p),
      calibration in the large; 0 is right, above 0 the predictions are too low. Of the positive
      class for K = 2 alone: over several classes, errors of opposite sign would cancel in a mean,
      see `arm_classes`. p is clipped as in the loss.
    - the user's metrics, `options.extra`: called once per resample with `weight` float64[N], how
      often each example counts.

    Several labels per example, predicted where p > 0.5: each metric per label over the examples
    whose label is known, then the mean over the labels for which it is defined (f1_weighted:
    weighted by positives); the loss as in training, see `metrics.compute`.

    Attributes:
      names: the M metrics, in the order of `ALL_NAMES`, then the user's.
      size: N.
      sides: bool[4, K, units], which units have an example that is of the class, is not, is called
        so, is not called so.
    """

    def __init__(
        self,
        data: EvaluationSet,
        *,
        classes: Sequence[str],
        options: Options,
        units: int | None = None,
        names: Sequence[str] | None = None,
    ):
        """Sort and sum the predictions.

        Args:
          data: the predictions.
          classes: the K names.
          options: see there.
          units: number of patients; None: one more than the largest number in `data`.
          names: the metrics to compute, of `ALL_NAMES`; None: all. The user's are always computed.

        Raises:
          UserError: the options do not fit the task.
        """
        self.classes, self.options = tuple(classes), options
        self._label = np.asarray(data.label)
        self._probability = np.asarray(data.probability, np.float64)
        self._threshold, self._of_positive = data.threshold, data.called
        self.multi_label = self._label.ndim == 2
        _check(self._probability.shape[1], self.multi_label, self.classes, options)
        two = not self.multi_label and len(self.classes) == 2
        left_out = set() if options.ordinal else {"kappa_quadratic", "grade_mae"}
        left_out |= set() if two else {"calibration_slope", "calibration_intercept"}
        built_in = (n for n in ALL_NAMES if n not in left_out)
        self.names = (*(n for n in built_in if names is None or n in names), *options.extra)
        with_line = any(name.startswith("calibration_") for name in self.names)
        self._unit = np.asarray(data.patient, np.intp)
        self.units = int(self._unit.max(initial=-1)) + 1 if units is None else units
        labelled, positive, self._called = self._questions()
        table = SumTable(self.units)
        (self._add_labels if self.multi_label else self._add_one_label)(table, self._unit)
        self._matrix, self._columns = table.matrix(), table.columns
        self._rankings = [
            ranks.Ranking.of(
                positive[s, j], self._probability[s, j], self._unit[s], with_line=with_line
            )
            for j, s in enumerate(labelled.T)
        ]
        self.size = len(self._unit)
        self.sides = np.zeros((4, len(self.classes), self.units), bool)
        for side, rows in enumerate((positive, ~positive, self._called, ~self._called)):
            for j, chosen in enumerate((rows & labelled).T):
                self.sides[side, j, self._unit[chosen]] = True

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Compute the metrics of resamples.

        Args:
          counts: float64[R, units], how often each unit counts in each resample; any weights of at
            least 0.

        Returns:
          float64[R, M].

        Raises:
          UserError: a metric of the user's fails; names it.
        """
        counts = np.asarray(counts, np.float64)
        if not self.size:  # as of a site in the folds that test others
            return np.full((len(counts), len(self.names)), np.nan)
        sums = np.ascontiguousarray((self._matrix @ np.ascontiguousarray(counts.T)).T)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = self._by_sums({name: sums[:, c] for name, c in self._columns.items()})
            values |= self._by_rank(counts)
            values |= self._by_user(counts)
        return np.stack([values[name] for name in self.names], axis=1)

    def explain(self, values: np.ndarray) -> dict[str, str]:
        """Return metric -> why it is NaN, of float64[M], which counts each unit once."""
        missing = [n for n, v in zip(self.names, values, strict=True) if math.isnan(v)]
        if not len(self._label):
            return dict.fromkeys(missing, "there is no labelled example")
        return {name: self._reason(name) for name in missing}

    def _questions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return bool[N, K]: the label is known, it is the class, the class is predicted."""
        label, p = self._label, self._probability
        if self.multi_label:
            return ~np.isnan(label), label == 1, p > 0.5
        classes = np.arange(p.shape[1])
        called = p.argmax(axis=1)[:, None] == classes
        if len(classes) == 2:
            of_positive = p[:, self.options.positive] >= self._threshold
            if self._of_positive is not None:
                of_positive = self._of_positive
            called[:, self.options.positive] = of_positive
            called[:, 1 - self.options.positive] = ~called[:, self.options.positive]
        return np.ones(p.shape, bool), label[:, None] == classes, called

    def _add_one_label(self, table: SumTable, unit: np.ndarray) -> None:
        label, p, k = self._label, self._probability, len(self.classes)
        guess, row = self._called.argmax(axis=1), np.arange(len(label))
        table.add("n", unit)
        table.add("confusion", unit, column=label * k + guess, width=k * k)
        error = np.sum(np.square(p), axis=1) - 2 * p[row, label] + 1
        table.add("brier", unit, error / 2 if k == 2 else error)
        table.add("loss", unit, -np.log(np.clip(p[row, label], _EPS, 1 - _EPS)))
        if k == 2:
            positive, score = label == self.options.positive, p[:, self.options.positive]
        else:
            positive, score = label == guess, p.max(axis=1)
        self._add_bins(table, "bins", unit, positive, score)

    def _add_labels(self, table: SumTable, unit: np.ndarray) -> None:
        labelled, p = ~np.isnan(self._label), self._probability
        clipped = np.clip(p, _EPS, 1 - _EPS)
        entropy = np.where(self._label == 1, -np.log(clipped), -np.log1p(-clipped))
        entropy = np.where(labelled, entropy, 0.0).sum(axis=1)
        some = labelled.any(axis=1)
        table.add("n", unit[some])
        table.add("loss", unit[some], entropy[some] / labelled[some].sum(axis=1))
        for j, rows in enumerate(labelled.T):
            positive, score, who = self._label[rows, j] == 1, p[rows, j], unit[rows]
            table.add(f"confusion{j}", who, column=2 * positive + (score > 0.5), width=4)
            table.add(f"brier{j}", who, np.square(positive - score))
            self._add_bins(table, f"bins{j}", who, positive, score)

    def _add_bins(
        self, table: SumTable, name: str, unit: np.ndarray, positive: np.ndarray, score: np.ndarray
    ) -> None:
        bins = kernels.number_of_bins(len(score), self.options.bins)
        column = kernels.equal_mass_bins(score, bins)
        parts = {"n": np.ones(len(score)), "y": positive.astype(np.float64), "p": score}
        for part, value in parts.items():
            table.add(f"{name}.{part}", unit, value, column=column, width=bins)

    def _by_sums(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the metrics that are functions of sums, float64[R] each."""
        values = {"loss": sums["loss"][:, 0] / sums["n"][:, 0]}
        sum_up = self._sums_of_labels if self.multi_label else self._sums_of_one
        of_counts, tables, called = sum_up(sums)
        f1, share = kernels.f1_score(tables), tables[..., 1, :].sum(axis=-1)
        values |= of_counts | {"f1_macro": self._mean(f1)}
        weighted = np.sum(np.where(share > 0, f1, 0.0) * share, axis=1)
        values["f1_weighted"] = weighted / share.sum(axis=1)
        rates = kernels.diagnostic_rates(called, prevalence=self.options.prevalence)
        return values | {name: self._mean(rate) for name, rate in rates.items()}

    def _sums_of_one(
        self, sums: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Return metrics of one label per example, and [R, K, 2, 2] of predictions and of calls."""
        k, r = len(self.classes), len(sums["n"])
        confusion = sums["confusion"].reshape(r, k, k)
        if k == 2 and math.isnan(self._threshold):
            confusion = np.full_like(confusion, np.nan)
        tables = called = kernels.one_against_rest(confusion)
        if k == 2:
            called = tables[:, [self.options.positive]]
        values = {
            "accuracy": kernels.accuracy(confusion),
            "balanced_accuracy": self._mean(kernels.recall(confusion)),
            "mcc": kernels.matthews(confusion),
            "kappa_quadratic": kernels.quadratic_kappa(confusion),
            "grade_mae": kernels.grade_error(confusion),
            "brier": sums["brier"][:, 0] / sums["n"][:, 0],
            "ece": _ece(sums, "bins"),
        }
        return values, tables, called

    def _sums_of_labels(
        self, sums: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Do what `_sums_of_one` does for several labels per example; both tables are the same."""
        columns, r, mean = range(len(self.classes)), len(sums["n"]), self._mean
        tables = np.stack([sums[f"confusion{j}"].reshape(r, 2, 2) for j in columns], axis=1)
        error = np.stack([sums[f"brier{j}"][:, 0] for j in columns], axis=1)
        values = {
            "accuracy": mean(kernels.accuracy(tables)),
            "balanced_accuracy": mean(kernels.balanced_accuracy(tables)),
            "mcc": mean(kernels.matthews(tables)),
            "brier": mean(error / tables.sum(axis=(2, 3))),
            "ece": mean(np.stack([_ece(sums, f"bins{j}") for j in columns], axis=1)),
        }
        return values, tables, tables

    def _by_rank(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics that need the order of the examples, or each one, float64[R] each."""
        two, options = not self.multi_label and len(self.classes) == 2, self.options
        by_name: dict[str, list[np.ndarray]] = {}
        for j, ranking in enumerate(self._rankings):
            functions: dict[str, _Ranked] = {}
            if not two or j == 1:
                functions["auroc"] = ranks.auroc
            if not two or j == options.positive:
                functions |= {
                    "auprc": ranks.average_precision,
                    "sensitivity_at_specificity": lambda r, w: ranks.sensitivity_at(
                        r, w, options.specificity
                    ),
                    "specificity_at_sensitivity": lambda r, w: ranks.specificity_at(
                        r, w, options.sensitivity
                    ),
                    "calibration_slope": ranks.calibration_slope,
                    "calibration_intercept": ranks.calibration_intercept,
                }
            weights = ranks.Weights.of(ranking, counts)
            for name, function in functions.items():
                if name in self.names:
                    by_name.setdefault(name, []).append(function(ranking, weights))
        return {name: self._mean(np.stack(each, axis=1)) for name, each in by_name.items()}

    def _by_user(self, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Return the user's metrics, float64[R] each; NaN where there is no example."""
        label, probability = self._label.view(), self._probability.view()
        label.flags.writeable = probability.flags.writeable = False
        if not self.size:
            return {name: np.full(len(counts), np.nan) for name in self.options.extra}
        return {
            name: np.array(
                [value_of(name, metric, label, probability, row[self._unit]) for row in counts]
            )
            for name, metric in self.options.extra.items()
        }

    def _mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of [R, classes] over the classes; NaN left out of several labels only."""
        if self.multi_label:
            return kernels.mean_of_defined(values, axis=1)
        if self.options.present_only and values.shape[1] > 1:
            values = values[:, np.bincount(self._label, minlength=values.shape[1]) > 0]
        return values.mean(axis=1)

    def _reason(self, name: str) -> str:
        """Return why a metric is NaN."""
        if name in self.options.extra:
            return "the metric's function gives NaN or an infinite value"
        if self.multi_label:
            return "it is undefined for each class"
        k, classes, two = len(self.classes), self.classes, len(self.classes) == 2
        seen, guess = np.bincount(self._label, minlength=k) > 0, self._called.argmax(axis=1)
        guessed = np.bincount(guess, minlength=k) > 0
        absent = [c for c, s in zip(classes, seen, strict=True) if not s]
        if two and name in _AT_THRESHOLD and math.isnan(self._threshold):
            return "there is no operating threshold"
        if name in ("sensitivity", "specificity", "ppv", "npv") and two:
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
            return (
                "the probabilities separate a class from the rest without overlap, "
                "or are all the same"
            )
        return f"no example has the label {', '.join(map(repr, absent))}"


def support(scorers: Sequence[Scorer]) -> np.ndarray:
    """Return int64[M], the units that bear on each metric, in any of the sets.

    For the sensitivity, for example, these are the units with a positive; where a metric is a mean
    over several classes, those of the class that has the fewest.
    """
    first = scorers[0]
    sides = np.logical_or.reduce([scorer.sides for scorer in scorers])
    two = not first.multi_label and len(first.classes) == 2
    chosen = [first.options.positive] if two else list(range(len(first.classes)))
    positive, negative, called, refused = (int(n) for n in sides[:, chosen].sum(axis=2).min(axis=1))
    labelled = int(sides[:2].any(axis=(0, 1)).sum())
    units = dict.fromkeys(ALL_NAMES, min(positive, negative))
    units |= dict.fromkeys(
        ("accuracy", "f1_weighted", "brier", "loss", "ece", "grade_mae"), labelled
    )
    units |= dict.fromkeys(("sensitivity", "sensitivity_at_specificity"), positive)
    units |= dict.fromkeys(("specificity", "specificity_at_sensitivity"), negative)
    units |= {"ppv": called, "npv": refused} | dict.fromkeys(first.options.extra, labelled)
    return np.array([units[name] for name in first.names])


def _ece(sums: dict[str, np.ndarray], name: str) -> np.ndarray:
    return kernels.expected_calibration_error(*(sums[f"{name}.{part}"] for part in "nyp"))


def _check(k: int, multi_label: bool, classes: tuple[str, ...], options: Options) -> None:
    if k != len(classes) or (k < 2 and not multi_label):
        raise UserError(
            f"probability has {k} columns for {len(classes)} classes; "
            "one label per example wants at least 2"
        )
    if k == 2 and options.positive not in (0, 1):
        raise UserError(
            f"positive is {options.positive}; it is the index of one of the two classes, 0 or 1"
        )
    if options.prevalence and (multi_label or k != 2 or not 0 < options.prevalence < 1):
        raise UserError(
            f"prevalence is {options.prevalence}; it is from 0 to 1 and that of the one positive "
            "class of two"
        )
    if options.ordinal and multi_label:
        raise UserError("ordinal: several labels per example have no grades")
