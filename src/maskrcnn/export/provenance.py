"""What a certificate says about the origin of a file: hashes, versions, and the processor."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import machine, processor, python_version

import torch

from ..model.maskrcnn import MaskRCNN
from .export_format import ExportFormat

PACKAGES = ("maskrcnn", "torch", "torchvision", "numpy", "pillow")


def file_hashes(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of a file, and of the weights that OpenVINO keeps beside it."""
    parts = [path]
    if path.suffix == ".xml":
        parts.append(path.with_suffix(".bin"))
    hashes = {}
    for part in parts:
        with part.open("rb") as file:
            hashes[part.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def weights_hash(model: MaskRCNN) -> str:
    """Returns the SHA-256 of a model's weights: names, shapes and values, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions_of(form: ExportFormat) -> dict[str, str]:
    """Versions of what made the file and ran it."""
    found = {"python": python_version()}
    for package in dict.fromkeys((*PACKAGES, *form.packages)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a distribution"
    return found


def processor_name() -> str:
    """The name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return processor() or machine()
