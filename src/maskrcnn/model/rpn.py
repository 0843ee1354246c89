"""5. The region proposal network: where are objects, of whatever class?

`Pyramid`, or its levels [B, C, H, W]  ->  objectness_logits [B, P, ...] and anchor_deltas  ->
Proposals [B, K], and in training two losses.

Proposals need the outputs at every anchor and no gradient; the losses need the gradient of a few
hundred sampled anchors. So `forward` computes all outputs and `sampled` only those.

Source: Ren et al. 2015; Lin et al. 2017, section 4.1.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..config import RPNConfig
from ..kernels import nms, onednn
from ..kernels.convolution_geometry import DENSE
from ..ops import boxes as box_ops
from ..ops.device import constant
from ..ops.distributed import mean_count
from ..ops.pyramid import Pyramid
from ..ops.stateless_random import random_keys
from ..structures import Batch, Proposals, Truth
from .anchors import make_anchors
from .assign import balanced_sample, gather, match
from .layers import convolve

RANDOM_STREAM = 1
# Upper bound of the assumed share of objects whose category is not annotated in an image. Where
# hardly any category is (LVIS annotates some 20 of 1203 per image), background must still count.
MOST_UNMARKED = 0.5


class RPN(nn.Module):
    """3x3 convolutions, then one objectness logit and four box offsets for each anchor.

    All levels share the weights.

    Raises:
        ValueError: levels differ in their number of anchors per cell.
    """

    def __init__(self, channels: int, strides: tuple[int, ...], config: RPNConfig) -> None:
        super().__init__()
        anchors = {len(sizes) * len(config.ratios) for sizes in config.sizes}
        if len(anchors) > 1:
            raise ValueError(
                "rpn.sizes: expected the same number of anchors per cell on every level, "
                f"got {config.sizes}"
            )
        (per_cell,) = anchors

        widths = (channels, *config.convs)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, config.convs, strict=False)
        )
        self.objectness = nn.Conv2d(widths[-1], per_cell, 1)
        self.deltas = nn.Conv2d(widths[-1], per_cell * 4, 1)
        self.strides = strides
        self.config = config

        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
                nn.init.zeros_(part.bias)  # ty: ignore[invalid-argument-type]

    def forward(
        self, levels: list[Float[Tensor, "B C _ _"]]
    ) -> tuple[list[Float[Tensor, "B _"]], list[Float[Tensor, "B _ 4"]]]:
        """Returns objectness logits and offsets of every anchor, one tensor per level."""
        logits = []
        deltas = []
        for x in levels:
            for conv in self.convs:
                x = convolve(x, conv, relu=True)  # ty: ignore[invalid-argument-type]
            x = x.to(self.objectness.weight.dtype)
            logits.append(convolve(x, self.objectness).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(
                convolve(x, self.deltas).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4).float()
            )
        return logits, deltas

    def sampled(
        self, pyramid: Pyramid, index: Int64[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B S"], Float[Tensor, "B S 4"]]:
        """Returns what `forward` does for some anchors, from the features around their cells.

        Args:
            pyramid: whose levels `forward` takes.
            index: anchors of each image, counted through all levels.
        """
        per_cell = self.objectness.out_channels
        x, inside = surroundings(pyramid, index // per_cell, reach=len(self.convs))
        for conv in self.convs:  # the input of each is zero beyond its map
            x = torch.where(inside, x, 0.0)
            assert isinstance(conv, nn.Conv2d)
            x = F.relu(onednn.plain_convolution(x, conv.weight, conv.bias, DENSE))
            inside = inside[..., 1:-1, 1:-1]

        x = x.to(self.objectness.weight.dtype)
        own = (index % per_cell).flatten()
        row = torch.arange(len(own), device=own.device)
        logits = convolve(x, self.objectness).flatten(1)[row, own]
        deltas = convolve(x, self.deltas).view(len(own), per_cell, 4)[row, own]
        return logits.float().view(index.shape), deltas.float().view(*index.shape, 4)

    def anchors(
        self, levels: list[Float[Tensor, "B C _ _"]], batch: Batch
    ) -> list[Float[Tensor, "_ 4"]]:
        """Returns the anchors of all levels for images of this padded size."""
        height, width = batch.images.shape[-2:]
        return make_anchors(
            [(x.shape[-2], x.shape[-1]) for x in levels],
            self.strides,
            (height, width),
            self.config,
            batch.images.device,
        )

    @torch.no_grad()
    def propose(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        batch: Batch,
        *,
        pre_nms: int,
        post_nms: int,
    ) -> Proposals:
        """Turns outputs into proposals.

        Decodes the best anchors of each level, clips them to the image and applies NMS within the
        level.

        Args:
            logits: objectness, per level.
            deltas: offsets, per level.
            anchors: per level.
            batch: the images.
            pre_nms: anchors to decode per level.
            post_nms: proposals to keep per image.
        """
        box, score, valid, sizes = self.candidates(logits, deltas, anchors, batch, pre_nms)
        rank = score.sigmoid() if self.config.nms_score == "probability" else score
        index, kept = nms.select_by_level(box, rank, valid, sizes, self.config.nms_iou, post_nms)

        return Proposals(
            boxes=torch.where(kept[..., None], gather(box, index), 0.0),
            scores=gather(score, index),
            valid=kept,
        )

    @torch.no_grad()
    def candidates(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        batch: Batch,
        pre_nms: int,
    ) -> tuple[Float[Tensor, "B N 4"], Float[Tensor, "B N"], Bool[Tensor, "B N"], list[int]]:
        """Returns what NMS chooses the proposals from; arguments as in `propose`.

        Returns:
            Boxes, clipped to their image; their objectness; which are large enough; and how many
            there are per level, one level after the other, the best first.
        """
        boxes = []
        scores = []
        for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
            count = pre_nms
            if torch.compiler.is_exporting():
                # Anchors without extent, so that every level of every image has enough.
                logit = F.pad(logit, (0, pre_nms), value=-torch.inf)
                delta = F.pad(delta, (0, 0, 0, pre_nms))
                anchor = F.pad(anchor, (0, 0, 0, pre_nms))
            else:
                count = min(pre_nms, logit.shape[1])
            best, index = logit.topk(count, dim=1)
            delta = gather(delta, index)
            boxes.append(box_ops.decode(delta, anchor[index], self.config.box_weights))
            scores.append(best)
        box = box_ops.clip(torch.cat(boxes, 1), batch.sizes)
        score = torch.cat(scores, 1)

        sides = box[..., 2:] - box[..., :2]
        valid = ((sides >= self.config.min_size) & (sides > 0)).all(dim=-1)
        return box, score, valid, [s.shape[1] for s in scores]

    def losses(
        self, pyramid: Pyramid, anchors: list[Tensor], batch: Batch, truth: Truth
    ) -> dict[str, Tensor]:
        """Computes the losses on sampled anchors, divided by the number of samples.

        Cross-entropy of the objectness, and smooth L1 of the offsets of the positive anchors.
        """
        config = self.config
        anchor = torch.cat(anchors)

        # Assign anchors to objects and sample them.
        matches = match(
            anchor.expand(len(batch.sizes), -1, 4),
            truth,
            config.positive_iou,
            config.negative_iou,
            keep_best=True,
            boxless=False,
        )
        keys = random_keys(batch.seeds, len(anchor), RANDOM_STREAM)
        index, valid = balanced_sample(
            matches.positive, matches.negative, keys, config.samples, config.positive_fraction
        )
        positive = gather(matches.positive, index) & valid
        count = mean_count(valid.sum())

        # Objectness.
        logit, delta = self.sampled(pyramid, index)
        objectness = F.binary_cross_entropy_with_logits(logit, positive.float(), reduction="none")
        if truth.labeled is not None:
            objectness = torch.where(positive, objectness, unmarked_loss(logit, truth.labeled))
        objectness = torch.where(valid, objectness, 0.0).sum()

        # Offsets.
        sampled = anchor[index]
        boxes = sampled
        if truth.boxes.shape[1]:
            boxes = gather(truth.boxes, gather(matches.truth_index, index))
        boxes = torch.where(positive[..., None], boxes, sampled)
        target = box_ops.encode(boxes, sampled, config.box_weights)
        distance = F.smooth_l1_loss(delta, target, beta=config.smooth_l1_beta, reduction="none")
        distance = torch.where(positive, distance.sum(dim=-1), 0.0).sum()

        return {
            "rpn_objectness": config.loss_weight * objectness / count,
            "rpn_box": config.box_loss_weight * distance / count,
        }


def surroundings(
    pyramid: Pyramid, cell: Int64[Tensor, "B S"], reach: int
) -> tuple[Float[Tensor, "B*S C D D"], Bool[Tensor, "B*S 1 D D"]]:
    """Returns the features around cells, and which of them are on the map.

    D = 2 reach + 1. Values beyond the map are arbitrary.

    Args:
        pyramid: of all images.
        cell: cells of each image, counted row by row through all levels.
        reach: distance in cells.
    """
    device = cell.device
    sizes = (level.shape[2] * level.shape[3] for level in pyramid.levels)
    starts = (0, *accumulate(sizes))  # of the levels, in one image
    level = torch.bucketize(cell, constant(starts[1:-1], device, torch.int64), right=True)
    first, height, width = (numbers[..., None, None] for numbers in pyramid.maps(level))

    own = cell[..., None, None] - first // len(cell)  # the cell's number within its map
    step = torch.arange(-reach, reach + 1, device=device)
    y = own // width + step[:, None]
    x = own % width + step
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)

    image = torch.arange(len(cell), device=device)[:, None, None, None]
    row = torch.where(inside, first + (image * height + y) * width + x, 0)
    features = F.embedding(row, pyramid.table).flatten(0, 1).permute(0, 3, 1, 2)
    return features, inside.flatten(0, 1)[:, None]


def unmarked_loss(
    logits: Float[Tensor, "B S"], labeled: Bool[Tensor, "B C"]
) -> Float[Tensor, "B S"]:
    """-log of the probability that an anchor has no annotation.

    It is background, or an object of a category that is not annotated in the image. The share q of
    such objects is assumed to be the share of such categories: p = (1 - o) + o q, for objectness o.
    If all categories are annotated, this is the cross-entropy of background. An anchor that
    certainly shows an object gets no gradient.

    Args:
        logits: of the objectness.
        labeled: whether every object of a category is annotated in the image.
    """
    share = (~labeled).float().mean(dim=1, keepdim=True).clamp(max=MOST_UNMARKED)
    return F.softplus(logits) - F.softplus(logits + share.log())
