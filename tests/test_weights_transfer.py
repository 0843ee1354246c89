from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maskrcnn import Category, MaskRCNN, maskrcnn_r18_small
from maskrcnn.weights.transfer import for_categories, transfer

PERSON = Category("person", 1, keypoints=("head", "left_hand", "right_hand"))
CAT, DOG = Category("cat", 2), Category("dog", 7)


def model_for(*categories: Category) -> MaskRCNN:
    torch.manual_seed(len(categories))
    return MaskRCNN.from_config(maskrcnn_r18_small(categories))


def test_transfer_to_the_same_categories_is_a_copy():
    old = model_for(PERSON, CAT)
    new = transfer(old, old.config)
    assert all(
        torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items()
    )


def test_rows_follow_their_category_and_the_background_and_new_ones_are_random():
    old = model_for(CAT, PERSON)
    new = transfer(old, for_categories(old.config, (DOG, PERSON, CAT)))
    a, b = old.state_dict(), new.state_dict()
    classes, boxes, masks = (
        "box_head.class_logits.weight",
        "box_head.box_deltas.weight",
        "mask_head.logits.weight",
    )
    assert torch.equal(b[classes][1:], a[classes][[1, 0, 2]])
    assert torch.equal(b[boxes].view(3, 4, -1)[1:], a[boxes].view(2, 4, -1)[[1, 0]])
    assert torch.equal(b[masks][1:], a[masks][[1, 0]])
    assert torch.equal(b["keypoint_head.heatmaps.weight"], a["keypoint_head.heatmaps.weight"])
    assert not (b[classes][0] == a[classes]).all(dim=1).any()
    assert all(
        torch.equal(a[name], b[name]) for name in a if name.startswith(("trunk.", "neck.", "rpn."))
    )


def test_categories_without_keypoints_have_no_keypoint_head():
    new = transfer(old := model_for(PERSON), for_categories(old.config, (CAT, DOG)))
    assert new.config.keypoint is None
    assert new.keypoint_head is None
    assert new.config.num_classes == 2


def test_keypoints_of_another_skeleton_start_from_random_weights():
    old = model_for(PERSON)
    new = transfer(
        old, for_categories(old.config, (replace(PERSON, keypoints=("head", "tail", "nose")),))
    )
    assert not torch.equal(
        new.state_dict()["keypoint_head.heatmaps.weight"],
        old.state_dict()["keypoint_head.heatmaps.weight"],
    )


def test_another_trunk_is_refused():
    old = model_for(CAT)
    other = replace(old.config, trunk=replace(old.config.trunk, timm="resnet10t"))
    with pytest.raises(ValueError, match="same trunk"):
        transfer(old, other)
