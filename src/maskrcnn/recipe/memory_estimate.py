"""An estimate of the memory that training needs, and the memory that is free.

In: a model's configuration, the size of a batch. Out: bytes. The network runs on PyTorch's meta
device, which has the shapes of tensors but no data. The tensors that autograd keeps are counted.

tests/test_recipe_memory.py compares the estimate with the resident memory of real training runs.
"""

from __future__ import annotations

import functools
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
# Times the finest level of the pyramid that a forward pass without gradients holds at once.
# Measured: ResNet-18 with 64 channels at 2048 px 126 MB, ResNet-50 at 1024 px 390 MB per megapixel.
_HELD = 5.5
_PROGRAM = 0.8 * GIB  # assumed where the system does not report it
# What a process on a CPU takes besides: libraries that are imported later (metric, curves), and
# gaps between tensors. A fit to a few runs on a busy machine; the validation of many small objects
# took more (docs/results.md).
_BESIDES = 0.2 * GIB


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


def free_bytes(device: torch.device, limit: float | None) -> float:
    """Bytes that training may use beyond those of the program.

    Args:
        device: where the network is.
        limit: GiB that the whole process may use, or training on the GPU; None = all that is free.
    """
    if limit is None:
        return available_memory(device)
    if device.type == "cuda":
        return limit * GIB
    return max(0.0, limit * GIB - program_bytes() - _BESIDES)


def program_bytes() -> float:
    """Resident bytes of this process: the program itself and the opened data."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmRSS:"):
            return float(int(line.split()[1]) * 1024)
    return _PROGRAM


def expected_peak(program: float, needed: float, device: str | None) -> float:
    """Bytes at the peak of a run: of this process, or of the GPU if it trains there.

    Args:
        program: bytes of this process before its first step.
        needed: bytes of training and validation beyond them.
        device: such as "cpu" or "cuda"; None = a GPU if there is one.
    """
    is_cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return needed if is_cuda else max(program + needed + _BESIDES, _so_far())


def _so_far() -> float:
    """The most resident bytes that this process has had; 0 where that is unknown."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return float(int(line.split()[1]) * 1024)
    return 0.0


def training_bytes(
    model: ModelConfig,
    batch_size: int,
    size: tuple[int, int],
    half: bool = False,
    checkpointing: bool = False,
) -> float:
    """Bytes that training steps need beyond those of the program: state and activations.

    Args:
        model: configuration of the network.
        batch_size: images in one forward pass.
        size: (height, width) of a padded image.
        half: training in 16 bits.
        checkpointing: activation checkpointing of the trunk's stages.
    """
    return state_bytes(model) + activation_bytes(model, batch_size, size, half, checkpointing)


def state_bytes(model: ModelConfig) -> float:
    """Bytes of the weights and their average, and of the gradients and two momenta."""
    network = _without_data(model)
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return 4.0 * (2 * total + 3 * trained)


def activation_bytes(
    model: ModelConfig,
    batch_size: int,
    size: tuple[int, int],
    half: bool = False,
    checkpointing: bool = False,
) -> float:
    """Bytes of the activations that a batch keeps for the gradients. Arguments: training_bytes."""
    kept = batch_size / 2 * _kept_of_two(model, size, checkpointing)
    return kept * (_HALF if half else 1.0) * _TEMPORARY


@functools.lru_cache(maxsize=64)
def _kept_of_two(model: ModelConfig, size: tuple[int, int], checkpointing: bool) -> int:
    """Bytes that two images keep; BatchNorm needs more than one value per channel."""
    network = _without_data(model)
    return _trunk_and_rpn(network, 2, size, checkpointing) + _heads(network, 2)


@functools.lru_cache(maxsize=64)
def validation_bytes(model: ModelConfig, size: tuple[int, int]) -> float:
    """Bytes of the activations in a forward pass without gradients, over one whole image.

    Each tensor is freed when the next layers have read it. The finest level of the pyramid is held
    longest, with what the RPN makes of it; the stem's output is the largest tensor before it.
    """
    network = _without_data(model)
    height, width = (-(-side // 32) * 32 for side in size)
    images = torch.empty(1, 3, height, width, device="meta")
    with torch.no_grad():
        finest = network.neck(network.trunk(images))[0]
    stem = 4 * model.trunk.stem_channels * height * width / 4
    return stem + _HELD * 4 * finest.numel()


def image_bytes(pixels: int) -> float:
    """Bytes of two original images, for copy-paste: as bytes, and as numbers while they move."""
    return 2.0 * pixels * 3 * (1 + 4)


def step_work(model: ModelConfig, batch_size: int, size: tuple[int, int]) -> float:
    """Floating-point operations of a batch's forward pass: compares the costs of steps."""
    from torch.utils.flop_counter import FlopCounterMode

    network = _without_data(model)
    with FlopCounterMode(display=False) as counter:
        _trunk_and_rpn(network, 2, size, checkpointing=False)
        _heads(network, 2)
    return batch_size / 2 * counter.get_total_flops()


@functools.lru_cache(maxsize=4)
def _without_data(model: ModelConfig) -> MaskRCNN:
    """A network on the meta device."""
    with torch.device("meta"):
        return MaskRCNN.from_config(model).train()


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
    if isinstance(trunk, ResNet):
        trunk.activation_checkpointing = checkpointing

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
