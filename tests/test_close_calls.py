"""What may differ between a model and its file: each choice names the value and the threshold that decide it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from maskrcnn.export.close_calls import SUPPRESSED, CloseCall, Kept, Rules, close_calls

BOX = [10.0, 10.0, 30.0, 30.0]
HALF = [10.0, 10.0, 30.0, 20.0]  # IoU 0.5
NEAR = [13.0, 10.0, 33.0, 30.0]  # IoU 0.739
RULES = Rules(
    own=lambda kept, i: None,
    limit=100,
    at_limit="limit",
    equal="equal",
    margin=1e-3,
    tie=1e-5,
    nms_iou=0.5,
)
SOFT = replace(RULES, sigma=0.5, score_threshold=0.05)


def kept(alone: list[int], *found: tuple[list[float], float]) -> Kept:
    boxes = torch.tensor([box for box, _ in found]).view(-1, 4)
    scores = torch.tensor([score for _, score in found])
    return Kept(
        boxes, scores, torch.zeros(len(found), dtype=torch.int64), alone, lambda i: f"box {i}"
    )


def calls(model: Kept, file: Kept, rules: Rules = RULES) -> dict[tuple[int, int], CloseCall]:
    found = close_calls((model, file), rules)
    assert all(call.margin <= rules.margin for call in found.values())
    return found


def test_a_close_call_names_its_value_and_its_threshold():
    slightly = [10.0, 10.0, 30.0, 20.01]
    (call,) = calls(kept([1], (BOX, 0.9), (slightly, 0.8)), kept([], (BOX, 0.9))).values()
    assert call.reason == "overlap at the NMS threshold"
    assert (call.what, call.threshold, call.follows_from) == ("box 1", 0.5, "")
    assert call.value == pytest.approx(0.5005, abs=1e-6)

    # A worse box suppresses none, so that an overlap with it decides nothing.
    assert not calls(kept([0], (slightly, 0.95), (BOX, 0.9)), kept([], (BOX, 0.9)))


def test_an_order_of_scores_is_a_threshold_as_any_other():
    found = calls(kept([0], (BOX, 0.9)), kept([0], (NEAR, 0.899995)))
    assert {call.reason for call in found.values()} == {"equal"}
    assert found[0, 0].value == found[1, 0].threshold == pytest.approx(0.9)
    assert found[0, 0].threshold == found[1, 0].value == pytest.approx(0.899995)


def test_what_follows_from_a_close_call_names_it_and_its_threshold():
    far = [19.0, 10.0, 39.0, 30.0]  # overlaps NEAR by 0.538, BOX by 0.379
    model = kept([0, 1], (BOX, 0.9), (far, 0.5))
    file = kept([0], (NEAR, 0.899995))
    call = calls(model, file)[0, 1]
    assert (call.reason, call.follows_from) == (SUPPRESSED, "box 0")
    assert call.margin == pytest.approx(5e-6, rel=0.1)


def test_a_box_that_both_have_explains_nothing():
    model = kept([1], (BOX, 0.9), (NEAR, 0.8))
    assert not calls(model, kept([], (BOX, 0.9))), "the model keeps what BOX suppresses"


def test_a_full_list_displaces_the_last_only_for_what_came():
    apart = [[40.0 * n, 0.0, 40.0 * n + 20, 20.0] for n in range(4)]
    full = replace(RULES, limit=3)
    model = kept([2], (apart[0], 0.9), (apart[1], 0.8), (apart[2], 0.5))
    half = [0.0, 0.0, 20.0, 10.0]
    file = kept([1], (apart[0], 0.9), (half, 0.85), (apart[1], 0.8))
    found = calls(model, file, full)
    assert found[1, 1].reason == "overlap at the NMS threshold"
    assert (found[0, 2].reason, found[0, 2].follows_from) == ("limit", "box 1")
    assert (found[0, 2].threshold, found[0, 2].margin < 1e-3) == (0.5, True)

    # In a list that is not full nothing is displaced.
    assert (0, 2) not in calls(model, file, replace(full, limit=4))


def test_what_a_difference_displaced_is_not_a_difference_of_its_own():
    apart = [[40.0 * n, 0.0, 40.0 * n + 20, 20.0] for n in range(3)]
    model = kept([1], (apart[0], 0.9), (apart[1], 0.5))
    file = kept([1], (apart[0], 0.9), (apart[2], 0.4))
    found = close_calls((model, file), replace(RULES, limit=2))
    assert {key: call.follows_from for key, call in found.items()} == {(1, 1): "box 1"}


def decayed(score: float, *overlaps: float) -> float:
    return score * math.exp(-sum(overlap**2 for overlap in overlaps) / 0.5)


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_score_after_soft_nms_must_follow_from_the_other_order(factor: float):
    overlap = 17 / 23
    model = kept([0, 1], (BOX, 0.9), (NEAR, decayed(0.9, overlap)))
    file = kept([0, 1], (NEAR, 0.9), (BOX, decayed(0.9, overlap) * factor))
    found = calls(model, file, SOFT)
    assert found[0, 0].reason == found[1, 0].reason == "equal"
    both = {(0, 0), (1, 0), (0, 1), (1, 1)} if factor == 1 else {(0, 0), (1, 0), (0, 1)}
    assert set(found) == both, "only a wrong score has no reason"
