"""The resize rule as ONNX nodes: from uint8 images to the network's input.

In:  images [B, H, W, 3] uint8 RGB, of one size.
Out: pixels [B, 3, h, w] float and scale [2], the inputs of `ExportedNetwork`.

Sizes are computed in double precision, as `preprocess.input_size` does. Pillow's resize is computed
in its own steps and equals it in every pixel: one gray level more or less moves boxes by 0.02 px.
ONNX's antialiased Resize, which computes its scale in float32, does differ by that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..config import InputConfig

OPSET = 18
WEIGHT_UNIT = 1 << 22  # Pillow's 1.0 of a filter's weights
IR_VERSION = 10  # the highest that onnxruntime-web 1.20 and onnxruntime 1.20 load


def input_graph(config: InputConfig) -> onnx.ModelProto:
    """Returns the resize rule of a configuration as an ONNX model."""
    graph = _Nodes()
    images = "images"
    old = graph("Shape", images, start=1, end=3)
    new = _input_size(graph, old, config)
    if config.resize == "pillow":
        resized = _resized_as_pillow(graph, images, old, new)
        pixels = graph("Transpose", resized, perm=[0, 3, 1, 2])
        pixels = graph("Cast", pixels, to=TensorProto.FLOAT)
    else:
        pixels = _normalized_and_resized(graph, images, new, config)

    # Original pixels per input pixel, x before y.
    old_sides = graph("Cast", old, to=TensorProto.DOUBLE)
    new_sides = graph("Cast", new, to=TensorProto.DOUBLE)
    scale = graph("Div", old_sides, new_sides)
    scale = graph("Gather", scale, graph.constant(np.array([1, 0])))
    scale = graph("Cast", scale, to=TensorProto.FLOAT)
    graph.nodes += [
        helper.make_node("Identity", [pixels], ["pixels"]),
        helper.make_node("Identity", [scale], ["scale"]),
    ]

    image_type = helper.make_tensor_value_info(
        images, TensorProto.UINT8, ["batch", "height", "width", 3]
    )
    made = helper.make_graph(
        graph.nodes,
        "resize",
        [image_type],
        [
            helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, "h", "w"]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, [2]),
        ],
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _resized_as_pillow(graph: _Nodes, images: str, old: str, new: str) -> str:
    """[B, H, W, 3] uint8 as [B, h, w, 3] uint8: first the rows are resized, then the columns.

    Source: Pillow's ImagingResample for 8 bits per channel, src/libImaging/Resample.c.
    """
    sides = [graph.integers([i], [i + 1]) for i in (0, 1)]
    old_height, old_width = (graph("Slice", old, *side) for side in sides)
    new_height, new_width = (graph("Slice", new, *side) for side in sides)

    # The resized axis comes first, so that each of its entries is one piece of memory.
    columns = graph("Transpose", images, perm=[0, 2, 1, 3])
    columns = _resampled(graph, columns, old_width, new_width)
    rows = graph("Transpose", columns, perm=[0, 2, 1, 3])
    return _resampled(graph, rows, old_height, new_height)


def _resampled(graph: _Nodes, values: str, old: str, new: str) -> str:
    """[B, old, n, 3] uint8 as [B, new, n, 3] uint8, by a triangle filter in whole numbers."""
    old_length = graph("Cast", old, to=TensorProto.DOUBLE)
    scale = graph("Div", old_length, graph("Cast", new, to=TensorProto.DOUBLE))
    support = graph("Max", scale, graph.number(1))
    half = graph.number(0.5)

    # Pixels [new, taps] that each new pixel reads, and their weights.
    center = graph("Mul", graph("Add", graph.range(new), half), scale)
    center = graph("Unsqueeze", center, *graph.integers([1]))
    first = graph("Floor", graph("Add", graph("Sub", center, support), half))
    first = graph("Max", first, graph.number(0))
    end = graph("Floor", graph("Add", graph("Add", center, support), half))
    end = graph("Min", end, old_length)
    taps = graph("Add", graph("Mul", graph("Ceil", support), graph.number(2)), graph.number(1))
    taps = graph("Cast", taps, to=TensorProto.INT64)
    pixel = graph("Add", first, graph.range(taps))
    distance = graph("Add", graph("Sub", pixel, center), half)
    distance = graph("Abs", graph("Mul", distance, graph("Div", graph.number(1), support)))
    weight = graph("Max", graph("Sub", graph.number(1), distance), graph.number(0))
    weight = graph("Where", graph("Less", pixel, end), weight, graph.number(0))
    weight = graph("Div", weight, graph("ReduceSum", weight, *graph.integers([1]), keepdims=1))

    # As whole numbers, taps first.
    weight = graph("Floor", graph("Add", graph("Mul", weight, graph.number(WEIGHT_UNIT)), half))
    weight = graph("Cast", graph("Transpose", weight, perm=[1, 0]), to=TensorProto.INT32)
    last = graph("Sub", old_length, graph.number(1))
    pixel = graph("Cast", graph("Min", pixel, last), to=TensorProto.INT64)
    pixel = graph("Transpose", pixel, perm=[1, 0])

    shape = graph(
        "Concat",
        graph("Shape", values, start=0, end=1),
        new,
        graph("Shape", values, start=2, end=4),
        axis=0,
    )
    rounding = numpy_helper.from_array(np.array([WEIGHT_UNIT // 2], np.int32))
    total = graph("ConstantOfShape", shape, value=rounding)
    count = graph("Squeeze", taps, *graph.integers([0]))
    total = graph("Loop", count, "", total, body=_add_tap(values, pixel, weight))
    unit = graph.constant(np.array([WEIGHT_UNIT], np.int32))
    return graph("Cast", graph("Div", total, unit), to=TensorProto.UINT8)


def _add_tap(values: str, pixel: str, weight: str) -> onnx.GraphProto:
    """The body of a loop over taps: adds one pixel, times its weight, to every sum."""
    step = f"{pixel}_step"
    body = _Nodes(prefix=f"{pixel}_loop")
    own = body("Gather", values, body("Gather", pixel, step, axis=0), axis=1)
    factor = body("Unsqueeze", body("Gather", weight, step, axis=0), *body.integers([1, 2]))
    part = body("Mul", body("Cast", own, to=TensorProto.INT32), factor)
    total = body("Add", f"{pixel}_total", part)
    going = body("Identity", f"{pixel}_going")

    def info(name: str, kind: int, shape: list[str] | None = None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    return helper.make_graph(
        body.nodes,
        f"{pixel}_taps",
        [
            info(step, TensorProto.INT64, []),
            info(f"{pixel}_going", TensorProto.BOOL, []),
            info(f"{pixel}_total", TensorProto.INT32),
        ],
        [info(going, TensorProto.BOOL, []), info(total, TensorProto.INT32)],
    )


def _normalized_and_resized(graph: _Nodes, images: str, new: str, config: InputConfig) -> str:
    """[B, H, W, 3] uint8 as [B, 3, h, w] float: normalized, then resized, as torchvision does."""
    mean = np.asarray(config.mean, np.float32)[:, None, None] / np.float32(255)
    std = np.asarray(config.std, np.float32)[:, None, None] / np.float32(255)
    planes = graph("Transpose", images, perm=[0, 3, 1, 2])
    planes = graph("Cast", planes, to=TensorProto.FLOAT)
    if config.channel_order == "bgr":
        planes = graph("Gather", planes, graph.constant(np.array([2, 1, 0])), axis=1)
    planes = graph("Div", planes, graph.constant(np.float32(255)))
    planes = graph("Div", graph("Sub", planes, graph.constant(mean)), graph.constant(std))

    shape = graph("Concat", graph("Shape", planes, start=0, end=2), new, axis=0)
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return graph("Resize", planes, "", "", shape, **how)


def _input_size(graph: _Nodes, old: str, config: InputConfig) -> str:
    """`preprocess.input_size` as nodes: int64 [2], height and width."""
    sides = graph("Cast", old, to=TensorProto.DOUBLE)
    long = graph("ReduceMax", sides, keepdims=1)
    short = graph("ReduceMin", sides, keepdims=1)
    number = graph.number

    if config.min_size is None:
        scale = number(config.scale)
    else:
        scale = graph("Div", number(config.min_size), short)

    if config.rounding == "floor":
        if config.max_size is not None:
            scale = graph("Min", scale, graph("Div", number(config.max_size), long))
        new = graph("Floor", graph("Mul", sides, scale))
    else:
        new = graph("Mul", sides, scale)
        if config.min_size is not None:
            # The shorter side is set exactly; of equal sides, the width.
            height, width = (graph("Slice", sides, *graph.integers([i], [i + 1])) for i in (0, 1))
            landscape = graph("Less", height, width)
            fixed = number(config.min_size)
            height, width = (graph("Slice", new, *graph.integers([i], [i + 1])) for i in (0, 1))
            new_height = graph("Where", landscape, fixed, height)
            new_width = graph("Where", landscape, width, fixed)
            new = graph("Concat", new_height, new_width, axis=0)
        if config.max_size is not None:
            longest = graph("ReduceMax", new, keepdims=1)
            shrink = graph("Div", number(config.max_size), longest)
            within = graph("LessOrEqual", longest, number(config.max_size))
            new = graph("Where", within, new, graph("Mul", new, shrink))
        new = graph("Floor", graph("Add", new, number(0.5)))
    return graph("Cast", graph("Max", new, number(1)), to=TensorProto.INT64)


class _Nodes:
    """Nodes in the order of their creation; a call adds one and returns its output's name."""

    def __init__(self, prefix: str = "input") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.prefix = prefix

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self.prefix}_{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: np.ndarray | np.generic) -> str:
        return self("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def number(self, value: float) -> str:
        return self.constant(np.array([value], np.float64))

    def range(self, count: str) -> str:
        """0, 1, ... as doubles; `count` is int64 [1]."""
        start, step = (self.constant(np.array(v, np.int64)) for v in (0, 1))
        count = self("Squeeze", count, *self.integers([0]))
        return self("Cast", self("Range", start, count, step), to=TensorProto.DOUBLE)

    def integers(self, *values: list[int]) -> list[str]:
        return [self.constant(np.array(v, np.int64)) for v in values]
