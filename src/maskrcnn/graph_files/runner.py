"""Runs an exported file with the runtime it was made for.

In:  a file and numpy arrays, as `contract` describes them.
Out: numpy arrays by output name.

This module imports neither PyTorch nor the model's code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .contract import METADATA_KEY, VERSION, GraphMetadata

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".onnx", ".xml")
"""Endings of files that `open_graph_file` runs: ONNX, and OpenVINO's IR."""


class GraphFile(Protocol):
    """An exported model that is loaded and ready to run."""

    metadata: GraphMetadata

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs by name for the inputs by name."""


def open_graph_file(path: str | Path, threads: int | None = None) -> GraphFile:
    """Loads an exported model.

    Args:
        path: a `.onnx` file, or the `.xml` file of an OpenVINO model.
        threads: number of threads to compute with; by default the runtime decides.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the runtime is not installed; the message names the extra.
        ValueError: the file was not exported by this package, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file not found")
    if path.suffix.lower() == ".onnx":
        return _OnnxFile(path, threads)
    if path.suffix.lower() == ".xml":
        return _OpenVINOFile(path, threads)
    raise ValueError(f'{path}: expected a file ending in .onnx or .xml, got "{path.suffix}"')


class _OnnxFile:
    """An ONNX file in onnxruntime, on a GPU where onnxruntime has one."""

    def __init__(self, path: Path, threads: int | None) -> None:
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
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions have no common class of their own
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"{path}: onnxruntime cannot load the file: {first}") from error
        found = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self.metadata = _checked(found, path)
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(None, inputs), strict=True))


class _OpenVINOFile:
    """An OpenVINO model on the CPU."""

    def __init__(self, path: Path, threads: int | None) -> None:
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
        found = None
        if model.has_rt_info([METADATA_KEY]):
            found = model.get_rt_info([METADATA_KEY]).astype(str)
        self.metadata = _checked(found, path)
        self._model = core.compile_model(model, "CPU", settings)

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        results = self._model(inputs)
        return {output.get_any_name(): value for output, value in results.items()}


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
