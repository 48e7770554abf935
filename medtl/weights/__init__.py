"""Other people's checkpoints -> our backbone's variables, with a report of what was loaded; and back.

Reads torchvision/timm names from .safetensors, .npz, .pth and .th, and Keras-applications .h5, from a local path or
from hf://org/repo/file. Refuses a file that does not fit the backbone, that is not what its hash says, or whose input
normalisation is neither stated nor known. Imports no JAX.
"""

from medtl.weights.naming import torch_name
from medtl.weights.pretrained import Pretrained, check, load
from medtl.weights.report import LoadReport
from medtl.weights.torch_export import export

__all__ = ["LoadReport", "Pretrained", "check", "export", "load", "torch_name"]
