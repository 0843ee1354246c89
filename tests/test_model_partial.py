"""Images annotated for only some categories: unmarked regions may show the other categories, so they are not background."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import make_batch, make_truth, tiny_config

from maskrcnn.model.box_head import open_cross_entropy
from maskrcnn.model.maskrcnn import MaskRCNN, total
from maskrcnn.model.rpn import unmarked_loss
from maskrcnn.structures import Truth


def with_labeled(truth: Truth, rows: list[list[bool]]) -> Truth:
    return replace(truth, labeled=torch.tensor(rows))


def test_open_cross_entropy_by_hand() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])  # of three categories and background
    logits = probabilities.log().expand(2, 3, -1) + 5
    labels = torch.tensor([[3, 0, 1], [3, 3, 2]])
    labeled = torch.tensor([[True, False, False], [True, True, True]])
    expected = -torch.tensor([[0.2 + 0.3 + 0.4, 0.1, 0.2], [0.4, 0.4, 0.3]]).log()
    torch.testing.assert_close(open_cross_entropy(logits, labels, labeled), expected)


def test_background_is_no_evidence_against_a_category_that_is_not_annotated() -> None:
    logits = torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.full((1, 20), 3)
    (gradient,) = torch.autograd.grad(
        open_cross_entropy(logits, labels, torch.tensor([[True, False, True]])).sum(), logits
    )
    assert (gradient[..., 1] < 0).all()  # a step against the gradient raises the logit
    assert (gradient[..., 3] < 0).all()
    assert (gradient[..., [0, 2]] > 0).all()


def test_unmarked_anchors_by_hand() -> None:
    objectness = torch.tensor([[0.01, 0.5, 0.99]])
    one_third, all_known = torch.tensor([[True, True, False]]), torch.tensor([[True, True, True]])
    logits = objectness.logit()
    torch.testing.assert_close(
        unmarked_loss(logits, one_third), -(1 - objectness + objectness / 3).log()
    )
    torch.testing.assert_close(
        unmarked_loss(logits, all_known),
        F.binary_cross_entropy_with_logits(logits, torch.zeros(1, 3), reduction="none"),
    )
    none_known = unmarked_loss(logits, torch.tensor([[False] * 3]))
    torch.testing.assert_close(
        none_known, -(1 - objectness + objectness / 2).log()
    )  # at most half of the objects


def test_an_anchor_that_certainly_shows_an_object_gets_no_gradient() -> None:
    logits = torch.linspace(-8, 8, 33)[None].requires_grad_()
    (open_gradient,) = torch.autograd.grad(
        unmarked_loss(logits, torch.tensor([[True, False]])).sum(), logits
    )
    (gradient,) = torch.autograd.grad(
        unmarked_loss(logits, torch.tensor([[True, True]])).sum(), logits
    )
    assert (open_gradient >= 0).all()
    assert open_gradient[0, -1] < 0.001 * gradient[0, -1]
    torch.testing.assert_close(
        open_gradient[0, 0] / gradient[0, 0], torch.tensor(0.5), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("sigmoid", [False, True])
def test_all_categories_labeled_gives_the_losses_of_no_label_table(sigmoid: bool) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    net, batch = (
        MaskRCNN.from_config(replace(config, box=replace(config.box, sigmoid=sigmoid))),
        make_batch(),
    )
    truth = make_truth(config, batch)
    plain = net.losses(batch, truth)
    labeled = net.losses(batch, with_labeled(truth, [[True] * 3] * 2))
    for name, value in plain.items():
        torch.testing.assert_close(labeled[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_class_layers_get_no_gradient_against_a_category_that_is_never_annotated(
    sigmoid: bool,
) -> None:
    torch.manual_seed(0)
    config = tiny_config()
    net, batch = (
        MaskRCNN.from_config(replace(config, box=replace(config.box, sigmoid=sigmoid))),
        make_batch(),
    )
    truth = make_truth(config, batch)
    truth = with_labeled(
        replace(truth, valid=torch.zeros_like(truth.valid)), [[True, False, True]] * 2
    )
    net.losses(batch, truth)["classification"].backward()
    assert net.box_head.class_logits.bias is not None
    gradient = net.box_head.class_logits.bias.grad
    assert gradient is not None
    assert gradient[1] == 0 if sigmoid else gradient[1] < 0
    assert (gradient[[0, 2]] > 0).all()


def test_collating_images_with_and_without_all_categories() -> None:
    some = replace(Truth.empty(1, 2), labeled=torch.tensor([[True, False]]))
    joined = Truth.collate([Truth.empty(2, 1), some])
    assert joined.labeled is not None
    assert joined.labeled.tolist() == [[True, True], [True, True], [True, False]]
    assert Truth.collate([Truth.empty(1, 1)]).labeled is None


def test_objects_of_a_category_annotated_in_one_image_are_detected_in_the_other() -> None:
    """Two equal images with a bright square (category 0) and a dark one (category 1): one is annotated for the first, one for the second."""
    torch.manual_seed(0)
    config = tiny_config(2)
    config = replace(
        config,
        mask=None,
        rpn=replace(config.rpn, pre_nms_train=100, post_nms_train=40),
        box=replace(config.box, samples=32),
    )
    batch = make_batch([(64, 64), (64, 64)])
    batch.images[:] = 128
    batch.images[:, :, 8:28, 8:28] = 255
    batch.images[:, :, 34:56, 34:56] = 0
    truth = Truth.empty(2, 1, 1)
    truth.boxes[0, 0], truth.boxes[1, 0] = (
        torch.tensor([8.0, 8, 28, 28]),
        torch.tensor([34.0, 34, 56, 56]),
    )
    truth.labels[1, 0] = 1
    truth.valid[...] = truth.has_box[...] = True
    highest = {}
    for name, given in {
        "closed": truth,
        "open": with_labeled(truth, [[True, False], [False, True]]),
    }.items():
        torch.manual_seed(0)
        net = MaskRCNN.from_config(config)
        optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
        for step in range(25):
            optimizer.zero_grad()
            total(net.losses(replace(batch, seeds=batch.seeds + step), given)).backward()
            optimizer.step()
        with torch.inference_mode():
            detections = net.eval()(batch)
        own = [
            detections.scores[b][detections.labels[b] == 1 - b] for b in (0, 1)
        ]  # of the category that is not annotated in this image
        highest[name] = [scores.max().item() if len(scores) else 0.0 for scores in own]
    assert min(highest["open"]) > 0.6, highest
    assert sum(highest["open"]) > sum(highest["closed"]) + 0.5, highest
