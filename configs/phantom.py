"""The embedded default: synthetic phantoms, random weights -> scanner "a" -> scanner "b", against training from scratch.

    python launch.py
    python launch.py --config.seeds=0,1,2 --workdir=runs/phantom_seeds

What came out on the target's test split (559 images, drawn by a program: not medical data), AUROC (macro one-vs-rest) and accuracy; 2 CPU
cores, Python 3.13, JAX 0.12.0 (benchmarks/results/phantom.json); the first command takes 140 s:

    seed       0               1               2
    transfer   0.866  0.694    0.816  0.649    0.853  0.587
    scratch    0.658  0.467    0.618  0.444    0.660  0.463

Each arm takes 540 steps of Adam at 1e-3: transfer 510 on 1,601 source images and 30 on 71 target images with as many of the source, scratch
all on the 71 target images.
"""

from medtl.config import default


def get_config():
    return default()
