"""Runs an exported file with the runtime it was made for.

In:  a file and numpy arrays, as `contract` describes them.
Out: numpy arrays by output name.

This module imports neither PyTorch nor the model's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .contract import METADATA_KEY, VERSION, GraphMetadata

if TYPE_CHECKING:
    import numpy as np

    Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class GraphRunner:
    """An exported model that is loaded and ready to run.

    Args:
        path: a `.onnx` file, or the `.xml` file of an OpenVINO model.
        threads: number of threads to compute with; by default the runtime decides.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the runtime is not installed; the message names the extra.
        ValueError: the file was not exported by this package, or is damaged.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        path = Path(path)
        if path.suffix.lower() not in _RUNTIMES:
            raise ValueError(
                f'{path}: expected a file ending in {" or ".join(_RUNTIMES)}, got "{path.suffix}"'
            )
        if not path.is_file():
            raise FileNotFoundError(f"{path}: file not found")
        metadata, self._run = _RUNTIMES[path.suffix.lower()](path, threads)
        self.metadata = _checked(metadata, path)
        """What the file says about itself."""

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs by name for the inputs by name."""
        return self._run(inputs)


def _onnx(path: Path, threads: int | None) -> tuple[str | None, Run]:
    """An ONNX file in onnxruntime, on a GPU where onnxruntime has one: its metadata, and a run."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(_missing(path, "onnxruntime", "onnx")) from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions have no common class of their own
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: onnxruntime cannot load the file: {first}") from error

    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), run


def _openvino(path: Path, threads: int | None) -> tuple[str | None, Run]:
    """An OpenVINO model on the CPU: its metadata, and a run."""
    try:
        import openvino
    except ImportError as error:
        raise ImportError(_missing(path, "openvino", "openvino")) from error

    core = openvino.Core()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path}: OpenVINO cannot load the file: {first}") from error

    metadata = None
    if model.has_rt_info([METADATA_KEY]):
        metadata = model.get_rt_info([METADATA_KEY]).astype(str)
    compiled = core.compile_model(model, "CPU", settings)

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {output.get_any_name(): value for output, value in compiled(inputs).items()}

    return metadata, run


_RUNTIMES: dict[str, Callable[[Path, int | None], tuple[str | None, Run]]] = {
    ".onnx": _onnx,
    ".xml": _openvino,
}
SUFFIXES = tuple(_RUNTIMES)
"""Endings of files that a `GraphRunner` runs: ONNX, and OpenVINO's IR."""


def _checked(found: str | None, path: Path) -> GraphMetadata:
    if not found:
        raise ValueError(
            f"{path}: expected a file written by maskrcnn export, got one without its metadata"
        )
    metadata: GraphMetadata = json.loads(found)
    if metadata["contract"] != VERSION:
        raise ValueError(
            f"{path}: expected version {VERSION} of the contract, got {metadata['contract']}. "
            "Export the model again."
        )
    return metadata


def _missing(path: Path, package: str, extra: str) -> str:
    return f"{path.name} needs {package}. Install it with: pip install 'maskrcnn[{extra}]'"
