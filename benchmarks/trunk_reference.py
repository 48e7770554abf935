"""The distance of the ResNet-50 trunk from a float64 computation on the same weights and images.

    python benchmarks/trunk_reference.py            # looks for ../shared/weights

Prints ‖out - ref‖ / ‖ref‖ of the feature map [2, 14, 14, 1024] and of the pooled features
[2, 1024], in float32.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from medtl import models, weights
from medtl.data import augment

WEIGHTS = Path(__file__).parents[2] / "shared/weights"


def main():
    name = "resnet50(stride_in='1x1')"
    backbone = models.backbone(name, last_layer="layer3")()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    shapes = jax.eval_shape(lambda key, x: backbone.init(key, x, False), jax.random.key(0), image)
    path = WEIGHTS / "resnet50_imagenet_c4.safetensors"
    loaded = weights.load(str(path), models.parse(name), shapes, last_layer="layer3")
    print(loaded.report.summary())
    reference = np.load(WEIGHTS / "resnet50_imagenet_c4.reference.npz")
    images = augment.normalize(reference["images_uint8_nhwc"], loaded.normalization)
    features = np.asarray(backbone.apply(loaded.variables, images, False), np.float64)
    for name, value in (("features_nhwc", features), ("pooled", features.mean((1, 2)))):
        expected = reference[name].astype(np.float64)
        distance = np.linalg.norm(value - expected) / np.linalg.norm(expected)
        print(f"{name}: {distance:.2e}  (JAX {jax.__version__})")


if __name__ == "__main__":
    sys.exit(main())
