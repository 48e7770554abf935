"""Configs for tests; "__" in the name of a field stands for a dot."""

from medtl.config import dataset, default, stage


def tiny(**fields):
    """Return the config of a run of a few seconds: layer1 of ResNet-20 on 16 px phantoms."""
    c = default()
    c.data.image_size = 16
    c.data.source = dataset("phantom(size=90, scanner='a', split=(0.6, 0.2, 0.2))")
    c.data.target = dataset("phantom(size=90, scanner='b', split=(0.4, 0.3, 0.3), seed=1)")
    c.model.last_layer = "layer1"
    c.stages.source = stage(epochs=1, batch_size=16, learning_rate=1e-3)
    c.stages.target = stage(epochs=2, batch_size=16, learning_rate=1e-3)
    c.seeds = (0,)
    c.evaluation.times = 2
    c.evaluation.resamples = 200
    c.parallel = "none"
    return changed(c, **fields)


def changed(config=None, **fields):
    """Return the config, by default the embedded one, with some fields changed to any values."""
    config = default() if config is None else config
    for path, value in fields.items():
        section, (*parents, name) = config, path.split("__")
        for parent in parents:
            section = section[parent]
        try:
            section[name] = value
        except TypeError:
            with section.ignore_type():
                section[name] = value
    return config
