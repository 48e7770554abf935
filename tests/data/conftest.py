"""Small manifests, with images of which every pixel is known."""

import numpy as np
import pytest
from PIL import Image

from medtl.config import dataset


@pytest.fixture
def pixels():
    """uint8[12, 8, 8], what those images hold."""
    return np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)


@pytest.fixture
def folder(tmp_path, pixels):
    """A folder with twelve grey PNGs, 00.png to 11.png."""
    for i in range(12):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i:02d}.png")
    return tmp_path


@pytest.fixture
def write(folder):
    """write(text, **fields): a manifest of this text, and the spec that names it."""

    def write(text, **fields):
        path = folder / "manifest.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return dataset("manifest", path=str(path), **fields)

    return write


@pytest.fixture
def twelve():
    """The text of a manifest of the twelve images with splits, six of each class."""
    lines = ["image_path,diagnosis,split,patient_id"]
    for i in range(12):
        split = "train" if i < 6 else "val" if i < 8 else "test"
        lines.append(f"{i:02d}.png,{'ill' if i % 2 else 'well'},{split},p{i}")
    return "\n".join(lines) + "\n"
