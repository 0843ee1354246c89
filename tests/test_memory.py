from __future__ import annotations

import sys

import pytest
from fresh_process import FreshProcess

# Runs in a new process, because memory that another test has freed would be reused unnoticed.
SCRIPT = """
from dataclasses import replace
import numpy as np, torch
import maskrcnn as mr
from benchmarks.timing import PeakMemory

torch.manual_seed(0)
config = mr.maskrcnn_r18_small()
config = replace(config, box=replace(config.box, max_detections=300, score_threshold=0.0, nms_iou=0.95))
model = mr.optimize_for_inference(mr.MaskRCNN.from_config(config))
image = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1)
with PeakMemory() as peak:
    detections = mr.predict(model, image)
    corners = (torch.rand(len(detections), 2, 2) * torch.tensor([3000.0, 2000.0])).sort(dim=1).values  # larger than the untrained network's
    corners[:5] = torch.tensor([[0.0, 0.0], [6000.0, 4000.0]])  # as large as the image
    detections = replace(detections, boxes=corners.flatten(1), mask_grids=torch.rand(len(detections), 28, 28))
    drawn = detections.masks.rle()
assert len(drawn) == 300, len(drawn)
print(peak.bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is exact on Linux only")
def test_300_masks_on_24_megapixels_need_less_than_a_gigabyte(
    fresh_process: FreshProcess,
) -> None:
    done = fresh_process.call("fresh_process:run_source", SCRIPT)
    assert done.status == 0, done.err
    assert int(done.out) < 1e9
