"""What an analysis and the record of its run tell about an item of a reporting guideline.

Each answer is a function of both; `checklist` asks each once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from medtl.evaluation import plan, wording

FILLED, AUTHOR, ABSENT = "filled", "you must write", "not done"
Part = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The state of an item, its text, and the report's section; see `checklist.Item`."""

    state: str
    text: str = ""
    place: str = ""


_FOREIGN = Answer(AUTHOR, "The predictions come from another tool; this report does not know it.")


def _filled(text: str, place: str) -> Answer:
    return Answer(FILLED, text, place)


def _config(record: Part | None, path: str) -> Any:
    """Return a value of the run's config, None where the record or the field is missing."""
    value: Any = (record or {}).get("config")
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _first(analysis: Part) -> tuple[str, Part]:
    """Return the arm that the report is about: the compared one, else the first."""
    items = analysis.get("comparisons") or ()
    named = [c["arm"] for c in items if c["arm"] in analysis["arms"]]
    name = named[0] if named else next(iter(analysis["arms"]))
    return name, analysis["arms"][name]


def _columns(analysis: Part) -> list[str]:
    """Return the columns of groups, without the prefix that they have in a manifest."""
    names = dict.fromkeys(
        c for arm in analysis["arms"].values() for c in arm.get("subgroups") or ()
    )
    return [name.removeprefix("subgroup_") for name in names]


def _aims(analysis: Part, record: Part | None) -> Answer:
    others = [arm for arm in analysis["arms"] if arm != analysis.get("reference")]
    metric = wording.metric(analysis["metric"])
    asked = f"compare {wording.listed(others)} with {analysis['reference']} in {metric}"
    text = asked if analysis.get("reference") else f"measure {metric} of {wording.listed(others)}"
    return Answer(AUTHOR, f"The run was made to {text}.", "arms")


def _source(analysis: Part, record: Part | None) -> Answer:
    cards = (record or {}).get("data") or {}
    names = [f"{domain} {card.get('name', '')}" for domain, card in cards.items()]
    if not names:
        return _FOREIGN
    return Answer(AUTHOR, f"The data card has {wording.listed(names)}, with a fingerprint.", "data")


def _software(analysis: Part, record: Part | None) -> Answer:
    versions = (record or {}).get("versions") or {}
    named = [f"{name} {version}" for name, version in versions.items() if name != "machine"]
    return _filled(f"{', '.join(named)}.", "model") if named else _FOREIGN


def _preprocessing(analysis: Part, record: Part | None) -> Answer:
    size, channels = (_config(record, f"data.{name}") for name in ("image_size", "channels"))
    if size is None:
        return _FOREIGN
    kind = "grey" if channels == 1 else "RGB"
    text = f"Images are brought to {size} x {size} pixels ({_config(record, 'data.resize')}), "
    stated = _config(record, "weights.normalization")
    normalization = "that of the weights" if stated in ("auto", None) else stated
    return _filled(f"{text}{kind}; normalization: {normalization}.", "model")


def _model(analysis: Part, record: Part | None) -> Answer:
    name = _config(record, "model.name")
    if name is None:
        return _FOREIGN
    last = _config(record, "model.last_layer")
    heads = _config(record, "model.heads")
    upto = f" up to {last}" if last else ""
    return _filled(f"Backbone {name}{upto}; heads: {heads}; every setting is listed.", "model")


def _partition(analysis: Part, record: Part | None) -> Answer:
    words = analysis["design"].get("words")
    splits = (((record or {}).get("data") or {}).get("target") or {}).get("splits") or {}
    sizes = [f"{split} {wording.count(sum(n.values()))}" for split, n in splits.items()]
    text = f"Target: {wording.listed(sizes)} images. " if sizes else ""
    if not (words or text):
        return _FOREIGN
    return _filled(f"{text}{words or ''}".strip(), "data" if sizes else "arms")


def _disjoint(analysis: Part, record: Part | None) -> Answer:
    if analysis.get("patients") is None:
        return Answer(ABSENT, "Patients are unknown (no patient_id): only images are disjoint.")
    if record is None:
        return _FOREIGN
    return _filled("Patients: none is in two of train, val and test.", "data")


