"""Comparison of keypoints with another library's, where a heat map may have two equal peaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

from maskrcnn.model.keypoint_head import KeypointHead


@contextmanager
def recorded_heatmaps() -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects the heat maps [K, J, S, S] and boxes [K, 4] of each batch that is predicted."""
    recorded: list[tuple[Tensor, Tensor]] = []
    decode = KeypointHead.decode

    def watched(
        self: KeypointHead, heatmaps: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        recorded.append((heatmaps.detach().float(), boxes.detach().float()))
        return decode(self, heatmaps, boxes, labels)

    with patch.object(KeypointHead, "decode", watched):
        yield recorded


def below_peak(heatmap: Tensor, box: Tensor, share: Tensor) -> float:
    """How far a heat map, read on the whole pixels of its box, is below its maximum at a point.

    Args:
        heatmap: [S, S] logits.
        box: xyxy, model-input pixels.
        share: (x, y) of the point, 0 to 1 across the box.
    """
    width, height = (box[2:] - box[:2]).clamp(min=1).ceil().int().tolist()
    fine = F.interpolate(
        heatmap[None, None], size=(height, width), mode="bicubic", align_corners=False
    )[0, 0]
    x = min(max(int(share[0] * width), 0), width - 1)
    y = min(max(int(share[1] * height), 0), height - 1)
    return (fine.max() - fine[y, x]).item()


def assert_keypoints_close(
    ours: Tensor,
    theirs: Tensor,
    boxes: Tensor,
    maps: tuple[Tensor, Tensor],
    *,
    pixels: float,
    logits: float,
) -> None:
    """Each keypoint is where theirs is, or our heat map is as high there as at its peak.

    Args:
        ours: [K, J, 2 or more], x and y first.
        theirs: of the same shape.
        boxes: of the detections, in the same pixels.
        maps: our heat maps and boxes in model-input pixels, in the same order.
        pixels: largest distance.
        logits: a place this far below the peak is as good as the peak.
    """
    heatmaps, inputs = maps
    assert ours.shape == theirs.shape
    apart = (ours[..., :2] - theirs[..., :2]).abs().amax(dim=-1)
    for k, j in (~(apart <= pixels)).nonzero().tolist():
        share = (theirs[k, j, :2] - boxes[k, :2]) / (boxes[k, 2:] - boxes[k, :2])
        below = below_peak(heatmaps[k, j], inputs[k], share)
        assert below <= logits, (
            f"keypoint {j} of detection {k}: {apart[k, j]:.3g} px away, "
            f"where the logit is {below:.3g} below the peak"
        )
