"""x"""

from medtl.config import arm, dataset, default, stage

SHARED = "../shared"  # beside the folder in which the command runs
# What is done in intensive care names it as plainly as its name.
SYNONYMS = (
    "intensive care",
    "critical care",
    "ITU",
    "HDU",
    "intubat*",
    "extubat*",
    "endotracheal",
    "ET tube",
    "ETT",
    "NG tube*",
    "nasogastric",
    "OG",
    "tube*",
    "ventilat*",
    "ventilator*",
    "central line",
    "central venous",
    "jugular",
    "ECMO",
)


def get_config():
    c = default()
    c.name = "chest_xray_icu"
    c.seeds = (0,)
    own = dict(source_stage=False, joint=False)
    c.arm.fusion = arm("weights", **own)
    c.arm.image_table = arm("weights", **own, inputs=("image", "table"))
    c.arm.logistic = arm(
        "weights", **own, estimator="sklearn.linear_model:LogisticRegression(C=0.01, max_iter=2000)"
    )
    c.arms = ("fusion", "image", "table", "text", "image_table", "logistic")

    c.data.inputs = ("image", "table", "text")
    c.data.image_size = 224
    c.data.channels = 3
    c.data.allow = ("duplicate_images", "near_duplicate_images")
    c.data.target = dataset(
        "manifest",
        path=f"{SHARED}/data/chest_xray_icu/manifest.csv",
        synonyms=tuple(f"icu={words}" for words in SYNONYMS),
    )
    c.data.preprocessing.mask_synonyms = True
    c.augment.flip = False  # a frozen backbone without augmentation: its features are computed once

    c.model.name = "resnet50(stride_in='1x1')"
    c.model.last_layer = "layer3"
    c.model.encoders.table = "linear"
    c.model.modality_dropout = 0.2
    c.weights.path = f"{SHARED}/weights/resnet50_imagenet_c4.safetensors"
    c.weights.sha256 = "d9d92c1a0946997e6b5b532cb479d1fc9b9257a1bfebd436cb050aa223029a93"

    c.stages.target = stage(
        freeze="backbone", batch_norm="frozen", learning_rate=3e-3, weight_decay=0.3, epochs=100
    )
    c.checkpoint.select = "last"
    c.evaluation.folds = 5
    c.evaluation.repeats = 5
    c.evaluation.reference = "fusion"
    c.evaluation.positive = "icu"
    return c
