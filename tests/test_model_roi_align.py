"""RoIAlign: the bag of pixels, torchvision's kernel and a slow loop agree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from maskrcnn.config import RoIConfig
from maskrcnn.model.roi_align import RoIPooler
from maskrcnn.ops.pyramid import Pyramid

STRIDES = (4, 8, 16, 32)


def levels(
    images: int = 2, channels: int = 3, side: int = 128, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(images, channels, side // s, side // s + 3, generator=generator).to(dtype)
        for s in STRIDES
    ]


def boxes(count: int = 60, side: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of all sizes, some over the border, one without area, one far outside."""
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(count, 2, generator=generator) * side * 1.2 - 10
    size = torch.rand(count, 2, generator=generator) ** 3 * side * 6
    rois = torch.cat([start, start + size], dim=1)
    rois[0, 2:] = rois[0, :2]
    rois[1] = torch.tensor([500.0, 500.0, 600.0, 700.0])
    return rois, torch.randint(2, (count,), generator=generator)


def slow_roi_align(
    feature: torch.Tensor, box: list[float], stride: int, config: RoIConfig
) -> torch.Tensor:
    """RoIAlign of one RoI by its definition, sample by sample. feature [C, H, W] -> [C, S, S]."""
    shift = 0.5 if config.aligned else 0.0
    x0, y0, x1, y1 = (v / stride - shift for v in box)
    width, height = x1 - x0, y1 - y0
    if not config.aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    size = config.size
    across = config.sampling_ratio or math.ceil(width / size)
    down = config.sampling_ratio or math.ceil(height / size)
    out = torch.zeros(feature.shape[0], size, size)
    for i in range(size):
        for j in range(size):
            for a in range(down):
                for b in range(across):
                    y = y0 + (i + (a + 0.5) / down) * height / size
                    x = x0 + (j + (b + 0.5) / across) * width / size
                    out[:, i, j] += bilinear(feature, y, x) / (down * across)
    return out


def bilinear(feature: torch.Tensor, y: float, x: float) -> torch.Tensor:
    _, height, width = feature.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(feature.shape[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = feature[:, top, left] * (1 - fx) + feature[:, top, right] * fx
    lower = feature[:, bottom, left] * (1 - fx) + feature[:, bottom, right] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_bag_of_pixels_kernel_and_slow_loop_agree_in_values_and_gradients(
    aligned: bool, sampling_ratio: int
) -> None:
    config = RoIConfig(size=3, sampling_ratio=sampling_ratio, aligned=aligned)
    box, image = boxes()
    results, gradients = [], []
    for use_kernel in (False, True):
        pooler = RoIPooler(STRIDES, config)
        pooler.use_torchvision_kernel = use_kernel
        features = [f.requires_grad_() for f in levels()]
        pooled = pooler(Pyramid.of(features), box, image)
        (pooled * torch.arange(pooled.numel()).view_as(pooled).cos()).sum().backward()
        results.append(pooled.detach())
        gradients.append([f.grad for f in features])
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=1e-4)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    level = RoIPooler(STRIDES, config).level(box)
    for k in range(0, len(box), 7):
        feature = levels()[level[k]][image[k]]
        torch.testing.assert_close(
            results[0][k],
            slow_roi_align(feature, box[k].tolist(), STRIDES[level[k]], config),
            atol=2e-5,
            rtol=1e-4,
        )


def test_a_linear_ramp_is_read_at_the_middle_of_each_bin() -> None:
    ramp = (torch.arange(32) + 0.5).expand(
        1, 1, 32, 32
    ) * 4  # each cell holds the x of its own center, in image pixels
    pooled = RoIPooler((4,), RoIConfig(size=4))(
        Pyramid.of([ramp]),
        torch.tensor([[20.0, 20.0, 60.0, 60.0]]),
        torch.zeros(1, dtype=torch.int64),
    )
    torch.testing.assert_close(pooled[0, 0, 0], torch.tensor([25.0, 35.0, 45.0, 55.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_rounds_features_and_not_boxes(dtype: torch.dtype) -> None:
    pooler = RoIPooler(STRIDES, RoIConfig(size=7, sampling_ratio=2))
    pooler.use_torchvision_kernel = True
    rois, image = boxes()
    rounded = levels(dtype=dtype)
    exact = pooler(Pyramid.of([level.float() for level in rounded]), rois, image)
    pooled = pooler(Pyramid.of(rounded), rois, image)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), exact, atol=1e-6, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("use_kernel", [False, True])
def test_no_boxes_give_an_empty_result_that_can_be_differentiated(use_kernel: bool) -> None:
    pooler = RoIPooler(STRIDES, RoIConfig())
    pooler.use_torchvision_kernel = use_kernel
    features = [f.requires_grad_() for f in levels()]
    pooled = pooler(Pyramid.of(features), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()


def test_bfloat16_features_are_read_to_their_own_precision() -> None:
    box, image = boxes()
    pooler = RoIPooler(STRIDES, RoIConfig())
    exact = pooler(Pyramid.of(levels()), box, image)
    features = [f.requires_grad_() for f in levels(dtype=torch.bfloat16)]
    coarse = pooler(Pyramid.of(features), box, image)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, atol=0.05, rtol=0.05)
    coarse.float().sum().backward()
    assert all(f.grad is not None and f.grad.isfinite().all() for f in features)


def test_boxes_go_to_the_level_that_torchvision_sends_them_to() -> None:
    config = RoIConfig(size=2, aligned=False, level_epsilon="log")
    sides = torch.tensor([5.0, 111.9, 112.0, 112.1, 223.9, 224.0, 447.9, 448.0, 2000.0])
    box = torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)
    theirs = MultiScaleRoIAlign([str(i) for i in range(4)], 2, 2)
    features = {
        str(i): torch.full((1, 1, 512 // s, 512 // s), float(i)) for i, s in enumerate(STRIDES)
    }
    read = theirs(features, [box.clamp(max=511)], [(512, 512)])  # each level holds its own number
    ours = RoIPooler(STRIDES, config)(
        Pyramid.of([*features.values()]),
        box.clamp(max=511),
        torch.zeros(len(box), dtype=torch.int64),
    )
    torch.testing.assert_close(ours, read)
    assert RoIPooler(STRIDES, replace(config, level_epsilon="ratio")).level(box).tolist() == [
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
