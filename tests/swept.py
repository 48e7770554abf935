"""Configs for sweeps: heads on a frozen backbone, and a small model that trains as a whole."""

from tiny_run import changed, tiny

from medtl import config as configs

LAMBDA, RATE, DECAY = (
    "objective.lambda_",
    "stages.target.learning_rate",
    "stages.target.weight_decay",
)


def frozen(weights, grid, **fields):
    """Return the config of an arm whose heads train on the features of a frozen backbone."""
    config = tiny(
        weights__path=weights,
        augment__flip=False,
        checkpoint__metric="loss",
        arms=("pooled",),
        sweep__grid=configs.grid(grid),
    )
    config.arm.pooled = configs.arm("weights", source_stage=False, joint=True)
    for stage in config.stages.values():
        stage.update(freeze="backbone", batch_norm="frozen", learning_rate=3e-3)
    return changed(config, **fields)


def moving(grid, **fields):
    """Return the config of a joint arm whose model starts at random and trains as a whole.

    It has all that makes a step depend on the seed, the step and the example's position.
    """
    config = tiny(
        arms=("joint",),
        seeds=(0, 3),
        checkpoint__metric="loss",
        data__image_size=8,
        sweep__grid=configs.grid(grid),
    )
    config.arm.joint = configs.arm("random", source_stage=False, joint=True)
    config.model.update(hidden=(8,), dropout=0.3)
    config.augment.update(rotation=10.0, contrast=0.2)
    # Not Adam, whose first steps divide by gradients that may be rounding alone: two orders of
    # summation would part.
    config.stages.target.update(
        batch_size=15,
        source_batch_size=8,
        ema=0.5,
        schedule="cosine",
        warmup=0.2,
        optimizer="sgd(momentum=0.9)",
    )
    config.evaluation.update(times=3, batch_size=16)
    return changed(config, **fields)
