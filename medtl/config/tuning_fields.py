"""The fields of fine-tuning: the head's start, what trains how fast, averages. Imports no JAX."""

from __future__ import annotations

from medtl.config.rules import SHARE, UNIQUE, Field, Node, PluginString, at_least, each

TUNING: dict[str, Node] = {
    "head_start": Field(
        "",
        "The linear head before step 1: the minimum of a classifier on the features of train, such"
        " as \"LinearProbe(C='cv')\" or a linear one of scikit-learn; empty: the head as it is."
        " With epochs=0 the stage is a linear probe, or with \"KernelProbe(C='cv')\" a kernel"
        " machine. Encoders with random weights leave it out.",
        PluginString("medtl.training.probe", optional=True),
    ),
    "trainable": Field(
        "all",
        "The encoders' parameters that train, of those that freeze leaves: all, norms, biases,"
        " lora(rank=4), or a function of yours.",
        PluginString("medtl.training.trainable", ("all", "norms", "biases", "lora")),
    ),
    "rates": Field(
        "",
        "The learning rate by layer: layerwise(decay=0.7), gradual(until=0.5), auto_rgn; empty:"
        " one for all.",
        PluginString("medtl.training.rates", optional=True),
    ),
    "sam": Field(
        0.0,
        "Sharpness-aware minimization: the radius rho, such as 0.05; 0: off. A step costs two.",
        at_least(0),
    ),
    "swa": Field(
        0.0,
        "Stochastic weight averaging: the share of the stage after which the weights of all steps"
        " are averaged, such as 0.75; 0: off. The average is handed on, with the BatchNorm"
        " statistics of train.",
        SHARE,
    ),
    "wise": Field(
        (),
        "WiSE-FT: the shares of the tuned weights to try, such as (0.25, 0.5, 0.75, 1.0); the"
        " weights between those at the start and the tuned ones that are best on val are handed"
        " on. (): the tuned ones.",
        each("shares from 0 to 1", lambda a: type(a) in (int, float) and 0 <= a <= 1),
        UNIQUE,
    ),
}
