import time

import numpy as np
import pytest
from PIL import Image

from medtl import data
from medtl.config import dataset
from medtl.data import copies
from medtl.errors import UserError

SIDE = 40
OPTIONS = {"image_size": SIDE, "channels": 1, "resize": "squash", "cache_dir": "", "key": "x"}


def drawn(n, seed=0, side=SIDE):
    """Return uint8[n, side, side], smooth random images, as unlike as two bodies."""
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(c) for c in rng.integers(0, 256, (n, 6, 6), np.uint8)]
    size = (side, side)
    return np.stack([np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in coarse])


@pytest.fixture
def write(tmp_path):
    """write(images, labels, splits, **fields): the spec of a manifest of these images."""

    def write(images, labels, splits, name="manifest", **columns):
        columns = {"diagnosis": labels, "split": splits, **columns}
        lines = [",".join(["image_path", *columns])]
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{name}{i}.png")
            lines.append(",".join([f"{name}{i}.png", *(column[i] for column in columns.values())]))
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(lines) + "\n")
        return dataset(path=str(path))

    return write


def load(spec, *allow, cache="memory", **options):
    rules = data.FileRules(allow=allow)
    return data.load(spec, rules=rules, cache=cache, **OPTIONS | options)


LABELS = ["a", "b"] * 6
SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 4


def refused(spec, check, words, **options):
    """Check that a finding is an error, and a note where it is allowed; return the note."""
    with pytest.raises(UserError) as error:
        load(spec, **options)
    assert words in str(error.value)
    assert str(error.value).endswith(f"or add {check!r} to config.data.allow")
    assert len(str(error.value).splitlines()) == 1
    notes = load(spec, check, **options).notes
    assert [note for note in notes if words in note and f"(allowed: {check})" in note]
    return notes


@pytest.mark.parametrize("cache", ["memory", "disk", "stream"])
def test_an_image_in_two_splits_is_refused_with_both_rows(write, cache, tmp_path):
    images = drawn(12)
    assert load(write(images, LABELS, SPLITS), cache=cache, cache_dir=str(tmp_path)).notes == ()
    images[10] = images[2]
    words = (
        "1 of the 6 val and test images have a copy in an earlier split: 'manifest10.png' (test, "
        "line 12, a) = 'manifest2.png' (train, line 4, a)"
    )
    options = {"cache": cache, "cache_dir": str(tmp_path)}
    assert len(refused(write(images, LABELS, SPLITS), "duplicate_images", words, **options)) == 1


def test_equal_images_with_different_labels_are_refused_in_one_split_too(write):
    images = drawn(12)
    images[3] = images[0]
    words = "1 image has a copy with another label: 'manifest3.png' (train, line 5, b) = 'manifest0"
    refused(write(images, LABELS, SPLITS), "conflicting_labels", words)
    images = drawn(12)
    images[2] = images[0]  # twice in train, of one class
    assert load(write(images, LABELS, SPLITS)).notes == ()


def test_an_unknown_label_conflicts_with_none(write):
    images = drawn(6)
    images[2] = images[0]
    labels = ["a|b", "|", "a|?b", "b", "a", "b"]
    spec = write(images, labels, ["train"] * 4 + ["val"] * 2)
    spec.multi_label = True
    assert load(spec).notes == ()


