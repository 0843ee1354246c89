"""Choices of NMS that a rounding error decides, each with the threshold that it is close to.

In:  the boxes that NMS kept on two sides, a model's and its file's, and those that only one side
     has.
Out: a `CloseCall` for each box alone that may be alone. The others are differences.

Greedy NMS keeps a box unless a better one that it keeps overlaps it by more than a threshold. So a
box that only one side keeps is within a margin of a threshold itself, or a better box that only the
other side keeps suppresses or displaces it; that one is in turn within a margin, or follows from a
better one. Such a chain ends at a value and a threshold, which every `CloseCall` names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..ops.boxes import iou

SUPPRESSED = "suppressed by one of these"
AT_OVERLAP = "overlap at the NMS threshold"
SOFT_OVERLAP = 0.01
"""IoU from which Soft-NMS changes a score by more than a rounding error."""


@dataclass(frozen=True)
class CloseCall:
    """A choice that a rounding error decides, or that follows from one."""

    reason: str
    what: str
    """The box that only one side has."""
    value: float
    threshold: float
    """What the value was compared with. Both are those of the choice that this one follows from."""
    follows_from: str = ""
    """The box whose choice this one follows from; empty if it is a close call itself."""

    @property
    def margin(self) -> float:
        """Distance of the value from the threshold."""
        return abs(self.value - self.threshold)


@dataclass(frozen=True)
class Kept:
    """What NMS kept on one side."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, "N"]
    groups: Int64[Tensor, "N"]
    """Boxes of different groups never suppress one another."""
    alone: list[int]
    """Those without a counterpart on the other side."""
    name: Callable[[int], str]
    """A box in words."""


@dataclass(frozen=True)
class Rules:
    """How NMS chose."""

    own: Callable[[Kept, int], CloseCall | None]
    """The close call of a box with a threshold of its own, such as the smallest score."""
    limit: int
    """Number of boxes that are kept at most."""
    at_limit: str
    equal: str
    """Reasons: the last of a full list; another order of two boxes that overlap."""
    margin: float
    """A value this close to a threshold may be decided either way."""
    tie: float
    """Scores this close may have another order."""
    nms_iou: float
    """IoU above which the lower-scoring box of a pair is suppressed."""
    sigma: float | None = None
    """Of Soft-NMS, which ignores `nms_iou`."""
    score_threshold: float = 0.0
    """Soft-NMS does not keep boxes whose score falls to this or below."""


def close_calls(sides: tuple[Kept, Kept], rules: Rules) -> dict[tuple[int, int], CloseCall]:
    """Returns the close calls among the boxes alone, by side and index.

    Boxes alone that are not in the result have no reason.
    """
    calls = {}
    for side, own, other in _both(sides):
        for i in own.alone:
            if call := rules.own(own, i) or _own_call(own, i, other, rules):
                calls[side, i] = call

    # A box that may be there or not decides about those that it suppresses or displaces.
    changed = True
    while changed:
        changed = False
        for side, own, other in _both(sides):
            causes = {j: calls[1 - side, j] for j in other.alone if (1 - side, j) in calls}
            for i in own.alone:
                if (side, i) in calls:
                    continue
                if call := _consequence(own, i, other, causes, rules):
                    calls[side, i] = call
                    changed = True

    # What a box without a reason displaced is no difference of its own.
    displaced = {}
    for side, own, other in _both(sides):
        others = [j for j in other.alone if (1 - side, j) not in calls]
        for i in own.alone:
            if (side, i) not in calls and (j := _displaced_by(own, i, other, others, rules)) >= 0:
                last = float(other.scores.min())
                call = CloseCall(rules.at_limit, own.name(i), float(own.scores[i]), last)
                displaced[side, i] = replace(call, follows_from=other.name(j))
    return calls | displaced


def _both(sides: tuple[Kept, Kept]) -> Iterator[tuple[int, Kept, Kept]]:
    yield 0, sides[0], sides[1]
    yield 1, sides[1], sides[0]


