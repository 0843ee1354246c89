"""A model repository for NVIDIA Triton: `write_repository("out.onnx", "models")`.

In:  an exported ONNX file.
Out: FOLDER/NAME/config.pbtxt and FOLDER/NAME/1/model.onnx, as Triton's onnxruntime backend loads
     them.

Triton's own batching joins requests along the first dimension, and requests of one batch have one
shape, as the graph requires. "prepared" files also take `scale`, which has no batch dimension; for
them Triton's batching is off, and a request carries its whole batch.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ..graph_files.runner import GraphRunner
from ..runtime.atomic_files import replacing

MAX_BATCH = 16
"""Images that Triton joins to one batch at most."""
_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64", 9: "TYPE_BOOL"}
"""ONNX's element types by number."""


def write_repository(path: str | Path, folder: str | Path) -> Path:
    """Writes a model repository.

    Args:
        path: an ONNX file that `export_model` wrote.
        folder: of the repository; created if it does not exist. A model of the same name is
            replaced, others are kept.

    Returns:
        The folder of the model.

    Raises:
        ValueError: this is no ONNX file of this package.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise ValueError(f"{path}: expected an ONNX file for Triton, got the suffix {path.suffix}")
    text = config_text(path)
    name = model_name(path)

    target = Path(folder) / name
    (target / "1").mkdir(parents=True, exist_ok=True)
    with replacing(target / "1" / "model.onnx") as partial:
        shutil.copyfile(path, partial)
    with replacing(target / "config.pbtxt") as partial:
        partial.write_text(text, encoding="utf-8")
    return target


def model_name(path: Path) -> str:
    """Returns the name under which Triton serves a file: its stem, with plain characters."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem) or "maskrcnn"


def config_text(path: Path) -> str:
    """Returns the content of config.pbtxt for an ONNX file."""
    import onnx

    runner = GraphRunner(path, device="cpu")  # checks that it is one of ours
    graph = onnx.load(path, load_external_data=False).graph
    batches = runner.metadata["input"]["kind"] == "uint8"

    lines = [
        f'name: "{model_name(path)}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH if batches else 0}",
    ]
    for kind, values in (("input", graph.input), ("output", graph.output)):
        lines.append(f"{kind} [")
        entries = []
        for value in values:
            tensor = value.type.tensor_type
            sides = [d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim]
            dims = ", ".join(str(side) for side in sides[1 if batches else 0 :])
            entries.append(
                f'  {{ name: "{value.name}", data_type: {_TYPES[tensor.elem_type]}, '
                f"dims: [ {dims} ] }}"
            )
        lines += [",\n".join(entries), "]"]
    if batches:
        lines.append("dynamic_batching { max_queue_delay_microseconds: 2000 }")
    return "\n".join(lines) + "\n"
