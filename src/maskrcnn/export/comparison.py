"""How far the objects that a file predicts in an image are from the model's.

In:  two `Instances` of one image, the model's and the file's, and the model's configuration.
Out: `ImageComparison`: the largest differences, what was allowed and why, and what was not.

Objects are matched by category and IoU. A network that computes in float32 has choices that a
rounding error decides: a score at its threshold, two boxes of equal score (`close_calls`), two
equal peaks in a heat map. Such choices are allowed, each for a stated reason, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ..config import ModelConfig
from ..instances import Instances
from ..ops.boxes import iou
from ..ops.heatmaps import decode_subpixel
from ..ops.paste_masks import paste_masks
from .close_calls import CloseCall, Kept, Rules, close_calls

AT_SCORE = "score at the threshold"
FROM_PROPOSALS = "follows from a proposal at a threshold"
MATCH_IOU = 0.5
"""Objects of one category that overlap less are not compared with each other."""

Heatmaps = Callable[[int], tuple[Float[Tensor, "J S S"], Float[Tensor, "4"]]]
"""Of an object of the model: its keypoints' heat maps, and its box in the model's input."""


@dataclass(frozen=True)
class Bounds:
    """The largest allowed differences, for computation in float32."""

    boxes: float = 0.02
    """In pixels of the image or of the model's input, whichever are smaller."""
    scores: float = 1e-3
    mask_iou: float = 0.995
    """Smallest IoU of two masks, both drawn into the image on the model's box."""
    keypoints: float = 0.1
    """In pixels, as `boxes`."""
    margin: float = 1e-3
    """A value this close to a threshold may be decided either way."""
    rounding: float = 1e-5
    """Scores this close may have another order; more only where matched objects differ by more."""


BOUNDS = Bounds()


@dataclass
class ImageComparison:
    """How far the two predictions for one image, or for several, are apart."""

    model_objects: int = 0
    file_objects: int = 0
    matched: int = 0
    boxes: float = 0.0
    """Largest difference of matched boxes, in pixels."""
    scores: float = 0.0
    mask_iou: float = 1.0
    """Smallest IoU of the masks of matched objects."""
    keypoints: float = 0.0
    """Largest distance of the keypoints of matched objects along an axis, in pixels."""
    unmatched: Counter[str] = field(default_factory=Counter)
    """Allowed reason -> number of objects, of either side, without a counterpart."""
    close_calls: list[CloseCall] = field(default_factory=list)
    """What decided about each of these objects."""
    proposals: list[CloseCall] = field(default_factory=list)
    """What decided about each proposal of one side, where objects follow from such."""
    equal_peaks: int = 0
    """Keypoints that are elsewhere, at a peak that is as high."""
    undecided_pixels: int = 0
    """Mask pixels that differ where the probability is at the mask threshold."""
    problems: list[str] = field(default_factory=list)
    """Differences that are not allowed."""

    def add(self, other: ImageComparison) -> None:
        """Takes another comparison into this one."""
        self.model_objects += other.model_objects
        self.file_objects += other.file_objects
        self.matched += other.matched
        self.boxes = max(self.boxes, other.boxes)
        self.scores = max(self.scores, other.scores)
        self.mask_iou = min(self.mask_iou, other.mask_iou)
        self.keypoints = max(self.keypoints, other.keypoints)
        self.unmatched += other.unmatched
        self.close_calls += other.close_calls
        self.proposals += other.proposals
        self.equal_peaks += other.equal_peaks
        self.undecided_pixels += other.undecided_pixels
        self.problems += other.problems


