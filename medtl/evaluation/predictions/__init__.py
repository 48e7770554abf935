"""predictions.csv: each arm's predictions of each example, from which any metric can be recomputed.

Any tool can write it. Columns, by name and in any order:

- `arm`: what is compared, e.g. transfer; `id`: the example; `label`: its class, empty where it is
  unknown; `prob_<class>`: the probability of each class, at least two of them.
- `split`: train, val (also written valid or validation), test or predict; "test" where the column
  is left out.
- `seed`, `repeat`, `fold`: of the model that predicts; `size`: the number of target labels it was
  trained on, at least 1. Whole numbers, empty where unknown.
- `patient_id`, empty (or nan, NA, none, null) where unknown: such an example is a patient of its
  own; `site`, `subgroup` and `subgroup_<name>`: groups to report by, empty where unknown.

A cell of text that begins with an apostrophe and then =, +, -, @, a tab or a return is read without
it: written so, a spreadsheet does not take it for a formula.

With one column `prob_<class>` and two labels, the other label has 1 - its probability.

Where an example may have several diagnoses, "|" joins the positive ones, a lone "|" is none of
them, a "?" before its name marks an unknown one, an empty cell leaves all of them unknown, and one
class is enough.

Where a number is predicted, `y_true` (empty where unknown) and `prediction` are in place of `label`
and `prob_<class>`.

Reading refuses, with line and column: a column of another name, twice, or missing; a row of another
length; a probability that is not a number from 0 to 1; probabilities of one label that do not sum
to 1 but for the rounding of the digits written; a label without a column of probabilities; a split
of another name; an example twice in one (arm, split, seed, repeat, fold, size), or with another
label, patient or group elsewhere.
"""

from medtl.evaluation.predictions.consistency import check
from medtl.evaluation.predictions.frame import Predictions, in_units, probabilities
from medtl.evaluation.predictions.reading import read
from medtl.evaluation.predictions.writing import write

__all__ = ["Predictions", "check", "in_units", "probabilities", "read", "write"]
