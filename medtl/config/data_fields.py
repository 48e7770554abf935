"""The fields of the section `data`; `fields` joins all sections. Imports no JAX."""

from __future__ import annotations

from medtl.config.image_fields import IMAGES
from medtl.config.rules import (
    SPLIT,
    UNIQUE,
    Field,
    Node,
    PluginString,
    Rule,
    at_least,
    changed,
    each,
    one_of,
)
from medtl.data import cache, images
from medtl.data.schema import NUMBERS, ROLES
from medtl.data.values import TASKS

Section = dict[str, Node]

DATASET: Section = {
    "kind": Field(
        "manifest",
        "The reader with its options: manifest, npz, folder, features, tfds, phantom, or a function"
        " of your own, which makes the split itself.",
        PluginString("medtl.data.kinds"),
    ),
    "path": Field(
        "",
        "manifest: the CSV. npz: the file, in MedMNIST's layout. folder: that of the classes'"
        " folders. features: the .npz or CSV. tfds: the prepared directory.",
    ),
    "name": Field("", 'tfds: the data set\'s name, e.g. "breast_mnist:1.0.0".'),
    "label": Field("diagnosis", "The diagnosis: a column (manifest) or a feature (tfds)."),
    "columns": Field(
        (),
        'The roles of a table\'s columns, each "COLUMN=ROLE", in place of those that are inferred:'
        f' {", ".join(ROLES)}. A pattern such as "*=ignore" is for the columns that would be'
        " inputs.",
        each("texts COLUMN=ROLE", lambda text: type(text) is str and "=" in text),
    ),
    "synonyms": Field(
        (),
        'Words that name a class in texts, each "CLASS=WORDS", such as "icu=intensive care";'
        ' "icu=intubat*" is the beginning of a word. Texts with such words, or with the name of a'
        " class, are refused unless `data.allow` has `text_names_class`.",
        each(
            "texts CLASS=WORDS",
            lambda text: (
                type(text) is str
                and all(part.strip("* ") for part in text.split("=", 1))
                and "=" in text
            ),
        ),
        UNIQUE,
    ),
    "multi_label": Field(False, 'An example has several diagnoses; a manifest joins them by "|".'),
    "split": Field(
        (),
        "The fractions (train, val, test) where the data has no split; stratified, grouped by"
        " patient. () is the kind's default: (0.7, 0.15, 0.15), or the phantom's option. In"
        " cross-validation, val keeps the proportion that it has to train here.",
        SPLIT,
    ),
    "train_size": Field(
        0,
        "Train on this many examples of the train split (0: all): the first of a stratified order"
        " drawn from `split_seed`.",
        at_least(0),
    ),
    "split_seed": Field(0, "The seed of the split and of `train_size`.", at_least(0)),
}

_PREPROCESSING: Section = {
    "numbers": Field(
        "standard",
        "Numbers of a table: by mean and deviation, by quantiles to a normal distribution, or as"
        " piecewise-linear encoding over bins of equal frequency.",
        one_of(*NUMBERS),
    ),
    "scale_categories": Field(False, "Standardize the one-hot columns of categories, too."),
    "bins": Field(8, "Bins of the piecewise-linear encoding.", at_least(2)),
    "scope": Field(
        "domain", "Fitted on train of each domain alone, or of both.", one_of("domain", "pooled")
    ),
    "text_features": Field(2048, "Hashed word and character n-grams of a text.", at_least(2)),
    "mask_synonyms": Field(
        False, "Leave the names of classes and `data.DOMAIN.synonyms` out of texts."
    ),
}

DATA: Section = {
    "inputs": Field(
        ("image",),
        'What the model reads: "image", "table", "text", "features"; or "auto" alone: all that the'
        " columns hold.",
        Rule("at least one input", len),
        each(
            "of image, table, text, features; or 'auto' alone",
            lambda name: name in ("image", "table", "text", "features", "auto"),
        ),
        Rule("'auto' alone", lambda names: "auto" not in names or len(names) == 1),
        UNIQUE,
    ),
    "task": Field(
        "classification",
        "What the label is. classification: one of two or more classes, or several with"
        " multi_label. ordinal: grades in rising order. regression: a number.",
        one_of(*TASKS),
    ),
    "grades": Field(
        (),
        'ordinal: the grades from the lowest to the highest, e.g. ("mild", "severe"). (): the'
        " labels are numbers.",
        each("names", lambda name: type(name) is str and name),
        UNIQUE,
    ),
    "preprocessing": _PREPROCESSING,
    "allow_columns": Field(
        (),
        "Columns of a table that may give the label away: whose values, or missing cells, predict a"
        " class in train with an AUROC above 0.99. Otherwise such a column is refused.",
        UNIQUE,
    ),
    "image_size": Field(32, "Height and width of the images in pixels.", at_least(1)),
    "channels": Field(1, "1: grey; 3: RGB, in which grey images are repeated.", one_of(1, 3)),
    "resize": Field(
        "squash", "Squash to the square, crop its centre, or pad to it.", one_of(*images.RESIZE)
    ),
    **IMAGES,
    "cache": Field(
        "auto",
        "Where decoded images are kept. auto: memory up to 2 GiB, disk up to 64 GiB, else stream,"
        " which decodes them for every batch.",
        one_of(*cache.KINDS),
    ),
    "cache_dir": Field(
        "",
        'The folder of decoded images (cache="disk"), features of frozen backbones and compiled'
        " programs; empty: ~/.cache/medtl.",
    ),
    "resident": Field(
        "auto",
        "Keep decoded data on the device and run many steps per dispatch. auto: features, and"
        ' images on GPUs and TPUs with room. On CPUs "always" trains convolutions ten times as'
        " slowly.",
        one_of("auto", "always", "never"),
    ),
    "workers": Field(0, 'Worker processes for cache="stream"; 0: threads.', at_least(0)),
    "source": changed(DATASET, kind="phantom(size=2000, scanner='a', split=(0.8, 0.1, 0.1))"),
    "target": changed(
        DATASET, kind="phantom(size=700, scanner='b', split=(0.1, 0.1, 0.8), seed=1)"
    ),
}
