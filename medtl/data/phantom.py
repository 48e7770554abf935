"""The embedded synthetic set: grey images of a body with two dark lobes, from two scanners.

NOT MEDICAL DATA. Names and ids say phantom, and `Examples.synthetic` is True. A "nodule" is a few
small round bright blobs in the lobes; an "infiltrate" is a wide, ill-defined, uneven patch there.
Vessels, short bright streaks, cross the lobes of all three classes and look like either. The
scanners "a" and "b" show the same classes and differ in field of view, sharpness, contrast curve,
noise and texture, so one makes a source and the other a target. A patient has one to four images,
with the same body and lesions.

The images are a function of the seed, computed in float64 and rounded to uint8 at the end. Geometry
is in units of half the body's field of view, so images of another size show the same bodies, only
finer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from medtl.data import images, splits
from medtl.data import table as tables
from medtl.examples import Examples

CLASSES = ("healthy", "infiltrate", "nodule")


@dataclasses.dataclass(frozen=True)
class Scanner:
    """How a scanner renders a body.

    Attributes:
      zoom: the body's size in the image.
      blur: standard deviation of the point spread function, in half fields of view.
      gain: contrast about mid-grey, before `gamma`.
      gamma: exponent of the contrast curve; above 1 it darkens.
      bias: a brightness gradient across the image, in grey values of 0..1.
      texture: standard deviation of the tissue's texture.
      grain: scale of that texture, in half fields of view.
      noise: standard deviation of the noise of each pixel.
    """

    zoom: float
    blur: float
    gain: float
    gamma: float
    bias: float
    texture: float
    grain: float
    noise: float


# These set the difficulty; the results in benchmarks/ and configs/ hold for these values.
SCANNERS = {
    "a": Scanner(
        zoom=1.0, blur=0.03, gain=1.0, gamma=1.0, bias=0.0, texture=0.06, grain=0.10, noise=0.03
    ),
    "b": Scanner(
        zoom=0.9, blur=0.04, gain=0.8, gamma=1.3, bias=0.1, texture=0.08, grain=0.16, noise=0.04
    ),
}
NODULES = 3  # at most, per patient
NODULE_CONTRAST = (0.35, 0.55)
NODULE_RADIUS = (0.07, 0.10)
INFILTRATE_CONTRAST = (0.18, 0.34)
INFILTRATE_RADIUS = (0.22, 0.34)
VESSELS = 4  # per patient
VESSEL_CONTRAST = (0.05, 0.20)
VESSEL_LENGTH = (0.10, 0.30)
VESSEL_WIDTH = 0.035
IMAGES_PER_PATIENT = 4  # at most
# How far the images of one patient differ: shift, rotation, and position of the lesions.
JITTER = 0.05

_CHUNK = 64


def examples(
    n: int,
    *,
    scanner: str,
    seed: int,
    image_size: int,
    channels: int = 1,
    split: Sequence[float] = (0.7, 0.15, 0.15),
    train_size: int = 0,
) -> Examples:
    """Draw `n` phantom images.

    Args:
      n: the number of images; the classes are about equally frequent.
      scanner: "a" or "b".
      seed: the seed of the bodies, of the split and of `train_size`. The two scanners see different
        bodies under the same seed.
      image_size: height and width.
      channels: 1, or 3 equal ones.
      split: the fractions of train, val and test.
      train_size: see `medtl.config.dataset`.

    Returns:
      Examples of uint8[n, image_size, image_size, channels].
    """
    table = splits.complete(
        draw(n, scanner=scanner, seed=seed, image_size=image_size),
        fractions=split,
        seed=seed,
        train_size=train_size,
        key="phantom",
        require_label=True,
        require_train=True,
    )
    assert isinstance(table.images, np.ndarray)
    image = images.fit_all(table.images, size=image_size, channels=channels, resize="squash")
    return tables.examples(table, image, [pixels.tobytes() for pixels in image])


def draw(n: int, *, scanner: str, seed: int, image_size: int) -> tables.Table:
    """Draw the images of `examples` without a split; image_size 0 draws everything but the pixels.

    Returns:
      A table of uint8[n, image_size, image_size].
    """
    rng = _generator(seed, scanner, 0)
    patient = _patients(n, rng)
    bodies = _bodies(patient.max() + 1, rng)
    views = _views(bodies, patient, rng)
    pixels = np.empty((n, image_size, image_size), np.uint8)
    for chunk, start in enumerate(range(0, n if image_size else 0, _CHUNK)):
        part = slice(start, start + _CHUNK)
        chunk_rng = _generator(seed, scanner, 1 + chunk)
        pixels[part] = _render(
            {k: v[part] for k, v in views.items()}, SCANNERS[scanner], image_size, chunk_rng
        )
    name = f"phantom_{scanner}"
    return tables.Table(
        name=name,
        origin=f"the synthetic set {name} (seed {seed})",
        id=np.array([f"{name}_{seed}_{i:06d}" for i in range(n)]),
        label=bodies["label"][patient].astype(np.int32),
        classes=CLASSES,
        split=None,
        patient=np.array([f"{name}_{seed}_p{p:05d}" for p in patient]),
        weight=np.ones(n, np.float32),
        line_or_row=np.arange(n),
        unit="row",
        images=pixels,
        synthetic=True,
    )


def _generator(seed: int, scanner: str, stream: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.Philox(np.random.SeedSequence((seed, sorted(SCANNERS).index(scanner), stream)))
    )


def _uniform(
    rng: np.random.Generator, bounds: tuple[float, float], shape: tuple[int, ...]
) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random(shape)


def _patients(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return int64[n], the patient of each image."""
    counts = 1 + (rng.random(n) * IMAGES_PER_PATIENT).astype(np.int64)
    return np.repeat(np.arange(n), counts)[:n]


