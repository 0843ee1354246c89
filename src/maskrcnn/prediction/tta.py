"""Test-time augmentation: an image is seen several times, mirrored, turned and at other sizes, and the answers become one.

In:  a network, a batch, the views. Out: Detections of the batch, as the network alone would give them.

1. In every view the network finds boxes. They are moved back and thinned together by NMS, so that of each object the best-scored box stays.
2. Every view then draws a mask and heat maps in each of these boxes, wherever the box came from. Turned back, with left and right keypoints exchanged
   where the view was mirrored, mask probabilities and heat-map logits are averaged.

An image's answer does not depend on its neighbors in the batch. The time is that of the views, larger ones by their area; the feature maps of all
views are held at once.

Source: Detectron2's GeneralizedRCNNWithTTA; He et al. 2017, appendix B.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from ..augmentation import geometry
from ..config import ModelConfig
from ..model.box_head import detections_of
from ..model.maskrcnn import MaskRCNN
from ..ops import boxes as box_ops
from ..ops import nms
from ..ops.rows import Rows
from ..structures import Batch, Detections

KINDS = {
    "flip": "the mirror image as well",
    "turns": "turned by right angles as well",
    "scales": "at 0.8 and 1.25 times the size as well",
}
_SCALES = (1.0, 0.8, 1.25)


@dataclass(frozen=True)
class View:
    """How an image is seen: first resized, then mirrored, then turned counter-clockwise by right angles."""

    scale: float = 1.0
    mirrored: bool = False
    turns: int = 0

    def pixels(self, image: Float[Tensor, "C h w"]) -> Float[Tensor, "C _ _"]:
        """An image in this view."""
        if self.scale != 1:
            size = [max(1, round(side * self.scale)) for side in image.shape[1:]]
            image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
        return torch.rot90(image.flip(2) if self.mirrored else image, self.turns, (1, 2))

    def matrix(self, size: tuple[int, int]) -> Float[Tensor, "3 3"]:
        """From the pixels of an image (height, width) to the view's."""
        height, width = (max(1, round(side * self.scale)) for side in size)
        flip = geometry.flip_horizontal(width) if self.mirrored else np.eye(3)
        turn = geometry.quarter_turns(self.turns, (height, width))
        return torch.from_numpy(
            geometry.compose(geometry.scale(width / size[1], height / size[0]), flip, turn)
        ).float()

    def undo(self, grids: Float[Tensor, "*k S S"]) -> Float[Tensor, "*k S S"]:
        """Grids over boxes of the view as grids over the boxes of the image."""
        upright = torch.rot90(grids, -self.turns, (-2, -1))
        return upright.flip(-1) if self.mirrored else upright


def views_of(tta: str | None) -> tuple[View, ...]:
    """The views that a word such as "flip" or "flip,scales" asks for, the plain one first; none for None.

    Raises:
        ValueError: an unknown word.
    """
    if tta is None:
        return ()
    words = [word.strip() for word in tta.split(",")]
    if unknown := [word for word in words if word not in KINDS]:
        known = "; ".join(f"{word} = {meaning}" for word, meaning in KINDS.items())
        raise ValueError(
            f'tta: "{unknown[0]}" is unknown; give one or more of these, with commas: {known}'
        )
    scales, mirrored = (
        _SCALES if "scales" in words else (1.0,),
        (False, True) if "flip" in words else (False,),
    )
    return tuple(
        View(*view) for view in product(scales, mirrored, range(4) if "turns" in words else (0,))
    )


def answer_from_views(network: MaskRCNN, batch: Batch, views: tuple[View, ...]) -> Detections:
    """What a network finds in the images of a batch, seen in all views."""
    pyramids, matrices, found = [], [], []
    for view in views:
        seen, matrix = see(batch, view, network.config.input.size_divisor)
        pyramids.append(network.pyramid(seen))
        matrices.append(matrix)
        boxes = network.detect(pyramids[-1], seen)
        found.append(replace(boxes, boxes=_move(torch.linalg.inv_ex(matrix)[0], boxes.boxes)))
    merged = merge(found, batch, network.config)

    rows = Rows.of(merged.valid, merged.num_valid)
    labels, masks, heatmaps = rows.gather(merged.labels), [], []
    for view, pyramid, matrix in zip(views, pyramids, matrices, strict=True):
        boxes = rows.gather(_move(matrix, merged.boxes))
        if network.mask_head is not None:
            masks.append(view.undo(network.predict_masks(pyramid, boxes, labels, rows.image)))
        if network.keypoint_head is not None:
            upright = view.undo(network.predict_heatmaps(pyramid, boxes, rows.image))
            heatmaps.append(
                _mirrored(upright, labels, network.config) if view.mirrored else upright
            )

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


def see(batch: Batch, view: View, size_divisor: int) -> tuple[Batch, Float[Tensor, "B 3 3"]]:
    """The images in a view, and the matrices from the batch's pixels to the view's.

    The padded shape follows from the batch's, not from the images, so that each image is answered as if it were alone.
    """
    sizes = [(height, width) for height, width in batch.sizes.tolist()]
    height, width = (
        int(np.ceil(side * view.scale / size_divisor - 1e-6)) * size_divisor
        for side in batch.images.shape[2:]
    )
    plain = batch.images.float()
    images = plain.new_zeros(
        len(sizes), 3, *((width, height) if view.turns % 2 else (height, width))
    )
    seen = [view.pixels(image[:, :h, :w]) for image, (h, w) in zip(plain, sizes, strict=True)]
    for row, image in zip(images, seen, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    matrices = torch.stack([view.matrix(size) for size in sizes]).to(images.device)
    new_sizes = batch.sizes.new_tensor([image.shape[1:] for image in seen])
    return replace(
        batch, images=images, sizes=new_sizes, to_model=matrices @ batch.to_model
    ), matrices


def merge(found: list[Detections], batch: Batch, config: ModelConfig) -> Detections:
    """Of boxes that several views found in the same images the best of each object, best first."""
    boxes, scores, labels, valid = (
        torch.cat([getattr(f, name) for f in found], dim=1)
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
    """Boxes after matrices that turn by right angles only."""
    linear, offset = matrices[:, :2, :2].transpose(1, 2), matrices[:, None, :2, 2]
    one, other = boxes[..., :2] @ linear + offset, boxes[..., 2:] @ linear + offset
    return torch.cat([torch.minimum(one, other), torch.maximum(one, other)], dim=-1)


def _mirrored(
    heatmaps: Float[Tensor, "K J S S"], labels: Int64[Tensor, "K"], config: ModelConfig
) -> Float[Tensor, "K J S S"]:
    """The heat maps of a mirrored image with each at the channel of the keypoint that it shows."""
    channels = torch.arange(heatmaps.shape[1]).repeat(config.num_classes, 1)
    for row, category, (start, count) in zip(
        channels, config.categories, config.keypoint_slices, strict=True
    ):
        row[start : start + count] = start + torch.tensor(category.mirrored, dtype=torch.int64)
    own = channels.to(heatmaps.device)[labels]
    return heatmaps.gather(1, own[..., None, None].expand(-1, -1, *heatmaps.shape[2:]))
