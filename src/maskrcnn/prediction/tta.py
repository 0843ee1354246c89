"""Test-time augmentation: predicts several views of an image and merges their detections.

In:  a network, a batch, the views: mirrored, rotated, and at other scales.
Out: Detections of the batch, in the same form as those of the network alone.

1. In every view the network detects boxes. They are moved back to the image's frame, and NMS over
   all views keeps the best-scored box of each object.
2. Every view then predicts masks and heatmaps in each of these boxes, whichever view it came from.
   They are turned back, left and right keypoints of mirrored views are exchanged, and mask
   probabilities and heatmap logits are averaged.

The predictions for an image do not depend on its neighbors in the batch. The time is the sum over
the views, proportional to their area. The feature maps of all views are held at once.

Source: Detectron2's GeneralizedRCNNWithTTA; He et al. 2017, appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ..augmentation import geometry
from ..config import ModelConfig
from ..kernels import nms
from ..model.box_head import detections_of
from ..model.maskrcnn import MaskRCNN
from ..ops import boxes as box_ops
from ..ops.pyramid import Pyramid
from ..ops.rows import Rows
from ..structures import Batch, Detections

KINDS = {
    "flip": "also mirrored",
    "turns": "also rotated by right angles",
    "scales": "also at 0.8 and 1.25 times the size",
}
_SCALES = (1.0, 0.8, 1.25)


@dataclass(frozen=True)
class TTAView:
    """A view of an image: resized, mirrored, then rotated counter-clockwise by right angles."""

    scale: float = 1.0
    mirrored: bool = False
    turns: int = 0

    def pixels(self, image: Float[Tensor, "C h w"]) -> Float[Tensor, "C _ _"]:
        """The image in this view."""
        if self.scale != 1:
            size = [max(1, round(side * self.scale)) for side in image.shape[1:]]
            image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
        return torch.rot90(image.flip(2) if self.mirrored else image, self.turns, (1, 2))

    def matrix(self, size: tuple[int, int]) -> Float[Tensor, "3 3"]:
        """The map from the pixels of an image of this (height, width) to the view's pixels."""
        height, width = (max(1, round(side * self.scale)) for side in size)
        scale = geometry.scale(width / size[1], height / size[0])
        flip = geometry.flip_horizontal(width) if self.mirrored else np.eye(3)
        turn = geometry.quarter_turns(self.turns, (height, width))
        return torch.from_numpy(geometry.compose(scale, flip, turn)).float()

    def undo(self, grids: Float[Tensor, "*k S S"]) -> Float[Tensor, "*k S S"]:
        """Grids over boxes of the view, as grids over the boxes of the image."""
        upright = torch.rot90(grids, -self.turns, (-2, -1))
        return upright.flip(-1) if self.mirrored else upright


def parse_tta(tta: str | None) -> tuple[TTAView, ...]:
    """The views that a setting such as "flip" or "flip,scales" names, the plain one first.

    Returns:
        The views; none for None.

    Raises:
        ValueError: an unknown word.
    """
    if tta is None:
        return ()
    words = [word.strip() for word in tta.split(",")]
    if unknown := [word for word in words if word not in KINDS]:
        known = "; ".join(f"{word} = {meaning}" for word, meaning in KINDS.items())
        raise ValueError(
            f'tta: unknown value "{unknown[0]}"; choose one or more of these, separated by commas: '
            f"{known}"
        )
    scales = _SCALES if "scales" in words else (1.0,)
    mirrored = (False, True) if "flip" in words else (False,)
    turns = range(4) if "turns" in words else (0,)
    return tuple(TTAView(*view) for view in product(scales, mirrored, turns))


