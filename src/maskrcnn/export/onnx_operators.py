"""How the operators of `ops/graph_operators.py` are written in ONNX.

Each function takes the operator's arguments, tensors as ONNX values and numbers as they are, and
returns the ONNX value of its result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import opset18 as op

# A score below every real one, and the limit below which NonMaxSuppression does not look.
NO_SCORE = -1e30
SCORE_LIMIT = -1e29


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the ONNX function of each operator that PyTorch's exporter does not know."""
    own = torch.ops.maskrcnn
    return {
        own.best_first.default: best_first,
        own.greedy_nms.default: greedy_nms,
        own.pyramid_roi_align.default: pyramid_roi_align,
    }


def best_first(scores: Any, count: int) -> Any:
    """TopK: of equal scores, ONNX takes the one with the lower index first."""
    _, index = op.TopK(scores, _integers(count), axis=1, largest=1, sorted=1)
    return index


def greedy_nms(
    boxes: Any, scores: Any, exists: Any, groups: Any, num_groups: int, threshold: float
) -> Any:
    """NonMaxSuppression with groups as ONNX's classes, so that no box has to be shifted."""
    group = op.Constant(
        value=numpy_helper.from_array(np.arange(num_groups, dtype=np.int64)[None, :, None])
    )
    own = op.And(op.Equal(op.Unsqueeze(groups, _integers(1)), group), _rows(exists))
    grouped = op.Where(own, _rows(scores), op.Constant(value_float=NO_SCORE))
    selected = op.NonMaxSuppression(
        boxes,
        grouped,
        _integers(np.iinfo(np.int32).max),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[SCORE_LIMIT]),
    )

    # Rows of (image, group, box): each box has one group.
    where = op.Gather(selected, _integers(0, 2), axis=1)
    kept = op.Expand(_truth(True), op.Shape(selected, start=0, end=1))
    nothing = op.ConstantOfShape(op.Shape(exists), value=_bool_tensor(False))
    return op.ScatterND(nothing, where, kept)


def pyramid_roi_align(
    levels: list[Any],
    boxes: Any,
    image_index: Any,
    level_index: Any,
    strides: list[int],
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Any:
    """RoiAlign of each level on the boxes that read it, put together again."""
    count = op.Shape(boxes, start=0, end=1)
    channels = op.Shape(levels[0], start=1, end=2)
    shape = op.Concat(count, channels, _integers(size, size), axis=0)
    pooled = op.ConstantOfShape(shape)

    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        own = op.NonZero(op.Equal(level_index, op.Constant(value_int=i)))
        own = op.Squeeze(own, _integers(0))
        values = op.RoiAlign(
            level,
            op.Gather(boxes, own, axis=0),
            op.Gather(image_index, own, axis=0),
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height=size,
            output_width=size,
            sampling_ratio=sampling_ratio,
            spatial_scale=1 / stride,
        )
        pooled = op.ScatterND(pooled, op.Unsqueeze(own, _integers(1)), values)
    return pooled


def _rows(values: Any) -> Any:
    """[B, N] as [B, 1, N]."""
    return op.Unsqueeze(values, _integers(1))


def _integers(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _bool_tensor(value: bool) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value]))


def _truth(value: bool) -> Any:
    return op.Constant(value=_bool_tensor(value))
