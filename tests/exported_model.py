"""The small joint model that the tests export, and its file: real detections, at the cost of a tiny network."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import pytest
import torch
from filelock import FileLock

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.config import KeypointHeadConfig, RoIConfig

KEYPOINTS = ("top", "left", "right")


class Exported(NamedTuple):
    """A model and the file that `maskrcnn export` made of it."""

    model: mr.MaskRCNN
    path: Path


def nuclei_with_keypoints() -> mr.MaskRCNN:
    """The shipped nuclei model, which finds objects in micrographs and none in a black image, with an untrained keypoint head."""
    trained = mr.load("nuclei")
    nucleus = mr.Category("nucleus", 7, keypoints=KEYPOINTS, skeleton=((0, 1), (0, 2)))
    config = replace(
        trained.config,
        categories=(nucleus,),
        keypoint=KeypointHeadConfig(convs=(16,), norm="group", roi=RoIConfig(size=14)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = mr.MaskRCNN.from_config(config)
    model.load_state_dict(trained.state_dict(), strict=False)
    return model.eval()


@contextmanager
def shapes_unchecked() -> Generator[None]:
    """Stops the checks of shapes in signatures: while a network is traced, its sizes are symbols."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def export_once(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports the joint model, once for all processes that run tests."""
    folder = tmp_path_factory.getbasetemp()
    model = nuclei_with_keypoints()
    path = folder / "nuclei_with_keypoints.onnx"
    with FileLock(folder / "export.lock"), shapes_unchecked():
        if not path.exists():
            weights = mr.save(model, folder / "nuclei_with_keypoints.safetensors")
            assert run(["export", str(weights), str(path), "--no-certificate"]) == 0
    return Exported(model, path)
