"""Eight simulated CPU devices, checked array shapes, and the real inputs beside the project."""

import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports JAX or Keras.
os.environ.setdefault("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
# Most programs run a few times only; LLVM's optimizations would take a quarter of the tests' time.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
# A cache of its own: neither the user's, nor that of earlier tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="medtl-tests-")
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="medtl-tests-")
if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers and all commands inherit these
    # Many tests train the same tiny models: each program is compiled once.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="medtl-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from jaxtyping import install_import_hook

# The shapes in these modules' annotations are checked at every call.
TYPED = (
    "medtl.data.augment",
    "medtl.losses",
    "medtl.models.layers",
    "medtl.models.model",
    "medtl.models.resnet",
    "medtl.models.saliency",
    "medtl.models.vgg",
    "medtl.training.objective",
)
install_import_hook(TYPED, "beartype.beartype")

# Without PyTorch it cannot be imported to look for examples in docstrings.
collect_ignore = ["models/torch_reference.py", "models/torch_later.py", "models/equal_weights.py"]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the project: real images and weights, which are not part of it."""
    folder = Path(__file__).parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the real inputs in ../shared")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _memory() -> Iterator[None]:
    """Drop compiled programs after a file of tests: a worker of 3,000 tests grew to 8 GiB."""
    yield
    status = Path("/proc/self/statm")
    if not status.is_file() or int(status.read_text().split()[1]) * 4096 < 2**31:
        return
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