def _threshold(analysis: Part, record: Part | None) -> Answer:
    if analysis["task"] != "two_class":
        text = "The class of the largest probability is predicted; there is no cut-off."
        return _filled(text, "arms") if analysis["task"] == "multi_class" else Answer(AUTHOR)
    arm, result = _first(analysis)
    card = result.get("threshold")
    if not card:
        return Answer(ABSENT, "No operating threshold was chosen.")
    text = f"{arm}: {wording.number(card.get('value'))}, {card.get('words')}."
    planned = analysis.get("planned")
    if planned:
        changed = any("threshold" in setting for setting in planned.get("changed") or ())
        when = "changed after results were seen" if changed else "stated before training"
        text += f" The rule was {when}."
    return _filled(text, "arms")


def _statistics(analysis: Part, record: Part | None) -> Answer:
    design = analysis["design"]
    text = f"{wording.percent(design['level'])} intervals from {wording.count(design['resamples'])}"
    text += f" resamples of {design['unit']}"
    methods = dict.fromkeys(c.get("method") for c in analysis.get("comparisons") or ())
    named = [method for method in methods if method]
    return _filled(f"{text}{f'; tests: {wording.listed(named)}' if named else ''}.", "methods")


def _indeterminate(analysis: Part, record: Part | None) -> Answer:
    sets = _first(analysis)[1].get("conformal") or {}
    if not sets or "undefined" in sets:
        return Answer(AUTHOR, "The model gives every image a probability.")
    text = "The model gives every image a probability; prediction sets show undecided images."
    return Answer(AUTHOR, text, "conformal")


def _missing(analysis: Part, record: Part | None) -> Answer:
    flow = analysis.get("flow")
    if not flow:
        return Answer(AUTHOR, "Images without a label are left out; the run did not count them.")
    left = [f"{e['reason']} ({wording.count(e['rows'])})" for e in flow.get("excluded") or ()]
    rows, without = wording.count(flow["rows"]), wording.count(flow["unlabelled"])
    text = f"{without} of {rows} images have no label"
    return _filled(f"{text}{f'; left out: {wording.listed(left)}' if left else ''}.", "flow")


def _variability(analysis: Part, record: Part | None) -> Answer:
    design, parts = analysis["design"], []
    if design.get("models", 1) > 1:
        parts.append(f"the standard deviation over {design['models']} models")
    if columns := _columns(analysis):
        parts.append(f"groups of {wording.listed(columns)}")
    if analysis.get("learning_curve"):
        parts.append("the number of labels")
    if not parts:
        return Answer(ABSENT, "One model, no groups: give several seeds or columns of groups.")
    return _filled(f"By {wording.listed(parts)}.", "subgroups" if columns else "arms")


def _sample_size(analysis: Part, record: Part | None) -> Answer:
    section, seeds = _config(record, "plan"), _config(record, "seeds") or ()
    advice = "The config states no plan; --mode=plan computes how many patients are needed."
    names = {field.name for field in dataclasses.fields(plan.Assumptions)} - {"seeds"}
    if not section or set(section) != names:
        return Answer(ABSENT, advice)
    assumed = plan.Assumptions(seeds=len(seeds), **section)
    if assumed == plan.Assumptions(seeds=len(seeds)):
        return Answer(ABSENT, advice)
    return _filled(f"Planned: {plan.plan(assumed).headline} {plan.assumed(assumed)}", "model")


def _fairness(analysis: Part, record: Part | None) -> Answer:
    columns = _columns(analysis)
    if not columns:
        return Answer(ABSENT, "The data have no column of groups (subgroup_NAME).")
    return _filled(f"Every metric in the groups of {wording.listed(columns)}.", "subgroups")


def _flow(analysis: Part, record: Part | None) -> Answer:
    if analysis.get("patients") is None:
        return Answer(ABSENT, "Patients are unknown (no patient_id): only images can be counted.")
    flow = analysis.get("flow")
    if not flow:
        return Answer(ABSENT, "The run did not count what was left out.")
    steps = [f"{wording.count(flow['rows'])} rows", f"{wording.count(flow['labelled'])} labelled"]
    splits = [
        f"{name}: {wording.count(split['patients'])} patients"
        + (
            f", {wording.count(split['positive_patients'])} positive"
            if split.get("positive_patients") is not None
            else ""
        )
        for name, split in (flow.get("splits") or {}).items()
        if split.get("patients") is not None
    ]
    return _filled(f"{'; '.join([*steps, *splits])}.", "flow")


