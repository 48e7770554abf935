"""Checks of labels and probabilities: each error names the first wrong value."""

from __future__ import annotations

import numpy as np

from medtl.errors import UserError


def check_probability(probability: np.ndarray, n: int, k: int, *, allow_nan: bool = False) -> None:
    """Refuse probabilities that are not float[n, k] from 0 to 1.

    Raises:
      UserError: names the shape, or the first wrong row.
    """
    if probability.shape != (n, k):
        shape = list(probability.shape)
        raise UserError(f"probability is {shape}; {n} labels and {k} classes want {[n, k]}")
    fits = (probability >= 0) & (probability <= 1 + 1e-5) | (allow_nan & np.isnan(probability))
    if not fits.all():
        row = int(np.argmin(fits.all(axis=1)))
        hint = "" if np.isnan(probability[row]).any() else "; these look like logits"
        raise UserError(
            f"probability[{row}] is {probability[row].tolist()}; each must be from 0 to 1{hint}"
        )


def check_label(label: np.ndarray, n: int, k: int) -> None:
    """Refuse labels that are not int[n] from -1 to k - 1, or float[n, k] of 0, 1 or NaN.

    Raises:
      UserError: names the type, the shape, or the first wrong label.
    """
    if label.ndim == 1:
        if k < 2 or not np.issubdtype(label.dtype, np.integer):
            raise UserError(
                "one label per example is int[N] among at least 2 classes; "
                f"this is {label.dtype} among {k}"
            )
        fits, wanted = (label >= -1) & (label < k), f"-1 (unknown) or 0..{k - 1}"
    elif label.shape == (n, k):
        fits = np.all(np.isnan(label) | (label == 0) | (label == 1), axis=1)
        wanted = "0, 1 or NaN (unknown)"
    else:
        raise UserError(f"label is {list(label.shape)}; {k} classes want {[n, k]}")
    if not fits.all():
        row = int(np.argmin(fits))
        raise UserError(f"label[{row}] is {label[row]}; it must be {wanted}")
