"""BreastMNIST."""

from medtl.config import dataset, default, stage

SHARED = "../shared"


def get_config():
    c = default()
    c.name = "breastmnist"
    c.seeds = (0, 1, 2, 3, 4)
    c.arms = ("target_only", "scratch")

    c.data.image_size = 28
    c.data.channels = 3  # grey repeated, as the RGB weights expect
    c.data.target = dataset("npz", path=f"{SHARED}/data/breastmnist/breastmnist.npz")
    c.augment.flip = True

    c.model.name = "cifar_resnet20"
    c.weights.path = f"{SHARED}/weights/cifar10_resnet20-12fca82f.th"
    c.stages.target = stage(
        epochs=25, batch_size=32, learning_rate=1e-3, schedule="cosine", warmup=0.1, weight_decay=1e-2
    )
    c.evaluation.times = 12
    return c
