"""The certificate of exported files: what it proves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from models import tiny_config

import maskrcnn as mr
from maskrcnn.config import Category, ModelConfig
from maskrcnn.export.certify import ExportMismatchError, certify, weights_hash
from maskrcnn.export.comparison import compare_objects, peak_positions
from maskrcnn.export.export_format import ExportFormat
from maskrcnn.export.made_images import ImageGroup, draw_blobs
from maskrcnn.instances import Instances

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Certified(NamedTuple):
    """A model and its file with intermediate results."""

    model: mr.MaskRCNN
    path: Path


def joint_config() -> ModelConfig:
    config = tiny_config([Category("arrow", 1, keypoints=("tip", "tail")), Category("disc", 2)])
    return replace(
        config,
        trunk=replace(config.trunk, norm="batch"),
        neck=replace(config.neck, norm="none"),
        box=replace(config.box, max_detections=20),
        mask=replace(config.mask, norm="none"),  # ty: ignore[invalid-argument-type]
        keypoint=replace(config.keypoint, norm="none"),  # ty: ignore[invalid-argument-type]
    )


@torch.no_grad()
def joint_model() -> mr.MaskRCNN:
    """A random network that detects objects in blobs, and none in empty images."""
    torch.manual_seed(0)
    model = mr.MaskRCNN.from_config(joint_config()).eval()
    logits: list[torch.Tensor] = []
    hook = model.box_head.register_forward_hook(lambda *args: logits.append(args[2][0]))
    for image in (np.zeros((96, 128, 3), np.uint8), draw_blobs((96, 128), 0)):
        mr.predict(model, image, exact=True)
    hook.remove()

    # Class logits of spread 2 in blobs; in empty images only background.
    empty, blobs = logits
    factor = 2 / (blobs - empty.mean(dim=0)).std()
    head = model.box_head.class_logits
    head.bias.copy_(factor * (head.bias - empty.mean(dim=0)) + torch.tensor([0.0, 0.0, 8.0]))
    head.weight.mul_(factor)
    model.box_head.box_deltas.weight.mul_(30)
    for part in (model.mask_head, model.keypoint_head):
        for weight in part.parameters():  # ty: ignore[unresolved-attribute]
            if weight.dim() == 4:
                weight.mul_(3)
    return model
