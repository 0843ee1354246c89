"""How many images share a forward pass of the validation."""

from __future__ import annotations

import pytest

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import AugmentConfig, TrainConfig
from maskrcnn.presets import maskrcnn_r18_small
from maskrcnn.training.validate import validation_batch


def _images(*sides: int) -> CocoDataset:
    images = [
        {"id": n, "file_name": f"{n}.png", "width": side, "height": side}
        for n, side in enumerate(sides)
    ]
    categories = [{"id": 1, "name": "cell"}]
    return CocoDataset({"images": images, "annotations": [], "categories": categories})


@pytest.mark.parametrize(
    ("crop", "validation", "expected"),
    [
        (None, 128, 4),
        (None, 64, 4),
        (None, 256, 1),  # as many pixels as four training images
        (None, 512, 1),
        (256, 128, 4),
        (64, 128, 1),
    ],
)
def test_a_validation_has_no_more_pixels_at_once_than_a_training_step(
    crop: int | None, validation: int, expected: int
) -> None:
    training = _images(64, 128)
    model = maskrcnn_r18_small(training.categories)
    config = TrainConfig(batch_size=4, augment=AugmentConfig(crop=crop))
    assert validation_batch(model, _images(32, validation), config, training) == expected
