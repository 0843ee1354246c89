from __future__ import annotations

import inspect
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn.ops.paste_masks import dense_masks, paste_masks


def random_objects(
    count: int, size: tuple[int, int], cells: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Grids of every value and boxes from a fraction of a pixel to the whole image, some over its edge."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([size[1], size[0]], dtype=torch.float32)
    corner = torch.rand(count, 2, generator=generator) * scale * 1.2 - 0.2 * scale
    extent = torch.rand(count, 2, generator=generator) ** 3 * scale + 0.3
    return torch.rand(count, cells, cells, generator=generator), torch.cat(
        [corner, corner + extent], dim=1
    )


def detectron2_pixel(grid: torch.Tensor, box: list[float], x: int, y: int, padding: str) -> float:
    """The value that grid_sample gives at one pixel's center, the way Detectron2 calls it."""
    x0, y0, x1, y1 = box
    point = torch.tensor([(x + 0.5 - x0) / (x1 - x0), (y + 0.5 - y0) / (y1 - y0)]) * 2 - 1
    return F.grid_sample(
        grid[None, None], point[None, None, None], padding_mode=padding, align_corners=False
    ).item()


def slow_paste(
    grid: torch.Tensor, box: list[float], size: tuple[int, int], rule: str
) -> np.ndarray:
    """One pixel at a time."""
    probability = np.zeros(size)
    x0, y0, x1, y1 = box
    for y in range(size[0]):
        for x in range(size[1]):
            if rule == "grid":
                touched = (
                    np.floor(x0) - 1 <= x < np.ceil(x1) + 1
                    and np.floor(y0) - 1 <= y < np.ceil(y1) + 1
                )
            else:
                touched = x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
            if touched:
                probability[y, x] = detectron2_pixel(
                    grid, box, x, y, "zeros" if rule == "grid" else "border"
                )
    return probability


@pytest.mark.parametrize("rule", ["grid", "border"])
@pytest.mark.parametrize("threshold", [0.5, 0.1])
def test_grid_sampling_equals_a_loop_over_pixels(rule: str, threshold: float) -> None:
    size = (14, 17)
    grids, boxes = random_objects(12, size, 5, seed=1)
    for grid, box, crop in zip(
        grids, boxes, paste_masks(grids, boxes, size, rule, threshold), strict=True
    ):
        probability = slow_paste(grid, box.tolist(), size, rule)
        got = dense_masks(iter([crop]), 1, size)[0]
        clear = np.abs(probability - threshold) > 1e-5
        assert (got == (probability >= threshold))[clear].all()


@pytest.mark.parametrize("size", [(60, 83), (7, 5)])
@pytest.mark.parametrize("cells", [28, 14, 3])
def test_torchvision_rule_equals_torchvision(size: tuple[int, int], cells: int) -> None:
    grids, boxes = random_objects(60, size, cells, seed=2)
    boxes[:, 0::2].clamp_(0, size[1])
    boxes[:, 1::2].clamp_(0, size[0])
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    grids, boxes = grids[keep], boxes[keep]
    probability = paste_masks_in_image(grids[:, None], boxes, size)[:, 0].numpy()
    got = dense_masks(paste_masks(grids, boxes, size, "torchvision"), len(boxes), size)
    clear = np.abs(probability - 0.5) > 1e-5
    assert clear.mean() > 0.99
    assert (got == (probability > 0.5))[clear].all()


@given(
    x0=st.floats(-20, 40),
    y0=st.floats(-20, 40),
    width=st.floats(0, 60),
    height=st.floats(0, 60),
    rule=st.sampled_from(["grid", "border", "torchvision"]),
)
@settings(max_examples=200, deadline=None)
def test_crops_lie_inside_the_image(
    x0: float, y0: float, width: float, height: float, rule: str
) -> None:
    size = (30, 23)
    (crop,) = paste_masks(
        torch.ones(1, 6, 6), torch.tensor([[x0, y0, x0 + width, y0 + height]]), size, rule
    )
    h, w = crop.mask.shape
    assert h * w == 0 or (
        0 <= crop.x0 <= crop.x0 + w <= size[1] and 0 <= crop.y0 <= crop.y0 + h <= size[0]
    )


def test_border_rule_fills_a_full_grid_to_the_box() -> None:
    (crop,) = paste_masks(
        torch.ones(1, 28, 28),
        torch.tensor([[2.0, 3.0, 9.0, 7.0]]),
        (10, 12),
        "border",
        threshold=0.99,
    )
    assert (crop.x0, crop.y0, crop.mask.shape, crop.mask.all()) == (2, 3, (4, 7), True)


def test_boxes_without_area_and_no_objects_give_empty_masks() -> None:
    boxes = torch.tensor(
        [[3.0, 3.0, 3.0, 8.0], [5.0, 5.0, 4.0, 9.0], [float("nan"), 0.0, 5.0, 5.0]]
    )
    for rule in ("grid", "border", "torchvision"):
        assert not dense_masks(
            paste_masks(torch.ones(3, 4, 4), boxes, (10, 10), rule), 3, (10, 10)
        ).any()
        assert dense_masks(
            paste_masks(torch.ones(0, 4, 4), torch.zeros(0, 4), (10, 10), rule), 0, (10, 10)
        ).shape == (0, 10, 10)


def test_unknown_rule_is_an_error() -> None:
    unchecked = inspect.unwrap(
        paste_masks
    )  # as users call it, without the type checks of the tests
    with pytest.raises(ValueError, match='expected paste rule "border", "grid" or "torchvision"'):
        list(unchecked(torch.ones(1, 4, 4), torch.ones(1, 4), (4, 4), "nearest"))  # ty: ignore[invalid-argument-type]


def test_three_hundred_objects_in_24_megapixels_stay_small_in_memory() -> None:
    size = (4000, 6000)
    grids, boxes = random_objects(300, size, 28, seed=3)
    boxes[0] = torch.tensor([0.0, 0.0, 6000.0, 4000.0])
    tracemalloc.start()
    try:
        area = sum(int(crop.mask.sum()) for crop in paste_masks(grids, boxes, size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert area > 0
    assert peak < 150e6
