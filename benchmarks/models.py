"""Torchvision's and our Mask R-CNN with the same random weights, and random images.

A network with plain random weights detects nothing. `calibrate` scales each layer during a forward
pass, so that activations, scores and offsets have the spread of a trained network and it returns
1000 proposals and 100 detections.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models import detection

import maskrcnn as mr

# Standard deviation of a layer's outputs, by a part of the layer's name.
SPREAD = {
    "fpn.layer_blocks": 1.0,
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "box_head": 1.0,
    "cls_score": 2.5,
    "box_predictor.bbox_pred": 1.0,
    "mask_head": 1.0,
    "mask_fcn_logits": 3.0,
}


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs of several sizes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    noise = [
        Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (4, 12, 40, 120)
    ]
    blobs = np.mean(
        [np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC)) for layer in noise],
        axis=0,
    )
    return np.clip(blobs * 2 - 128, 0, 255).astype(np.uint8)


def as_theirs(image: np.ndarray) -> torch.Tensor:
    """An image in torchvision's format: float [3, H, W] in 0..1."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def torchvision_model(detections: int = 100, seed: int = 0) -> nn.Module:
    """torchvision's ResNet-50-FPN Mask R-CNN with calibrated random weights."""
    torch.manual_seed(seed)
    model = detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, box_detections_per_img=detections
    )
    calibrate(model.eval(), random_image(400, 533, seed))
    return model


def ours_of(theirs: nn.Module) -> mr.MaskRCNN:
    """Our model with torchvision's weights, loaded through a checkpoint file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth"
        torch.save(theirs.state_dict(), path)
        model = mr.load(path)
    detections = theirs.roi_heads.detections_per_img
    return (
        with_detections(model, detections)
        if detections != model.config.box.max_detections
        else model
    )


def with_detections(model: mr.MaskRCNN, detections: int) -> mr.MaskRCNN:
    """A copy of the model with another limit on the number of detections."""
    config = replace(model.config, box=replace(model.config.box, max_detections=detections))
    other = mr.MaskRCNN.from_config(config).eval()
    other.load_state_dict(model.state_dict())
    return other


@torch.no_grad()
def calibrate(model: nn.Module, image: np.ndarray) -> None:
    """Scales weights and sets the statistics of BatchNorm during one forward pass."""
    handles = []

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        module.running_mean.copy_(x.mean((0, 2, 3)))
        module.running_var.copy_(x.var((0, 2, 3)))
        module.weight.copy_(0.3 + 0.7 * torch.rand_like(module.weight))

    def after_layer(spread: float):
        def hook(
            module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor
        ) -> torch.Tensor:
            if output.numel() < 100:
                return output
            module.weight.mul_(spread / (output.std() + 1e-9))
            module.bias.uniform_(-0.1, 0.1)
            return module.forward(*inputs)

        return hook

    for name, part in model.named_modules():
        if hasattr(part, "running_var"):
            handles.append(part.register_forward_pre_hook(before_norm))
        elif spread := next(
            (
                s
                for key, s in SPREAD.items()
                if key in name and getattr(part, "bias", None) is not None
            ),
            None,
        ):
            handles.append(part.register_forward_hook(after_layer(spread)))

    model([as_theirs(image)])
    for handle in handles:
        handle.remove()
