"""Transfer learning for medical diagnosis in JAX: ImageNet weights -> source stage -> target stage -> evaluation."""

__version__ = "0.1.0"
