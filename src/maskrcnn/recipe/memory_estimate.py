"""An estimate of the memory that training needs, and the memory that is free.

In: a model's configuration, the size of a batch. Out: bytes. The network runs on PyTorch's meta
device, which has the shapes of tensors but no data. The tensors that autograd keeps are counted.

tests/test_recipe_memory.py compares the estimate with the resident memory of real training runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

from ..config import ModelConfig, RoIConfig
from ..model.maskrcnn import MaskRCNN
from ..model.resnet import ResNet
from ..ops.pyramid import Pyramid

GIB = 2**30
# Share of the float32 bytes needed with bfloat16 autocast: losses, box arithmetic and normalization
# stay float32.
_HALF = 0.6
# Factor for temporary memory: gradients during the backward pass, workspaces of convolutions,
# memory that the allocator does not return.
_TEMPORARY = 1.4


def available_memory(device: torch.device) -> float:
    """Free bytes of the GPU, or of the machine within the limits of its container."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    limits = [
        int(text)
        for path in ("memory.max", "memory/memory.limit_in_bytes")
        if (text := _read(Path("/sys/fs/cgroup") / path)).isdigit()
    ]

    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return float(min([int(line.split()[1]) * 1024, *limits]))
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return 4.0 * GIB  # assumed where the system does not report it


def training_bytes(
    model: ModelConfig,
    batch_size: int,
    size: tuple[int, int],
    half: bool = False,
    checkpointing: bool = False,
) -> float:
    """Bytes that training needs beyond those of the program.

    These are the weights, the optimizer's state, the averaged weights, and the activations that a
    batch keeps for the gradients.

    Args:
        model: configuration of the network.
        batch_size: images in one forward pass.
        size: (height, width) of a padded image.
        half: training in 16 bits.
        checkpointing: activation checkpointing of the trunk's stages.
    """
    with torch.device("meta"):
        network = MaskRCNN.from_config(model).train()
    kept = _trunk_and_rpn(network, batch_size, size, checkpointing) + _heads(network, batch_size)

    # Weights and their average; gradients and two momenta of those that are trained.
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    weights = 4 * (2 * total + 3 * trained)
    return weights + kept * (_HALF if half else 1.0) * _TEMPORARY


def _trunk_and_rpn(
    network: MaskRCNN, batch_size: int, size: tuple[int, int], checkpointing: bool
) -> int:
    """Bytes that trunk, neck and RPN keep for the gradients.

    With checkpointing, also what the largest stage keeps while it is recomputed.
    """
    height, width = (-(-side // 32) * 32 for side in size)
    trunk = network.trunk
    inside = 0
    images = torch.empty(batch_size, 3, height, width, device="meta")
    if checkpointing and isinstance(trunk, ResNet):
        entering = [
            images.new_empty(batch_size, trunk.conv1.out_channels, height // 4, width // 4),
            *trunk(images),
        ]
        stages = [
            stage
            for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
            if stage is not None
        ]
        inside = max(
            _kept_bytes(partial(stage, x.detach()))
            for stage, x in zip(stages, entering, strict=False)
        )
        trunk.activation_checkpointing = True

    rpn = network.rpn
    samples = int(rpn.config.samples * (1 + rpn.config.positive_fraction))
    anchors = torch.zeros(batch_size, samples, dtype=torch.int64, device="meta")
    return inside + _kept_bytes(
        lambda: rpn.sampled(Pyramid.of(network.neck(trunk(images))), anchors)
    )


def _heads(network: MaskRCNN, batch_size: int) -> int:
    """Bytes that the heads and RoIAlign keep, with as many RoIs as the losses may use."""
    config = network.config
    positives = int(config.box.samples * config.box.positive_fraction)
    kept = _head(network, network.box_head, config.box.roi, batch_size * config.box.samples)

    if network.mask_head is not None and config.mask is not None:
        count = batch_size * min(positives, config.mask.max_positives or positives)
        labels = torch.zeros(count, dtype=torch.int64, device="meta")
        kept += _head(network, partial(network.mask_head, labels=labels), config.mask.roi, count)

    if network.keypoint_head is not None and config.keypoint is not None:
        count = batch_size * min(positives, config.keypoint.max_positives or positives)
        kept += _head(network, network.keypoint_head, config.keypoint.roi, count)
    return kept


def _head(network: MaskRCNN, head: Callable[[Tensor], Any], roi: RoIConfig, count: int) -> int:
    features = torch.empty(
        count, network.neck.channels, roi.size, roi.size, device="meta", requires_grad=True
    )
    corners = count * roi.size**2 * (roi.sampling_ratio or 2) ** 2 * 4
    return corners * (8 + 4) + _kept_bytes(
        lambda: head(features if network.res5 is None else network.res5(features))
    )


def _kept_bytes(compute: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of a computation, besides the weights."""
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in kept.values())


def _read(path: Path) -> str:
    """The stripped text of a system file; empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
