"""The methods behind the intervals and tests that a report shows, with their sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from medtl.evaluation import wording
from medtl.evaluation.report.definitions import definitions


@dataclasses.dataclass(frozen=True)
class Method:
    """A term, its meaning, and its sources."""

    term: str
    text: str
    sources: Sequence[str] = ()


def methods(analysis: Mapping[str, Any]) -> list[Method]:
    """Return the methods that the report of this analysis names, in its order."""
    defined = (Method(one.term, one.text, one.sources) for one in definitions(analysis))
    others = (method for shown, method in _OTHERS if shown(analysis))
    return [*_estimates(analysis), *others, *defined]


def _estimates(analysis: Mapping[str, Any]) -> Iterator[Method]:
    design = analysis["design"]
    unit, level = design["unit"], wording.percent(design["level"])
    times = wording.count(design["resamples"])
    text = (
        f"{unit.capitalize()} are drawn with replacement, {times} times, the same for all arms, "
        f"and every metric is computed again from each draw. The {level} interval is the "
        "percentiles of these values, farther out the fewer there are; for shares, such as "
        f"sensitivity, it is Wilson's with their variance. It covers what other {unit} might have "
        "shown of these trained models."
    )
    if unit == "patients":
        text += " The examples of a patient stay together, as they resemble each other."
    else:
        text += " Patients are unknown here; if one has several examples, true intervals are wider."
    sources = ["Hesterberg TC. Am Stat 2015;69:371.", "Wilson EB. J Am Stat Assoc 1927;22:209."]
    if unit == "patients":
        sources.append("Field CA, Welsh AH. J R Stat Soc B 2007;69:369.")
    yield Method("Intervals", text, sources)
    yield from _operating(analysis)
    if design.get("models", 1) > 1:
        yield Method(
            "Several models",
            f"Each arm has {wording.count(design['models'])} models, one for each fold, repeat and "
            "seed. A metric is computed for each model and then averaged: the scores of different "
            "models are not on one scale, so they are not pooled. SD is the standard deviation "
            "over the models.",
            [
                "Forman G, Scholz M. Apples-to-apples in cross-validation studies. "
                "SIGKDD Explor 2010;12(1):49."
            ],
        )


def _operating(analysis: Mapping[str, Any]) -> Iterator[Method]:
    """Name the specificity, sensitivity and prevalence of the metrics that depend on one."""
    settings = analysis.get("settings") or {}
    if analysis["task"] == "regression":
        settings = {}
    parts = []
    if wording.is_known(settings.get("specificity")):
        share = wording.percent(settings["specificity"])
        parts.append(f"Sensitivity at fixed specificity is at a specificity of {share}")
    if wording.is_known(settings.get("sensitivity")):
        share = wording.percent(settings["sensitivity"])
        parts.append(f"specificity at fixed sensitivity at a sensitivity of {share}")
    if "prevalence" in settings:
        share = wording.percent(settings["prevalence"])
        stated = f"a prevalence of {share}" if settings["prevalence"] else ""
        parts.append(f"PPV and NPV are at {stated or 'the prevalence of the evaluated examples'}")
    text, sources = "; ".join(parts), []
    if settings.get("prevalence"):
        text += (
            ", by Bayes from sensitivity and specificity, whose limits give theirs (MOVER-R). Net "
            "benefit is at the same prevalence"
        )
        sources = ["Donner A, Zou GY. Stat Methods Med Res 2012;21:347."]
    if parts:
        yield Method("Operating points", f"{text}.", sources)


def _tested(part: str) -> Callable[[Mapping[str, Any]], bool]:
    """Tell whether a test of that name is among those of a comparison."""
    return lambda analysis: any(
        part in test["name"].lower()
        for c in analysis.get("comparisons") or ()
        for test in c.get("tests") or ()
    )


def _measured(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda analysis: any(
        name in arm["metrics"] for arm in analysis["arms"].values() for name in names
    )


def _found(part: str, kind: str = "") -> Callable[[Mapping[str, Any]], bool]:
    """Tell whether an arm has a part, and in it a kind, that is defined."""

    def shown(analysis: Mapping[str, Any]) -> bool:
        entries = [arm.get(part) or {} for arm in analysis["arms"].values()]
        return any(
            entry.get(kind) if kind else entry and "undefined" not in entry for entry in entries
        )

    return shown


def _explained(part: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda analysis: any(
        part in (e.get("method") or "").lower() for e in analysis.get("errors") or ()
    )


_OTHERS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Method], ...] = (
    (
        _tested("bootstrap"),
        Method(
            "Test of a difference",
            "Student's t of the difference; its standard error is the spread over resamples of the "
            "patients. With one model an arm it is about these trained models only.",
            ["Davison AC, Hinkley DV. Bootstrap Methods and their Application. 1997."],
        ),
    ),
    (
        _tested("and seeds"),
        Method(
            "Variance of training",
            "The squared standard error adds, to that of the patients, the variance of the mean "
            "over seeds of the difference between two models of one seed; degrees of freedom by "
            "Satterthwaite.",
            ["Satterthwaite FE. Biometrics Bull 1946;2:110."],
        ),
    ),
    (
        _tested("delong"),
        Method(
            "DeLong's test",
            "Compares two AUROCs of the same examples; where a patient has several, with the "
            "patient as unit.",
            [
                "DeLong ER, DeLong DM, Clarke-Pearson DL. Biometrics 1988;44:837.",
                "Obuchowski NA. Biometrics 1997;53:567.",
                "Sun X, Xu W. IEEE Signal Process Lett 2014;21:1389.",
            ],
        ),
    ),
    (
        _tested("mcnemar"),
        Method(
            "McNemar's test",
            "Compares two accuracies by the examples on which only one of the arms is right; where "
            "a patient has several, with the patient as unit.",
            [
                "McNemar Q. Psychometrika 1947;12:153.",
                "Fagerland MW, Lydersen S, Laake P. BMC Med Res Methodol 2013;13:91.",
                "Yang Z, Sun X, Hardin JW. Stat Med 2010;29:2435.",
            ],
        ),
    ),
    (
        _tested("corrected"),
        Method(
            "Corrected resampled t-test",
            "A t-test over the folds whose variance is enlarged, because the training sets of the "
            "folds overlap. It is about the learning method and not only about these models.",
            ["Nadeau C, Bengio Y. Mach Learn 2003;52:239.", "Bouckaert RR, Frank E. PAKDD 2004:3."],
        ),
    ),
    (
        lambda analysis: len(analysis.get("comparisons") or ()) > 1,
        Method(
            "Simultaneous intervals",
            "The intervals of all arms' differences hold together at their level, by the joint "
            "distribution of the largest statistic; the adjusted p says the same.",
            ["Hothorn T, Bretz F, Westfall P. Biom J 2008;50:346."],
        ),
    ),
    (
        _measured("auroc"),
        Method(
            "AUROC",
            "The chance that a random positive has a higher score than a random negative; of "
            "several classes the mean over each against the rest.",
            ["Hanley JA, McNeil BJ. Radiology 1982;143:29."],
        ),
    ),
    (
        _measured("auprc"),
        Method(
            "AUPRC",
            "Average precision of the positive class; by chance it is the class's share of the "
            "examples. Of several classes the mean over each against the rest.",
            ["Davis J, Goadrich M. ICML 2006:233."],
        ),
    ),
    (
        _measured("ece"),
        Method(
            "ECE",
            "Expected calibration error over bins that hold equal numbers of examples, less part "
            "of what chance adds. A model with perfect probabilities has an ECE above 0, too: the "
            "value beside it is that of labels drawn from the probabilities themselves.",
            ["Kumar A, Liang P, Ma T. Verified uncertainty calibration. NeurIPS 2019."],
        ),
    ),
    (
        _measured("brier"),
        Method(
            "Brier score",
            "Mean squared error of the probabilities.",
            ["Brier GW. Mon Weather Rev 1950;78:1."],
        ),
    ),
    (
        lambda analysis: (
            _measured("calibration_slope", "calibration_intercept")(analysis)
            or _found("calibration", "per_class")(analysis)
        ),
        Method(
            "Calibration slope and intercept",
            "Coefficients of a logistic regression of the label on the logit of the probability. A "
            "slope of 1 and an intercept of 0 are right; a slope below 1 means that the model is "
            "too sure. All folds and seeds together; of several classes each against the rest, "
            "without a mean, in which errors of opposite sign would cancel.",
            [
                "Cox DR. Biometrika 1958;45:562.",
                "Van Hoorde K, et al. Stat Med 2014;33:2585.",
                "Van Calster B, et al. BMC Med 2019;17:230.",
            ],
        ),
    ),
    (
        _found("calibration", "smooth"),
        Method(
            "Calibration curve",
            "Observed risk by a logistic regression on a natural cubic spline of the logit of the "
            "predicted one, all folds and seeds together, with a band by resampled patients. ICI "
            "is the mean distance of the two risks, which chance alone puts above 0; O:E is "
            "observed over expected cases.",
            [
                "Austin PC, Steyerberg EW. Stat Med 2014;33:517.",
                "Austin PC, Steyerberg EW. Stat Med 2019;38:4051.",
                "Van Calster B, et al. Lancet Digit Health 2025;7:100916.",
            ],
        ),
    ),
    (
        _found("calibration"),
        Method(
            "Scaling",
            "Fitted on the validation split and measured on the split reported here. Vector "
            "scaling of two classes is Platt's.",
            ["Guo C, et al. ICML 2017.", "Zadrozny B, Elkan C. KDD 2002:694."],
        ),
    ),
    (
        _found("conformal"),
        Method(
            "Conformal sets",
            "Sets of classes that hold the right one with a chance of at least the nominal level "
            "for a new patient, if the validation patients are like those evaluated; "
            "class-conditional ones do so within each class. In the measured coverage each patient "
            "weighs one.",
            [
                "Vovk V, Gammerman A, Shafer G. Algorithmic Learning in a Random World. 2005.",
                "Sadinle M, Lei J, Wasserman L. J Am Stat Assoc 2019;114:223.",
            ],
        ),
    ),
    (
        _found("curves", "decision"),
        Method(
            "Net benefit",
            "True positives less false positives, weighed by the odds of the threshold "
            "probability, per example.",
            ["Vickers AJ, Elkin EB. Med Decis Making 2006;26:565."],
        ),
    ),
    (
        _explained("grad-cam"),
        Method(
            "Grad-CAM",
            "Where in the image the predicted class gets its score; a hint, not an explanation.",
            ["Selvaraju RR, et al. ICCV 2017:618."],
        ),
    ),
    (
        _explained("integrated"),
        Method(
            "Integrated gradients",
            "How much each pixel adds to the score of the predicted class, against an empty image.",
            ["Sundararajan M, Taly A, Yan Q. ICML 2017."],
        ),
    ),
)
