"""The embedded default: synthetic phantoms, transfer from scanner "a" to "b" against scratch.

    python launch.py

Random weights -> source stage on scanner "a" -> target stage on scanner "b", compared with training
from scratch. AUROC (macro one-vs-rest) and accuracy on the target's test split: 559 images, drawn
by a program, not medical data. 2 CPU cores, Python 3.13, JAX 0.12.0.1:

    seed       0               1               2
    transfer   0.876  0.680    0.860  0.694    0.870  0.612
    scratch    0.667  0.485    0.618  0.447    0.662  0.469

The verdict: AUROC +0.220 (+0.177 to +0.263). The three seeds took 158 s on one idle machine, 313 s
on another with the same digits. A processor that rounds differently gave 0.844 +- 0.023 and
0.649 +- 0.025, with the same verdict; one gave 0.887 and 0.658 for seed 0
(benchmarks/results/phantom.json).

Each arm takes 540 steps of Adam at 1e-3: transfer takes 510 on 1,601 source images and 30 on 71
target images with as many of the source, scratch all 540 on the 71 target images. Such a short
target stage is sensitive to rounding: JAX 0.10.2 on Python 3.11 gives 0.872 and 0.664 for seed 0.
"""

from medtl.config import default


def get_config():
    return default()
