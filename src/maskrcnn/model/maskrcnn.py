"""1. Mask R-CNN as a whole: the table of contents.

Batch (images [B, 3, H, W], 0..255)  ->  `forward`  ->  Detections: boxes, classes, masks, keypoints
Batch, Truth                         ->  `losses`   ->  one scalar per term of the multi-task loss

The parts, in the order in which an image meets them: 2 resnet (or timm_trunk), 3 fpn, 4 anchors,
5 rpn, 6 assign, 7 roi_align, 8 box_head, 9 mask_head, 10 keypoint_head, 11 extra_head.

Source: He et al. 2017, "Mask R-CNN".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.boxes import enlarge, inner_grid
from ..ops.device import constant, to_host
from ..ops.pyramid import Pyramid
from ..ops.rows import Rows
from ..structures import Batch, Detections, Proposals, Truth
from .assign import gather
from .box_head import BoxHead, RoISample, sample_rois
from .box_losses import box_targets, training_rois, trains_masks
from .extra_head import ExtraHeads
from .fpn import FPN, SingleLevel
from .keypoint_head import KeypointHead
from .mask_head import MaskHead, mask_targets
from .point_losses import point_targets
from .resnet import ResNet, initialize_trunk, make_stage, stage_channels
from .roi_align import RoIPooler
from .rpn import RPN
from .timm_trunk import TimmTrunk

MASKS_AT_ONCE = 128  # boxes whose masks are predicted together, which bounds the memory


class MaskRCNN(nn.Module):
    """Predicts boxes, classes, masks and keypoints of all objects in one pass, trained end to end.

    `forward` always predicts and `losses` always computes losses, in training and in evaluation
    mode. The mode only affects BatchNorm. Create one with `from_config`.

    Example:
        >>> import torch
        >>> import maskrcnn as mr
        >>> model = mr.MaskRCNN.from_config(mr.maskrcnn_r18_small(["nucleus"])).eval()
        >>> batch = mr.Batch.collate([torch.zeros(3, 64, 96, dtype=torch.uint8)])
        >>> with torch.inference_mode():
        ...     detections = model(batch)
        >>> model.names, detections.boxes.shape[2]
        (('nucleus',), 4)
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
        """Set by `optimize_for_inference`: cannot be trained."""
        self.channels_last = False
        """Whether the features are in channels-last order. `optimize_for_inference` and training
        set it, which is faster and rounds differently."""

        self.trunk = trunk
        self.neck = neck
        self.rpn = rpn
        self.res5 = res5
        self.box_head = box_head
        self.mask_head = mask_head
        self.keypoint_head = keypoint_head
        channels = neck.channels if res5 is None else stage_channels(config.trunk, 5)
        self.extra_heads = ExtraHeads(channels)

        strides = neck.strides[:-1] if isinstance(neck, FPN) else neck.strides
        self.box_pool = RoIPooler(strides, config.box.roi)
        self.mask_pool = RoIPooler(strides, config.mask.roi) if config.mask else None
        self.keypoint_pool = RoIPooler(strides, config.keypoint.roi) if config.keypoint else None

    @classmethod
    def from_config(cls, config: ModelConfig) -> MaskRCNN:
        """Creates the network that a configuration describes, with random weights.

        Raises:
            ValueError: the parts do not fit together (C4 or DC5 with a trunk that is not a ResNet,
                C4 with a keypoint head).
        """
        kind = config.neck.kind
        if kind != "fpn" and config.trunk.timm:
            raise ValueError(
                f'neck.kind: "{kind}" needs the ResNet trunk, got trunk.timm = '
                f'"{config.trunk.timm}"; use "fpn"'
            )
        if kind == "c4" and config.keypoint:
            raise ValueError(
                'neck.kind: "c4" does not support keypoints; use "fpn" or "dc5" for keypoints'
            )

        if config.trunk.timm:
            trunk = TimmTrunk(config.trunk)
        elif kind == "dc5":
            trunk = ResNet(replace(config.trunk, res5_dilation=2))
        else:
            trunk = ResNet(config.trunk, last_stage=4 if kind == "c4" else 5)

        if kind == "fpn":
            neck = FPN(trunk.channels, config.neck)
        else:
            neck = SingleLevel(trunk.channels)

        # C4 runs res5 on each RoI.
        res5 = None
        roi_channels = neck.channels
        if kind == "c4":
            res5 = make_stage(config.trunk, 5)
            initialize_trunk(res5)
            roi_channels = stage_channels(config.trunk, 5)

        rpn = RPN(neck.channels, neck.strides, config.rpn)
        box_head = BoxHead(roi_channels, config.num_classes, config.box)
        mask_head = None
        if config.mask:
            mask_head = MaskHead(roi_channels, config.num_classes, config.mask)
        keypoint_head = None
        if config.keypoint:
            keypoint_head = KeypointHead(roi_channels, config.keypoint_slices, config.keypoint)

        return cls(
            config,
            trunk=trunk,
            neck=neck,
            rpn=rpn,
            res5=res5,
            box_head=box_head,
            mask_head=mask_head,
            keypoint_head=keypoint_head,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the categories, in the order of the labels."""
        return tuple(category.name for category in self.config.categories)

    @property
    def mask_context(self) -> float:
        """Factor by which boxes are enlarged for the mask head; above 1, boxes train it too."""
        return 1.0 if self.mask_head is None else self.mask_head.config.context or 1.0

    def forward(self, batch: Batch) -> Detections:
        """Detects the objects in the images, best first, in model-input pixels."""
        pyramid = self.pyramid(batch)
        return self.describe(pyramid, self.detect(pyramid, batch))

    def describe(self, pyramid: Pyramid, detections: Detections) -> Detections:
        """Adds masks and keypoints to detected boxes."""
        rows = Rows.of(detections.valid, detections.num_valid)
        boxes = rows.gather(detections.boxes)
        labels = rows.gather(detections.labels)

        if self.mask_head is not None:
            masks = self.predict_masks(pyramid, boxes, labels, rows.image)
            detections = replace(detections, masks=rows.scatter(masks))

        if self.keypoint_head is not None:
            heatmaps = self.predict_heatmaps(pyramid, boxes, rows.image)
            decoded = self.keypoint_head.decode(heatmaps, boxes, labels)
            points, peaks = map(rows.scatter, decoded)
            detections = replace(detections, keypoints=points, keypoint_logits=peaks)
        return detections

    def detect(self, pyramid: Pyramid, batch: Batch, given: Proposals | None = None) -> Detections:
        """Detects boxes and classes alone, in given proposals or in the model's own."""
        proposals = given or self.propose(pyramid, batch)
        rows = Rows.of(proposals.valid)
        class_logits, box_deltas = self._classify(pyramid, proposals.boxes, rows)
        return self.box_head.detect(class_logits, box_deltas, proposals, batch)

    def propose(self, pyramid: Pyramid, batch: Batch) -> Proposals:
        """Proposes regions that may show an object, of whatever class."""
        config = self.config.rpn
        logits, deltas = self.rpn(pyramid.levels)
        anchors = self.rpn.anchors(pyramid.levels, batch)
        counts = {"pre_nms": config.pre_nms_test, "post_nms": config.post_nms_test}
        return self.rpn.propose(logits, deltas, anchors, batch, **counts)

    def predict_masks(
        self,
        pyramid: Pyramid,
        boxes: Float[Tensor, "K 4"],
        labels: Int64[Tensor, "K"],
        image: Int64[Tensor, "K"],
    ) -> Float[Tensor, "K S S"]:
        """Returns mask probabilities on a grid over each box.

        Args:
            pyramid: features of all images.
            boxes: xyxy, model-input pixels.
            labels: class of each box.
            image: index of the image of each box.
        """
        assert self.mask_head is not None
        assert self.mask_pool is not None
        if (context := self.mask_context) > 1:
            boxes = enlarge(boxes, context)
        features = self._roi_features(self.mask_pool, pyramid, boxes, image)
        if torch.compiler.is_exporting():  # the graph has no number of boxes to divide
            masks = self.mask_head(features, labels).sigmoid()
        else:
            parts = zip(features.split(MASKS_AT_ONCE), labels.split(MASKS_AT_ONCE), strict=True)
            masks = torch.cat([self.mask_head(*part) for part in parts]).sigmoid()
        return inner_grid(masks, context) if context > 1 else masks

    def predict_heatmaps(
        self, pyramid: Pyramid, boxes: Float[Tensor, "K 4"], image: Int64[Tensor, "K"]
    ) -> Float[Tensor, "K J S S"]:
        """Returns heatmaps of all keypoints, as logits, on a grid over each box.

        Args:
            pyramid: features of all images.
            boxes: xyxy, model-input pixels.
            image: index of the image of each box.
        """
        assert self.keypoint_head is not None
        assert self.keypoint_pool is not None
        return self.keypoint_head(self.keypoint_pool(pyramid, boxes, image))

    def losses(self, batch: Batch, truth: Truth, progress: float = 1.0) -> dict[str, Tensor]:
        """Computes the terms of the multi-task loss, each weighted; training minimizes their sum.

        Every head takes part in every call, with weight zero if nothing is annotated for it, so
        that processes that train together agree on which parameters have gradients.

        A part of the loss of masks from boxes grows with `progress`, the share of the run done.
        """
        config = self.config
        pyramid = self.pyramid(batch)

        # RPN: losses on sampled anchors, then proposals without gradient. In this order: autocast
        # caches rounded weights, and one that is cached under no_grad would get no gradient.
        anchors = self.rpn.anchors(pyramid.levels, batch)
        losses = self.rpn.losses(pyramid, anchors, batch, truth)
        with torch.no_grad():
            logits, deltas = self.rpn(pyramid.levels)
        proposals = self.rpn.propose(
            logits,
            deltas,
            anchors,
            batch,
            pre_nms=config.rpn.pre_nms_train,
            post_nms=config.rpn.post_nms_train,
        )

        # Box head, on sampled RoIs.
        rois = sample_rois(proposals, truth, batch, config.box)
        rows = Rows.of(rois.valid, most=config.box.samples)
        class_logits, box_deltas = self._classify(pyramid, rois.boxes, rows)
        losses |= self.box_head.losses(class_logits, box_deltas, rois, truth)
        losses |= self.extra_heads.losses(self, pyramid, rois, batch, truth)
        if config.mask is None and config.keypoint is None:
            return losses

        # Mask head and keypoint head, on the positives that have such truth. One host-device sync
        # gives both counts.
        max_masks = config.mask.max_positives if config.mask else 0
        max_keypoints = config.keypoint.max_positives if config.keypoint else 0
        with_mask = _positives(rois, truth, trains_masks(truth, self.mask_context), max_masks)
        with_keypoints = _positives(rois, truth, truth.has_keypoints, max_keypoints)
        num_masks, num_keypoints = to_host(with_mask.sum(), with_keypoints.sum())
        if config.mask is not None:
            # Without any such RoI an invalid one stands in: a head without input has no gradients.
            rows = Rows.of(with_mask, max(num_masks, 1))
            losses["mask"] = self._mask_loss(pyramid, rois, batch, truth, rows, progress)
        if config.keypoint is not None:
            losses["keypoint"] = self._keypoint_loss(
                pyramid, rois, truth, with_keypoints, num_keypoints
            )
        return losses

    def pyramid(self, batch: Batch) -> Pyramid:
        """Computes the features of the images, in the precision of the weights."""
        pixels = batch.images if batch.normalized else self.normalize(batch)
        dtype = next(self.trunk.parameters()).dtype
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        features = self.trunk(pixels.to(dtype, memory_format=layout))
        return Pyramid.of(self.neck(features))

    def normalize(self, batch: Batch) -> Float[Tensor, "B 3 H W"]:
        """Scales the images to zero mean and unit variance; padding becomes exactly zero."""
        config = self.config.input
        images = batch.images.float()
        if config.channel_order == "bgr":
            images = images.flip(1)
        mean = constant(config.mean, images.device)[:, None, None]
        std = constant(config.std, images.device)[:, None, None]

        height = batch.sizes[:, 0, None, None, None]
        width = batch.sizes[:, 1, None, None, None]
        inside_y = torch.arange(images.shape[2], device=images.device)[:, None] < height
        inside_x = torch.arange(images.shape[3], device=images.device) < width
        return (images - mean) / std * (inside_y & inside_x)

    def _classify(
        self, pyramid: Pyramid, boxes: Float[Tensor, "B N 4"], rows: Rows
    ) -> tuple[Float[Tensor, "B N C1"], Float[Tensor, "B N C2 4"]]:
        """The box head's class_logits and box_deltas in the given rows, zeros elsewhere."""
        features = self.box_pool(pyramid, rows.gather(boxes), rows.image)
        if self.res5 is not None:
            features = self.res5(features)
        class_logits, box_deltas = self.box_head(features)
        return rows.scatter(class_logits), rows.scatter(box_deltas)

    def box_features(
        self, pyramid: Pyramid, boxes: Tensor, image: Tensor
    ) -> Float[Tensor, "K C S S"]:
        """Reads the features that the box head gets for each box."""
        return self._roi_features(self.box_pool, pyramid, boxes, image)

    def _roi_features(
        self, pool: RoIPooler, pyramid: Pyramid, boxes: Tensor, image: Tensor
    ) -> Float[Tensor, "K C S S"]:
        features = pool(pyramid, boxes, image)
        return features if self.res5 is None else self.res5(features)

    def _mask_loss(
        self,
        pyramid: Pyramid,
        rois: RoISample,
        batch: Batch,
        truth: Truth,
        rows: Rows,
        progress: float,
    ) -> Tensor:
        assert self.mask_head is not None
        assert self.mask_pool is not None
        boxes = rows.gather(rois.boxes)
        valid = rows.gather(rows.valid)
        matched = rows.image, rows.gather(rois.truth_index)
        if self.mask_context > 1 and truth.boxes.shape[1]:
            boxes = training_rois(truth.boxes[matched], rows, batch, self.mask_head.config)
        features = self._roi_features(self.mask_pool, pyramid, boxes, rows.image)
        logits = self.mask_head(features, rows.gather(rois.labels))
        size = logits.shape[-1]

        if truth.boxes.shape[1] == 0:
            return self.mask_head.loss(logits, torch.zeros_like(logits), valid)
        targets = mask_targets(truth.masks[matched], truth.boxes[matched], boxes, size)
        of_points = point_targets(truth, matched, boxes)
        of_boxes = box_targets(truth, matched, boxes, batch, size, self.mask_head.config)
        return self.mask_head.loss(logits, targets, valid, of_points, of_boxes, progress)

    def _keypoint_loss(
        self,
        pyramid: Pyramid,
        rois: RoISample,
        truth: Truth,
        with_keypoints: Bool[Tensor, "B R"],
        count: int,
    ) -> Tensor:
        assert self.keypoint_head is not None
        rows = Rows.of(with_keypoints, max(count, 1))
        boxes = rows.gather(rois.boxes)
        heatmaps = self.predict_heatmaps(pyramid, boxes, rows.image)

        if truth.boxes.shape[1] == 0:
            nothing = heatmaps.new_zeros(*heatmaps.shape[:2], 3)
            return self.keypoint_head.loss(heatmaps, nothing, boxes)
        keypoints = truth.keypoints[rows.image, rows.gather(rois.truth_index)]
        visible = torch.where(rows.gather(with_keypoints)[:, None], keypoints[..., 2], 0.0)
        keypoints = torch.cat([keypoints[..., :2], visible[..., None]], dim=-1)
        return self.keypoint_head.loss(heatmaps, keypoints, boxes)


def _positives(
    rois: RoISample, truth: Truth, annotated: Bool[Tensor, "B N"], most: int | None
) -> Bool[Tensor, "B R"]:
    """The positive RoIs whose object has this kind of truth, at most `most` per image."""
    positive = rois.positive
    if truth.boxes.shape[1]:
        positive = positive & gather(annotated, rois.truth_index)
    return positive if most is None else positive & (positive.cumsum(dim=1) <= most)


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Returns the sum of all terms, the loss that training minimizes."""
    return torch.stack([*losses.values()]).sum()
