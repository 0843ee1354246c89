"""Runs an exported file with the runtime it was made for.

In:  a file and numpy arrays, as `contract` describes them.
Out: numpy arrays by output name.

This module imports neither PyTorch nor the model's code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..runtime.error_text import one_line
from .contract import METADATA_KEY, read_metadata

if TYPE_CHECKING:
    import numpy as np

    Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class GraphRunner:
    """An exported model that is loaded and ready to run.

    It can be pickled: a copy in another process loads the file again.

    Args:
        path: a `.onnx` file, the `.xml` file of an OpenVINO model, or a `.pt2` file, which alone
            needs PyTorch.
        device: "cpu", or "cuda" with or without an index; by default a GPU where the runtime has
            one.
        threads: number of threads to compute with; by default the runtime decides.
        dtype: precision, of OpenVINO files alone: "float32", "bfloat16", or "auto", which is
            bfloat16 where the processor has it. All others compute in float32.

    Raises:
        FileNotFoundError: no such file.
        ImportError: the runtime is not installed; the message names the extra.
        ValueError: the file was not exported by this package, or is damaged; or the runtime does
            not have the device.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | None = None,
        threads: int | None = None,
        dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    ) -> None:
        self.path = Path(path)
        """The file."""
        self._arguments: dict[str, Any] = {"device": device, "threads": threads, "dtype": dtype}
        suffix = self.path.suffix.lower()
        if suffix not in _RUNTIMES:
            raise ValueError(
                f'{path}: expected a file ending in {", ".join(_RUNTIMES)}, got "{suffix}"'
            )
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: file not found")

        text, self._run = _RUNTIMES[suffix](self.path, device, threads, dtype)
        self.metadata, self.config = read_metadata(text, path)
        """What the file says about itself, and the configuration of its model."""

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs by name for the inputs by name.

        Raises:
            ValueError: the runtime reports an error, or returns something else than the metadata
                say.
        """
        try:
            outputs = self._run(inputs)
        except Exception as error:  # the runtimes' exceptions have no common class of their own
            raise ValueError(f"{self.path}: the runtime reports: {one_line(error)}") from error
        if missing := [name for name in self.metadata["outputs"] if name not in outputs]:
            raise ValueError(f"{self.path}: the graph has no output {', '.join(missing)}")
        return outputs

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(GraphRunner, self.path, **self._arguments), ()


def _onnx(
    path: Path, device: str | None, threads: int | None, dtype: str
) -> tuple[str | None, Run]:
    """An ONNX file in onnxruntime: its metadata, and a function that runs it."""
    if dtype == "bfloat16":
        raise ValueError(
            f'dtype: ONNX files compute in float32, got "{dtype}"; omit it, or export to OpenVINO'
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(_missing(path, "onnxruntime", "onnx")) from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well
    options.enable_mem_pattern = False  # it would keep one per size of image
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        session: Any = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions have no common class of their own
        raise ValueError(f"{path}: onnxruntime cannot load the file: {one_line(error)}") from error

    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), run


def _providers(device: str | None, available: list[str]) -> list[Any]:
    """onnxruntime's names of where to compute, best first."""
    kind, _, index = (device or "cuda").partition(":")
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if kind == "cuda" and "CUDAExecutionProvider" in available:
        number = {"device_id": int(index)} if index.isdecimal() else {}
        return [("CUDAExecutionProvider", number), "CPUExecutionProvider"]
    if device is None:
        return ["CPUExecutionProvider"]
    raise ValueError(
        f'device: expected "cpu", the only one of this onnxruntime, got "{device}"; '
        "for an NVIDIA GPU, install onnxruntime-gpu instead of onnxruntime"
    )


@cache
def openvino_core() -> Any:
    """Returns OpenVINO's entry point, one for the whole process.

    Its CPU plugin gives the calling thread a stack for signal handlers and frees it with the entry
    point. Of several that end in another order than the reverse, a freed stack stays in use, and
    the next signal, such as Ctrl-C or the end of a child process, ends Python without a word.
    """
    import openvino

    return openvino.Core()


def _openvino(
    path: Path, device: str | None, threads: int | None, dtype: str
) -> tuple[str | None, Run]:
    """An OpenVINO model on the CPU: its metadata, and a function that runs it."""
    if device not in (None, "cpu"):
        raise ValueError(f'device: OpenVINO files run on "cpu", got "{device}"')
    try:
        core = openvino_core()
    except ImportError as error:
        raise ImportError(_missing(path, "openvino", "openvino")) from error

    has_half = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype == "bfloat16" and not has_half:
        raise ValueError('dtype: this processor has no bfloat16, expected "float32" or "auto"')
    half = has_half and dtype != "float32"
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        last = one_line(error, -1)
        raise ValueError(f"{path}: OpenVINO cannot load the file: {last}") from error

    metadata = None
    if model.has_rt_info([METADATA_KEY]):
        metadata = model.get_rt_info([METADATA_KEY]).astype(str)
    compiled = core.compile_model(model, "CPU", settings)

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A value may have several names.
        return {
            name: value for output, value in compiled(inputs).items() for name in output.get_names()
        }

    return metadata, run


def _pt2(path: Path, device: str | None, threads: int | None, dtype: str) -> tuple[str | None, Run]:
    """A `torch.export` program in PyTorch: its metadata, and a function that runs it."""
    if dtype == "bfloat16":
        raise ValueError(
            f'dtype: .pt2 files compute in float32, got "{dtype}"; omit it, or export to OpenVINO'
        )
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path.name} needs PyTorch. Install it with: pip install torch"
        ) from error

    from .pt2_archive import open_program

    program, extra = open_program(path)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if where != "cpu":
        from torch.export.passes import move_to_device_pass

        try:
            program = move_to_device_pass(program, where)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device: cannot use {where}: {one_line(error)}") from None
    try:
        module = program.module(check_guards=False)
    except Exception as error:  # of any kind, if the program contradicts itself
        raise ValueError(f"{path}: PyTorch cannot run the file: {one_line(error)}") from error

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = [torch.from_numpy(inputs[name]).to(where) for name in ("pixels", "scale")]
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with torch.inference_mode():
                outputs = module(*given)
        finally:
            torch.set_num_threads(before)
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    return extra.get(METADATA_KEY), run


_RUNTIMES: dict[str, Callable[[Path, str | None, int | None, str], tuple[str | None, Run]]] = {
    ".onnx": _onnx,
    ".xml": _openvino,
    ".pt2": _pt2,
}
SUFFIXES = tuple(_RUNTIMES)
"""Endings of files that a `GraphRunner` runs: ONNX, OpenVINO's IR, torch.export's programs."""


def _missing(path: Path, package: str, extra: str) -> str:
    return f"{path.name} needs {package}. Install it with: pip install 'maskrcnn[{extra}]'"
