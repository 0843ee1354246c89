"""Small networks and synthetic truth for the tests of the model; a forward pass takes milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from maskrcnn.config import Category, KeypointHeadConfig, ModelConfig, RoIConfig
from maskrcnn.presets import maskrcnn_r18_small
from maskrcnn.structures import Batch, Truth


def tiny_config(
    categories: int | Sequence[str | Category] = 3, keypoints: int = 0, **changes: object
) -> ModelConfig:
    """`maskrcnn_r18_small` with a sixteenth of its channels and GroupNorm, so that a prediction does not depend on the batch."""
    config = maskrcnn_r18_small(categories, keypoints)
    config = replace(
        config,
        trunk=replace(config.trunk, stem_channels=8, res2_channels=8, norm="group"),
        neck=replace(config.neck, channels=16, norm="group"),
        rpn=replace(config.rpn, convs=(16,)),
        box=replace(config.box, fcs=(32,), max_detections=50),
        mask=replace(config.mask, convs=(16,), upsample=(16,), norm="group"),  # ty: ignore[invalid-argument-type]
    )
    if config.keypoint:
        config = replace(
            config, keypoint=KeypointHeadConfig(convs=(16,), norm="group", roi=RoIConfig(size=14))
        )
    return replace(config, **changes)  # ty: ignore[invalid-argument-type]


def make_batch(sizes: Sequence[tuple[int, int]] = ((96, 128), (128, 96)), seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]
    return Batch.collate(images, seeds=[seed * 100 + i for i in range(len(sizes))])


def make_truth(config: ModelConfig, batch: Batch, objects: int = 4, seed: int = 0) -> Truth:
    """`objects` boxes per image, each a filled disc with all of its category's keypoints."""
    generator = torch.Generator().manual_seed(seed)
    count, keypoints = len(batch.sizes), config.num_keypoint_channels if config.keypoint else 0
    side = config.mask.truth_size if config.mask else 1
    truth = Truth.empty(count, objects, side, keypoints)
    low = torch.rand(count, objects, 2, generator=generator) * 50
    high = low + 20 + 25 * torch.rand(count, objects, 2, generator=generator)
    truth.boxes[...] = torch.cat([low, high], dim=-1)
    truth.labels[...] = torch.randint(config.num_classes, (count, objects), generator=generator)
    for flag in (truth.valid, truth.has_box, truth.has_mask):
        flag[...] = True
    ramp = (torch.arange(side) + 0.5) / side - 0.5
    truth.masks[...] = ((ramp[:, None] ** 2 + ramp**2) < 0.25).to(torch.uint8) * 255
    if keypoints:
        starts, counts = torch.tensor(config.keypoint_slices)[truth.labels].unbind(dim=-1)
        channel = torch.arange(keypoints)
        own = (channel >= starts[..., None]) & (channel < (starts + counts)[..., None])
        positions = low[:, :, None] + (high - low)[:, :, None] * torch.rand(
            count, objects, keypoints, 2, generator=generator
        )
        truth.keypoints[..., :2] = torch.where(own[..., None], positions, 0.0)
        truth.keypoints[..., 2] = own * 2.0
        truth.has_keypoints[...] = own.any(dim=-1)
    return truth
