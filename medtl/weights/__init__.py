"""Loads other people's weight files into a backbone, with a report, and exports a backbone.

Reads torchvision/timm names from .safetensors, .npz, .pth and .th, and Keras-applications .h5, from
a local path or from hf://org/repo/file. A file that does not fit the backbone, has another hash, or
has no known input normalization is an error. Imports no JAX.
"""

from medtl.weights.naming import torch_name
from medtl.weights.pretrained import Pretrained, check, load
from medtl.weights.report import LoadReport
from medtl.weights.torch_export import ExportedHead, export

__all__ = ["ExportedHead", "LoadReport", "Pretrained", "check", "export", "load", "torch_name"]
