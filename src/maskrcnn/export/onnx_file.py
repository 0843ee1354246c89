"""ONNX files, as the certificate compares them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float, UInt8

from ..config import InputConfig
from ..graph_files.contract import stage_names
from ..model.maskrcnn import MaskRCNN
from .export_format import ExportFormat, Resizer
from .onnx_input import input_graph


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


def write_stages(path: Path, model: MaskRCNN, to: Path) -> None:
    """Writes an ONNX file again, with its named intermediate results as outputs."""
    content = onnx.load(path)
    for name in stage_names(model.config):
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        content.graph.output.append(value)
    onnx.save(content, to)


ONNX = ExportFormat(
    "onnx",
    ".onnx",
    write_stages=write_stages,
    open_resizer=open_resizer,
    packages=("onnx", "onnxscript", "onnxruntime"),
)
