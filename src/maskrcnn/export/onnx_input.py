"""The resize rule as ONNX nodes: from uint8 images to the network's input.

In:  images [B, H, W, 3] uint8 RGB, of one size.
Out: pixels [B, 3, h, w] float and scale [2], the inputs of `ExportedNetwork`.

Sizes are computed in double precision, as `preprocess.input_size` does. Pillow's antialiased
resize differs from ONNX's by at most one gray level, in less than 1 % of the pixels, because ONNX
computes the scale in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..config import InputConfig

OPSET = 18
IR_VERSION = 10  # the highest that onnxruntime-web 1.20 and onnxruntime 1.20 load


def input_graph(config: InputConfig) -> onnx.ModelProto:
    """Returns the resize rule of a configuration as an ONNX model."""
    graph = _Nodes()
    images = "images"
    planes = graph("Transpose", images, perm=[0, 3, 1, 2])
    old = graph("Shape", images, start=1, end=3)
    new = _input_size(graph, old, config)

    batch_and_channels = graph("Shape", planes, start=0, end=2)
    shape = graph("Concat", batch_and_channels, new, axis=0)
    if config.resize == "pillow":
        resized = graph(
            "Resize",
            planes,
            "",
            "",
            shape,
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        )
        pixels = graph("Cast", resized, to=TensorProto.FLOAT)
    else:
        # torchvision's order: normalized, then resized.
        mean = np.asarray(config.mean, np.float32)[:, None, None] / np.float32(255)
        std = np.asarray(config.std, np.float32)[:, None, None] / np.float32(255)
        planes = graph("Cast", planes, to=TensorProto.FLOAT)
        if config.channel_order == "bgr":
            planes = graph("Gather", planes, graph.constant(np.array([2, 1, 0])), axis=1)
        planes = graph("Div", planes, graph.constant(np.float32(255)))
        planes = graph("Div", graph("Sub", planes, graph.constant(mean)), graph.constant(std))
        pixels = graph(
            "Resize",
            planes,
            "",
            "",
            shape,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )

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

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"input_{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, value: np.ndarray | np.generic) -> str:
        return self("Constant", value=numpy_helper.from_array(np.asarray(value)))

    def number(self, value: float) -> str:
        return self.constant(np.array([value], np.float64))

    def integers(self, *values: list[int]) -> list[str]:
        return [self.constant(np.array(v, np.int64)) for v in values]