def changed(image, kind):
    image = image.astype(float)
    if kind == "brighter":
        return np.uint8(np.clip(image * 0.8 + 30, 0, 255))
    if kind == "noisy":
        return np.uint8(np.clip(image + np.random.default_rng(1).normal(0, 4, image.shape), 0, 255))
    small = Image.fromarray(np.uint8(image)).resize((25, 25), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("cache", ["memory", "stream"])
@pytest.mark.parametrize("kind", ["brighter", "noisy", "resized"])
def test_a_near_copy_is_refused_with_both_ids(write, kind, cache, tmp_path):
    images = drawn(12)
    images[11] = changed(images[5], kind)
    words = (
        "1 of the 6 val and test images have a near copy in an earlier split: 'manifest11.png' "
        "(test, line 13, b) ~ 'manifest5.png' (train, line 7, b)"
    )
    options = {"cache": cache, "cache_dir": str(tmp_path)}
    refused(write(images, LABELS, SPLITS), "near_duplicate_images", words, **options)


def test_in_cross_validation_a_copy_counts_unless_it_is_of_the_same_patient(write):
    images = drawn(12)
    images[2], images[4] = images[0], changed(images[1], "noisy")
    labels = ["a", "b", "a", "a", "b", *LABELS[5:]]
    spec = write(images, labels, SPLITS)
    assert load(spec).notes == ()  # all within train
    refused_all = {"all_held_out": True}
    with pytest.raises(UserError, match=r"1 of the 12 images have a copy in another fold"):
        load(spec, **refused_all)
    with pytest.raises(UserError, match=r"1 of the 12 images have a near copy in another fold"):
        load(spec, "duplicate_images", **refused_all)
    patients = ["p", "q", "p", "r", "q", *"stuvwxy"]
    assert load(write(images, labels, SPLITS, patient_id=patients), **refused_all).notes == ()


def test_a_patient_in_two_splits_can_be_allowed(write):
    spec = write(drawn(12), LABELS, SPLITS, patient_id=[*"abcdefghijk", "a"])
    words = "patient 'a' is in train (line 2) and in test (line 13)"
    refused(spec, "patient_in_two_splits", words)


@pytest.mark.parametrize("kind", ["equal", "noisy"])
def test_an_image_that_the_source_trains_on_is_not_tested(write, kind):
    source, target = drawn(12), drawn(12, seed=1)
    source[3] = target[8] if kind == "equal" else changed(target[8], kind)
    domains = [
        load(write(images, LABELS, SPLITS, name=name))
        for images, name in ((source, "source"), (target, "target"))
    ]
    sign = "=" if kind == "equal" else "~"
    with pytest.raises(UserError, match=f"'target8.png' .test. {sign} 'source3.png'.*'shared_with"):
        data.check_domains(*domains)
    (note,) = data.check_domains(*domains, allow=("shared_with_source",))
    assert note.endswith("(allowed: shared_with_source)")


def test_examples_of_a_users_function_are_checked(tmp_path):
    images = drawn(12)
    images[9] = images[1]
    np.save(tmp_path / "images.npy", images[..., None])
    path = tmp_path / "images.npy"
    (tmp_path / "mine.py").write_text(
        f"""
import numpy as np
from medtl.examples import Examples

def load(spec, *, image_size, channels, resize):
    split = np.repeat(["train", "val", "test"], [6, 2, 4])
    return Examples(
        "mine", {{"image": np.load({str(path)!r})}}, np.arange(12) % 2, np.arange(12).astype(str),
        split, None, np.ones(12, np.float32), ("a", "b"), "", ""
    )
"""
    )
    spec = dataset(f"{tmp_path}/mine.py:load")
    refused(spec, "duplicate_images", "'9' (test, row 9, b) = '1' (train, row 1, b)")


def test_distinct_images_are_not_called_copies():
    images = drawn(2000)
    prints = copies.Prints.of(copies.thumbnails(images[..., None]))
    rows = np.arange(len(images))
    assert copies.nearest(prints, prints, lambda i, j: rows[i] != rows[j]) == {}
    bits = np.unpackbits(prints.hashes[:, None].view(np.uint8), axis=1)
    assert 31 <= bits.sum(1).mean() <= 32  # half of 63 bits are above the median


def test_flat_images_have_no_near_copies():
    flat = np.stack([np.full((SIDE, SIDE, 1), grey, np.uint8) for grey in range(4)])
    prints = copies.Prints.of(copies.thumbnails(flat))
    assert copies.nearest(prints, prints, lambda i, j: i != j) == {}


def test_thumbnails_are_averages_of_the_area():
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 1), np.uint8)
    expected = images.reshape(3, 32, 2, 32, 3).mean((2, 4))
    np.testing.assert_allclose(copies.thumbnails(images), expected, atol=1)
    assert copies.thumbnails(np.full((1, 28, 28, 1), 9, np.uint8)).tolist() == [[[9] * 32] * 32]


def test_hashing_takes_less_time_than_decoding(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (256, 224, 224, 3), np.uint8)
    Image.fromarray(images[0]).save(tmp_path / "one.jpg")
    began = time.perf_counter()
    for _ in range(64):
        np.asarray(Image.open(tmp_path / "one.jpg"))
    decoding = (time.perf_counter() - began) / 64
    copies.thumbnails(images[:8])
    began = time.perf_counter()
    copies.Prints.of(copies.thumbnails(images))
    assert (time.perf_counter() - began) / 256 < decoding
