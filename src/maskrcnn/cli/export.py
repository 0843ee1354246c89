"""`maskrcnn export`: a model as one file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(model: str, out: Path, /, *, input: Literal["uint8", "prepared"] = "uint8") -> None:
    """Write a model as one ONNX file that runs without PyTorch; takes about a minute.

    The file predicts boxes, categories, masks and keypoints, for any image size and batch size. Run
    it with `maskrcnn predict OUT.onnx`, or in other programs with onnxruntime.

    Needs: pip install 'maskrcnn[onnx]'.

    Args:
        model: Name of published weights, run folder, or checkpoint (ours, torchvision's .pth,
            Detectron2's .pth or .pkl).
        out: The file to write, ending in .onnx. An existing file is replaced.
        input: What the file takes. uint8: original images, resized inside the file. prepared:
            images that the caller has resized to the model's input size.
    """
    from ..export.export_model import export_model

    path = export_model(model, out, input=input, progress=True)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
