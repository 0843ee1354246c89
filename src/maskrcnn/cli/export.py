"""`maskrcnn export`: a model as one file that other programs run, with its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    model: str,
    out: Path,
    /,
    *,
    format: Literal["onnx", "openvino", "pt2"] | None = None,
    input: Literal["uint8", "prepared"] | None = None,
    samples: str | None = None,
    images: Path | None = None,
    max_samples: int = 100,
    certificate: bool = True,
    triton: Path | None = None,
) -> None:
    """Write a model as one file that runs without this package, with a certificate; takes minutes.

    The file predicts boxes, categories, masks and keypoints, for any image size and batch size. Run
    it with `maskrcnn predict OUT.onnx`, or in other programs with onnxruntime, OpenVINO or
    PyTorch.

    The certificate shows how far the predictions of file and model differ: OUT.certificate.json and
    OUT.certificate.html. A file that differs by more than its bounds is not kept.

    Needs: pip install 'maskrcnn[onnx]'; for OpenVINO 'maskrcnn[onnx,openvino]'; for .pt2 no extra.

    Args:
        model: Name of published weights, run folder, or checkpoint (ours, torchvision's .pth,
            Detectron2's .pth or .pkl).
        out: The file to write, ending in .onnx, .xml (OpenVINO) or .pt2 (torch.export). An existing
            file is replaced.
        format: Format of the file; by default its ending decides.
        input: What the file takes. uint8: original images, resized inside the file (ONNX only,
            there the default). prepared: images that the caller has resized to the model's input
            size.
        samples: Your own images to compare file and model on: a folder, a wildcard, or an
            annotation file, which also gives the average precision of both.
        images: Folder of the images of an annotation file; by default where the format says they
            are.
        max_samples: Most samples to compare; of a larger set, this many are chosen, spread evenly.
        certificate: Compare the file with the model. Without it, nothing proves the file.
        triton: Also write a model repository for NVIDIA Triton into this folder (ONNX only).
    """
    from ..export.export_model import export_model

    if triton is not None and out.suffix.lower() != ".onnx":
        raise ValueError(f"--triton: expected an ONNX file, got {out}; write an .onnx file")
    path = export_model(
        model,
        out,
        format=format,
        input=input,
        samples=samples,
        images=images,
        max_samples=max_samples,
        certificate=certificate,
        progress=True,
    )
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")
    if certificate:
        print(f"certificate: {path.with_suffix('.certificate.html')}")
    if triton is not None:
        from ..export.triton import write_repository

        print(f"model repository: {write_repository(path, triton)}")
