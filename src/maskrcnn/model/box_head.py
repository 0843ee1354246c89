"""8. The box head: what is in each proposal, and where exactly?

RoI features [K, C, 7, 7]  ->  class_logits [K, classes + 1], box_deltas [K, classes, 4]  ->
Detections [B, D], or in training two losses.

Labels are 0..C-1. Background is index C inside this file and nowhere else.

Source: Girshick 2015, section 2; He et al. 2017, figure 4 for the two variants of the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..config import BoxHeadConfig
from ..kernels import nms
from ..ops import boxes as box_ops
from ..ops.device import constant
from ..ops.distributed import mean_count
from ..ops.stateless_random import random_keys
from ..structures import Batch, Detections, Proposals, Truth
from .assign import balanced_sample, gather, match
from .layers import connect, conv_tower, initialize

RANDOM_STREAM = 2


class RoISample(NamedTuple):
    """The RoIs that enter the losses of the heads; positives come first."""

    boxes: Float[Tensor, "B R 4"]
    labels: Int64[Tensor, "B R"]
    """The matched object's; meaningful where `positive`."""
    truth_index: Int64[Tensor, "B R"]
    positive: Bool[Tensor, "B R"]
    valid: Bool[Tensor, "B R"]


@torch.no_grad()
def sample_rois(
    proposals: Proposals, truth: Truth, batch: Batch, config: BoxHeadConfig
) -> RoISample:
    """Samples RoIs for training from the proposals and the true boxes."""
    objects = truth.valid & ~truth.ignore
    boxes = torch.cat([proposals.boxes, truth.boxes], dim=1)
    exists = torch.cat([proposals.valid, objects], dim=1)

    matches = match(
        boxes, truth, config.positive_iou, config.positive_iou, keep_best=False, boxless=True
    )
    keys = random_keys(batch.seeds, boxes.shape[1], RANDOM_STREAM)
    index, valid = balanced_sample(
        matches.positive & exists,
        matches.negative & exists,
        keys,
        config.samples,
        config.positive_fraction,
    )

    truth_index = gather(matches.truth_index, index)
    labels = gather(truth.labels, truth_index) if truth.labels.shape[1] else truth_index
    # The offsets of a box without area would be nan, and so would gradients of nan times 0.
    unit = constant((0.0, 0.0, 1.0, 1.0), boxes.device)
    return RoISample(
        boxes=torch.where(valid[..., None], gather(boxes, index), unit),
        labels=labels,
        truth_index=truth_index,
        positive=gather(matches.positive, index) & valid,
        valid=valid,
    )


