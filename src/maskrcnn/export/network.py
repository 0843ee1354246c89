"""The network as one graph: an image goes in, all objects come out in the image's own pixels.

In:  images [B, 3, H, W] of one size, at the model's input size, and the original pixels per
     input pixel.
Out: boxes, scores, labels, valid, and masks and keypoints where the model has such heads; D
     objects per image, zeros where `valid` is False.

It computes what the model's own `forward` computes. What an export needs otherwise (fixed numbers
of objects, NMS and RoIAlign as single nodes) is decided where it is computed: `ops/rows.py`,
`kernels/nms.py`, `kernels/roi_align_kernels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..graph_files.contract import output_names, stage_names
from ..model.maskrcnn import MaskRCNN
from ..prediction.optimize import optimize_for_inference
from ..runtime.error_text import one_line
from ..structures import Batch

# Sides of the example that is traced. No side, and no count, of the graph depends on them.
EXAMPLE = (2, 3, 192, 224)


class ExportedNetwork(nn.Module):
    """A model for export: BatchNorm folded, tensors in and tensors out.

    Args:
        model: any model; not modified.
        stages: also return the intermediate results that the certificate compares.
    """

    def __init__(self, model: MaskRCNN, stages: bool = False) -> None:
        super().__init__()
        self.network = optimize_for_inference(model, "float32").to("cpu")
        self.network.channels_last = False
        self.stages = stages
        for part in self.network.modules():
            part._compiled_call_impl = None  # of `optimize_for_inference(compile=True)`
            for name, weight in [*part.named_parameters(recurse=False)]:
                setattr(part, name, nn.Parameter(weight.contiguous(), requires_grad=False))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` returns, in its order."""
        names = output_names(self.network.config)
        if self.stages:
            names += stage_names(self.network.config)
        return names

    def forward(self, pixels: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Detects the objects in images.

        Args:
            pixels: [B, 3, H, W] float RGB, 0..255; for models with torchvision's resize rule
                normalized.
            scale: [2], original pixels per input pixel in x and y.
        """
        config = self.network.config.input
        count, _, height, width = pixels.shape
        divisor = config.size_divisor
        padding = (0, -width % divisor, 0, -height % divisor)
        size = torch.stack([torch.zeros((), dtype=torch.int64) + side for side in (height, width)])
        batch = Batch(
            F.pad(pixels, padding),
            size.expand(count, 2),
            torch.eye(3).expand(count, 3, 3),
            torch.zeros(count, dtype=torch.int64),
            normalized=config.resize == "torch",
        )

        pyramid = self.network.pyramid(batch)
        proposals = self.network.propose(pyramid, batch)
        detections = self.network.describe(pyramid, self.network.detect(pyramid, batch, proposals))
        results = [
            detections.boxes * scale.repeat(2),
            detections.scores,
            detections.labels,
            detections.valid,
        ]
        if detections.masks is not None:
            results.append(detections.masks)
        if detections.keypoints is not None and detections.keypoint_logits is not None:
            position = detections.keypoints[..., :2] * scale
            results.append(torch.cat([position, detections.keypoints[..., 2:]], dim=-1))
            results.append(detections.keypoint_logits)

        if self.stages:
            results += [level.float() for level in pyramid.levels]
            results.append(proposals.boxes)
        return tuple(results)


def traced(network: ExportedNetwork) -> torch.export.ExportedProgram:
    """Returns the network as a graph of tensor operations, for any batch, height and width.

    Raises:
        ValueError: a part of the model computes something that no graph can hold, such as a
            trunk whose shapes depend on its input's values.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(EXAMPLE, generator=generator) * 255
    scale = torch.ones(2)
    any_size = torch.export.Dim.DYNAMIC
    shapes = {"pixels": {0: any_size, 2: any_size, 3: any_size}, "scale": {}}
    try:
        with torch.no_grad():
            return torch.export.export(
                network, (pixels, scale), dynamic_shapes=shapes, strict=False
            )
    except RuntimeError as error:  # that of each of its stages
        raise ValueError(
            f"the model cannot be exported: torch.export reports: {one_line(error)}"
        ) from error


@dataclass(frozen=True)
class Tracing:
    """A traced network: what a file is made from. Each serves one file: translating changes it."""

    model: MaskRCNN
    program: torch.export.ExportedProgram
    output_names: tuple[str, ...]

    @classmethod
    def of(cls, model: MaskRCNN, stages: bool = True) -> Tracing:
        """Traces a model; `stages` names its intermediate results, for the certificate."""
        network = ExportedNetwork(model, stages)
        return cls(model, traced(network), network.output_names)
