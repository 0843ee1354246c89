"""1. Mask R-CNN, whole: the table of contents.

Batch (images [B, 3, H, W], 0..255)  ->  `forward`  ->  Detections: boxes, classes, masks and keypoints
Batch, Truth                           ->  `losses`   ->  one scalar for each term of the multi-task loss

The parts, in the order in which an image meets them:
    2 resnet (or backbone)   3 fpn   4 anchors   5 rpn   6 assign   7 roi_align   8 box_head   9 mask_head   10 keypoint_head

Source: He et al. 2017, "Mask R-CNN".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.device import constant, to_host
from ..ops.rows import Rows
from ..structures import Batch, Detections, Truth
from .assign import gather
from .box_head import BoxHead, RoISample, sample_rois
from .fpn import FPN, Pyramid, SingleLevel
from .keypoint_head import KeypointHead
from .mask_head import MaskHead, mask_targets
from .resnet import ResNet, initialize_trunk, make_stage, stage_channels
from .roi_align import RoIPooler
from .rpn import RPN
from .timm_trunk import TimmTrunk


class MaskRCNN(nn.Module):
    """Boxes, classes, masks and keypoints of every object, in one pass; one loss for all, trained end to end.

    `forward` always predicts and `losses` always gives losses, whatever the training mode is; the mode changes only what BatchNorm does.
    Build one with `from_config`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        trunk: nn.Module,
        neck: FPN | SingleLevel,
        rpn: RPN,
        res5: nn.Module | None,
        box_head: BoxHead,
        mask_head: MaskHead | None,
        keypoint_head: KeypointHead | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.optimized = False
        """Set by `fuse.optimize`: a form for prediction, not to be trained."""
        self.layout = torch.preserve_format
        """Of the features in memory; `fuse.optimize` and training set channels last, which is faster and rounds differently."""
        self.trunk = trunk
        self.neck = neck
        self.rpn = rpn
        self.res5 = res5
        self.box_head = box_head
        self.mask_head = mask_head
        self.keypoint_head = keypoint_head
        strides = neck.strides[:-1] if isinstance(neck, FPN) else neck.strides
        self.box_pool = RoIPooler(strides, config.box.roi)
        self.mask_pool = RoIPooler(strides, config.mask.roi) if config.mask else None
        self.keypoint_pool = RoIPooler(strides, config.keypoint.roi) if config.keypoint else None

    @classmethod
    def from_config(cls, config: ModelConfig) -> MaskRCNN:
        """The network that a configuration describes, with random weights.

        Raises:
            ValueError: parts that do not go together (C4 or DC5 with a trunk that is not a ResNet, C4 with a keypoint head).
        """
        c4 = config.neck.kind == "c4"
        if config.neck.kind != "fpn" and config.trunk.timm:
            raise ValueError(
                f'neck.kind "{config.neck.kind}" needs the ResNet trunk, got trunk.timm = "{config.trunk.timm}"; use "fpn"'
            )
        if c4 and config.keypoint:
            raise ValueError(
                'neck.kind "c4" has no keypoint branch in the paper; use "fpn" or "dc5" for keypoints'
            )
        trunk_config = (
            replace(config.trunk, res5_dilation=2) if config.neck.kind == "dc5" else config.trunk
        )
        trunk = (
            TimmTrunk(config.trunk)
            if config.trunk.timm
            else ResNet(trunk_config, last_stage=4 if c4 else 5)
        )
        neck = (
            FPN(trunk.channels, config.neck)
            if config.neck.kind == "fpn"
            else SingleLevel(trunk.channels)
        )
        res5 = make_stage(config.trunk, 5) if c4 else None
        if res5 is not None:
            initialize_trunk(res5)
        channels = stage_channels(config.trunk, 5) if c4 else neck.channels
        return cls(
            config,
            trunk=trunk,
            neck=neck,
            rpn=RPN(neck.channels, neck.strides, config.rpn),
            res5=res5,
            box_head=BoxHead(channels, config.num_classes, config.box),
            mask_head=MaskHead(channels, config.num_classes, config.mask) if config.mask else None,
            keypoint_head=KeypointHead(channels, config.keypoint_slices, config.keypoint)
            if config.keypoint
            else None,
        )

    def forward(self, batch: Batch) -> Detections:
        """What is in the images, best first, in model-input pixels."""
        pyramid = self.pyramid(batch)
        found, count = self.find(pyramid, batch)
        rows = Rows.of(found.valid, count)
        boxes, labels = rows.take(found.boxes), rows.take(found.labels)
        if self.mask_head is not None:
            found = replace(
                found, masks=rows.back(self.draw_masks(pyramid, boxes, labels, rows.image))
            )
        if self.keypoint_head is not None:
            points, peaks = self.keypoint_head.decode(
                self.draw_heatmaps(pyramid, boxes, rows.image), boxes, labels
            )
            found = replace(found, keypoints=rows.back(points), keypoint_logits=rows.back(peaks))
        return found

    def find(self, pyramid: Pyramid, batch: Batch) -> tuple[Detections, int]:
        """Boxes and classes alone, and how many there are in all images together."""
        config = self.config
        logits, deltas = self.rpn(pyramid.levels)
        anchors = self.rpn.anchors(pyramid.levels, batch)
        proposals = self.rpn.propose(
            logits,
            deltas,
            anchors,
            batch,
            pre_nms=config.rpn.pre_nms_test,
            post_nms=config.rpn.post_nms_test,
        )
        return self.box_head.detect(
            *self._classify(pyramid, proposals.boxes, Rows.of(proposals.valid)), proposals, batch
        )

    def draw_masks(
        self,
        pyramid: Pyramid,
        boxes: Float[Tensor, "K 4"],
        labels: Int64[Tensor, "K"],
        image: Int64[Tensor, "K"],
    ) -> Float[Tensor, "K S S"]:
        """Mask probabilities in boxes of the images `image`, for a class each."""
        assert self.mask_head is not None
        assert self.mask_pool is not None
        return self.mask_head(
            self._roi_features(self.mask_pool, pyramid, boxes, image), labels
        ).sigmoid()

    def draw_heatmaps(
        self, pyramid: Pyramid, boxes: Float[Tensor, "K 4"], image: Int64[Tensor, "K"]
    ) -> Float[Tensor, "K J S S"]:
        """Heat maps of all keypoints, as logits, in boxes of the images `image`."""
        assert self.keypoint_head is not None
        assert self.keypoint_pool is not None
        return self.keypoint_head(self.keypoint_pool(pyramid, boxes, image))

    def losses(self, batch: Batch, truth: Truth) -> dict[str, Tensor]:
        """The terms of the multi-task loss, each weighted: their sum is what training minimizes.

        Every head takes part in every call, with weight zero where nothing is annotated for it, so that processes training together agree
        on which parameters have gradients.
        """
        config = self.config
        pyramid = self.pyramid(batch)
        anchors = self.rpn.anchors(pyramid.levels, batch)
        losses = self.rpn.losses(pyramid, anchors, batch, truth)
        with torch.no_grad():  # after the losses: autocast may keep each weight that it rounds, and one kept from here would have no gradient
            logits, deltas = self.rpn(pyramid.levels)
        proposals = self.rpn.propose(
            logits,
            deltas,
            anchors,
            batch,
            pre_nms=config.rpn.pre_nms_train,
            post_nms=config.rpn.post_nms_train,
        )

        rois = sample_rois(proposals, truth, batch, config.box)
        losses |= self.box_head.losses(
            *self._classify(pyramid, rois.boxes, Rows.of(rois.valid, most=config.box.samples)),
            rois,
            truth,
        )
        chosen = {}
        if config.mask is not None:
            chosen["mask"] = _positives(rois, truth, truth.has_mask, config.mask.max_positives)
        if config.keypoint is not None:
            chosen["keypoint"] = _positives(
                rois, truth, truth.has_keypoints, config.keypoint.max_positives
            )
        counts = to_host(*(c.sum() for c in chosen.values())) if chosen else []
        parts = {"mask": self._mask_loss, "keypoint": self._keypoint_loss}
        return losses | {
            name: parts[name](pyramid, rois, truth, c, n)
            for (name, c), n in zip(chosen.items(), counts, strict=True)
        }

    def pyramid(self, batch: Batch) -> Pyramid:
        """The features of the images, in the precision of the weights (an optimized model may be bfloat16)."""
        pixels = batch.images if batch.normalized else self.normalize(batch)
        return Pyramid.of(
            self.neck(
                self.trunk(
                    pixels.to(next(self.trunk.parameters()).dtype, memory_format=self.layout)
                )
            )
        )

    def normalize(self, batch: Batch) -> Float[Tensor, "B 3 H W"]:
        """The images as the trunk learnt to see them, zero mean and unit variance; padding becomes exactly zero."""
        config, images = self.config.input, batch.images.float()
        if config.channel_order == "bgr":
            images = images.flip(1)
        mean, std = (constant(v, images.device)[:, None, None] for v in (config.mean, config.std))
        height, width = batch.sizes[:, 0, None, None, None], batch.sizes[:, 1, None, None, None]
        inside_y = torch.arange(images.shape[2], device=images.device)[:, None] < height
        inside_x = torch.arange(images.shape[3], device=images.device) < width
        return (images - mean) / std * (inside_y & inside_x)

    def _classify(
        self, pyramid: Pyramid, boxes: Float[Tensor, "B N 4"], rows: Rows
    ) -> tuple[Float[Tensor, "B N C1"], Float[Tensor, "B N C2 4"]]:
        """What the box head says of the valid boxes: class_logits and box_deltas."""
        class_logits, box_deltas = self.box_head(
            self._roi_features(self.box_pool, pyramid, rows.take(boxes), rows.image)
        )
        return rows.back(class_logits), rows.back(box_deltas)

    def _roi_features(
        self, pool: RoIPooler, pyramid: Pyramid, boxes: Tensor, image: Tensor
    ) -> Float[Tensor, "K C S S"]:
        features = pool(pyramid, boxes, image)
        return features if self.res5 is None else self.res5(features)

    def _mask_loss(
        self,
        pyramid: Pyramid,
        rois: RoISample,
        truth: Truth,
        chosen: Bool[Tensor, "B R"],
        count: int,
    ) -> Tensor:
        assert self.mask_head is not None
        assert self.mask_pool is not None
        # Where there is none a RoI stands in, and does not count: a head that sees nothing would have no gradients.
        rows = Rows.of(chosen, max(count, 1))
        boxes, counts = rows.take(rois.boxes), rows.take(chosen)
        logits = self.mask_head(
            self._roi_features(self.mask_pool, pyramid, boxes, rows.image), rows.take(rois.labels)
        )
        if truth.boxes.shape[1] == 0:
            return self.mask_head.loss(logits, torch.zeros_like(logits), counts)
        matched = rows.image, rows.take(rois.truth_index)
        targets = mask_targets(truth.masks[matched], truth.boxes[matched], boxes, logits.shape[-1])
        return self.mask_head.loss(logits, targets, counts)

    def _keypoint_loss(
        self,
        pyramid: Pyramid,
        rois: RoISample,
        truth: Truth,
        chosen: Bool[Tensor, "B R"],
        count: int,
    ) -> Tensor:
        assert self.keypoint_head is not None
        assert self.keypoint_pool is not None
        rows = Rows.of(chosen, max(count, 1))
        boxes = rows.take(rois.boxes)
        heatmaps = self.keypoint_head(self.keypoint_pool(pyramid, boxes, rows.image))
        if truth.boxes.shape[1] == 0:
            return self.keypoint_head.loss(
                heatmaps, heatmaps.new_zeros(*heatmaps.shape[:2], 3), boxes
            )
        keypoints = truth.keypoints[rows.image, rows.take(rois.truth_index)]
        visible = torch.where(rows.take(chosen)[:, None], keypoints[..., 2], 0.0)
        return self.keypoint_head.loss(
            heatmaps, torch.cat([keypoints[..., :2], visible[..., None]], dim=-1), boxes
        )


def _positives(
    rois: RoISample, truth: Truth, annotated: Bool[Tensor, "B N"], most: int | None
) -> Bool[Tensor, "B R"]:
    """The positive RoIs whose object has this kind of truth, at most `most` an image."""
    chosen = rois.positive
    if truth.boxes.shape[1]:
        chosen = chosen & gather(annotated, rois.truth_index)
    return chosen if most is None else chosen & (chosen.cumsum(dim=1) <= most)


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The sum of all terms: the loss that is minimized."""
    return torch.stack([*losses.values()]).sum()
