"""Proposals that only a model or its file has are allowed where a threshold decides, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import make_batch, tiny_config

from maskrcnn.config import ModelConfig
from maskrcnn.export.proposal_flips import find_flips
from maskrcnn.model.maskrcnn import MaskRCNN


def network(nms_iou: float = 0.7, **changes: int) -> MaskRCNN:
    """The same weights for all settings; objectness that differs from anchor to anchor."""
    config: ModelConfig = tiny_config()
    config = replace(config, rpn=replace(config.rpn, nms_iou=nms_iou, **changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MaskRCNN.from_config(config).eval()
    with torch.no_grad():
        model.rpn.objectness.weight.mul_(50)
        model.rpn.deltas.weight.mul_(10)
    return model


@pytest.mark.parametrize(
    ("file", "allowed"),
    [({"nms_iou": 0.7005}, True), ({"nms_iou": 0.74}, False), ({"post_nms_test": 40}, False)],
)
def test_a_proposal_may_differ_only_at_a_threshold(file: dict[str, float], allowed: bool) -> None:
    model = network()
    batch = make_batch(((128, 160), (160, 128)))
    with torch.inference_mode():
        pyramid = model.pyramid(batch)
        own = model.propose(pyramid, batch)
        assert find_flips(model, pyramid, batch, own.boxes).count == 0

        other = network(**file)  # ty: ignore[invalid-argument-type]
        flips = find_flips(model, pyramid, batch, other.propose(pyramid, batch).boxes)
    assert flips.count > 0
    assert (flips.unexplained == 0) == allowed, flips.detail
    if not allowed:
        assert "not at a threshold, such as the box [" in flips.detail


def test_where_all_anchors_are_equal_any_of_them_may_be_chosen() -> None:
    model = network(pre_nms_test=50)
    batch = make_batch(((128, 160),))
    with torch.inference_mode():
        torch.nn.init.zeros_(model.rpn.objectness.weight)
        pyramid = model.pyramid(batch)
        logits, deltas = model.rpn(pyramid.levels)
        anchors = model.rpn.anchors(pyramid.levels, batch)
        boxes, *_ = model.rpn.candidates(logits, deltas, anchors, batch, 1000)
        theirs = boxes[:, 600:620]  # of the first level, far beyond its limit
        flips = find_flips(model, pyramid, batch, theirs)
    assert flips.count >= 20
    assert flips.unexplained == 0, flips.detail