def _counts(analysis: Part, record: Part | None) -> Answer:
    patients = analysis.get("patients")
    if patients is None:
        return Answer(ABSENT, "Patients are unknown (no patient_id): only images can be counted.")
    classes = [f"{name} {wording.count(n)}" for name, n in analysis["class_counts"].items()]
    text = f"{analysis['split']}: {wording.count(analysis['n'])} images of "
    of_classes = f"; {', '.join(classes)}" if classes else ""
    return _filled(f"{text}{wording.count(patients)} patients{of_classes}.", "arms")


def _characteristics(analysis: Part, record: Part | None) -> Answer:
    if not (record or {}).get("data"):
        return _FOREIGN
    text = "The data card has classes and patients by split; add age, sex and clinical findings."
    return Answer(AUTHOR, text, "data")


def _external(analysis: Part, record: Part | None) -> Answer:
    column = (analysis["design"].get("left_out") or "").removeprefix("subgroup_")
    if column:
        return _filled(f"Each {column} was left out of training and evaluated on.", "sites")
    return Answer(ABSENT, "No site was left out of training and evaluated on.")


def _heterogeneity(analysis: Part, record: Part | None) -> Answer:
    if analysis.get("sites"):
        return _filled("Random-effects meta-analysis over sites, prediction interval.", "sites")
    if "site" in _columns(analysis):
        return _filled("Every metric in each site.", "subgroups")
    return Answer(ABSENT, "The data have no column site.")


def _cross_table(analysis: Part, record: Part | None) -> Answer:
    if _first(analysis)[1].get("agreement"):
        return _filled("The predictions of every arm against the labels.", "agreement")
    if not _first(analysis)[1].get("confusion"):
        return Answer(ABSENT, "There is no confusion matrix.")
    return _filled("The confusion matrix of every arm.", "confusion")


def _accuracy(analysis: Part, record: Part | None) -> Answer:
    arm, result = _first(analysis)
    shown = []
    for name in wording.main_metrics(analysis):
        estimate = result["metrics"].get(name) or {}
        between = wording.interval(estimate.get("low"), estimate.get("high"))
        if between:
            value = wording.number(estimate["value"])
            shown.append(f"{wording.metric(name)} {value} ({between})")
    if not shown:
        return Answer(ABSENT, "No metric has an interval.", "arms")
    return _filled(f"{arm}: {'; '.join(shown[:3])}.", "arms")


def _limitations(analysis: Part, record: Part | None) -> Answer:
    warnings = " ".join(analysis.get("warnings") or ())
    return Answer(AUTHOR, f"Among them: {warnings}" if warnings else "", "arms" if warnings else "")


def _measures(analysis: Part, record: Part | None) -> Answer:
    result = _first(analysis)[1]
    names = [wording.metric_in_a_sentence(name) for name in wording.main_metrics(analysis)]
    curves = result.get("curves") or {}
    plots = [
        words
        for part, words in (
            ("roc", "ROC curves"),
            ("reliability", "calibration plots"),
            ("decision", "decision curves"),
        )
        if curves.get(part)
    ]
    return _filled(f"{wording.listed(names + plots)}; Methods define each.", "methods")


def _updating(analysis: Part, record: Part | None) -> Answer:
    parts = _first(analysis)[1].get("calibration") or {}
    kinds = ("temperature", "vector", "platt", "isotonic")
    made = [kind for kind in kinds if kind in parts and "undefined" not in parts[kind]]
    if not made:
        reasons = (parts.get(kind, {}).get("undefined") for kind in kinds)
        reason = parts.get("undefined") or next(filter(None, reasons), "no map was fitted")
        return Answer(ABSENT, f"No recalibration: {reason}.")
    names = ["Platt" if kind == "platt" else kind for kind in made]
    text = f"{wording.listed(names)} scaling, fitted on val, before and after."
    return _filled(f"{text[0].upper()}{text[1:]}", "calibration")


def _predictions(analysis: Part, record: Part | None) -> Answer:
    if not (record or {}).get("command"):
        return _FOREIGN
    return _filled("--mode=predict scores new images with the kept checkpoints.", "command")


