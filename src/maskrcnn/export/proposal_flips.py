"""Proposals that only a model, or only its exported file, has, and why each of them may be.

Of thousands of candidates some are within a rounding error of a threshold, and each that comes or
goes lets others come or go. So every proposal that differs is checked by itself (`close_calls`).

In:  the model, the features from which both chose, and the proposals of the file.
Out: `ProposalFlips`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..config import RPNConfig
from ..model.maskrcnn import MaskRCNN
from ..ops.pyramid import Pyramid
from ..runtime.counted import counted
from ..structures import Batch
from .close_calls import CloseCall, Kept, Rules, close_calls
from .comparison import BOUNDS

LEAST_BEYOND = 200
"""Anchors beyond the limit of each level that the file may have chosen instead, at least."""
MOST_BEYOND = 50_000
"""At most; where an image is constant, all anchors of a level have equal scores."""
EQUAL = 1e-3
"""Logits that differ less than this are nearly equal."""
ROUNDING = 1e-5
"""Rounding error of an objectness, as a share of the largest in the image."""


@dataclass
class ProposalFlips:
    """The proposals that only one of both has, in all images of a batch."""

    count: int = 0
    unexplained: int = 0
    detail: str = ""
    """An unexplained one, in words."""
    close_calls: list[CloseCall] = field(default_factory=list)
    """The others: what decided about each."""


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
    side is at the smallest allowed one, if its overlap with a better one is at the NMS threshold,
    if it overlaps one of equal objectness, or if a better one that came or went for such a reason
    suppresses or displaces it.

    Args:
        network: the model.
        pyramid: features of the images.
        batch: the images.
        theirs: the file's proposals, zeros in empty rows.
    """
    own = network.propose(pyramid, batch)
    flips = ProposalFlips()
    every = None
    where: list[float] = []
    for image in range(len(batch.sizes)):
        sides = (own.boxes[image, own.valid[image]], theirs[image][has_area(theirs[image])])
        near = torch.cdist(*sides, p=torch.inf) <= BOUNDS.boxes
        alone = (~near.any(dim=1), ~near.any(dim=0))
        count = int(alone[0].sum() + alone[1].sum())
        if not count:
            continue

        flips.count += count
        every = every or _candidates(network, pyramid, batch)
        calls = _explain(network.config.rpn, every[image], image, sides, alone)
        flips.close_calls += calls.values()
        for side, boxes in enumerate(sides):
            for i in alone[side].nonzero()[:, 0].tolist():
                if (side, i) not in calls:
                    flips.unexplained += 1
                    where = [round(value, 1) for value in boxes[i].tolist()]

    if flips.unexplained:
        flips.detail = (
            f"{flips.unexplained:,} of {counted(flips.count, 'proposal')} that differ, not at a "
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
    count = most + _beyond(logits, most)
    boxes, scores, _, sizes = network.rpn.candidates(logits, deltas, anchors, batch, count)
    if config.nms_score == "probability":
        scores = scores.sigmoid()
    images = []
    for box, score in zip(boxes, scores, strict=True):
        parts = zip(box.split(sizes), score.split(sizes), strict=True)
        images.append([_Level(b, s, float(s[min(most, len(s)) - 1])) for b, s in parts])
    return images


def _beyond(logits: Sequence[Tensor], most: int) -> int:
    """How many anchors beyond the limit of a level have nearly the score of the last within it."""
    counts = [LEAST_BEYOND]
    for level in logits:
        scores = level.flatten(1)
        if scores.shape[1] > most:
            limit = scores.topk(most, dim=1).values[:, -1:]
            counts.append(int((scores > limit - EQUAL).sum(dim=1).max()) - most)
    return min(max(counts), MOST_BEYOND)


def _explain(
    config: RPNConfig,
    levels: list[_Level],
    image: int,
    sides: tuple[Tensor, Tensor],
    alone: tuple[Tensor, Tensor],
) -> dict[tuple[int, int], CloseCall]:
    """The close calls among the proposals of an image, by side and index."""
    both = []
    indices = []
    for name, boxes, only in zip(("model", "file"), sides, alone, strict=True):
        score, level, found = _origin(levels, boxes)
        # A proposal that comes from no candidate has no reason.
        index = found.nonzero()[:, 0]
        named = partial(_named, name, image, boxes[index])
        lone = only[index].nonzero()[:, 0].tolist()
        both.append(Kept(boxes[index], score[index], level[index], lone, named))
        indices.append(index.tolist())

    largest = max(float(level.scores.abs().max()) for level in levels)
    rules = Rules(
        own=partial(_at_threshold, config, levels),
        limit=config.post_nms_test,
        at_limit="objectness at the limit of proposals",
        equal="equal objectness of an overlapping proposal",
        margin=BOUNDS.margin,
        tie=min(BOUNDS.margin, ROUNDING * max(largest, 1.0)),
        nms_iou=config.nms_iou,
    )
    calls = close_calls((both[0], both[1]), rules)
    return {(side, indices[side][i]): call for (side, i), call in calls.items()}


def _origin(
    levels: list[_Level], boxes: Float[Tensor, "N 4"]
) -> tuple[Float[Tensor, "N"], Int64[Tensor, "N"], Bool[Tensor, "N"]]:
    """The objectness and the level of the candidate from which each box came, if there is one."""
    nearest = [torch.cdist(boxes, level.boxes, p=torch.inf).min(dim=1) for level in levels]
    apart, level = torch.stack([near.values for near in nearest]).min(dim=0)
    scores = [own.scores[near.indices] for own, near in zip(levels, nearest, strict=True)]
    score = torch.stack(scores).gather(0, level[None])[0]
    return score, level, apart <= BOUNDS.boxes


def _named(whose: str, image: int, boxes: Float[Tensor, "N 4"], i: int) -> str:
    where = [round(value, 2) for value in boxes[i].tolist()]
    return f"a proposal of the {whose} in image {image} of the batch (box {where})"


def _at_threshold(config: RPNConfig, levels: list[_Level], kept: Kept, i: int) -> CloseCall | None:
    """The close call of a proposal with the limits of its level and of its size."""
    score = float(kept.scores[i])
    limit = levels[int(kept.groups[i])].limit
    if abs(score - limit) <= BOUNDS.margin:
        return CloseCall("objectness at the limit of a level", kept.name(i), score, limit)
    for side in (kept.boxes[i, 2:] - kept.boxes[i, :2]).tolist():
        if abs(side - config.min_size) <= BOUNDS.margin:
            return CloseCall("side at the smallest size", kept.name(i), side, config.min_size)
    return None