def predict_views(network: MaskRCNN, batch: Batch, views: Sequence[TTAView]) -> Detections:
    """The merged detections of all views of the images of a batch, in the batch's pixels."""
    pyramids: list[Pyramid] = []
    matrices: list[Tensor] = []
    candidates: list[Detections] = []
    for view in views:
        view_batch, matrix = view_of_batch(batch, view, network.config.input.size_divisor)
        pyramid = network.pyramid(view_batch)
        detections = network.detect(pyramid, view_batch)
        back = torch.linalg.inv_ex(matrix)[0]
        candidates.append(replace(detections, boxes=_move(back, detections.boxes)))
        pyramids.append(pyramid)
        matrices.append(matrix)
    merged = merge_views(candidates, batch, network.config)

    # every view predicts the parts of every merged box
    rows = Rows.of(merged.valid, merged.num_valid)
    labels = rows.gather(merged.labels)
    masks: list[Tensor] = []
    heatmaps: list[Tensor] = []
    for view, pyramid, matrix in zip(views, pyramids, matrices, strict=True):
        boxes = rows.gather(_move(matrix, merged.boxes))
        if network.mask_head is not None:
            masks.append(view.undo(network.predict_masks(pyramid, boxes, labels, rows.image)))
        if network.keypoint_head is not None:
            upright = view.undo(network.predict_heatmaps(pyramid, boxes, rows.image))
            if view.mirrored:
                upright = _exchange_sides(upright, labels, network.config)
            heatmaps.append(upright)

    if masks:
        merged = replace(merged, masks=rows.scatter(torch.stack(masks).mean(dim=0)))
    if network.keypoint_head is not None:
        points, peaks = network.keypoint_head.decode(
            torch.stack(heatmaps).mean(dim=0), rows.gather(merged.boxes), labels
        )
        merged = replace(
            merged, keypoints=rows.scatter(points), keypoint_logits=rows.scatter(peaks)
        )
    return merged


def view_of_batch(
    batch: Batch, view: TTAView, size_divisor: int
) -> tuple[Batch, Float[Tensor, "B 3 3"]]:
    """The images of a batch in a view, and the maps from the batch's pixels to the view's.

    The padded shape follows from the batch's padded shape, not from the images, so that each image
    is predicted as if it were alone.
    """
    plain = batch.images.float()
    sizes = [(height, width) for height, width in batch.sizes.tolist()]
    views = [view.pixels(image[:, :h, :w]) for image, (h, w) in zip(plain, sizes, strict=True)]

    height, width = (
        int(np.ceil(side * view.scale / size_divisor - 1e-6)) * size_divisor
        for side in batch.images.shape[2:]
    )
    padded_size = (width, height) if view.turns % 2 else (height, width)
    images = plain.new_zeros(len(sizes), 3, *padded_size)
    for padded, image in zip(images, views, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image

    matrices = torch.stack([view.matrix(size) for size in sizes]).to(images.device)
    new_sizes = batch.sizes.new_tensor([image.shape[1:] for image in views])
    to_model = matrices @ batch.to_model
    return replace(batch, images=images, sizes=new_sizes, to_model=to_model), matrices


def merge_views(candidates: Sequence[Detections], batch: Batch, config: ModelConfig) -> Detections:
    """The best box of each object among the detections of several views of the same images.

    Args:
        candidates: detections of each view, in the batch's pixels.
        batch: the images.
        config: the model's; its NMS settings apply.

    Returns:
        The detections, best first.
    """
    boxes, scores, labels, valid = (
        torch.cat([getattr(detections, name) for detections in candidates], dim=1)
        for name in ("boxes", "scores", "labels", "valid")
    )
    boxes = box_ops.clip(boxes, batch.sizes)
    valid = valid & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    groups = torch.zeros_like(labels) if config.box.nms == "all" else labels

    chosen = nms.select(
        nms.Candidates(boxes, scores, groups, valid), config.box.nms_iou, config.box.max_detections
    )
    return detections_of(chosen, boxes, scores.gather(1, chosen.index), labels)


def _move(
    matrices: Float[Tensor, "B 3 3"], boxes: Float[Tensor, "B N 4"]
) -> Float[Tensor, "B N 4"]:
    """Boxes moved by matrices that rotate by right angles only."""
    linear = matrices[:, :2, :2].transpose(1, 2)
    offset = matrices[:, None, :2, 2]
    corner = boxes[..., :2] @ linear + offset
    opposite = boxes[..., 2:] @ linear + offset
    return torch.cat([torch.minimum(corner, opposite), torch.maximum(corner, opposite)], dim=-1)


def _exchange_sides(
    heatmaps: Float[Tensor, "K J S S"], labels: Int64[Tensor, "K"], config: ModelConfig
) -> Float[Tensor, "K J S S"]:
    """Heatmaps of a mirrored image, each moved to the channel of the keypoint that it shows."""
    channels = torch.arange(heatmaps.shape[1]).repeat(config.num_classes, 1)
    for row, category, (start, count) in zip(
        channels, config.categories, config.keypoint_slices, strict=True
    ):
        row[start : start + count] = start + torch.tensor(category.mirrored, dtype=torch.int64)
    index = channels.to(heatmaps.device)[labels]
    return heatmaps.gather(1, index[..., None, None].expand(-1, -1, *heatmaps.shape[2:]))
