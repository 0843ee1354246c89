"""What a model is unsure of in one image: `look(answer, source) -> Look`.

In:  an image, which the model sees as it is and mirrored.
Out: three numbers in one unit, objects in question, whose sum says how many corrections an annotator may expect to make:

    uncertainty         expected wrong decisions about which objects exist: the sum of min(p, 1 - p) over the scores p
    disagreement  what one view finds and the other does not: p of an object without a partner, |p - p'| of one with; halved, as there are two views
    contour       area expected to be on the wrong side of contours, in objects: the sum of p times sum min(m, 1 - m) / sum m over a mask's cells m

and the image's features, the mean over its area of the coarsest level that regions are read from, which say what it looks like.

Source: Brust et al. 2018, "Active Learning for Deep Object Detection" (margins of all detections, summed: the best of their aggregations). For the
two views Elezi et al. 2022, "Not All Labels Are Equal" (inconsistency under a flip).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..images.read import read_image
from ..images.similarity import image_hash
from ..instances import Instances
from ..model.fpn import FPN
from ..model.maskrcnn import MaskRCNN
from ..ops import boxes as box_ops
from ..prediction.predictor import Answering, Source, to_instances
from ..preprocess import prepare, prepare_as_torchvision
from ..structures import Batch

SAME_IOU = 0.5
IN_QUESTION = 0.25
"""An object is uncertain from this many "objects in question" on, of 1."""


@dataclass(frozen=True)
class Look:
    """What one look at an image gives."""

    features: Float[np.ndarray, "C"]
    hash: Float[np.ndarray, "D"]
    """By which near-duplicates are known (images/similarity.py)."""
    uncertainty: float
    disagreement: float
    contour: float
    objects: int
    """Found with at least even odds, in the image as it is."""
    uncertain: Instances
    """Those in question, of both views, most uncertain first; their scores are the model's."""


def look(answer: Answering, source: Source) -> Look:
    """Sees an image and its mirror image.

    Raises:
        ImageError: the image cannot be read.
    """
    config = answer.network.config
    image = read_image(source.image, config.input.intensity_range)
    pixels, to_model = (prepare_as_torchvision if answer.normalizes_first else prepare)(
        image, config.input
    )
    both = [pixels, pixels.flip(-1)]
    batch = Batch.collate(
        both, config.input.size_divisor, [to_model] * 2, [0, 0], normalized=answer.normalizes_first
    )
    with _features(answer.network, batch.sizes) as features:
        found = answer(batch)
    (height, width), (input_height, input_width) = image.shape[:2], pixels.shape[1:]
    scale = (width / input_width, height / input_height)
    plain, mirrored = (
        to_instances(found, row, scale, (height, width), config, answer.min_score)
        for row in range(2)
    )
    plain = replace(plain, keypoints=None, keypoint_logits=None, source=image)
    return _compared(plain, _turned_back(mirrored), features[0], image_hash(image))


def _compared(
    plain: Instances, other: Instances, features: np.ndarray, image_hash: np.ndarray
) -> Look:
    partner = partners(plain, other)
    alone = torch.ones(len(other), dtype=torch.bool)
    alone[partner[partner >= 0]] = False
    seen = torch.where(partner >= 0, other.scores[partner.clamp(min=0)] if len(other) else 0.0, 0.0)
    uncertainty, apart, contour = (
        _decisions(plain.scores),
        (plain.scores - seen).abs(),
        _contours(plain),
    )
    question = torch.cat([uncertainty + apart + contour, other.scores[alone]])
    rest = other[alone]
    joined = {
        name: torch.cat([getattr(plain, name), getattr(rest, name)])
        for name in ("boxes", "scores", "labels", "mask_grids")
        if getattr(plain, name) is not None
    }
    order = question.argsort(descending=True, stable=True)
    return Look(
        features=features,
        hash=image_hash,
        uncertainty=float((_decisions(plain.scores).sum() + _decisions(other.scores).sum()) / 2),
        disagreement=float((apart.sum() + other.scores[alone].sum()) / 2),
        contour=float((contour.sum() + _contours(other).sum()) / 2),
        objects=int((plain.scores >= 0.5).sum()),
        uncertain=replace(plain, **joined)[order[question[order] >= IN_QUESTION]],
    )


def partners(plain: Instances, other: Instances) -> Tensor:
    """For each object its partner in `other`, -1 for none: of its category, with an IoU of at least one half, each taken once, best first."""
    overlap = box_ops.iou(plain.boxes, other.boxes) * (plain.labels[:, None] == other.labels)
    partner = torch.full((len(plain),), -1)
    for n in range(len(plain)):
        if overlap.shape[1] and overlap[n].max() >= SAME_IOU:
            partner[n] = overlap[n].argmax()
            overlap[:, partner[n]] = 0.0
    return partner


def _decisions(scores: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    return torch.minimum(scores, 1 - scores)


def _contours(found: Instances) -> Float[Tensor, "N"]:
    if found.mask_grids is None:
        return torch.zeros(len(found))
    cells = found.mask_grids.flatten(1)
    wrong = torch.minimum(cells, 1 - cells).sum(dim=1) / cells.sum(dim=1).clamp(min=1)
    return found.scores * wrong.clamp(max=1)


def _turned_back(mirrored: Instances) -> Instances:
    """What was found in a mirror image, where it lies in the image."""
    x0, y0, x1, y1 = mirrored.boxes.unbind(dim=1)
    width = mirrored.size[1]
    grids = None if mirrored.mask_grids is None else mirrored.mask_grids.flip(-1)
    return replace(
        mirrored,
        boxes=torch.stack([width - x1, y0, width - x0, y1], dim=1),
        mask_grids=grids,
        keypoints=None,
        keypoint_logits=None,
    )


@contextmanager
def _features(network: MaskRCNN, sizes: Tensor) -> Generator[list[np.ndarray]]:
    """A list that receives the features of the images of the next forward pass, averaged over the images and their areas without padding."""
    kept: list[np.ndarray] = []
    strides: tuple[int, ...] = network.neck.strides
    place = len(strides) - (
        2 if isinstance(network.neck, FPN) else 1
    )  # the last level of a pyramid is every other cell of the one before
    stride = strides[place]

    def keep(_: torch.nn.Module, __: tuple[Tensor, ...], levels: list[Tensor]) -> None:
        level = levels[place].float()
        cells = [
            level[n, :, : -(-height // stride), : -(-width // stride)]
            for n, (height, width) in enumerate(sizes.tolist())
        ]
        kept.append(torch.stack([c.mean(dim=(1, 2)) for c in cells]).mean(dim=0).cpu().numpy())

    handle = network.neck.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