class BoxHead(nn.Module):
    """Convolutions (some models), fully connected layers, then class logits and box offsets.

    The head of C4 has no fully connected layers and averages over space instead.
    """

    def __init__(self, channels: int, num_classes: int, config: BoxHeadConfig) -> None:
        super().__init__()
        self.convs = conv_tower(channels, config.convs, config.norm)
        width = config.convs[-1] if config.convs else channels

        self.averages = not config.convs and not config.fcs
        inputs = width if self.averages else width * config.roi.size**2
        widths = (inputs, *config.fcs)
        self.fcs = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, config.fcs, strict=False))
        self.class_logits = nn.Linear(widths[-1], num_classes + 1)
        self.box_deltas = nn.Linear(widths[-1], 4 * (1 if config.class_agnostic else num_classes))
        self.num_classes = num_classes
        self.config = config

        initialize(self)
        nn.init.normal_(self.class_logits.weight, std=0.01)
        nn.init.normal_(self.box_deltas.weight, std=0.001)

    def forward(
        self, x: Float[Tensor, "K C S S"]
    ) -> tuple[Float[Tensor, "K C1"], Float[Tensor, "K C2 4"]]:
        """Returns class_logits, background last, and box_deltas, per class or one for all."""
        for conv in self.convs:
            x = conv(x, relu=True)
        x = x.mean(dim=(2, 3)) if self.averages else x.flatten(1)
        for fc in self.fcs:
            x = connect(x, fc)  # ty: ignore[invalid-argument-type]
        class_logits = connect(x, self.class_logits, relu=False).float()
        box_deltas = connect(x, self.box_deltas, relu=False).float()
        return class_logits, box_deltas.unflatten(1, (-1, 4))

    def losses(
        self,
        class_logits: Float[Tensor, "B R C1"],
        box_deltas: Float[Tensor, "B R C2 4"],
        rois: RoISample,
        truth: Truth,
    ) -> dict[str, Tensor]:
        """Computes the losses on sampled RoIs, divided by the number of RoIs.

        Cross-entropy over classes and background, and smooth L1 of the true class's offsets.
        An object without annotation may be of a category that is not annotated in the image: see
        `open_cross_entropy`. Sigmoids of such categories get no gradient from the image.

        Source: Girshick 2015, section 2.3.
        """
        config = self.config
        count = mean_count(rois.valid.sum())

        # Classes.
        labels = torch.where(rois.positive, rois.labels, self.num_classes)
        if config.sigmoid:
            classification = self._sigmoid_loss(class_logits, labels, truth)
        elif truth.labeled is None:
            classification = F.cross_entropy(
                class_logits.flatten(0, 1), labels.flatten(), reduction="none"
            ).view(labels.shape)
        else:
            classification = open_cross_entropy(class_logits, labels, truth.labeled)
        classification = torch.where(rois.valid, classification, 0.0).sum()

        # Offsets of the true class, on the RoIs whose object has a box.
        if config.class_agnostic:
            own_class = torch.zeros_like(labels)
        else:
            own_class = labels.clamp(max=self.num_classes - 1)
        delta = box_deltas.gather(2, own_class[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        regressed = rois.positive
        boxes = rois.boxes
        if truth.boxes.shape[1]:
            regressed = regressed & gather(truth.has_box, rois.truth_index)
            true_boxes = gather(truth.boxes, rois.truth_index)
            boxes = torch.where(regressed[..., None], true_boxes, rois.boxes)
        target = box_ops.encode(boxes, rois.boxes, config.box_weights)
        distance = F.smooth_l1_loss(delta, target, beta=config.smooth_l1_beta, reduction="none")
        distance = torch.where(regressed, distance.sum(dim=-1), 0.0).sum()

        return {
            "classification": config.classification_weight * classification / count,
            "box": config.regression_weight * distance / count,
        }

    def _sigmoid_loss(
        self, class_logits: Float[Tensor, "B R C1"], labels: Int64[Tensor, "B R"], truth: Truth
    ) -> Float[Tensor, "B R"]:
        """Binary cross-entropy of each class, summed over the annotated classes."""
        target = F.one_hot(labels, self.num_classes + 1)[..., :-1].float()
        weight = None
        if truth.labeled is not None:
            weight = (truth.labeled[:, None] | (target > 0)).float()
        loss = F.binary_cross_entropy_with_logits(
            class_logits[..., :-1], target, weight, reduction="none"
        )
        return loss.sum(dim=-1)

    def detect(
        self,
        class_logits: Float[Tensor, "B P C1"],
        box_deltas: Float[Tensor, "B P C2 4"],
        proposals: Proposals,
        batch: Batch,
    ) -> Detections:
        """Turns outputs into detections: the best `max_detections` per image after NMS.

        Every proposal is a candidate for every class whose score exceeds the threshold.
        """
        config = self.config
        classes = self.num_classes

        # All pairs of a proposal and a class.
        scores = class_logits.sigmoid() if config.sigmoid else class_logits.softmax(dim=-1)
        scores = scores[..., :classes].flatten(1)
        boxes = box_ops.decode(box_deltas, proposals.boxes[:, :, None], config.box_weights)
        boxes = boxes.expand(-1, -1, classes, -1).flatten(1, 2)
        boxes = box_ops.clip(boxes, batch.sizes)
        labels = torch.arange(classes, device=boxes.device)
        labels = labels.repeat(proposals.boxes.shape[1]).expand(boxes.shape[0], -1)
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = (sides >= config.min_size).all(dim=-1) & (scores > config.score_threshold)
        valid &= proposals.valid.repeat_interleave(classes, dim=1)

        if config.nms == "all":
            candidates = nms.Candidates(boxes, scores, torch.zeros_like(labels), valid)
        else:
            candidates = nms.Candidates(boxes, scores, labels, valid, classes, in_turns=True)
        if config.nms == "soft":
            selection, kept_scores = nms.select_soft(
                candidates, config.soft_sigma, config.score_threshold, config.max_detections
            )
        else:
            selection = nms.select(candidates, config.nms_iou, config.max_detections)
            kept_scores = gather(scores, selection.index)
        return detections_of(selection, boxes, kept_scores, labels)


def detections_of(
    selection: nms.Selection,
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B K"],
    labels: Int64[Tensor, "B N"],
) -> Detections:
    """Returns the selected boxes as detections, zeros in padding rows.

    Args:
        selection: which boxes to keep.
        boxes: all candidates.
        scores: of the selected boxes, in the order of the selection.
        labels: of all candidates.
    """
    kept = selection.valid
    return Detections(
        boxes=torch.where(kept[..., None], gather(boxes, selection.index), 0.0),
        scores=torch.where(kept, scores, 0.0),
        labels=torch.where(kept, gather(labels, selection.index), 0),
        valid=kept,
        num_valid=selection.count,
    )


def open_cross_entropy(
    class_logits: Float[Tensor, "B R C1"],
    labels: Int64[Tensor, "B R"],
    labeled: Bool[Tensor, "B C"],
) -> Float[Tensor, "B R"]:
    """Cross-entropy for images in which not every category is annotated.

    A background RoI may be background or an object of any category that is not annotated in its
    image: its loss is -log of the sum of these probabilities.

    Args:
        class_logits: background last.
        labels: index of the class, C for background.
        labeled: whether every object of a category is annotated in the image.

    Source: Cermelli et al. 2020, "Modeling the Background for Incremental Learning in Semantic
    Segmentation", section 3, the revisited cross-entropy.
    """
    classes = torch.arange(class_logits.shape[-1], device=class_logits.device)
    background = labels == len(classes) - 1
    unlabeled = F.pad(~labeled, (0, 1))[:, None]
    possible = (classes == labels[..., None]) | (background[..., None] & unlabeled)
    possible_logits = class_logits.masked_fill(~possible, -torch.inf)
    return class_logits.logsumexp(dim=-1) - possible_logits.logsumexp(dim=-1)
