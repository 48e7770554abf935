"""Features and compiled programs on disk: damaged files are not used, and none is needed."""

import jax
import numpy as np
import pytest

from medtl.training import features
from medtl.training.parallel import keep_compiled

FOUND = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_features_come_back(tmp_path):
    path = tmp_path / "of" / "these.npy"
    assert features.read(path, 3) is None
    assert features.keep(path, FOUND)
    np.testing.assert_array_equal(features.read(path, 3), FOUND)


@pytest.mark.parametrize("spoiled", [FOUND[:2], FOUND[:, 0], np.where(FOUND > 4, np.nan, FOUND)])
def test_features_of_another_shape_or_with_nan_are_computed_again(spoiled, tmp_path):
    assert features.keep(tmp_path / "these.npy", spoiled)
    assert features.read(tmp_path / "these.npy", 3) is None


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "these.npy"
    assert features.keep(path, FOUND)
    content = path.read_bytes()
    values = len(content) - 4 - FOUND.nbytes
    for byte in range(values, len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[byte] ^= 1 << bit
            path.write_bytes(changed)
            assert features.read(path, 3) is None
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert features.read(path, 3) is None


def test_a_file_of_an_older_version_without_a_checksum_is_computed_again(tmp_path):
    np.save(tmp_path / "these.npy", FOUND)
    assert features.read(tmp_path / "these.npy", 3) is None


def test_without_a_place_to_write_nothing_is_kept_and_it_is_said(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert not features.keep(tmp_path / "file" / "these.npy", FOUND)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        keep_compiled(tmp_path / "file" / "compiled")
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert "Compiled programs are not kept: " in capsys.readouterr().out
