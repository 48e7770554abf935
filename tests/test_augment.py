"""Augmentation against scipy.ndimage, PIL and the distributions it promises."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image

from medtl.data.augment import Augmentation, affine, augment, example_keys, normalize, resample
from medtl.errors import UserError
from medtl.examples import NORMALIZATIONS

EVERYTHING = Augmentation(
    crop=0.3, flip=True, rotation=20.0, brightness=0.1, contrast=0.2, noise=0.05
)


@functools.cache
def compiled(options):
    return jax.jit(functools.partial(augment, options=options))


@functools.cache
def compiled_affine(options, height, width):
    return jax.jit(jax.vmap(lambda key: affine(key, options, height, width)))


def drawn(options, keys, height=24, width=20):
    """Matrices [n, 2, 2] and offsets [n, 2] that `affine` draws with these keys."""
    return tuple(np.asarray(x) for x in compiled_affine(options, height, width)(keys))


resampled = jax.jit(jax.vmap(resample))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.fixture
def images():
    """Smooth enough for two interpolations to agree; no two are alike, nor mirror images."""
    noise = np.random.default_rng(0).normal(size=(6, 24, 20, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    return jnp.asarray((smooth - smooth.min()) / np.ptp(smooth) * 255, jnp.uint8)


def test_the_default_gives_the_very_image(images):
    assert Augmentation().is_identity and not EVERYTHING.is_identity
    out = augment(images, keys(6), Augmentation())
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, images)


def test_resampling_with_the_identity_gives_the_image(images):
    np.testing.assert_allclose(
        resampled(images, *drawn(Augmentation(), keys(6))), images, atol=1e-2
    )


def test_flip_mirrors_half_of_the_images(images):
    image = images[0]
    n = 2000
    out = compiled(Augmentation(flip=True))(jnp.broadcast_to(image, (n, *image.shape)), keys(n))
    flipped = np.all(np.asarray(out) == np.asarray(image[:, ::-1]), axis=(1, 2, 3))
    same = np.all(np.asarray(out) == np.asarray(image), axis=(1, 2, 3))
    assert np.all(flipped ^ same)
    assert scipy.stats.binomtest(int(flipped.sum()), n).pvalue > 1e-3


def test_flip_within_the_affine_map_mirrors_the_image(images):
    matrices, offsets = drawn(Augmentation(flip=True), keys(6, seed=1))
    flipped = matrices[:, 1, 1] < 0
    assert 0 < flipped.sum() < 6
    wanted = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_allclose(resampled(images, matrices, offsets), wanted, atol=1e-2)


def test_resampling_agrees_with_scipy(images):
    matrices, offsets = drawn(EVERYTHING, keys(6, seed=3))
    out = np.asarray(resampled(images, matrices, offsets))
    for i, c in itertools.product(range(6), range(3)):
        plane = np.asarray(images)[i, ..., c].astype(np.float64)
        wanted = scipy.ndimage.affine_transform(
            plane, matrices[i], offsets[i], order=1, mode="nearest"
        )
        np.testing.assert_allclose(out[i, ..., c], wanted, atol=0.02)


def test_augment_is_resample_where_only_the_geometry_varies(images):
    options = Augmentation(crop=0.3, flip=True, rotation=20.0)
    out = compiled(options)(images, keys(6))
    affine_keys = jax.vmap(lambda k: jax.random.split(k, 4)[0])(keys(6))
    np.testing.assert_allclose(out, resampled(images, *drawn(options, affine_keys)), atol=0.02)


def test_rotation_turns_the_image_about_its_centre(images):
    matrices, offsets = drawn(Augmentation(rotation=30.0), keys(6))
    out = np.asarray(resampled(images, matrices, offsets))
    for image, matrix, turned in zip(np.asarray(images), matrices, out, strict=True):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-6)
        angle = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
        assert abs(angle) <= 30
        grey, got = image[..., 0], turned[..., 0]
        wanted = np.asarray(Image.fromarray(grey).rotate(-angle, Image.Resampling.BILINEAR))
        inside = (
            np.asarray(
                Image.new("L", grey.shape[::-1], 255).rotate(-angle, Image.Resampling.BILINEAR)
            )
            == 255
        )
        inside = scipy.ndimage.binary_erosion(inside, border_value=0)
        assert inside.sum() > 150
        np.testing.assert_allclose(got[inside], wanted[inside], atol=1.5)


def test_angles_are_uniform():
    matrices, _ = drawn(Augmentation(rotation=15.0), keys(2000))
    angles = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert scipy.stats.kstest(angles, scipy.stats.uniform(-15, 30).cdf).pvalue > 1e-3


def test_crops_lie_inside_have_uniform_area_and_the_promised_aspect():
    matrices, offsets = drawn(Augmentation(crop=0.2), keys(4000), 40, 20)
    height, width = matrices[:, 0, 0], matrices[:, 1, 1]
    area, aspect = height * width, width / height
    assert scipy.stats.kstest(area, scipy.stats.uniform(0.2, 0.8).cdf).pvalue > 1e-3
    assert np.all((aspect > 3 / 4 - 1e-5) & (aspect < 4 / 3 + 1e-5))
    free = area < 3 / 4  # the window fits whatever its aspect
    log_aspect = np.log(aspect[free]) / np.log(4 / 3)
    assert scipy.stats.kstest(log_aspect, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3
    for size, share, offset in ((40, height, offsets[:, 0]), (20, width, offsets[:, 1])):
        low = (
            offset + 0.5 - share / 2
        )  # the window's edges, where pixel i covers i - 0.5 .. i + 0.5
        room = size * (1 - share)
        assert np.all((low > -1e-4) & (low < room + 1e-4))
        assert scipy.stats.kstest(low[room > 1] / room[room > 1], "uniform").pvalue > 1e-3


def test_a_single_row_or_column_is_resampled_within_its_bounds():
    row = jnp.arange(0, 250, 10, dtype=jnp.uint8)
    options = Augmentation(crop=0.5, flip=True)
    for image in (row[None, :, None], row[:, None, None]):
        out = compiled(options)(image[None], keys(1))
        assert out.shape == (1, *image.shape)
        assert image.min() <= out.min() and out.max() <= image.max()


def test_brightness_shifts_the_image_uniformly():
    grey = jnp.full((2000, 2, 2, 1), 128, jnp.uint8)
    shift = (np.asarray(compiled(Augmentation(brightness=0.2))(grey, keys(2000))) - 128) / 255
    assert np.ptp(shift, axis=(1, 2, 3)).max() == 0
    assert scipy.stats.kstest(shift[:, 0, 0, 0], scipy.stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3


def test_contrast_scales_about_the_mean():
    image = jnp.asarray([100, 140, 110, 130], jnp.uint8).reshape(2, 2, 1)
    out = np.asarray(
        compiled(Augmentation(contrast=0.5))(jnp.broadcast_to(image, (2000, 2, 2, 1)), keys(2000))
    )
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 120, rtol=1e-5)
    factor = (out[:, 0, 1, 0] - out[:, 0, 0, 0]) / 40
    np.testing.assert_allclose((out[:, 1, 1, 0] - out[:, 1, 0, 0]) / 20, factor, atol=1e-4)
    assert scipy.stats.kstest(factor, scipy.stats.uniform(0.5, 1).cdf).pvalue > 1e-3


def test_noise_is_gaussian_and_independent():
    out = np.asarray(
        compiled(Augmentation(noise=0.05))(jnp.full((4, 64, 64, 2), 128, jnp.uint8), keys(4))
    )
    noise = (out - 128) / 255
    assert scipy.stats.kstest(noise.ravel(), scipy.stats.norm(0, 0.05).cdf).pvalue > 1e-3
    assert np.all(np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)) < 0.05)
    assert np.all(np.abs(np.corrcoef(noise.reshape(-1, 2).T) - np.eye(2)) < 0.05)


def test_values_stay_within_a_byte(images):
    strong = Augmentation(
        crop=0.1, flip=True, rotation=180.0, brightness=1.0, contrast=1.0, noise=1.0
    )
    out = compiled(strong)(images, keys(6))
    assert out.dtype == jnp.float32 and out.shape == images.shape
    assert out.min() == 0 and out.max() == 255


def test_jit_changes_nothing(images):
    np.testing.assert_allclose(
        compiled(EVERYTHING)(images, keys(6)), augment(images, keys(6), EVERYTHING), atol=0.02
    )


def test_an_example_does_not_depend_on_the_batch_it_is_in(images):
    key = jax.random.key(7)
    whole = compiled(EVERYTHING)(images, example_keys(key, 3, jnp.arange(6)))
    for part in (np.array([0, 1, 2]), np.array([5, 3, 4]), np.array([5])):
        out = compiled(EVERYTHING)(images[part], example_keys(key, 3, jnp.asarray(part)))
        np.testing.assert_allclose(out, whole[part], atol=0.02)


def test_division_over_devices_changes_nothing(images):
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip(
            "needs two devices; XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates them"
        )
    batch, each = example_keys(jax.random.key(7), 3, jnp.arange(6)), 3
    divided = jax.pmap(functools.partial(augment, options=EVERYTHING), devices=devices[:2])(
        images.reshape(2, each, *images.shape[1:]), batch.reshape(2, each)
    )
    np.testing.assert_allclose(
        divided.reshape(images.shape), compiled(EVERYTHING)(images, batch), atol=0.02
    )


def test_keys_differ_by_seed_step_and_position():
    position = jnp.arange(50)
    drawn_keys = [
        example_keys(jax.random.key(seed), step, position) for seed in (0, 1) for step in (0, 1, 2)
    ]
    data = np.concatenate([jax.random.key_data(k) for k in drawn_keys])
    assert len(np.unique(data, axis=0)) == 300
    np.testing.assert_array_equal(
        jax.random.key_data(drawn_keys[0])[7:9],
        jax.random.key_data(example_keys(jax.random.key(0), 0, position[7:9])),
    )


def test_the_users_own_come_last_each_with_its_own_key(images):
    def shift(key, image):
        return image + jax.random.uniform(key, maxval=10.0)

    def halve(key, image):
        return image / 2

    plain = compiled(EVERYTHING)(images, keys(6))
    options = dataclasses.replace(EVERYTHING, extra=(shift, halve, shift))
    assert not options.is_identity and not Augmentation(extra=(halve,)).is_identity
    first, last = (
        jax.vmap(lambda k, i=i: jax.random.uniform(jax.random.fold_in(k, i), maxval=10.0))(keys(6))
        for i in (100, 102)
    )
    wanted = (plain + first[:, None, None, None]) / 2 + last[:, None, None, None]
    np.testing.assert_allclose(compiled(options)(images, keys(6)), wanted, atol=0.02)
    bright = compiled(Augmentation(extra=(lambda key, image: image + 200,)))(images, keys(6))
    np.testing.assert_array_equal(bright, np.minimum(np.asarray(images, np.float32) + 200, 255))


def test_the_users_own_must_keep_the_shape(images):
    def crop(key, image):
        return image[:10]

    with pytest.raises(UserError, match=r"extra: crop returns \[10, 20, 3\] .* \[24, 20, 3\]"):
        augment(images, keys(6), Augmentation(extra=(crop,)))
    with pytest.raises(UserError, match="returns NoneType"):
        augment(images, keys(6), Augmentation(extra=(lambda key, image: None,)))


@pytest.mark.parametrize(
    "options, name",
    [
        ({"crop": 0.0}, "crop"),
        ({"crop": 1.2}, "crop"),
        ({"crop": float("nan")}, "crop"),
        ({"rotation": -1.0}, "rotation"),
        ({"rotation": 200.0}, "rotation"),
        ({"brightness": 1.1}, "brightness"),
        ({"contrast": -0.1}, "contrast"),
        ({"noise": float("inf")}, "noise"),
    ],
)
def test_options_out_of_range_are_refused(options, name):
    with pytest.raises(UserError, match=rf"augment\.{name} is {next(iter(options.values()))}"):
        Augmentation(**options)


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_normalize_is_the_familys_formula(images, name):
    normalization = NORMALIZATIONS[name]
    wanted = (np.asarray(images, np.float64) - normalization.mean) / normalization.std
    np.testing.assert_allclose(normalize(images, normalization), wanted, rtol=1e-5, atol=1e-5)
    grey = normalization.for_channels(1)
    wanted = (np.asarray(images[..., :1], np.float64) - grey.mean) / grey.std
    np.testing.assert_allclose(
        normalize(images[..., :1], normalization), wanted, rtol=1e-5, atol=1e-5
    )
