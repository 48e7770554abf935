"""Definitions of the metrics, tables and figures of a report, for its Methods.

`methods` has the intervals and tests, and the metrics whose definition needs a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Analysis = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Definition:
    """A term, its meaning, its sources, and whether an analysis shows it."""

    term: str
    text: str
    shown: Callable[[Analysis], bool]
    sources: Sequence[str] = ()


def definitions(analysis: Analysis) -> list[Definition]:
    """Return the definitions of what this analysis shows, in the report's order."""
    return [one for one in (*_METRICS, *_QUANTITIES, *_PARTS) if one.shown(analysis)]


def _metric(*names: str) -> Callable[[Analysis], bool]:
    return lambda a: any(name in arm["metrics"] for arm in a["arms"].values() for name in names)


def _entry(*path: str) -> Callable[[Analysis], bool]:
    """Tell whether the analysis has an entry, not empty, at a path; "*" is any key or item."""

    def has(value: Any, path: Sequence[str]) -> bool:
        if not path:
            return bool(value)
        if path[0] == "*":
            inner = value.values() if isinstance(value, Mapping) else value or ()
            return any(has(one, path[1:]) for one in inner)
        return isinstance(value, Mapping) and has(value.get(path[0]), path[1:])

    return lambda a: has(a, path)


_METRICS: tuple[Definition, ...] = (
    Definition(
        "Accuracy, balanced accuracy",
        "The share of examples whose class is predicted right; balanced, the mean of that share "
        "over the classes.",
        _metric("accuracy", "balanced_accuracy"),
        ["Brodersen KH, et al. ICPR 2010:3121."],
    ),
    Definition(
        "F1",
        "2 TP / (2 TP + FP + FN) of each class; macro is the mean over the classes, weighted the "
        "mean by their numbers of examples.",
        _metric("f1_macro", "f1_weighted"),
        ["van Rijsbergen CJ. Information Retrieval. 1979."],
    ),
    Definition(
        "Sensitivity and specificity",
        "The shares of positive examples that are called positive, and of negative ones that are "
        "called negative, at the operating threshold.",
        _metric("sensitivity", "specificity"),
        ["Altman DG, Bland JM. BMJ 1994;308:1552."],
    ),
    Definition(
        "PPV and NPV",
        "The shares of right calls among the examples called positive, and among those called "
        "negative; they depend on the prevalence.",
        _metric("ppv", "npv"),
        ["Altman DG, Bland JM. BMJ 1994;309:102."],
    ),
    Definition(
        "Sensitivity at fixed specificity, and the reverse",
        "The highest sensitivity on the ROC curve whose specificity is at least the fixed one, and "
        "the reverse; without a threshold from val.",
        _metric("sensitivity_at_specificity", "specificity_at_sensitivity"),
    ),
    Definition(
        "MCC",
        "Matthews' correlation of predicted and true classes, from −1 to 1; 0 by chance.",
        _metric("mcc"),
        [
            "Matthews BW. Biochim Biophys Acta 1975;405:442.",
            "Gorodkin J. Comput Biol Chem 2004;28:367.",
        ],
    ),
    Definition(
        "Kappa, quadratic",
        "Agreement beyond chance on grades; a mistake weighs the square of its distance in grades.",
        _metric("kappa_quadratic"),
        ["Cohen J. Psychol Bull 1968;70:213."],
    ),
    Definition(
        "Grades off, mean",
        "The mean distance, in grades, between the predicted and the true grade.",
        _metric("grade_mae"),
        ["Baccianella S, et al. ISDA 2009:283."],
    ),
    Definition(
        "Log loss",
        "The mean of −log of the probability that the true class was given.",
        _metric("loss"),
        ["Good IJ. J R Stat Soc B 1952;14:107."],
    ),
    Definition(
        "The user's metrics",
        "Functions in a file of the user's, named in the config; their intervals come from the "
        "same resamples.",
        _entry("settings", "extra"),
    ),
)
_QUANTITIES: tuple[Definition, ...] = (
    Definition(
        "MAE and RMSE",
        "The mean distance between prediction and label, and the root of the mean of its square, "
        "which weighs large errors more; both in the unit of the label.",
        _metric("mae", "rmse"),
        ["Willmott CJ, Matsuura K. Clim Res 2005;30:79."],
    ),
    Definition(
        "R²",
        "1 − the squared errors over those of the mean of the evaluated labels: 1 is perfect, 0 as "
        "good as that mean; it may be negative.",
        _metric("r2"),
        ["Chicco D, et al. PeerJ Comput Sci 2021;7:e623."],
    ),
    Definition(
        "C-index",
        "Of the pairs of examples with different labels, the share in which the larger label has "
        "the larger prediction; equal predictions count half. The labels are not censored.",
        _metric("c_index"),
        ["Harrell FE, et al. JAMA 1982;247:2543."],
    ),
    Definition(
        "Calibration of a number",
        "The slope of the least-squares line of the labels on the predictions, 1 if right, and the "
        "mean of label − prediction, 0 if right.",
        _metric("mae"),
    ),
    Definition(
        "Limits of agreement",
        "The mean difference of predictions and labels ± 1.96 standard deviations; about 95 % of "
        "differences are within, where they are normal.",
        _entry("arms", "*", "agreement"),
        ["Bland JM, Altman DG. Lancet 1986;327:307."],
    ),
)
_PARTS: tuple[Definition, ...] = (
    Definition(
        "Operating threshold",
        "An example is called positive if its probability is at least the threshold. Intervals "
        "take the threshold as given: that it was chosen on few val examples is not in them.",
        _entry("arms", "*", "threshold"),
    ),
    Definition(
        "Equivalence",
        "Two arms are equivalent where the whole interval of their difference is within ± the "
        "margin, which is stated beforehand.",
        _entry("margin"),
        ["Piaggio G, et al. JAMA 2012;308:2594."],
    ),
    Definition(
        "Per 1,000 patients",
        "What sensitivity and specificity mean for 1,000 patients at the prevalence; the intervals "
        "are theirs, and the prevalence is taken as known.",
        _entry("arms", "*", "per_1000"),
        ["Whiting PF, et al. BMJ 2015;351:h4438."],
    ),
    Definition(
        "Reclassified patients",
        "Of 1,000 patients, those whom one arm calls right and the other wrong, each at its own "
        "operating threshold.",
        _entry("comparisons", "*", "reclassified"),
        ["Pepe MS. Am J Epidemiol 2011;173:1327."],
    ),
    Definition(
        "Difference in net benefit",
        "The net benefit of one arm less that of the other at each threshold probability; the "
        "intervals hold at each threshold by itself.",
        _entry("comparisons", "*", "net_benefit"),
        ["Vickers AJ, et al. BMC Med Inform Decis Mak 2008;8:53."],
    ),
    Definition(
        "ROC curve",
        "Sensitivity against 1 − specificity over all thresholds; of several models the mean "
        "sensitivity at each specificity.",
        _entry("arms", "*", "curves", "roc"),
        ["Fawcett T. Pattern Recognit Lett 2006;27:861."],
    ),
    Definition(
        "Precision–recall curve",
        "PPV against sensitivity over all thresholds, at the prevalence of the examples, which the "
        "line marks.",
        _entry("arms", "*", "curves", "pr"),
        ["Saito T, Rehmsmeier M. PLoS One 2015;10:e0118432."],
    ),
    Definition(
        "Reliability diagram",
        "The share of positives against the mean probability in bins of equal numbers of examples, "
        "with Wilson's intervals for clustered examples.",
        _entry("arms", "*", "curves", "reliability"),
        ["Murphy AH, Winkler RL. J R Stat Soc C 1977;26:41."],
    ),
    Definition(
        "Confusion matrix",
        "Counts of true against predicted classes; of several models the mean over those that "
        "predict the same example.",
        _entry("arms", "*", "confusion"),
    ),
    Definition(
        "Groups",
        "Every metric among the examples of a group. The gap is that between the best and the "
        "worst group; among many groups one is large by chance.",
        _entry("arms", "*", "subgroups"),
        ["Sun X, et al. BMJ 2010;340:c117."],
    ),
    Definition(
        "Differences between groups",
        "Cochran's Q tests whether groups have one value, with p by Welch's F, as standard errors "
        "are estimated; I² is the share of their variation that is not chance. p values of groups "
        "are adjusted for their number. The interaction tests whether the difference between two "
        "arms is the same in all groups.",
        _entry("subgroups"),
        [
            "Cochran WG. Biometrics 1954;10:101.",
            "Welch BL. Biometrika 1951;38:330.",
            "Higgins JPT, Thompson SG. Stat Med 2002;21:1539.",
        ],
    ),
    Definition(
        "Sites",
        "Random-effects meta-analysis: τ² by restricted maximum likelihood, the interval of the "
        "mean by Hartung and Knapp; the prediction interval is for the true value at a new site.",
        _entry("sites"),
        [
            "Viechtbauer W. J Educ Behav Stat 2005;30:261.",
            "Hartung J, Knapp G. Stat Med 2001;20:3875.",
            "Higgins JPT, et al. J R Stat Soc A 2009;172:137.",
        ],
    ),
    Definition(
        "Per patient",
        "A patient's probability is the mean, or the maximum, over the patient's images, and the "
        "patient is the example.",
        _entry("per_patient"),
    ),
    Definition(
        "Learning curve",
        "The metric of models that were trained on parts of the target's labels; val is whole in "
        "each.",
        _entry("learning_curve"),
    ),
    Definition(
        "Law of the learning curve",
        "An inverse power law of the error, a + b n^−c of n labels, fitted to each arm, with a "
        "band. Labels saved are those that the reference needs for an arm's value, by both laws.",
        _entry("learning_curve", "fit", "*", "x"),
        ["Figueroa RL, et al. BMC Med Inform Decis Mak 2012;12:8."],
    ),
    Definition(
        "Errors",
        "The examples that the model gets wrong with the highest probability.",
        _entry("errors"),
    ),
)