def _imbalance(analysis: Part, record: Part | None) -> Answer:
    sampler = _config(record, "stages.target.sampler")
    if sampler is None:
        return _FOREIGN
    how = "none; examples are equally likely" if sampler == "shuffled" else f"sampler {sampler}"
    return _filled(f"Class imbalance method: {how}.", "model")


def _subsets(analysis: Part, record: Part | None) -> Answer:
    size = _config(record, "data.target.train_size")
    if size is None:
        return _FOREIGN
    text = f"{wording.count(size)} training examples, stratified" if size else "None was selected"
    return _filled(f"{text}.", "data")


def _initialization(analysis: Part, record: Part | None) -> Answer:
    if record is None or "weights" not in record:
        return _FOREIGN
    weights = record["weights"]
    if not weights:
        return _filled("Random.", "model")
    return _filled(f"{weights['path']}, sha256 {weights['sha256'][:12]}...", "model")


def _training(analysis: Part, record: Part | None) -> Answer:
    stage = _config(record, "stages.target")
    if not stage:
        return _FOREIGN
    names = ("optimizer", "learning_rate", "epochs", "batch_size", "freeze")
    parts = [f"{name.replace('_', ' ')} {stage[name]}" for name in names if name in stage]
    losses = _config(record, "objective.losses") or {}
    parts += [f"loss {entry['loss']}" for entry in losses.values()]
    seeds = _config(record, "seeds") or ()
    parts.append(f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}")
    return _filled(f"Target stage: {', '.join(parts)}.", "model")


def _selection(analysis: Part, record: Part | None) -> Answer:
    select = _config(record, "checkpoint.select")
    if select is None:
        return _FOREIGN
    metric = wording.metric(_config(record, "checkpoint.metric"))
    last = "The last checkpoint."
    return _filled(f"The best {metric} on val." if select == "best" else last, "model")


def _ensemble(analysis: Part, record: Part | None) -> Answer:
    if record is None:
        return _FOREIGN
    return _filled("No comparison: every model is evaluated by itself.", "arms")


def _explanations(analysis: Part, record: Part | None) -> Answer:
    methods = dict.fromkeys(e.get("method") for e in analysis.get("errors") or ())
    named = [method for method in methods if method]
    if not named:
        return Answer(ABSENT, "No saliency maps were made.")
    return _filled(f"{wording.listed(named)} of the most confident mistakes.", "errors")


def _internal(analysis: Part, record: Part | None) -> Answer:
    if record is None:
        return _FOREIGN
    return _filled(f"The {analysis['split']} split of the target.", "arms")


def _failures(analysis: Part, record: Part | None) -> Answer:
    count = len(analysis.get("errors") or ())
    if not count:
        return Answer(ABSENT, "No mistakes are listed.")
    return _filled(f"The {count} most confident mistakes, to be judged by a reader.", "errors")


def _code(analysis: Part, record: Part | None) -> Answer:
    command = (record or {}).get("command")
    if not command:
        return _FOREIGN
    version = (record or {}).get("versions", {}).get("medtl")
    code = f"medtl {version}" if version else "medtl"
    return Answer(AUTHOR, f"The analysis is {code}; the command is in the report.", "command")


def _audit(analysis: Part, record: Part | None) -> Answer:
    return _filled("Every prediction is kept in predictions.csv.", "command" if record else "")


ANSWERS: Mapping[str, Callable[[Part, Part | None], Answer]] = {
    "accuracy": _accuracy,
    "aims": _aims,
    "audit": _audit,
    "characteristics": _characteristics,
    "code": _code,
    "counts": _counts,
    "cross_table": _cross_table,
    "disjoint": _disjoint,
    "ensemble": _ensemble,
    "explanations": _explanations,
    "external": _external,
    "failures": _failures,
    "fairness": _fairness,
    "flow": _flow,
    "heterogeneity": _heterogeneity,
    "imbalance": _imbalance,
    "indeterminate": _indeterminate,
    "initialization": _initialization,
    "internal": _internal,
    "limitations": _limitations,
    "measures": _measures,
    "missing": _missing,
    "model": _model,
    "partition": _partition,
    "predictions": _predictions,
    "preprocessing": _preprocessing,
    "sample_size": _sample_size,
    "selection": _selection,
    "software": _software,
    "source": _source,
    "statistics": _statistics,
    "subsets": _subsets,
    "threshold": _threshold,
    "training": _training,
    "updating": _updating,
    "variability": _variability,
}
