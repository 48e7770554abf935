"""A run of a few seconds, for the tests of whole runs."""

from medtl.config import dataset, default, stage


def tiny(**fields):
    """A run of a few seconds: ResNet-20's first stage on 16 px phantoms."""
    c = default()
    c.data.image_size = 16
    c.data.source = dataset("phantom", size=90, scanner="a", split=(0.6, 0.2, 0.2))
    c.data.target = dataset("phantom", size=90, scanner="b", split=(0.4, 0.3, 0.3), split_seed=1)
    c.model.stages = 1
    c.stages.source = stage(epochs=1, batch_size=16, learning_rate=1e-3)
    c.stages.target = stage(epochs=2, batch_size=16, learning_rate=1e-3)
    c.evaluation.times = 2
    c.evaluation.resamples = 200
    c.parallel = "none"
    for name, value in fields.items():
        node, *_, last = c, *name.split("__")
        for part in name.split("__")[:-1]:
            node = node[part]
        node[last] = value
    return c
