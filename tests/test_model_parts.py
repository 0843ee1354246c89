"""Boxes, anchors, assignment, sampling, NMS, mask targets and heatmaps, each against an obvious slow loop or torchvision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap
from torchvision.ops import batched_nms, box_iou

from maskrcnn.config import RPNConfig
from maskrcnn.kernels import nms
from maskrcnn.model import assign
from maskrcnn.model.anchors import make_anchors
from maskrcnn.model.assign import balanced_sample, match
from maskrcnn.model.mask_head import mask_targets
from maskrcnn.model.rpn import RPN
from maskrcnn.ops import boxes as box_ops
from maskrcnn.ops import heatmaps as keypoint_ops
from maskrcnn.ops.pyramid import Pyramid
from maskrcnn.ops.stateless_random import random_keys
from maskrcnn.structures import Truth


def random_boxes(*shape: int, side: float = 200, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator) * side
    return torch.cat([low, low + 2 + torch.rand(*shape, 2, generator=generator) * side / 3], dim=-1)


def truth_of(boxes: torch.Tensor) -> Truth:
    truth = Truth.empty(*boxes.shape[:2], mask_size=4)
    truth.boxes[...] = boxes
    truth.valid[...] = truth.has_box[...] = True
    return truth


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
def test_decoding_inverts_encoding(seed: int, weights: tuple[float, float, float, float]) -> None:
    boxes, anchors = random_boxes(20, seed=seed), random_boxes(20, seed=seed + 1)
    torch.testing.assert_close(
        box_ops.decode(box_ops.encode(boxes, anchors, weights), anchors, weights),
        boxes,
        atol=1e-3,
        rtol=1e-4,
    )


def test_encoding_and_decoding_equal_torchvision() -> None:
    boxes, anchors, weights = random_boxes(50), random_boxes(50, seed=1), (10.0, 10.0, 5.0, 5.0)
    coder = BoxCoder(weights)
    deltas = box_ops.encode(boxes, anchors, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors))
    wild = deltas * 5  # beyond the cap on growth
    torch.testing.assert_close(
        box_ops.decode(wild, anchors, weights), coder.decode_single(wild, anchors)
    )


def test_overlap_equals_torchvision() -> None:
    a, b = random_boxes(2, 30), random_boxes(2, 20, seed=3)
    torch.testing.assert_close(box_ops.iou(a, b)[1], box_iou(a[1], b[1]))
    assert box_ops.iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


@pytest.mark.parametrize("ratios", [(0.5, 1.0, 2.0), (1.0,)])
def test_anchors_equal_torchvision(ratios: tuple[float, ...]) -> None:
    sizes = ((32.0, 48.0), (64.0, 96.0))
    theirs = AnchorGenerator(sizes, (ratios,) * 2)(
        ImageList(torch.zeros(1, 3, 96, 128), [(96, 128)]),
        [torch.zeros(1, 1, 12, 16), torch.zeros(1, 1, 5, 7)],
    )
    config = RPNConfig(sizes=sizes, ratios=ratios, order="ratio", rounded=True, stride="padded")
    ours = make_anchors([(12, 16), (5, 7)], (8, 16), (96, 128), config, torch.device("cpu"))
    torch.testing.assert_close(torch.cat(ours), theirs[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_matching_equals_torchvision_for_any_chunk_size(seed: int) -> None:
    objects, anchors = random_boxes(1, 6, seed=seed), random_boxes(1, 200, seed=seed + 1)
    anchors[0, 150:] = anchors[0, :50]  # ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(box_ops, "PAIRS", [1 << 20, 100][seed % 2])
        matches = match(anchors, truth_of(objects), 0.5, 0.2, keep_best=True, boxless=False)
    overlap = box_iou(objects[0], anchors[0])
    theirs = Matcher(0.5, 0.2, allow_low_quality_matches=True)(overlap)
    reached = (
        overlap.amax(dim=1) > 0
    )  # torchvision matches every box to an object that no box overlaps
    if bool(reached.all()):
        assert torch.equal(matches.positive[0], theirs >= 0)
        assert torch.equal(matches.negative[0], theirs == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(matches.truth_index[0][theirs >= 0], theirs[theirs >= 0])


def test_boxes_in_a_crowd_are_neither_object_nor_background() -> None:
    truth = truth_of(torch.tensor([[[0.0, 0, 40, 40], [100.0, 100, 200, 200]]]))
    truth.ignore[0, 1] = True
    boxes = torch.tensor(
        [
            [
                [0.0, 0, 40, 40],
                [120.0, 120, 140, 140],
                [100.0, 100, 200, 200],
                [60.0, 0, 80, 20],
                [80.0, 80, 110, 110],
            ]
        ]
    )
    matches = match(boxes, truth, 0.5, 0.5, keep_best=True, boxless=True)
    assert matches.positive[0].tolist() == [True, False, False, False, False]
    assert matches.negative[0].tolist() == [
        False,
        False,
        False,
        True,
        True,
    ]  # the last lies only to a ninth in the crowd


def test_an_object_without_a_box_is_ignored_by_the_rpn_and_matched_by_the_heads() -> None:
    truth = truth_of(torch.tensor([[[0.0, 0, 40, 40]]]))
    truth.has_box[...] = False
    boxes = torch.tensor([[[0.0, 0, 40, 40], [0.0, 0, 60, 60], [100.0, 100, 140, 140]]])
    rpn = match(boxes, truth, 0.7, 0.3, keep_best=True, boxless=False)
    assert not rpn.positive.any()
    assert rpn.negative[0].tolist() == [False, False, True]
    assert match(boxes, truth, 0.5, 0.5, keep_best=False, boxless=True).positive[0].tolist() == [
        True,
        False,
        False,
    ]


def test_sampling_keeps_its_counts_and_does_not_depend_on_the_rest_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(3, 500, generator=generator) < torch.tensor([[0.3], [0.01], [0.0]])
    negative = ~positive & (torch.rand(3, 500, generator=generator) < 0.8)
    keys = random_keys(torch.tensor([5, 6, 7]), 500, 0)
    index, valid = balanced_sample(positive, negative, keys, 64, 0.25)
    for b, wanted in enumerate([16, int(positive[1].sum()), 0]):
        chosen = index[b][valid[b]]
        assert len(chosen) == len(chosen.unique()) == 64
        assert int(positive[b, chosen].sum()) == wanted
        assert bool((positive[b, chosen] | negative[b, chosen]).all())
    alone, alone_valid = balanced_sample(
        positive[1:2], negative[1:2], random_keys(torch.tensor([6]), 500, 0), 64, 0.25
    )
    assert torch.equal(alone[0][alone_valid[0]], index[1][valid[1]])


def test_random_keys_are_uniform_and_independent_of_stream_and_seed() -> None:
    keys = random_keys(torch.tensor([0, 1]), 100_000, 1).double() / 2**31
    other = random_keys(torch.tensor([0]), 100_000, 2).double() / 2**31
    histogram = torch.histc(keys[0], 20, 0, 1)
    assert ((histogram - 5000).abs() < 400).all()  # 5.8 standard deviations
    for pair in (
        torch.stack([keys[0], keys[1]]),
        torch.stack([keys[0], other[0]]),
        torch.stack([keys[0, 1:], keys[0, :-1]]),
    ):
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.02


def test_padded_nms_equals_torchvision_for_each_image() -> None:
    boxes, scores = (
        random_boxes(2, 300, side=60),
        torch.rand(2, 300, generator=torch.Generator().manual_seed(4)),
    )
    groups, valid = torch.arange(600).view(2, 300) % 3, scores > 0.2
    index, kept, count = nms.select(nms.Candidates(boxes, scores, groups, valid), 0.4, 20)
    assert count == kept.sum()
    for b in range(2):
        candidates = valid[b].nonzero()[:, 0]
        expected = candidates[
            batched_nms(boxes[b][candidates], scores[b][candidates], groups[b][candidates], 0.4)
        ][:20]
        assert index[b][kept[b]].tolist() == expected.tolist()


def test_soft_nms_decays_scores_by_the_overlap_with_better_boxes() -> None:
    boxes = torch.tensor(
        [[[0.0, 0, 10, 10], [0.0, 0, 10, 5], [50.0, 50, 60, 60], [0.0, 0, 10, 10]]]
    )
    scores, groups = torch.tensor([[0.9, 0.8, 0.5, 0.7]]), torch.tensor([[0, 0, 0, 1]])
    (index, kept, _), new = nms.select_soft(
        nms.Candidates(boxes, scores, groups, torch.ones(1, 4, dtype=torch.bool)), 0.5, 0.01, 4
    )
    assert kept.all()
    assert index[0].tolist() == [0, 3, 2, 1]
    torch.testing.assert_close(
        new[0], torch.tensor([0.9, 0.7, 0.5, 0.8 * torch.tensor(-0.25 / 0.5).exp()])
    )


def test_mask_targets_are_the_exact_average_of_the_mask_over_each_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(8, 16, 16, generator=generator) < 0.5).to(torch.uint8) * 255
    boxes = random_boxes(8, side=40, seed=1).round() + torch.tensor([0, 0, 16, 16])
    rois = boxes + torch.randn(8, 4, generator=generator) * 3
    targets = mask_targets(masks, boxes, rois, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(targets, mask_targets(masks, boxes, rois, 7)), (
            "exact in bfloat16 training as well"
        )
    fine = 64  # the average of a cell by brute force: many points per cell
    for k in range(8):
        points = (torch.arange(7 * fine) + 0.5) / (7 * fine)
        x = (
            ((rois[k, 0] + points * (rois[k, 2] - rois[k, 0])) - boxes[k, 0])
            / (boxes[k, 2] - boxes[k, 0])
            * 16
        )
        y = (
            ((rois[k, 1] + points * (rois[k, 3] - rois[k, 1])) - boxes[k, 1])
            / (boxes[k, 3] - boxes[k, 1])
            * 16
        )
        inside = ((x >= 0) & (x < 16))[None] & ((y >= 0) & (y < 16))[:, None]
        dense = masks[k][y.clamp(0, 15).long()[:, None], x.clamp(0, 15).long()[None]] / 255 * inside
        torch.testing.assert_close(
            targets[k], F.avg_pool2d(dense[None], fine)[0], atol=0.02, rtol=0
        )


def test_target_cells_of_keypoints_equal_torchvision() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(30, seed=2)
    keypoints = torch.cat(
        [
            torch.rand(30, 5, 2, generator=generator) * 270,
            torch.randint(3, (30, 5, 1), generator=generator).float(),
        ],
        dim=-1,
    )
    keypoints[:, 0, :2] = boxes[:, 2:]  # on the far corner
    cell, known = keypoint_ops.target_cells(keypoints, boxes, 56)
    their_cell, their_known = keypoints_to_heatmap(keypoints, boxes, 56)
    assert torch.equal(known, their_known.bool())
    assert torch.equal(cell[known], their_cell[known])


def test_bicubic_decoding_equals_torchvision_for_any_chunk_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heatmaps = torch.randn(12, 4, 14, 14, generator=torch.Generator().manual_seed(0)) * 3
    boxes = random_boxes(12, side=300, seed=5)
    boxes[0, 2:] = boxes[0, :2] + 0.3
    points, scores = heatmaps_to_keypoints(heatmaps, boxes)
    for limit in (1 << 26, 40_000):
        monkeypatch.setattr(keypoint_ops, "CHUNK_ELEMENTS", limit)
        ours, logits = keypoint_ops.decode_bicubic(heatmaps, boxes)
        torch.testing.assert_close(ours[..., :2], points[..., :2], atol=1e-3, rtol=0)
        torch.testing.assert_close(logits, scores, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.floats(3, 52), st.floats(3, 52))
def test_subpixel_decoding_locates_a_blurred_peak_to_a_tenth_of_a_cell(x: float, y: float) -> None:
    grid = torch.arange(56) + 0.5
    logits = -((grid[:, None] - y) ** 2 + (grid - x) ** 2) / (2 * 0.8**2)
    box = torch.tensor([[10.0, 20.0, 10 + 112.0, 20 + 56.0]])
    points, _ = keypoint_ops.decode_subpixel(logits[None, None], box)
    assert abs(points[0, 0, 0].item() - (10 + 2 * x)) < 0.2
    assert abs(points[0, 0, 1].item() - (20 + y)) < 0.1


@pytest.mark.parametrize(
    ("convs", "sizes"),
    [
        ((6,), [(7, 9), (4, 5), (1, 1)]),
        ((5, 6), [(7, 9), (4, 5), (1, 1)]),
        ((6,), [(5, 3)]),
        ((), [(5, 3)]),
    ],
)
def test_rpn_outputs_for_sampled_anchors_equal_those_for_all_anchors(
    convs: tuple[int, ...], sizes: list[tuple[int, int]]
) -> None:
    config = RPNConfig(sizes=((8.0, 16.0),) * len(sizes), ratios=(0.5, 1.0, 2.0), convs=convs)
    rpn = RPN(4, (4, 8, 16)[: len(sizes)], config).double()
    for part in rpn.parameters():
        torch.nn.init.normal_(part)
    levels = [torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    logits, deltas = (torch.cat(values, dim=1) for values in rpn(levels))
    index = torch.stack(
        [torch.randperm(logits.shape[1]), torch.randint(logits.shape[1], logits.shape[1:])]
    )  # all of them, and some twice
    own, shift = rpn.sampled(Pyramid.of(levels), index)
    torch.testing.assert_close(own, assign.gather(logits, index))
    torch.testing.assert_close(shift, assign.gather(deltas, index))
    weight = torch.randn(*index.shape, 5)
    some = (
        torch.stack([own, *shift.unbind(-1)], dim=-1),
        torch.stack([logits, *deltas.unbind(-1)], dim=-1),
    )
    learnt = [*levels, *rpn.parameters()]
    sampled, dense = (
        torch.autograd.grad((v * weight).sum(), learnt)
        for v in (some[0], assign.gather(some[1], index))
    )
    for a, b in zip(sampled, dense, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_cell_that_overflows_affects_only_anchors_whose_features_contain_it() -> None:
    rpn = RPN(4, (4, 8), RPNConfig(sizes=((8.0,), (16.0,)), ratios=(1.0,), convs=(5, 6)))
    levels = [torch.randn(2, 4, 7, 9), torch.randn(2, 4, 4, 5)]
    levels[0][0, :, 0, 0] = torch.inf
    index = torch.arange(7 * 9 + 4 * 5).expand(2, -1)
    own, _ = rpn.sampled(Pyramid.of(levels), index)
    assert not own[0, 0].isfinite()
    assert own[1].isfinite().all()
    assert own[0, 7 * 9 :].isfinite().all()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_pyramid_stores_its_cells_once(layout: torch.memory_format) -> None:
    levels = [torch.randn(2, 3, *size).to(memory_format=layout) for size in ((4, 6), (2, 3))]
    pyramid = Pyramid.of(levels)
    for before, after in zip(levels, pyramid.levels, strict=True):
        assert torch.equal(before, after)
        shared = after.untyped_storage().data_ptr() == pyramid.table.untyped_storage().data_ptr()
        assert shared == (layout is torch.channels_last)
    first, height, width = pyramid.maps(torch.tensor([1]))
    assert (first.item(), height.item(), width.item()) == (48, 2, 3)
    assert torch.equal(
        pyramid.table[48 + 6 + 3 + 1], levels[1][1, :, 1, 1]
    )  # of the second image: second row, second column
