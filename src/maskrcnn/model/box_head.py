"""8. The box head: what is in each proposal, and where exactly?

RoI features [K, C, 7, 7]  ->  class_logits [K, classes + 1], box_deltas [K, classes, 4]  ->  Detections [B, D], or in training two losses.

Labels are 0..C-1; background is index C inside this file and nowhere else.

Source: Girshick 2015, section 2; He et al. 2017, figure 4 for the two forms of the head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..config import BoxHeadConfig
from ..ops import boxes as box_ops
from ..ops import nms
from ..ops.device import constant
from ..ops.noise import random_keys
from ..ops.ranks import average_over_ranks
from ..structures import Batch, Detections, Proposals, Truth
from .assign import balanced_sample, gather, match
from .layers import connect, conv_tower, initialize

NOISE_STREAM = 2


class RoISample(NamedTuple):
    """The RoIs that the losses of the heads see; positives come first."""

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
    """Chooses RoIs for training among the proposals and the true boxes themselves."""
    objects = truth.valid & ~truth.ignore
    boxes = torch.cat([proposals.boxes, truth.boxes], dim=1)
    exists = torch.cat([proposals.valid, objects], dim=1)
    found = match(
        boxes, truth, config.positive_iou, config.positive_iou, keep_best=False, boxless=True
    )
    keys = random_keys(batch.seeds, boxes.shape[1], NOISE_STREAM)
    index, valid = balanced_sample(
        found.positive & exists,
        found.negative & exists,
        keys,
        config.samples,
        config.positive_fraction,
    )
    truth_index = gather(found.truth_index, index)
    positive = gather(found.positive, index) & valid
    labels = gather(truth.labels, truth_index) if truth.labels.shape[1] else truth_index
    unit = constant(
        (0.0, 0.0, 1.0, 1.0), boxes.device
    )  # a box without area would have offsets of nan, and gradients of nan times a weight of 0
    return RoISample(
        torch.where(valid[..., None], gather(boxes, index), unit),
        labels,
        truth_index,
        positive,
        valid,
    )


class BoxHead(nn.Module):
    """Convolutions (some models), fully connected layers (C4 has none and averages over space), then classes and offsets."""

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
        """class_logits, background last, and box_deltas, one for each class or one for all."""
        for conv in self.convs:
            x = conv(x, relu=True)
        x = x.mean(dim=(2, 3)) if self.averages else x.flatten(1)
        for fc in self.fcs:
            x = connect(x, fc)  # ty: ignore[invalid-argument-type]
        return self.class_logits(x).float(), self.box_deltas(x).float().unflatten(1, (-1, 4))

    def losses(
        self,
        class_logits: Float[Tensor, "B R C1"],
        box_deltas: Float[Tensor, "B R C2 4"],
        rois: RoISample,
        truth: Truth,
    ) -> dict[str, Tensor]:
        """Cross-entropy over classes and background; smooth L1 of the own class's offsets, both over the number of sampled RoIs.

        What nobody marked in an image may be of a category that is not annotated there: see `open_cross_entropy`; sigmoids of such categories learn
        nothing from the image.

        Source: Girshick 2015, section 2.3.
        """
        config = self.config
        count = average_over_ranks(rois.valid.sum()).clamp(min=1)
        labels = torch.where(rois.positive, rois.labels, self.num_classes)
        if config.sigmoid:
            wanted = F.one_hot(labels, self.num_classes + 1)[..., :-1].float()
            weight = (
                None if truth.labeled is None else (truth.labeled[:, None] | (wanted > 0)).float()
            )
            classification = F.binary_cross_entropy_with_logits(
                class_logits[..., :-1], wanted, weight, reduction="none"
            ).sum(dim=-1)
        elif truth.labeled is None:
            classification = F.cross_entropy(
                class_logits.flatten(0, 1), labels.flatten(), reduction="none"
            ).view(labels.shape)
        else:
            classification = open_cross_entropy(class_logits, labels, truth.labeled)
        own_class = (
            torch.zeros_like(labels)
            if config.class_agnostic
            else labels.clamp(max=self.num_classes - 1)
        )
        delta = box_deltas.gather(2, own_class[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        regressed = rois.positive
        matched = rois.boxes
        if truth.boxes.shape[1]:
            regressed = regressed & gather(truth.has_box, rois.truth_index)
            matched = torch.where(
                regressed[..., None], gather(truth.boxes, rois.truth_index), rois.boxes
            )
        target = box_ops.encode(matched, rois.boxes, config.box_weights)
        distance = F.smooth_l1_loss(
            delta, target, beta=config.smooth_l1_beta, reduction="none"
        ).sum(dim=-1)
        return {
            "classification": config.classification_weight
            * torch.where(rois.valid, classification, 0.0).sum()
            / count,
            "box": config.regression_weight * torch.where(regressed, distance, 0.0).sum() / count,
        }

    def detect(
        self,
        class_logits: Float[Tensor, "B P C1"],
        box_deltas: Float[Tensor, "B P C2 4"],
        proposals: Proposals,
        batch: Batch,
    ) -> tuple[Detections, int]:
        """Every proposal as every class that it may be, thinned by NMS; the best `max_detections` of each image, and how many these are."""
        config, classes = self.config, self.num_classes
        scores = (class_logits.sigmoid() if config.sigmoid else class_logits.softmax(dim=-1))[
            ..., :classes
        ]
        boxes = box_ops.decode(box_deltas, proposals.boxes[:, :, None], config.box_weights).expand(
            -1, -1, classes, -1
        )
        boxes = box_ops.clip(boxes.flatten(1, 2), batch.sizes)
        scores = scores.flatten(1)
        labels = (
            torch.arange(classes, device=boxes.device)
            .repeat(proposals.boxes.shape[1])
            .expand(len(boxes), -1)
        )
        sides = boxes[..., 2:] - boxes[..., :2]
        valid = (sides >= config.min_size).all(dim=-1) & (scores > config.score_threshold)
        valid &= proposals.valid.repeat_interleave(classes, dim=1)
        candidates = nms.Candidates(
            boxes, scores, torch.zeros_like(labels) if config.nms == "all" else labels, valid
        )
        if config.nms == "soft":
            chosen, score = nms.select_soft(
                candidates, config.soft_sigma, config.score_threshold, config.max_detections
            )
        else:
            chosen = nms.select(candidates, config.nms_iou, config.max_detections)
            score = gather(scores, chosen.index)
        return detections_of(chosen, boxes, score, labels), chosen.count


def detections_of(
    chosen: nms.Selection,
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B K"],
    labels: Int64[Tensor, "B N"],
) -> Detections:
    """The chosen boxes with their scores (given in the order of the choice) and labels; zeros where there is none."""
    kept = chosen.valid
    return Detections(
        boxes=torch.where(kept[..., None], gather(boxes, chosen.index), 0.0),
        scores=torch.where(kept, scores, 0.0),
        labels=torch.where(kept, gather(labels, chosen.index), 0),
        valid=kept,
    )


def open_cross_entropy(
    class_logits: Float[Tensor, "B R C1"],
    labels: Int64[Tensor, "B R"],
    labeled: Bool[Tensor, "B C"],
) -> Float[Tensor, "B R"]:
    """Cross-entropy where a background RoI is background or of any category that is not annotated in its image: -log of the sum of these.

    Args:
        class_logits: background last.
        labels: index of the class, C for background.
        labeled: whether every object of a category is annotated in the image.

    Source: Cermelli et al. 2020, "Modeling the Background for Incremental Learning in Semantic Segmentation", section 3, the revisited
    cross-entropy.
    """
    classes = torch.arange(class_logits.shape[-1], device=class_logits.device)
    background = labels == len(classes) - 1
    possible = (classes == labels[..., None]) | (
        background[..., None] & F.pad(~labeled, (0, 1))[:, None]
    )
    return class_logits.logsumexp(dim=-1) - class_logits.masked_fill(
        ~possible, -torch.inf
    ).logsumexp(dim=-1)