def compare_objects(
    model: Instances,
    file: Instances,
    config: ModelConfig,
    heatmaps: Heatmaps,
    to_image: tuple[float, float] = (1.0, 1.0),
    bounds: Bounds = BOUNDS,
) -> ImageComparison:
    """Compares the objects of one image.

    Args:
        model: what the model predicts.
        file: what the file predicts.
        config: the model's.
        heatmaps: called for objects whose keypoints differ.
        to_image: pixels of the image per pixel of the model's input, in x and y; differences are
            counted in whichever are smaller.
        bounds: what is allowed.
    """
    factor = max(1.0, 1 / min(to_image))
    result = ImageComparison(len(model), len(file))
    pairs = _pairs(model, file, bounds.boxes / factor)

    # A pair with another box or score is two objects, each of which needs a reason to be alone.
    same = []
    for i, j in pairs:
        box = factor * (model.boxes[i] - file.boxes[j]).abs().max().item()
        score = (model.scores[i] - file.scores[j]).abs().item()
        if box <= bounds.boxes and score <= bounds.scores:
            same.append((i, j))
            result.boxes = max(result.boxes, box)
            result.scores = max(result.scores, score)
    result.matched = len(same)
    alone = (
        sorted({*range(len(model))} - {i for i, _ in same}),
        sorted({*range(len(file))} - {j for _, j in same}),
    )
    _explain(result, model, file, alone, config, bounds)

    if model.mask_grids is not None and file.mask_grids is not None:
        for i, j in same:
            _compare_masks(result, model, file.mask_grids[j], i, bounds)
    if model.keypoints is not None and file.keypoints is not None:
        for i, j in same:
            keypoints = file.keypoints[j]
            _compare_keypoints(result, model, keypoints, i, config, heatmaps, to_image, bounds)
    return result


def _pairs(model: Instances, file: Instances, near: float) -> list[tuple[int, int]]:
    """The objects of both that belong together: by category, the best IoU first."""
    if not len(model) or not len(file):
        return []
    overlap = iou(model.boxes, file.boxes).nan_to_num()
    # Boxes without area overlap nothing.
    apart = (model.boxes[:, None] - file.boxes).abs().amax(dim=-1)
    overlap = torch.where(apart <= near, overlap.clamp(min=1 - near) - apart, overlap)
    overlap = torch.where(model.labels[:, None] == file.labels, overlap, -1.0)
    # Of equal boxes, those with the nearer scores.
    overlap = overlap - 1e-4 * (model.scores[:, None] - file.scores).abs()

    pairs = []
    order = overlap.flatten().argsort(descending=True, stable=True)
    order = order[overlap.flatten()[order] >= MATCH_IOU]
    free = [True] * len(model), [True] * len(file)
    for index in order.tolist():
        i, j = divmod(index, len(file))
        if free[0][i] and free[1][j]:
            pairs.append((i, j))
            free[0][i] = False
            free[1][j] = False
    return pairs


def _explain(
    result: ImageComparison,
    model: Instances,
    file: Instances,
    alone: tuple[list[int], list[int]],
    config: ModelConfig,
    bounds: Bounds,
) -> None:
    """Counts the objects that may be without counterpart, and reports the others."""
    box = config.box

    def at_threshold(kept: Kept, i: int) -> CloseCall | None:
        score = float(kept.scores[i])
        if score <= box.score_threshold + bounds.margin:
            return CloseCall(AT_SCORE, kept.name(i), score, box.score_threshold)
        return None

    sides = (_kept("model", model, alone[0], config), _kept("file", file, alone[1], config))
    rules = Rules(
        own=at_threshold,
        limit=box.max_detections,
        at_limit="score at the limit of detections",
        equal="equal score of an overlapping object",
        margin=bounds.margin,
        tie=min(bounds.margin, max(bounds.rounding, 2 * result.scores)),
        nms_iou=box.nms_iou,
        sigma=box.soft_sigma if box.nms == "soft" else None,
        score_threshold=box.score_threshold,
    )
    calls = close_calls(sides, rules)

    result.close_calls = list(calls.values())
    result.unmatched = Counter(call.reason for call in result.close_calls)
    for side, kept in enumerate(sides):
        for i in kept.alone:
            if (side, i) not in calls:
                result.problems.append(f"{kept.name(i)} has no counterpart")


def _kept(whose: str, instances: Instances, alone: list[int], config: ModelConfig) -> Kept:
    """The objects of the model or of the file, as NMS kept them."""

    def name(i: int) -> str:
        category = instances.categories[int(instances.labels[i])].name
        box = [round(v, 2) for v in instances.boxes[i].tolist()]
        score = instances.scores[i]
        return f"object {i} of the {whose} ({category}, score {score:.4f}, box {box})"

    groups = instances.labels
    if config.box.nms == "all":
        groups = torch.zeros_like(groups)
    return Kept(instances.boxes, instances.scores, groups, alone, name)


