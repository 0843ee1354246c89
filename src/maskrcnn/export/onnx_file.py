"""ONNX files: made from a traced model, and opened up for the certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from ..config import InputConfig
from ..graph_files.contract import InputKind, stage_names
from ..model.maskrcnn import MaskRCNN
from .export_format import ExportFormat, Resizer

if TYPE_CHECKING:
    from .network import Tracing


def write(tracing: Tracing, kind: InputKind, path: Path) -> None:
    """Writes a traced model as an ONNX file."""
    import onnx

    from .onnx_graph import onnx_model

    onnx.save(onnx_model(tracing, kind), path)


def write_stages(path: Path, model: MaskRCNN, to: Path) -> None:
    """Writes an ONNX file again, with its named intermediate results as outputs."""
    import onnx

    content = onnx.load(path)
    for name in stage_names(model.config):
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        content.graph.output.append(value)
    onnx.save(content, to)


def open_resizer(config: InputConfig) -> Resizer:
    """Returns the resize rule in onnxruntime."""
    import onnxruntime

    from .onnx_input import input_graph

    graph = input_graph(config).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def resize(
        images: UInt8[np.ndarray, "B H W 3"],
    ) -> tuple[Float[np.ndarray, "B 3 h w"], Float[np.ndarray, "2"]]:
        pixels, scale = session.run(["pixels", "scale"], {"images": images})
        return np.asarray(pixels), np.asarray(scale)

    return resize


ONNX = ExportFormat(
    "onnx",
    ".onnx",
    inputs=("uint8", "prepared"),
    packages=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
    write=write,
    write_stages=write_stages,
    open_resizer=open_resizer,
)
