"""How a `Predictor` computes with an exported file: the runner's arrays as `Detections`.

In:  an exported file (`graph_files`).
Out: a `GraphEngine`, from a `Batch` to `Detections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..config import ModelConfig
from ..graph_files.runner import SUFFIXES, GraphRunner
from ..preprocess import prepare, prepare_as_torchvision
from ..structures import Batch, Detections


def is_graph_file(model: object) -> bool:
    """Whether this is the path of an exported file, by its ending."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() in SUFFIXES


@dataclass
class GraphEngine:
    """An exported file, ready to run.

    The images of a batch have one size. A file that takes original images resizes them itself; its
    "model-input pixels" are then those of the images.
    """

    runner: GraphRunner

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str | None,
        dtype: Literal["float32", "bfloat16", "auto"] | None,
        refused: Mapping[str, Any],
    ) -> GraphEngine:
        """Loads an exported file.

        Args:
            path: the file.
            device: see `GraphRunner`.
            dtype: see `GraphRunner`; "bfloat16" is for OpenVINO files.
            refused: settings that only a model has, by name, with the values given for them.

        Raises:
            ValueError: one of these settings is given, or the file cannot be loaded.
        """
        if dtype == "bfloat16" and Path(path).suffix.lower() != ".xml":
            refused = {**refused, "dtype": dtype}
        for name, value in refused.items():
            if value not in (None, False):
                raise ValueError(
                    f"{name}: expected none for an exported file, got {value!r}; "
                    f"omit it, or use the model from which {Path(path).name} was exported"
                )
        where = None if device is None else str(device)
        threads = torch.get_num_threads()
        return cls(GraphRunner(path, device=where, threads=threads, dtype=dtype or "float32"))

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model from which the file was exported."""
        return self.runner.config

    @property
    def size_divisor(self) -> int:
        """The graph pads; a batch has the size of its images."""
        return 1

    @property
    def takes_originals(self) -> bool:
        """Whether the graph resizes the images."""
        return self.runner.metadata["input"]["kind"] == "uint8"

    @property
    def normalizes_first(self) -> bool:
        """Whether images are normalized here, before they are resized, as torchvision does."""
        return not self.takes_originals and self.config.input.resize == "torch"

    def prepare(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Tensor, Float[Tensor, "3 3"]]:
        """Returns the image as the graph takes it, and the matrix to its pixels."""
        if self.takes_originals:
            return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.eye(3)
        resize = prepare_as_torchvision if self.normalizes_first else prepare
        return resize(image, self.config.input)

    def __call__(self, batch: Batch) -> Detections:
        """Returns the objects in images of one size, in the pixels of the batch.

        Raises:
            ValueError: the graph fails, or returns labels without a category.
        """
        if self.takes_originals:
            images = np.ascontiguousarray(batch.images.permute(0, 2, 3, 1).numpy())
            outputs = self.runner(images=images)
        else:
            scale = np.ones(2, np.float32)
            outputs = self.runner(pixels=batch.images.float().numpy(), scale=scale)

        given = {name: torch.from_numpy(outputs[name]) for name in self.runner.metadata["outputs"]}
        valid = given["valid"]
        labels = given["labels"][valid]
        if labels.numel() and not (labels.min() >= 0 and labels.max() < self.config.num_classes):
            raise ValueError(
                f"{self.runner.path}: the graph returns label {int(labels.max())}, expected 0 to "
                f"{self.config.num_classes - 1}; export the model again"
            )
        return Detections(
            boxes=given["boxes"],
            scores=given["scores"],
            labels=given["labels"],
            valid=valid,
            masks=given.get("masks"),
            keypoints=given.get("keypoints"),
            keypoint_logits=given.get("keypoint_logits"),
        )
