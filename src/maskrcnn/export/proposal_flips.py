"""Proposals that only a model, or only its exported file, has, and why each of them may be.

Of thousands of candidates some are within a rounding error of a threshold, and each that comes or
goes lets others come or go. So every proposal that differs is checked by itself.

In:  the model, the features from which both chose, and the proposals of the file.
Out: `ProposalFlips`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..model.maskrcnn import MaskRCNN
from ..ops.boxes import iou
from ..ops.pyramid import Pyramid
from ..structures import Batch
from .comparison import BOUNDS

BEYOND = 200
"""Anchors beyond the limit of each level that the file may have chosen instead."""
ROUNDING = 1e-5
"""Rounding error of an objectness, as a share of the largest in the image."""


@dataclass
class ProposalFlips:
    """The proposals that only one of both has, in all images of a batch."""

    count: int = 0
    unexplained: int = 0
    detail: str = ""
    """An unexplained one, in words."""


@dataclass(frozen=True)
class _Level:
    """The candidates of one level of one image, the best first."""

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, "n"]
    limit: float
    """Score of the last candidate that NMS gets."""


def find_flips(
    network: MaskRCNN, pyramid: Pyramid, batch: Batch, theirs: Float[Tensor, "B P 4"]
) -> ProposalFlips:
    """Finds the proposals that differ, and checks that rounding may decide about each.

    A proposal may come or go if its objectness is at the limit of its level or of the image, if its
    side is at the smallest allowed one, if its overlap with a better candidate is within 0.001 of
    the NMS threshold, if it overlaps a candidate of equal objectness, or if a better one that came
    or went for such a reason suppresses it.

    Args:
        network: the model.
        pyramid: features of the images.
        batch: the images.
        theirs: the file's proposals, zeros in empty rows.
    """
    own = network.propose(pyramid, batch)
    flips = ProposalFlips()
    every = None
    for image in range(len(batch.sizes)):
        sides = (own.boxes[image, own.valid[image]], theirs[image][has_area(theirs[image])])
        near = torch.cdist(*sides, p=torch.inf) <= BOUNDS.boxes
        alone = (sides[0][~near.any(dim=1)], sides[1][~near.any(dim=0)])
        count = len(alone[0]) + len(alone[1])
        if not count:
            continue

        flips.count += count
        every = every or _candidates(network, pyramid, batch)
        check = _Check(network, every[image], sides, alone)
        if left := check.unexplained():
            flips.unexplained += len(left)
            where = [round(value, 1) for value in left[0].tolist()]
            flips.detail = (
                f"{flips.unexplained} of {flips.count} proposals that differ are not at a "
                f"threshold, such as the box {where}"
            )
    return flips


def has_area(boxes: Float[Tensor, "*n 4"]) -> Bool[Tensor, "*n"]:
    """Which rows hold a proposal; the others are zero."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def _candidates(network: MaskRCNN, pyramid: Pyramid, batch: Batch) -> list[list[_Level]]:
    """The candidates of each image, level by level."""
    config = network.config.rpn
    logits, deltas = network.rpn(pyramid.levels)
    anchors = network.rpn.anchors(pyramid.levels, batch)
    most = config.pre_nms_test
    boxes, scores, _, sizes = network.rpn.candidates(logits, deltas, anchors, batch, most + BEYOND)
    if config.nms_score == "probability":
        scores = scores.sigmoid()
    images = []
    for box, score in zip(boxes, scores, strict=True):
        parts = zip(box.split(sizes), score.split(sizes), strict=True)
        images.append([_Level(b, s, float(s[min(most, len(s)) - 1])) for b, s in parts])
    return images


class _Check:
    """Looks for the reason of each proposal of an image that only one of both has."""

    def __init__(
        self,
        network: MaskRCNN,
        levels: list[_Level],
        sides: tuple[Tensor, Tensor],
        alone: tuple[Tensor, Tensor],
    ) -> None:
        self.config = network.config.rpn
        self.levels = levels
        largest = max(float(level.scores.abs().max()) for level in levels)
        self.tie = ROUNDING * max(largest, 1.0)
        self.alone = torch.cat(alone)
        self.of_file = torch.arange(len(self.alone)) >= len(alone[0])

        # The candidate from which each came; those that came from none have no reason.
        self.places = [self._place(box) for box in self.alone]
        self.last = [self._lowest(boxes) for boxes in sides]
        self.is_full = max(map(len, sides)) >= self.config.post_nms_test

    def unexplained(self) -> list[Tensor]:
        """The boxes that have no reason to be on one side alone."""
        explained = torch.tensor(
            [place is not None and self._decided_by_rounding(*place) for place in self.places]
        )
        # What came or went suppresses others, or frees them, or takes their place in a full list.
        changed = True
        while changed:
            changed = False
            for n, place in enumerate(self.places):
                if place is not None and not explained[n] and self._follows(n, place, explained):
                    explained[n] = True
                    changed = True
        return list(self.alone[~explained])

    def _place(self, box: Tensor) -> tuple[_Level, int] | None:
        for level in self.levels:
            apart = (level.boxes - box).abs().amax(dim=1)
            if apart.min() <= BOUNDS.boxes:
                return level, int(apart.argmin())
        return None

    def _decided_by_rounding(self, level: _Level, index: int) -> bool:
        margin = BOUNDS.margin
        box = level.boxes[index]
        score = level.scores[index]
        if abs(float(score) - level.limit) <= margin:
            return True
        if ((box[2:] - box[:2]) - self.config.min_size).abs().min() <= margin:
            return True

        overlap = iou(box[None], level.boxes)[0]
        overlap[index] = 0
        better = level.scores >= score - self.tie
        at_threshold = (overlap - self.config.nms_iou).abs() <= margin
        equal = (level.scores - score).abs() <= self.tie
        rival = overlap > self.config.nms_iou - margin
        return bool((better & at_threshold).any() or (equal & rival).any())

    def _follows(self, n: int, place: tuple[_Level, int], explained: Tensor) -> bool:
        """Whether a proposal follows from explained ones of the other side."""
        level, index = place
        score = level.scores[index]
        for other, rival in enumerate(self.places):
            if not explained[other] or rival is None or rival[0] is not level:
                continue
            overlap = float(iou(self.alone[n : n + 1], self.alone[other : other + 1]))
            if (
                overlap > self.config.nms_iou - BOUNDS.margin
                and level.scores[rival[1]] >= score - self.tie
            ):
                return True

        # In a full list, each that came displaces the last.
        if not self.is_full:
            return False
        side = int(self.of_file[n])
        displaced = int((explained & (self.of_file != self.of_file[n])).sum())
        last = self.last[side]
        return displaced > 0 and float(score) <= last[min(displaced, len(last)) - 1] + self.tie

    def _lowest(self, boxes: Tensor) -> list[float]:
        """The scores of the proposals of one side, lowest first."""
        scores = []
        for box in boxes:
            if (place := self._place(box)) is not None:
                scores.append(float(place[0].scores[place[1]]))
        return sorted(scores)
