"""A predictor for the tests of the browser page: the size of an image decides which objects it has.

320 x 240: two people with keypoints, a ring, an object of two parts, and one of a low score.
1000 x 640: a thousand discs. 40 x 40: none. Any other: one disc.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from models import tiny_config

from maskrcnn.config import Category
from maskrcnn.instances import Instances
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.prediction.predictor import Predictor, PreparedImage

PERSON = Category(
    "person",
    1,
    keypoints=("head", "left_hand", "right_hand", "feet"),
    skeleton=((0, 1), (0, 2), (0, 3)),
)
CATEGORIES = (PERSON, Category("ring", 2), Category("cell", 3), Category("boat", 4))
SCENE = (240, 320)
CROWD = (640, 1000)
EMPTY = (40, 40)
_SIDE = 28  # cells of a mask grid

_ramp = (torch.arange(_SIDE) + 0.5) / _SIDE - 0.5
_radius = (_ramp[:, None] ** 2 + _ramp**2).sqrt()
DISC = (_radius < 0.5).float()
RING = DISC * (_radius > 0.25)
PARTS = DISC * (_ramp.abs() > 0.15)  # left and right of a gap


class PlannedPredictor(Predictor):
    """Predicts planned objects."""

    def predict_prepared(self, images: Sequence[PreparedImage]) -> list[Instances]:
        results = [planned_objects(image.image, self.config.categories) for image in images]
        return (
            results
            if self.config.mask
            else [replace(r, mask_grids=None, keypoints=None) for r in results]
        )


def planned_predictor(
    categories: Sequence[Category] = CATEGORIES, masks: bool = True
) -> PlannedPredictor:
    changes = {} if masks else {"mask": None}
    return PlannedPredictor(MaskRCNN.from_config(tiny_config(categories, **changes)).eval())


def planned_objects(image: np.ndarray, categories: Sequence[Category]) -> Instances:
    size = image.shape[:2]
    boxes, labels, scores, grids = [[20.0, 20.0, 60.0, 50.0]], [len(categories) - 1], [0.9], [DISC]
    if size == SCENE:
        boxes = [
            [20, 20, 90, 220],
            [110, 40, 170, 230],
            [190, 30, 300, 130],
            [190, 150, 300, 220],
            [5, 5, 45, 35],
        ]
        labels = [0, 0, 1, 2, 3]
        scores = [0.98, 0.87, 0.92, 0.75, 0.2]
        grids = [DISC, DISC, RING, PARTS, DISC]
    elif size == CROWD:
        boxes = [
            [25 * x + 1, 25 * y + 1, 25 * x + 27, 25 * y + 24] for y in range(25) for x in range(40)
        ]
        labels = [n % 2 + 1 for n in range(1000)]
        scores = [0.999 - 0.0009 * n for n in range(1000)]
        grids = [RING if n % 7 == 0 else DISC for n in range(1000)]
    elif size == EMPTY:
        boxes, labels, scores, grids = [], [], [], []
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(
        size=size,
        boxes=corners,
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.int64),
        categories=tuple(categories),
        mask_grids=torch.stack(grids) if grids else torch.zeros(0, _SIDE, _SIDE),
        keypoints=_keypoints(corners),
        source=image,
    )


def _keypoints(boxes: torch.Tensor) -> torch.Tensor:
    """Head, hands and feet in a box; the right hand of each is uncertain."""
    places = torch.tensor([[0.5, 0.1], [0.1, 0.4], [0.9, 0.4], [0.5, 0.9]])
    low = boxes[:, None, :2]
    xy = low + places * (boxes[:, None, 2:] - low)
    scores = torch.tensor([0.9, 0.8, 0.01, 0.7]).expand(len(boxes), 4)[..., None]
    return torch.cat([xy, scores], dim=2)