def _compare_masks(
    result: ImageComparison, model: Instances, theirs: Float[Tensor, "S S"], i: int, bounds: Bounds
) -> None:
    """Compares two masks on the same box, so that a difference of boxes does not count twice."""
    assert model.mask_grids is not None
    grid = model.mask_grids[i]
    if torch.equal(grid, theirs):
        return

    mask = _drawn(model, grid, i)
    their_mask = _drawn(model, theirs, i)
    surely = _drawn(model, grid, i, bounds.margin)
    maybe = _drawn(model, grid, i, -bounds.margin)
    result.undecided_pixels += int((maybe & ~surely & (mask ^ their_mask)).sum())

    # The model's mask, with the pixels at the threshold as the file has them.
    mask = surely | (maybe & their_mask)
    union = int((mask | their_mask).sum())
    overlap = int((mask & their_mask).sum()) / union if union else 1.0
    result.mask_iou = min(result.mask_iou, overlap)
    if overlap < bounds.mask_iou or not torch.isfinite(theirs).all():
        result.problems.append(
            f"mask of object {i}: IoU {overlap:.4f}, expected at least {bounds.mask_iou}"
        )


def _drawn(
    instances: Instances, grid: Float[Tensor, "S S"], i: int, above: float = 0.0
) -> Bool[np.ndarray, "h w"]:
    """A mask on the box of an object, at a threshold that is higher by `above`."""
    box = instances.boxes[i : i + 1]
    threshold = instances.mask_threshold + above
    (crop,) = paste_masks(grid[None], box, instances.size, instances.paste, threshold)
    return crop.mask


def _compare_keypoints(
    result: ImageComparison,
    model: Instances,
    theirs: Float[Tensor, "J 3"],
    i: int,
    config: ModelConfig,
    heatmaps: Heatmaps,
    to_image: tuple[float, float],
    bounds: Bounds,
) -> None:
    """Compares the keypoints of an object."""
    assert model.keypoints is not None
    assert config.keypoint is not None
    factor = max(1.0, 1 / min(to_image))
    ours = model.keypoints[i]
    distance = factor * (ours[:, :2] - theirs[:, :2]).abs().amax(dim=1)
    found = None

    for j, category_keypoint in enumerate(model.categories[int(model.labels[i])].keypoints):
        where = f'keypoint "{category_keypoint}" of object {i}'
        if not abs(float(ours[j, 2] - theirs[j, 2])) <= bounds.scores:
            result.problems.append(
                f"{where}: score {theirs[j, 2]:.4f}, expected {ours[j, 2]:.4f} as the model has it"
            )
        apart = float(distance[j])
        if not apart <= bounds.keypoints:
            found = found or heatmaps(i)
            peaks = peak_positions(found[0][j], found[1], config.keypoint.decode, bounds.margin)
            peaks = peaks * torch.tensor(to_image)
            apart = factor * (peaks - theirs[j, :2]).abs().amax(dim=1).min().item()
            result.equal_peaks += apart <= bounds.keypoints
        if apart <= bounds.keypoints:
            result.keypoints = max(result.keypoints, apart)
        else:
            result.problems.append(
                f"{where}: {distance[j]:.3g} px apart, expected at most {bounds.keypoints}"
            )


def peak_positions(
    heatmap: Float[Tensor, "S S"], box: Float[Tensor, "4"], decode: str, margin: float
) -> Float[Tensor, "N 2"]:
    """Returns where a keypoint is, once for each peak of its heat map that is as high as the best.

    Args:
        heatmap: logits over a grid on the box.
        box: xyxy.
        decode: "subpixel" or "bicubic" (see `KeypointHeadConfig.decode`).
        margin: logits below the highest that still count as equal.
    """
    if decode == "subpixel":
        flat = heatmap.flatten()
        cells = (flat >= flat.max() - margin).nonzero()[:, 0]
        maps = flat.repeat(len(cells), 1)
        maps[torch.arange(len(cells)), cells] = flat.max() + margin
        points, _ = decode_subpixel(maps.view(-1, 1, *heatmap.shape), box.expand(len(cells), 4))
        return points[:, 0, :2]

    # The map is resized to whole pixels, so a box that is a rounding error longer has one more.
    extent = (box[2:] - box[:2]).clamp(min=1)
    sides = {tuple((extent + d).ceil().int().tolist()) for d in (-margin, 0, margin)}
    positions = []
    for width, height in sides:
        fine = F.interpolate(
            heatmap[None, None], size=(max(height, 1), max(width, 1)), mode="bicubic"
        )[0, 0]
        cells = (fine >= fine.max() - margin).nonzero().flip(1)
        positions.append(box[:2] + (cells + 0.5) / torch.tensor([width, height]) * extent)
    return torch.cat(positions)
