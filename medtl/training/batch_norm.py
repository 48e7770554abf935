"""BatchNorm of two domains: statistics and affine parameters of its own for each.

With `stages.target.batch_norm="domain"` the source's layers are in `params["norms"]` and
`batch_stats["norms"]`, in the structure of the encoders; the target's stay where a model has its
own, so that evaluation, export and prediction need not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from medtl.errors import UserError
from medtl.models.model import Model

_flat = traverse_util.flatten_dict
_nested = traverse_util.unflatten_dict


def has_statistics(variables: Mapping[str, Any]) -> bool:
    """Return whether an encoder has BatchNorm."""
    return bool(_flat(variables["batch_stats"].get("encoders", {})))


def with_source(variables: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """Return the variables with BatchNorm layers of the source, equal to the target's at first.

    Args:
      variables: `params` and `batch_stats` of a model.
      key: the config's key, for errors.

    Raises:
      UserError: no encoder has BatchNorm.
    """
    if not has_statistics(variables):
        raise UserError(f"{key} is 'domain', but no encoder has BatchNorm; set it to 'batch'")
    statistics = variables["batch_stats"]["encoders"]
    layers = {path[:-1] for path in _flat(statistics)}
    affine = {
        path: value
        for path, value in _flat(variables["params"]["encoders"]).items()
        if path[:-1] in layers
    }
    return {
        **variables,
        "params": {**variables["params"], "norms": _nested(affine)},
        "batch_stats": {**variables["batch_stats"], "norms": statistics},
    }


def apply(
    model: Model, variables: Mapping[str, Any], inputs: Mapping[str, Any], batch_norm: str
) -> tuple[dict[str, Any], Any]:
    """Apply the model in training; with "domain" to each domain by itself, with its BatchNorm.

    Domain-specific batch normalization: Chang et al. 2019, arXiv:1906.03950, equations 3 to 5. All
    other parameters are shared.

    Args:
      model: the model.
      variables: with "domain" those of `with_source`.
      inputs: domain -> inputs, as `step.prepare` returns them.
      batch_norm: "batch", "frozen" or "domain".

    Returns:
      domain -> Outputs, and the new batch statistics.
    """
    if batch_norm != "domain":
        outputs, changed = model.apply(
            variables, inputs, True, batch_norm=batch_norm, mutable=["batch_stats"]
        )
        return outputs, changed.get("batch_stats", variables["batch_stats"])
    params, statistics = variables["params"], dict(variables["batch_stats"])
    outputs = {}
    for domain, part in inputs.items():
        name = "norms" if domain == "source" else "encoders"
        own = params
        if domain == "source":
            encoders = {**_flat(params["encoders"]), **_flat(params["norms"])}
            own = {**params, "encoders": _nested(encoders)}
        of_domain, changed = model.apply(
            {"params": own, "batch_stats": {"encoders": statistics[name]}},
            {domain: part},
            True,
            batch_norm="batch",
            mutable=["batch_stats"],
        )
        outputs.update(of_domain)
        statistics[name] = changed["batch_stats"]["encoders"]
    return outputs, statistics
