"""The sheet of training examples shows the augmented images of a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_run import draw, tiny_config, tiny_model

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.augmentation.training_set import TrainingSet
from maskrcnn.config import Category
from maskrcnn.presets import maskrcnn_r18_small
from maskrcnn.training.examples import GAP, TILE, _own_keypoints, draw_example, draw_examples
from maskrcnn.training.fit import train


@pytest.fixture
def data(tmp_path: Path) -> CocoDataset:
    return CocoDataset(draw(tmp_path / "data", 5), tmp_path / "data")


def test_a_run_begins_with_a_sheet_of_its_first_images(data: CocoDataset, tmp_path: Path) -> None:
    config = tiny_config(steps=1)
    train(tiny_model(data), data, config=config, out=tmp_path / "run", progress=False)
    with Image.open(tmp_path / "run/examples.png") as sheet:
        assert sheet.size == (4 * (TILE + GAP) - GAP, 2 * (TILE + GAP) - GAP)
        assert (
            np.asarray(sheet) == np.asarray(draw_examples(data, tiny_model(data), config))
        ).all()


def test_a_sheet_is_not_larger_than_its_images_need(data: CocoDataset) -> None:
    assert draw_examples(data, tiny_model(data), tiny_config(), count=3).size == (
        3 * (TILE + GAP) - GAP,
        TILE,
    )
    assert draw_examples(data, tiny_model(data), tiny_config(), count=1).size == (TILE, TILE)


def test_regions_to_ignore_are_crossed_out(data: CocoDataset) -> None:
    model = tiny_model(data)
    example = TrainingSet(data, model, None).example(0, 0)
    plain, crossed = (
        np.asarray(
            draw_example(
                replace(example, truth=replace(example.truth, ignore=torch.full((1, 2), ignored))),
                model,
            ),
            int,
        )
        for ignored in (False, True)
    )
    x0, y0, x1, y1 = (example.truth.boxes[0, 0] * plain.shape[0] / 64).int().tolist()
    middle = crossed[(y0 + y1) // 2, (x0 + x1) // 2 - 3 : (x0 + x1) // 2 + 3]
    assert (np.abs(middle - 190) < 10).all(axis=1).any()
    assert (plain != crossed).any()


def test_keypoints_are_drawn_in_the_order_of_their_own_category() -> None:
    model = maskrcnn_r18_small(
        [Category("a", 1, keypoints=("x", "y")), Category("b", 2, keypoints=("z",))]
    )
    channels = torch.tensor(
        [[[1.0, 1, 2], [2, 2, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [3, 3, 1]]]
    )
    own = _own_keypoints(channels, torch.tensor([0, 1]), model)
    assert own.tolist() == [[[1, 1, 1], [2, 2, 1], [0, 0, 0]], [[3, 3, 1], [0, 0, 0], [0, 0, 0]]]
