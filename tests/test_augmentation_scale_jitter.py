"""Large-scale jitter: images at 0.1 to 2 times their size, in a window of fixed size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_samples import HEIGHT, WIDTH, write

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.augmentation.training_set import TrainingSet, collate
from maskrcnn.config import AugmentConfig
from maskrcnn.presets import maskrcnn_r18_small

JITTER = AugmentConfig(scale=(0.1, 2.0), crop=64)


@pytest.fixture
def data(tmp_path) -> CocoDataset:
    return CocoDataset(write(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rotation": 20.0, "copy_paste": 0.7},
        {"scale": (0.005, 8.0), "right_angles": True, "copy_paste": 1.0},
    ],
)
def test_truth_stays_on_the_image_from_a_pixel_to_many_times_its_size(data, more):
    training = TrainingSet(data, maskrcnn_r18_small(data.categories), replace(JITTER, **more))
    sides, objects = [], []
    for seed in range(90):
        example = training.example(seed % 3, seed)
        height, width = example.image.shape[1:]
        truth = example.truth
        assert 1 <= height <= 64
        assert 1 <= width <= 64
        assert (truth.boxes >= 0).all()
        assert (truth.boxes <= torch.tensor([width, height, width, height])).all()
        assert (truth.boxes[..., 2:] - truth.boxes[..., :2] >= 1).all()
        assert torch.equal(truth.has_mask, truth.masks.flatten(2).any(dim=2))
        assert torch.isfinite(truth.keypoints).all()
        sides.append(max(height, width))
        objects.append(truth.boxes.shape[1])
    assert min(sides) <= 10
    assert max(sides) == 64
    assert 0 in objects


def test_sizes_are_drawn_evenly_over_octaves(data):
    training = TrainingSet(
        data, maskrcnn_r18_small(data.categories), replace(JITTER, crop=None, flip_horizontal=0.0)
    )
    factors = np.array([float(training.example(2, seed).to_model[0, 0]) for seed in range(300)])
    assert factors.min() > 0.09
    assert factors.max() < 2.02
    octaves = np.histogram(np.log2(factors), bins=4, range=(np.log2(0.1), 1))[0]
    assert octaves.min() > 45


def test_a_batch_is_never_larger_than_the_window(data):
    training = TrainingSet(data, maskrcnn_r18_small(data.categories), JITTER)
    shapes = {
        tuple(
            collate([training.example(i, 10 * seed + i) for i in range(3)], 32)[0].images.shape[2:]
        )
        for seed in range(20)
    }
    assert shapes <= {(32, 32), (32, 64), (64, 32), (64, 64)}
    assert max(shapes) == (64, 64)
    assert (HEIGHT * 2, WIDTH * 2) > (64, 64)
