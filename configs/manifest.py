r"""Two hospitals of your own: a config to copy.

    python launch.py --config=configs/manifest.py --config.weights.path=resnet50.safetensors \
        --config.data.source.path=elsewhere/manifest.csv --config.data.target.path=here/manifest.csv

ImageNet ResNet-50 weights -> source manifest -> target manifest. Nothing was measured with it.
Without a `split` column the data is split 70 : 15 : 15, grouped by patient. The training settings
are those of a recipe (docs/methods.md): `few`, `some` or `many`, by the number of the target's
train labels; the first line of the terminal names it. A field that you set here or by a flag stays.
"""

from medtl.config import dataset, default


def get_config():
    c = default()
    c.name = "manifest"
    c.recipe = "auto"
    c.arms = ("transfer", "target_only", "scratch")

    c.data.image_size = 224
    c.data.channels = 3
    c.data.source = dataset("manifest")
    c.data.target = dataset("manifest")

    c.model.name = "resnet50"
    return c
