from __future__ import annotations

import pytest
import torch
from keypoint_parity import assert_keypoints_close, below_peak

BOX = torch.tensor([10.0, 20.0, 66.0, 76.0])  # 56 x 56 pixels: one for each cell


def two_peaks(second: float) -> torch.Tensor:
    heatmap = torch.zeros(56, 56)
    heatmap[10, 12] = 5.0
    heatmap[40, 30] = second
    return heatmap


@pytest.mark.parametrize(("second", "is_right"), [(4.9995, True), (4.9, False)])
def test_the_other_of_two_peaks_is_right_only_where_they_are_equal(
    second: float, is_right: bool
) -> None:
    maps = two_peaks(second)[None, None], BOX[None]
    ours = torch.tensor([[[22.5, 30.5, 1.0]]])
    theirs = torch.tensor([[[40.5, 60.5, 1.0]]])
    tolerances = {"pixels": 0.01, "logits": 1e-3}
    assert_keypoints_close(ours, ours + 0.005, BOX[None], maps, **tolerances)
    if is_right:
        assert_keypoints_close(ours, theirs, BOX[None], maps, **tolerances)
    else:
        with pytest.raises(AssertionError, match=r"keypoint 0 of detection 0: 30 px .* 0\.1 below"):
            assert_keypoints_close(ours, theirs, BOX[None], maps, **tolerances)
    for elsewhere in (theirs + 5, torch.full_like(theirs, torch.nan)):
        with pytest.raises((AssertionError, ValueError)):
            assert_keypoints_close(ours, elsewhere, BOX[None], maps, **tolerances)


def test_a_heat_map_is_read_where_the_point_is_in_its_box() -> None:
    assert below_peak(two_peaks(3.0), BOX, torch.tensor([12.5, 10.5]) / 56) == 0
    assert below_peak(two_peaks(3.0), BOX, torch.tensor([30.5, 40.5]) / 56) == pytest.approx(2)
