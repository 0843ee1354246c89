"""A model as an ONNX model.

In:  a `MaskRCNN`.
Out: an `onnx.ModelProto` with its inputs and outputs as docs/deploy.md describes them, and the
     model's configuration as metadata.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Generator

import onnx
import onnx.compose
import torch

from ..graph_files.contract import METADATA_KEY, InputKind, metadata_of, output_names
from ..runtime.error_text import one_line
from .network import Tracing
from .onnx_input import IR_VERSION, OPSET, input_graph
from .onnx_operators import translations

NAMESPACE = "namespace"
"""Key under which the exporter notes the modules that a node belongs to, outermost first."""


def onnx_model(tracing: Tracing, input_kind: InputKind) -> onnx.ModelProto:
    """Translates a traced network to ONNX.

    Args:
        tracing: the network.
        input_kind: "uint8": original images, resized in the graph; "prepared": pixels at the
            model's input size.

    Raises:
        ValueError: an operator has no translation.
    """
    with _quietly():
        try:
            program = torch.onnx.export(
                tracing.program,
                (),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels", "scale"],
                output_names=list(tracing.output_names),
                custom_translation_table=translations(),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(
                f"the model has no ONNX form; the exporter reports: {one_line(error)}"
            ) from error
    assert program is not None
    model = program.model_proto
    model.ir_version = IR_VERSION
    outputs = output_names(tracing.model.config)
    del model.graph.output[len(outputs) :]  # the intermediate results keep their names inside
    del model.graph.value_info[:]  # shapes of inner values, under names that change below
    _name_dimensions(model, "pixels", ("batch", "3", "h", "w"))

    if input_kind == "uint8":
        resize = input_graph(tracing.model.config.input)
        both = [("pixels", "pixels"), ("scale", "scale")]
        model = onnx.compose.merge_models(resize, model, io_map=both, name="maskrcnn")
        del model.opset_import[1:]  # both parts name the same
    _forget_machine(model.graph)
    metadata = metadata_of(tracing.model.config, input_kind, outputs)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    model.producer_name = "maskrcnn"
    model.producer_version = metadata["versions"]["maskrcnn"]
    model.doc_string = "Mask R-CNN: objects with boxes, categories, masks and keypoints."
    return model


def _name_dimensions(model: onnx.ModelProto, name: str, names: tuple[str, ...]) -> None:
    """Renames the unknown sizes of an input, there and in all outputs."""
    (given,) = (value for value in model.graph.input if value.name == name)
    dimensions = given.type.tensor_type.shape.dim
    renamed = {d.dim_param: new for d, new in zip(dimensions, names, strict=True) if d.dim_param}
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = renamed.get(dimension.dim_param, dimension.dim_param)


def _forget_machine(graph: onnx.GraphProto) -> None:
    """Removes what the exporter notes of each node, such as the paths of the source code.

    The module that a node belongs to stays (`NAMESPACE`).
    """
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    for node in graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == NAMESPACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _forget_machine(body)


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """Keeps the exporter's progress lines and its own deprecation warnings off the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
