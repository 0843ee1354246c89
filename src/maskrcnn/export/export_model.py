"""`export_model` writes a model as one file that other runtimes execute.

In:  a model.
Out: an ONNX file, docs/deploy.md says what it takes and returns. It is complete or absent: it is
     written beside its place, loaded by its runtime, and renamed.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from ..graph_files.contract import InputKind
from ..model.maskrcnn import MaskRCNN
from ..runtime.atomic_files import replacing
from ..runtime.progress import steps

SUFFIX = ".onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What the extra `onnx` installs."""
MOST_BYTES = 2**31 - 2**25
"""Of weights in one file: Protocol Buffers hold less than 2 GiB."""

# The steps' shares of the time, and the time of all, in seconds: ResNet-50 on one core.
_SHARES = {"Tracing": 0.38, "Translating to ONNX": 0.6, "Loading the file": 0.02}
_GUESS = 60.0


def export_model(
    model: MaskRCNN | str | Path,
    path: str | Path,
    *,
    input: InputKind = "uint8",
    progress: bool = False,
) -> Path:
    """Writes a model as one ONNX file: images in, boxes, masks and keypoints out.

    The file has any batch size, and any height and width of the images. `Predictor` runs it, and so
    does onnxruntime without PyTorch: docs/deploy.md describes inputs, outputs and metadata.

    Args:
        model: a model, or what `load` reads; not modified.
        path: the file, with the suffix .onnx; its folder must exist.
        input: what the file takes. "uint8": original images, which it resizes and normalizes
            itself. "prepared": images at the model's input size, resized by the caller.
        progress: show a progress bar.

    Returns:
        The path.

    Raises:
        ImportError: the extra `onnx` is not installed; the message has the command.
        ValueError: another suffix or input, a model that has no graph, or one above 2 GiB.
        OSError: the file cannot be written there.

    Example:
        >>> import maskrcnn as mr
        >>> mr.export_model("nuclei", "nuclei.onnx")  # doctest: +SKIP
        >>> mr.predict("nuclei.onnx", "cells.png")  # doctest: +SKIP
    """
    path = Path(path)
    _check_target(path)
    if input not in ("uint8", "prepared"):
        raise ValueError(f'input: expected "uint8" or "prepared", got {input!r}')
    _check_packages()
    model = _loaded(model)

    import onnx

    from ..graph_files.runner import GraphRunner
    from .onnx_graph import Tracing, onnx_model

    with replacing(path) as partial, steps(_SHARES, _GUESS, show=progress) as begin:
        begin("Tracing")
        tracing = Tracing.of(model)
        begin("Translating to ONNX")
        onnx.save(onnx_model(tracing, input), partial)
        begin("Loading the file")
        GraphRunner(partial, device="cpu")
    return path


def _check_target(path: Path) -> None:
    """Reports what would fail after a minute of work."""
    if path.suffix != SUFFIX:
        raise ValueError(
            f'{path}: expected the suffix {SUFFIX}; write "{path.with_suffix(SUFFIX)}"'
        )
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file to write, got a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: folder not found; create it first")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent}: no permission to write here; choose another folder")


def _check_packages() -> None:
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ImportError(
            f"export needs {', '.join(missing)}. Install it with: pip install 'maskrcnn[onnx]'"
        )


def _loaded(model: MaskRCNN | str | Path) -> MaskRCNN:
    if isinstance(model, str | Path):
        from ..weights.load import load

        model = load(model)
    if not isinstance(model, MaskRCNN):
        raise TypeError(f"model: expected a model or the name of one, got {type(model).__name__}")

    size = sum(p.numel() * 4 for p in model.parameters())
    if size > MOST_BYTES:
        raise ValueError(
            f"model: its weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than "
            "2 GiB; use a smaller trunk"
        )
    return model
