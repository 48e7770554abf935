"""The embedded default: synthetic phantoms, random weights -> scanner "a" -> scanner "b", against training from scratch.

    python launch.py
    python launch.py --config.seeds=0,1,2 --workdir=runs/phantom_seeds

To be measured.
"""

from medtl.config import default


def get_config():
    return default()
