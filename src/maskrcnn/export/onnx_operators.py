"""How the operators of `ops/graph_operators.py` are written in ONNX.

Each function takes the operator's arguments, tensors as ONNX values and numbers as they are, and
returns the ONNX value of its result. Names of values inside a script must differ from those of a
file's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import FLOAT as FloatTensor
from onnxscript import INT64 as IntTensor
from onnxscript import opset18, script

op: Any = opset18  # whose types know nothing of a value's element type
FLOAT = onnx.TensorProto.FLOAT
INT64 = onnx.TensorProto.INT64
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
        own.soft_nms.default: soft_nms,
        own.bicubic_peaks.default: bicubic_peaks,
    }


def best_first(scores: Any, count: int) -> Any:
    """TopK: of equal scores, ONNX takes the one with the lower index first."""
    _, index = op.TopK(scores, _integers(count), axis=1, largest=1, sorted=1)
    return index


def greedy_nms(boxes: Any, scores: Any, exists: Any, threshold: float) -> Any:
    """NonMaxSuppression with each group as an image of its own, so that no box has to be shifted.

    ONNX's classes would do, but share their boxes: each would search the boxes of all.
    """
    scored = op.Where(exists, scores, op.Constant(value_float=NO_SCORE))
    count = op.Shape(scores, start=2, end=3)
    selected = op.NonMaxSuppression(
        op.Reshape(boxes, op.Concat(_integers(-1), count, _integers(4), axis=0)),
        op.Reshape(scored, op.Concat(_integers(-1, 1), count, axis=0)),
        _integers(np.iinfo(np.int32).max),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[SCORE_LIMIT]),
    )

    # Rows of (group of an image, 0, box).
    where = op.Gather(selected, _integers(0, 2), axis=1)
    kept = op.Expand(_truth(True), op.Shape(selected, start=0, end=1))
    grouped = op.Reshape(exists, op.Concat(_integers(-1), count, axis=0))
    nothing = op.ConstantOfShape(op.Shape(grouped), value=_bool_tensor(False))
    return op.Reshape(op.ScatterND(nothing, where, kept), op.Shape(exists))


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


def soft_nms(boxes: Any, scores: Any, groups: Any, sigma: float, keep: int) -> Any:
    """A loop that chooses one box per image and round."""
    rounds = op.Constant(value_int=keep)
    loop: Any = _soft_nms
    return loop(boxes, scores, groups, op.Constant(value_float=sigma), rounds)


@script(default_opset=op)
def _soft_nms(
    boxes: FloatTensor, scores: FloatTensor, groups: IntTensor, width: FloatTensor, steps: IntTensor
) -> FloatTensor:
    one = op.Constant(value_ints=[1])
    x0, y0, x1, y1 = op.Split(boxes, axis=2, num_outputs=4)
    x0 = op.Squeeze(x0, op.Constant(value_ints=[2]))
    y0 = op.Squeeze(y0, op.Constant(value_ints=[2]))
    x1 = op.Squeeze(x1, op.Constant(value_ints=[2]))
    y1 = op.Squeeze(y1, op.Constant(value_ints=[2]))
    area = (x1 - x0) * (y1 - y0)

    nothing = op.Slice(scores, op.Constant(value_ints=[0]), op.Constant(value_ints=[0]), one)
    index = op.Cast(nothing, to=INT64)
    new_scores = op.Identity(nothing)
    remaining = op.Identity(scores)
    for _ in range(steps):  # ty: ignore[invalid-argument-type]
        best = op.ArgMax(remaining, axis=1, keepdims=1)
        score = op.ReduceMax(remaining, one, keepdims=1)
        index = op.Concat(index, best, axis=1)
        new_scores = op.Concat(new_scores, score, axis=1)

        left = op.Max(x0, op.GatherElements(x0, best, axis=1))
        top = op.Max(y0, op.GatherElements(y0, best, axis=1))
        right = op.Min(x1, op.GatherElements(x1, best, axis=1))
        bottom = op.Min(y1, op.GatherElements(y1, best, axis=1))
        zero = op.Constant(value_float=0.0)
        shared = op.Max(right - left, zero) * op.Max(bottom - top, zero)
        union = area + op.GatherElements(area, best, axis=1) - shared
        overlap = shared / op.Max(union, op.Constant(value_float=1e-37))
        same = op.Equal(groups, op.GatherElements(groups, best, axis=1))
        overlap = op.Where(same, overlap, zero)
        lowered = remaining * op.Exp(op.Neg(overlap * overlap) / width)
        gone = op.Neg(op.CastLike(op.Equal(score, score), score))
        remaining = op.ScatterElements(lowered, best, gone, axis=1)
    last = op.Constant(value_ints=[2])
    index = op.Unsqueeze(op.Cast(index, to=FLOAT), last)
    return op.Concat(index, op.Unsqueeze(new_scores, last), axis=2)


def bicubic_peaks(heatmaps: Any, boxes: Any) -> Any:
    """A loop over the boxes, each of whose maps is resized to its own size."""
    return _bicubic_peaks(heatmaps, boxes)


@script(default_opset=op)
def _bicubic_peaks(heatmaps: FloatTensor, boxes: FloatTensor) -> FloatTensor:
    size = op.Squeeze(op.Shape(heatmaps, start=3, end=4), op.Constant(value_ints=[0]))
    first = op.Slice(
        boxes,
        op.Constant(value_ints=[0]),
        op.Constant(value_ints=[2]),
        op.Constant(value_ints=[1]),
    )
    second = op.Slice(
        boxes,
        op.Constant(value_ints=[2]),
        op.Constant(value_ints=[4]),
        op.Constant(value_ints=[1]),
    )
    extent = op.Max(second - first, op.Constant(value_float=1.0))
    whole_sides = op.Cast(op.Ceil(extent), to=INT64)
    total = op.ReduceLogSumExp(heatmaps, op.Constant(value_ints=[2, 3]), keepdims=0)

    x = op.Identity(total)
    y = op.Identity(total)
    logits = op.Identity(total)
    count = op.Squeeze(op.Shape(boxes, start=0, end=1), op.Constant(value_ints=[0]))
    for i in range(count):
        own = op.Gather(whole_sides, i, axis=0)
        width = op.Gather(own, op.Constant(value_int=0), axis=0)
        height = op.Gather(own, op.Constant(value_int=1), axis=0)

        # Weights [2, longest, S] along x and y, as torch's bicubic has them: A = -0.75, edges
        # repeated.
        zero = op.Constant(value_int=0)
        one = op.Constant(value_int=1)
        last = op.Constant(value_ints=[-1])
        half = op.Constant(value_float=0.5)
        steps = op.Cast(op.Range(zero, op.ReduceMax(own, keepdims=0), one), to=FLOAT)
        ratio = op.Unsqueeze(op.Cast(size, to=FLOAT) / op.Cast(own, to=FLOAT), last)
        center = (steps + half) * ratio - half
        lowest = op.Floor(center)
        offset = op.Cast(op.Constant(value_ints=[-1, 0, 1, 2]), to=FLOAT)
        distance = op.Abs(op.Unsqueeze(center - lowest, last) - offset)
        near = op.Constant(value_float=1.25) * distance - op.Constant(value_float=2.25)
        near = near * (distance * distance) + op.Constant(value_float=1.0)
        far = (distance - op.Constant(value_float=5.0)) * distance + op.Constant(value_float=8.0)
        far = far * (distance * op.Constant(value_float=-0.75)) + op.Constant(value_float=3.0)
        weight = op.Where(op.LessOrEqual(distance, op.Constant(value_float=1.0)), near, far)
        cell = op.Clip(op.Cast(op.Unsqueeze(lowest, last) + offset, to=INT64), zero, size - one)
        hit = op.Equal(op.Unsqueeze(cell, last), op.Range(zero, size, one))
        weighted = op.Cast(hit, to=FLOAT) * op.Unsqueeze(weight, last)
        weights = op.ReduceSum(weighted, op.Constant(value_ints=[2]), keepdims=0)
        none = op.Constant(value_ints=[0])
        columns = op.Gather(weights, zero, axis=0)
        columns = op.Slice(columns, none, op.Reshape(width, last), none)
        rows = op.Gather(weights, one, axis=0)
        rows = op.Slice(rows, none, op.Reshape(height, last), none)

        maps = op.Gather(heatmaps, i, axis=0)
        resized = op.MatMul(op.MatMul(rows, maps), op.Transpose(columns, perm=[1, 0]))
        flat = op.Flatten(resized, axis=1)
        cell = op.ArgMax(flat, axis=1, keepdims=0)
        logit = op.ReduceMax(flat, op.Constant(value_ints=[1]), keepdims=0)

        where = op.Reshape(i, op.Constant(value_ints=[1, 1]))
        ahead = op.Constant(value_ints=[0])
        x = op.ScatterND(x, where, op.Unsqueeze(op.Cast(op.Mod(cell, width), to=FLOAT), ahead))
        y = op.ScatterND(y, where, op.Unsqueeze(op.Cast(cell / width, to=FLOAT), ahead))
        logits = op.ScatterND(logits, where, op.Unsqueeze(logit, ahead))

    cells = op.Concat(
        op.Unsqueeze(x, op.Constant(value_ints=[2])),
        op.Unsqueeze(y, op.Constant(value_ints=[2])),
        axis=2,
    )
    step = op.Unsqueeze(extent / op.Cast(whole_sides, to=FLOAT), op.Constant(value_ints=[1]))
    start = op.Unsqueeze(first, op.Constant(value_ints=[1]))
    position = start + (cells + op.Constant(value_float=0.5)) * step
    last = op.Constant(value_ints=[2])
    score = op.Unsqueeze(op.Exp(logits - total), last)
    return op.Concat(position, score, op.Unsqueeze(logits, last), axis=2)


def _integers(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _bool_tensor(value: bool) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value]))


def _truth(value: bool) -> Any:
    return op.Constant(value=_bool_tensor(value))
