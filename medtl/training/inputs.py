"""From host batches to the model's inputs, inside the jitted step."""

from __future__ import annotations

import jax

from medtl.data import augment
from medtl.examples import Normalization
from medtl.training.objective import DOMAINS, Batch

_NOT_INPUTS = frozenset({"label", "mask", "weight", "index", "position"})


def prepare(
    batch: Batch,
    *,
    normalization: Normalization,
    augmentation: augment.Augmentation | None = None,
    key: jax.Array | None = None,
    step: jax.Array | int = 0,
) -> dict[str, dict[str, jax.Array]]:
    """Turn host batches into the model's inputs.

    Images are augmented (where a key is given) and normalized; other inputs pass unchanged.

    Args:
      batch: domain -> batch.
      normalization: of images.
      augmentation: of images; None: none.
      key: key[], the training stage's; None in evaluation.
      step: the optimizer step.

    Returns:
      domain -> inputs, `mask`, and with a key `key` key[B], one for each example, for dropout.
    """
    inputs: dict[str, dict[str, jax.Array]] = {}
    for domain, part in batch.items():
        prepared = {name: x for name, x in part.items() if name not in _NOT_INPUTS}
        prepared["mask"] = part["mask"]
        keys = None
        if key is not None:
            domain_key = jax.random.fold_in(key, DOMAINS.index(domain))
            keys = augment.example_keys(domain_key, step, part["position"])
            prepared["key"] = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
        if "image" in part:
            image = part["image"]
            if keys is not None and augmentation is not None and not augmentation.is_identity:
                with jax.named_scope("augment"):
                    image_keys = jax.vmap(lambda k: jax.random.fold_in(k, 0))(keys)
                    image = augment.augment(image, image_keys, augmentation)
            with jax.named_scope("normalize"):
                prepared["image"] = augment.normalize(image, normalization)
        inputs[domain] = prepared
    return inputs