def _own_call(own: Kept, i: int, other: Kept, rules: Rules) -> CloseCall | None:
    """The close call of a box with the boxes of the other side."""
    name = own.name(i)
    score = float(own.scores[i])
    last = _last(other, rules)
    if last is not None and abs(score - last) <= rules.margin:
        return CloseCall(rules.at_limit, name, score, last)

    overlap = _overlap(own, i, other)
    apart = other.scores - score
    if rules.sigma is None:
        at_threshold = (overlap - rules.nms_iou).abs() <= rules.margin
        if (near := (at_threshold & (apart >= -rules.tie)).nonzero()).numel():
            return CloseCall(AT_OVERLAP, name, float(overlap[near[0, 0]]), rules.nms_iou)
    rival = overlap > _suppressing(rules)
    if (near := (rival & (apart.abs() <= rules.tie)).nonzero()).numel():
        return CloseCall(rules.equal, name, score, float(other.scores[near[0, 0]]))
    return None


def _consequence(
    own: Kept, i: int, other: Kept, causes: dict[int, CloseCall], rules: Rules
) -> CloseCall | None:
    """The close call that a box follows from: that of a better box that only the other side has."""
    name = own.name(i)
    score = float(own.scores[i])
    some = torch.tensor([*causes], dtype=torch.int64)
    overlap = _overlap(own, i, other)[some]
    decides = (overlap > _suppressing(rules)) & (other.scores[some] >= score - rules.tie)
    if (near := decides.nonzero()).numel():
        if rules.sigma is not None and not _agrees(own, i, other, rules):
            return None
        j = int(some[near[0, 0]])
        return replace(causes[j], reason=SUPPRESSED, what=name, follows_from=other.name(j))

    if (j := _displaced_by(own, i, other, causes, rules)) >= 0:
        return replace(causes[j], reason=rules.at_limit, what=name, follows_from=other.name(j))
    return None


def _displaced_by(own: Kept, i: int, other: Kept, boxes: Iterable[int], rules: Rules) -> int:
    """The one of some boxes of a full list that took the place of a box; -1 for none."""
    score = float(own.scores[i])
    last = _last(other, rules)
    if last is None or score > last + rules.tie:
        return -1
    some = torch.tensor([*boxes], dtype=torch.int64)
    better = (other.scores[some] >= score - rules.tie).nonzero()
    return int(some[better[0, 0]]) if better.numel() else -1


def _last(kept: Kept, rules: Rules) -> float | None:
    """The lowest score of a full list."""
    return float(kept.scores.min()) if len(kept.scores) >= rules.limit else None


def _suppressing(rules: Rules) -> float:
    """The IoU from which one box may change another."""
    return (rules.nms_iou if rules.sigma is None else SOFT_OVERLAP) - rules.margin


def _overlap(own: Kept, i: int, other: Kept) -> Float[Tensor, "M"]:
    """The IoU of a box with those of the other side that can suppress it; else 0."""
    if not len(other.boxes):
        return torch.zeros(0)
    overlap = iou(own.boxes[i : i + 1], other.boxes)[0].nan_to_num()
    return torch.where(other.groups == own.groups[i], overlap, 0.0)


def _agrees(own: Kept, i: int, other: Kept, rules: Rules) -> bool:
    """Whether Soft-NMS gives a box on the other side the score that it has there.

    Its score before Soft-NMS follows from the better boxes of its own side; the better ones of the
    other side lower that again. A box that is not there must fall to a threshold.
    """
    assert rules.sigma is not None
    score = float(own.scores[i])
    better = own.scores > score
    expected = score * float(torch.exp((_overlap(own, i, own)[better] ** 2).sum() / rules.sigma))

    overlap = _overlap(own, i, other)
    for j in other.scores.argsort(descending=True).tolist():
        if overlap[j] > 1 - rules.margin:
            return abs(float(other.scores[j]) - expected) <= rules.margin
        if float(other.scores[j]) > expected:
            expected *= float(torch.exp(-(overlap[j] ** 2) / rules.sigma))
    lowest = max(rules.score_threshold, _last(other, rules) or 0.0)
    return expected <= lowest + rules.margin
