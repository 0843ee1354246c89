"""OpenVINO's IR, made from the ONNX form of a traced model: an .xml file and its weights, .bin.

The files take prepared pixels: OpenVINO computes double-precision numbers in float32, so that a
resize rule inside the file would differ in sizes and by a gray level.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..graph_files.contract import METADATA_KEY, InputKind, stage_names
from ..graph_files.runner import openvino_core
from ..model.maskrcnn import MaskRCNN
from ..runtime.error_text import one_line
from .export_format import ExportFormat

if TYPE_CHECKING:
    import onnx

    from .network import Tracing


def write(tracing: Tracing, kind: InputKind, path: Path) -> None:
    """Writes a traced model as IR, with float32 weights.

    Raises:
        ValueError: OpenVINO has no form of an operator.
    """
    from .onnx_graph import onnx_model

    write_ir(onnx_model(tracing, kind), path)


def write_ir(content: onnx.ModelProto, path: Path) -> None:
    """Writes an ONNX model with its metadata as IR."""
    import openvino

    (metadata,) = (p.value for p in content.metadata_props if p.key == METADATA_KEY)
    try:
        model = openvino_core().read_model(content.SerializeToString(), b"")
    except RuntimeError as error:
        last = one_line(error, -1)
        raise ValueError(f"the model has no OpenVINO form; OpenVINO reports: {last}") from error
    model.set_rt_info(metadata, [METADATA_KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def write_stages(path: Path, model: MaskRCNN, to: Path) -> None:
    """Writes a file again, with its named intermediate results as outputs."""
    import openvino

    content = openvino_core().read_model(path)
    content.add_outputs(list(stage_names(model.config)))
    openvino.save_model(content, to, compress_to_fp16=False)


OPENVINO = ExportFormat(
    "openvino",
    ".xml",
    inputs=("prepared",),
    packages=("onnx", "onnxscript", "openvino"),
    extra="onnx,openvino",
    write=write,
    write_stages=write_stages,
    companions=(".bin",),
)
