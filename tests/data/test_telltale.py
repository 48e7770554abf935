"""Texts that name the diagnosis, and words that predict it."""

import numpy as np
import pytest
from clinical_run import clinical
from sklearn.metrics import roc_auc_score

from medtl.config import dataset
from medtl.data import leakage, schema, telltale
from medtl.data.preprocessing import Layout
from medtl.errors import UserError
from medtl.experiment.preview import preview

CLASSES = ("icu", "no_icu")


def notes(texts):
    listed = (schema.Column("notes", "text", "given"),)
    return schema.Columns(listed, {"notes": np.array(texts, object)})


def checked(texts, synonyms=(), **options):
    label = np.arange(len(texts)) % 2
    names = telltale.words(CLASSES, synonyms, key="config.data.target.synonyms")
    ids = np.array([f"row{i}" for i in range(len(texts))])
    return telltale.check(
        notes(texts), ["notes"], label, names, ids=ids, where="target a", **options
    )


@pytest.mark.parametrize("text", ["moved to ICU", "(icu)", "no_icu stay", "in the ICU: stable"])
def test_the_name_of_a_class_is_found_whatever_its_case(text):
    with pytest.raises(UserError, match=r"1 of 2 texts of 'notes' name the class 'icu' \(icu\)"):
        checked([text, "stable"])


@pytest.mark.parametrize("text", ["difficult", "ventricular", "reintubated", ""])
def test_a_part_of_another_word_is_not(text):
    assert checked([text, "stable"], ["icu=intubat*"]) == []


def test_synonyms_are_refused_or_noted_or_masked_by_choice():
    texts, synonyms = ["", "stays", "was Intubated", "intensive-care unit"], ["icu=intensive care"]
    synonyms.append("icu=intubat*")
    words = r"2 of 3 texts of 'notes' name the class 'icu' \(intensive-care, intubated\), and 1 of"
    with pytest.raises(UserError, match=words + r" these are of it: 'row2'.*'text_names_class'"):
        checked(texts, synonyms)
    assert checked(texts, synonyms, allow=["text_names_class"])[0].endswith(
        "(allowed: text_names_class)"
    )
    assert "the words are left out" in checked(texts, synonyms, mask=True)[0]
    with pytest.raises(UserError, match="there is no class 'ICU'; did you mean 'icu'"):
        checked(texts, ["ICU=intubat*"])


def test_a_masked_word_gives_no_feature():
    class Settings:
        numbers, bins, text_features, scale_categories = "standard", 4, 64, False

    counts = []
    for text in ("he was intubated early", "he was  early"):
        layout = Layout.of({"target": notes([text])}, Settings, ["intubat*"])
        counts.append(layout.encode(notes([text]), 1).counts.toarray())
    np.testing.assert_array_equal(*counts)


def test_the_area_of_a_word_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.random(200) < 0.4
    has = np.where(y, rng.random(200) < 0.9, rng.random(200) < 0.2)
    texts = np.array([f"{'dead' if h else 'a'} {rng.integers(5)}" for h in has], object)
    word, area = telltale.best_word(texts, y)
    assert word in ("dead", "a")
    assert area == pytest.approx(roc_auc_score(y, has))


@pytest.mark.parametrize(("rate", "is_refused"), [(1.0, True), (0.92, False)])
def test_a_single_word_that_gives_the_label_away_is_refused_or_a_warning(rate, is_refused):
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    has = (label == 1) & (rng.random(400) < rate)
    table = notes([f"{'died' if h else 'home'} on day {rng.integers(400)}" for h in has])
    arguments = (table, ["notes"], label, CLASSES)
    if is_refused:
        with pytest.raises(UserError, match="the texts with '(died|home)' of 'notes' predict"):
            leakage.check(*arguments, texts=["notes"], where="target a")
    options = {"allow": ["notes"]} if is_refused else {}
    assert len(leakage.check(*arguments, texts=["notes"], where="target a", **options)) == 1
    assert leakage.check(*arguments, where="target a") == []


def test_notes_that_name_intensive_care_are_refused_on_real_data(shared):
    path = shared / "data" / "chest_xray_icu" / "manifest.csv"
    synonyms = ("icu=intubat*", "icu=intensive care")
    spec = dataset("manifest", path=str(path), synonyms=synonyms)
    allow = ("duplicate_images", "near_duplicate_images")
    config = clinical(
        path, data__target=spec, data__inputs=("image", "table", "text"), data__allow=allow
    )
    with pytest.raises(UserError, match="16 of 67 texts of 'clinical_notes' name the class 'icu'"):
        preview(config)
    config.data.preprocessing.mask_synonyms = True
    preview(config)