def _in_lobes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return float64[*shape, 2], points spread over the inner lobes, in the body's frame."""
    radius, angle = np.sqrt(rng.random(shape)), 2 * np.pi * rng.random(shape)
    side = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    return np.stack([side * 0.4 + 0.18 * radius * np.cos(angle), 0.42 * radius * np.sin(angle)], -1)


def _bodies(p: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return what the images of a patient share; each value has the leading axis p, patients."""
    label = np.arange(p) % len(CLASSES)
    rng.shuffle(label)
    nodule, infiltrate = label == CLASSES.index("nodule"), label == CLASSES.index("infiltrate")
    shown = nodule[:, None] & (
        np.arange(NODULES) < 1 + (rng.random(p) * NODULES).astype(np.int64)[:, None]
    )
    return {
        "label": label,
        "angle": rng.normal(0, 0.15, p),
        "size": rng.normal(1, 0.06, (p, 2)),
        "lobe": rng.normal(1, 0.08, (p, 2)),
        "tissue": _uniform(rng, (0.5, 0.7), (p,)),
        "air": _uniform(rng, (0.15, 0.28), (p,)),
        "nodule_at": _in_lobes(rng, (p, NODULES)),
        "nodule_radius": _uniform(rng, NODULE_RADIUS, (p, NODULES)),
        "nodule": shown * _uniform(rng, NODULE_CONTRAST, (p, NODULES)),
        "infiltrate_at": _in_lobes(rng, (p,)),
        "infiltrate_radius": _uniform(rng, INFILTRATE_RADIUS, (p,)),
        "infiltrate": infiltrate * _uniform(rng, INFILTRATE_CONTRAST, (p,)),
        "vessel_at": _in_lobes(rng, (p, VESSELS)),
        "vessel_angle": np.pi * rng.random((p, VESSELS)),
        "vessel_length": _uniform(rng, VESSEL_LENGTH, (p, VESSELS)),
        "vessel": _uniform(rng, VESSEL_CONTRAST, (p, VESSELS)),
    }


def _views(
    bodies: dict[str, np.ndarray], patient: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the bodies as each image shows them; each value has the leading axis n, images."""
    n = len(patient)
    views = {name: value[patient] for name, value in bodies.items()}
    views["shift"] = rng.normal(0, JITTER, (n, 2))
    views["angle"] = views["angle"] + rng.normal(0, JITTER, n)
    for name in ("nodule_at", "infiltrate_at", "vessel_at"):
        views[name] = views[name] + rng.normal(0, JITTER, views[name].shape)
    views["bias_angle"] = 2 * np.pi * rng.random(n)
    return views


def _render(
    views: dict[str, np.ndarray], scanner: Scanner, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Return uint8[n, size, size], the views as the scanner renders them."""
    n = len(views["label"])
    axis = (np.arange(size) + 0.5) * (2 / size) - 1
    y, x = axis[:, None], axis[None, :]

    def each(value: np.ndarray) -> np.ndarray:
        return value[:, None, None]

    cos, sin = np.cos(views["angle"]), np.sin(views["angle"])
    dx, dy = (
        x / scanner.zoom - each(views["shift"][:, 0]),
        y / scanner.zoom - each(views["shift"][:, 1]),
    )
    u = (each(cos) * dx + each(sin) * dy) / each(views["size"][:, 0])
    v = (each(cos) * dy - each(sin) * dx) / each(views["size"][:, 1])

    body = _inside(1 - (u / 0.86) ** 2 - (v / 0.78) ** 2)
    lobes = sum(
        _inside(1 - ((u - c) / (0.28 * each(views["lobe"][:, i]))) ** 2 - (v / 0.56) ** 2)
        for i, c in enumerate((-0.4, 0.4))
    )
    bright = _vessels(views, u, v) + _nodules(views, u, v) + _infiltrate(views, u, v, size, rng)
    texture = 1 + _noise(rng, n, size, scanner.grain) * (scanner.texture / 0.5)
    tissue, air = each(views["tissue"]), each(views["air"])
    scene = body * (tissue + lobes * (air - tissue + bright)) * texture

    bias = each(np.cos(views["bias_angle"])) * x + each(np.sin(views["bias_angle"])) * y
    image = 0.5 + scanner.gain * (_blurred(scene, scanner.blur) - 0.5) + scanner.bias * bias
    image = np.clip(image, 0.0, 1.0) ** scanner.gamma + scanner.noise * rng.standard_normal(
        (n, size, size)
    )
    return np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)


def _inside(level: np.ndarray) -> np.ndarray:
    """Return 1 where a level set is positive, 0 outside, with a soft edge."""
    return np.clip(0.5 + level / 0.3, 0.0, 1.0)


def _nodules(views: dict[str, np.ndarray], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    total = np.zeros_like(u)
    for i in range(NODULES):
        centre, radius = (
            views["nodule_at"][:, i, :, None, None],
            views["nodule_radius"][:, i, None, None],
        )
        square = ((u - centre[:, 0]) ** 2 + (v - centre[:, 1]) ** 2) / radius**2
        total += views["nodule"][:, i, None, None] * np.exp(-0.5 * square)
    return total


def _vessels(views: dict[str, np.ndarray], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    total = np.zeros_like(u)
    for i in range(VESSELS):
        centre, angle = (
            views["vessel_at"][:, i, :, None, None],
            views["vessel_angle"][:, i, None, None],
        )
        along = (u - centre[:, 0]) * np.cos(angle) + (v - centre[:, 1]) * np.sin(angle)
        across = (v - centre[:, 1]) * np.cos(angle) - (u - centre[:, 0]) * np.sin(angle)
        square = (along / views["vessel_length"][:, i, None, None]) ** 2 + (
            across / VESSEL_WIDTH
        ) ** 2
        total += views["vessel"][:, i, None, None] * np.exp(-0.5 * square)
    return total


def _infiltrate(
    views: dict[str, np.ndarray], u: np.ndarray, v: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    centre, radius = (
        views["infiltrate_at"][:, :, None, None],
        views["infiltrate_radius"][:, None, None],
    )
    square = ((u - centre[:, 0]) ** 2 + (v - centre[:, 1]) ** 2) / radius**2
    uneven = np.clip(1 + 0.8 * _noise(rng, len(u), size, 0.08), 0.0, None)
    return views["infiltrate"][:, None, None] * np.exp(-0.5 * square) * uneven


def _gaussian(size: int, scale: float) -> np.ndarray:
    """Return float64[size, size // 2 + 1], the transfer function of a Gaussian blur."""
    fy, fx = np.fft.fftfreq(size, 2 / size), np.fft.rfftfreq(size, 2 / size)
    return np.exp(-2 * (np.pi * scale) ** 2 * (fy[:, None] ** 2 + fx[None, :] ** 2))


def _blurred(image: np.ndarray, scale: float) -> np.ndarray:
    size = image.shape[-1]
    return np.fft.irfft2(np.fft.rfft2(image) * _gaussian(size, scale), s=(size, size))


def _noise(rng: np.random.Generator, n: int, size: int, scale: float) -> np.ndarray:
    """Return float64[n, size, size], smooth noise of mean 0 and expected variance 1."""
    white = rng.standard_normal((n, size, size))
    transfer = np.fft.fftn(np.fft.irfft2(_gaussian(size, scale), s=(size, size)))
    return _blurred(white, scale) / np.sqrt(np.mean(np.abs(transfer) ** 2))
