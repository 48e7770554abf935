"""Load a model that medtl exported, backbone and head, into PyTorch. Needs torch and safetensors.

    net = Diagnosis("model.safetensors", timm.create_model("resnet50", num_classes=0))
    probabilities = net(images)  # uint8[B, C, H, W], of the size of the training

The backbone comes from torchvision, timm or your own code, without its classifier; it returns
features [B, D] or a map [B, D, h, w]. Every tensor of the file must fit it.
"""

import json
from typing import Any

import safetensors
import torch
from torch import nn


class Diagnosis(nn.Module):
    """The probabilities f32[B, K] of images uint8[B, C, H, W]; `classes` names the K columns."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, path: str, backbone: Any):
        super().__init__()
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        head = {n: tensors.pop(n) for n in list(tensors) if n.startswith("medtl_head.")}
        for layer in json.loads(about["left_out"]):
            setattr(backbone, layer, nn.Identity())
        backbone.load_state_dict(tensors)
        for name, module in backbone.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = float(about["bn_eps"])
            if about.get("stride_in") == "1x1" and name.endswith(".0") and hasattr(module, "conv3"):
                module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        layers: list[nn.Module] = []
        for i in range(len(head) // 2):
            weight, bias = head[f"medtl_head.{i}.weight"], head[f"medtl_head.{i}.bias"]
            layers += [nn.Linear(weight.shape[1], weight.shape[0]), nn.ReLU()]
            layers[-2].load_state_dict({"weight": weight, "bias": bias})
        self.backbone, self.head = backbone, nn.Sequential(*layers[:-1])
        self.classes, self.activation = json.loads(about["classes"]), about["activation"]
        for name, values in json.loads(about["normalization"]).items():
            if name in ("mean", "std"):
                self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the probabilities."""
        x = self.backbone((images.float() - self.mean) / self.std)
        logits = self.head(x.mean((2, 3)) if x.ndim == 4 else x)
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()
