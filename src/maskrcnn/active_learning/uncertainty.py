"""How uncertain a model is about one image: `measure_uncertainty(predictor, source)`.

In:  an image, which the model predicts as it is and mirrored.
Out: three numbers in objects, whose sum is the number of corrections to expect of an annotator:

    uncertainty   expected wrong decisions about which objects exist: the sum of min(p, 1 - p) over
                  the scores p
    disagreement  detections in only one of the two views: p of an object without a partner,
                  |p - p'| of one with; halved, as there are two views
    contour       area expected to be on the wrong side of contours, in objects: the sum of p times
                  sum min(m, 1 - m) / sum m over the cells m of a mask

and the image's features, which describe its content: the mean over its area of the coarsest level
that regions are pooled from.

Source: Brust et al. 2018, "Active Learning for Deep Object Detection" (margins of all detections,
summed: the best of their aggregations). For the two views Elezi et al. 2022, "Not All Labels Are
Equal" (inconsistency under a flip).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..images.similarity import image_hash
from ..instances import Instances
from ..model.fpn import FPN
from ..model.maskrcnn import MaskRCNN
from ..ops import boxes as box_ops
from ..prediction.predictor import ImageSource, Predictor, to_instances

SAME_IOU = 0.5
UNCERTAIN_FROM = 0.25
"""An object is uncertain if its expected errors are at least this, of 1."""


@dataclass(frozen=True)
class ImageUncertainty:
    """What two predictions of an image, plain and mirrored, reveal about it."""

    features: Float[np.ndarray, "C"]
    hash: Float[np.ndarray, "D"]
    """Near-duplicates have similar hashes (images/similarity.py)."""
    uncertainty: float
    disagreement: float
    contour: float
    objects: int
    """Detections with a score of at least 0.5 in the plain view."""
    uncertain: Instances
    """The uncertain objects of both views, most uncertain first, with the model's scores."""


def measure_uncertainty(predictor: Predictor, source: ImageSource) -> ImageUncertainty:
    """Predicts an image and its mirror image and compares the two.

    Raises:
        ImageError: the image cannot be read.
    """
    image = predictor.prepare(source.image)
    views = [image.pixels, image.pixels.flip(-1)]
    batch = predictor.collate(views, [image.to_model] * 2)
    with _features(predictor.network, batch.sizes) as features:
        detections = predictor.engine(batch)

    config = predictor.config
    plain, mirrored = (
        to_instances(detections, row, image.scale, image.size, config, predictor.min_score)
        for row in range(2)
    )
    plain = replace(plain, keypoints=None, keypoint_logits=None, source=image.image)
    return _compared(plain, _mirrored_back(mirrored), features[0], image_hash(image.image))


def _compared(
    plain: Instances, other: Instances, features: np.ndarray, image_hash: np.ndarray
) -> ImageUncertainty:
    partner = partners(plain, other)
    alone = torch.ones(len(other), dtype=torch.bool)
    alone[partner[partner >= 0]] = False
    partner_scores = other.scores[partner.clamp(min=0)] if len(other) else 0.0

    # expected errors of each object of the plain view, then of those in the other view only
    uncertainty = _decisions(plain.scores)
    disagreement = (plain.scores - torch.where(partner >= 0, partner_scores, 0.0)).abs()
    contour = _contours(plain)
    errors = torch.cat([uncertainty + disagreement + contour, other.scores[alone]])

    rest = other[alone]
    joined = {
        name: torch.cat([getattr(plain, name), getattr(rest, name)])
        for name in ("boxes", "scores", "labels", "mask_grids")
        if getattr(plain, name) is not None
    }
    order = errors.argsort(descending=True, stable=True)
    return ImageUncertainty(
        features=features,
        hash=image_hash,
        uncertainty=float((_decisions(plain.scores).sum() + _decisions(other.scores).sum()) / 2),
        disagreement=float((disagreement.sum() + other.scores[alone].sum()) / 2),
        contour=float((contour.sum() + _contours(other).sum()) / 2),
        objects=int((plain.scores >= 0.5).sum()),
        uncertain=replace(plain, **joined)[order[errors[order] >= UNCERTAIN_FROM]],
    )


def partners(plain: Instances, other: Instances) -> Tensor:
    """The index in `other` of each object's partner, -1 for none.

    A partner has the same category and an IoU of at least one half. Each is matched once, to the
    first object in order.
    """
    overlap = box_ops.iou(plain.boxes, other.boxes) * (plain.labels[:, None] == other.labels)
    partner = torch.full((len(plain),), -1)
    for n in range(len(plain)):
        if overlap.shape[1] and overlap[n].max() >= SAME_IOU:
            partner[n] = overlap[n].argmax()
            overlap[:, partner[n]] = 0.0
    return partner


def _decisions(scores: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    return torch.minimum(scores, 1 - scores)


def _contours(instances: Instances) -> Float[Tensor, "N"]:
    if instances.mask_grids is None:
        return torch.zeros(len(instances))
    cells = instances.mask_grids.flatten(1)
    wrong = torch.minimum(cells, 1 - cells).sum(dim=1) / cells.sum(dim=1).clamp(min=1)
    return instances.scores * wrong.clamp(max=1)


def _mirrored_back(mirrored: Instances) -> Instances:
    """The detections in a mirror image, moved to where they are in the image."""
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
    """A list that receives the features of the next forward pass.

    They are averaged over the images of the batch and over the area of each without padding.
    """
    kept: list[np.ndarray] = []
    strides: tuple[int, ...] = network.neck.strides
    # the last level of a pyramid is every other cell of the one before
    index = len(strides) - (2 if isinstance(network.neck, FPN) else 1)
    stride = strides[index]

    def keep(_: torch.nn.Module, __: tuple[Tensor, ...], levels: list[Tensor]) -> None:
        level = levels[index].float()
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
