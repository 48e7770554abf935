"""Eight simulated CPU devices for every test, and the real inputs where they lie beside the project."""

import os
import tempfile
from pathlib import Path

# Before anything imports JAX or Keras.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    )
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
# What is kept between runs is not the user's, and not of the tests before.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="medtl-tests-")

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the project: real images and weights, which are not part of it."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the real inputs in ../shared")
    return folder
