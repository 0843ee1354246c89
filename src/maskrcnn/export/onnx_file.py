"""ONNX files, as the certificate compares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, UInt8

from ..config import InputConfig
from ..model.maskrcnn import MaskRCNN
from .export_format import ExportFormat, Resizer
from .onnx_graph import Tracing, onnx_model
from .onnx_input import input_graph


def stages_model(model: MaskRCNN) -> onnx.ModelProto:
    """Returns a model that takes prepared pixels and also returns its intermediate results."""
    return onnx_model(Tracing.of(model, stages=True), "prepared")


def open_resizer(config: InputConfig) -> Resizer:
    """Returns the resize rule in onnxruntime."""
    import onnxruntime

    graph = input_graph(config).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def resize(
        images: UInt8[np.ndarray, "B H W 3"],
    ) -> tuple[Float[np.ndarray, "B 3 h w"], Float[np.ndarray, "2"]]:
        pixels, scale = session.run(["pixels", "scale"], {"images": images})
        return np.asarray(pixels), np.asarray(scale)

    return resize


def _write_stages(model: MaskRCNN, path: Path) -> None:
    onnx.save(stages_model(model), path)


ONNX = ExportFormat(
    "onnx",
    ".onnx",
    write_stages=_write_stages,
    open_resizer=open_resizer,
    packages=("onnx", "onnxscript", "onnxruntime"),
)
