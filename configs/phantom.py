"""The embedded default: synthetic phantoms, transfer from scanner "a" to "b" against scratch.

    python launch.py
    python launch.py --config.seeds=0,1,2 --workdir=runs/phantom_seeds

Random weights -> source stage on scanner "a" -> target stage on scanner "b", compared with training
from scratch. AUROC (macro one-vs-rest) and accuracy on the target's test split: 559 images, drawn
by a program, not medical data. 2 CPU cores, Python 3.13, JAX 0.12.0
(benchmarks/results/phantom.json); the first command takes 62 s, the second 158 s:

    seed       0               1               2
    transfer   0.887  0.635    0.841  0.521    0.853  0.662
    scratch    0.658  0.472    0.618  0.435    0.661  0.463

Each arm takes 540 steps of Adam at 1e-3: transfer takes 510 on 1,601 source images and 30 on 71
target images with as many of the source, scratch all 540 on the 71 target images. Such a short
target stage is sensitive to rounding: JAX 0.10.2 on Python 3.11 gives 0.872 and 0.664 for seed 0,
in 115 s.
"""

from medtl.config import default


def get_config():
    return default()
