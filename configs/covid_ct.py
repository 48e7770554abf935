"""COVID-CT."""

from medtl.config import arm, dataset, default, stage

SHARED = "../shared"


def get_config():
    c = default()
    c.name = "covid_ct"
    c.seeds = (0, 1, 2, 3, 4)
    c.arm.pooled = arm("weights", source_stage=False, joint=True)
    c.arms = ("transfer", "pooled", "target_only")

    c.data.image_size = 224
    c.data.channels = 3
    c.data.source = dataset("manifest", path=f"{SHARED}/data/sao_paulo_ct/manifest.csv", split=(0.8, 0.2, 0.0))
    c.data.target = dataset("manifest", path=f"{SHARED}/data/covid_ct/manifest.csv")
    c.augment.flip = False  # a frozen backbone without augmentation: its features are computed once

    c.model.name = "resnet50"
    c.model.stages = 3
    c.model.stride_in = "1x1"
    c.weights.path = f"{SHARED}/weights/resnet50_imagenet_c4.safetensors"
    c.weights.sha256 = "d9d92c1a0946997e6b5b532cb479d1fc9b9257a1bfebd436cb050aa223029a93"

    frozen = dict(freeze="backbone", batch_norm="frozen", learning_rate=3e-3, weight_decay=0.3)
    c.stages.source = stage(**frozen, epochs=10)
    c.stages.target = stage(**frozen, epochs=150)
    c.checkpoint.select = "last"  # val is what is reported, so nothing is chosen on it
    return c
