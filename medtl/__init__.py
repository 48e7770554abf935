"""Transfer learning for medical diagnosis in JAX.

Pretrained weights -> source stage -> target stage -> evaluation against training from scratch.
"""

__version__ = "0.1.0"
