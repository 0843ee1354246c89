"""The first stage of the network at which a file and the model part.

Each stage of the model is given what the file computed in the stages before, so that a stage is
named for its own fault alone.

In:  a run of the model on a batch, and the outputs of a file for it, with its intermediate results
     (`ExportFormat.write_stages`).
Out: the stage, with what differs there; or the thresholds at which rounding decided otherwise about
     some proposals, if all else agrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..instances import Instances
from ..model.maskrcnn import MaskRCNN
from ..ops.pyramid import Pyramid
from ..ops.rows import Rows
from ..prediction.predictor import to_instances
from ..structures import Batch, Detections, Proposals
from .close_calls import CloseCall
from .comparison import ImageComparison, compare_objects
from .proposal_flips import find_flips, has_area

Outputs = Mapping[str, np.ndarray]
"""What a file returns, by name (`graph_files.contract`)."""
Stage = Literal["input", "features", "proposals", "detections", "masks", "keypoints"]
STAGES: tuple[Stage, ...] = get_args(Stage)

DETECTIONS = ("boxes", "scores", "labels", "valid")
FEATURE_BOUND = 1e-4
"""Largest allowed difference of features, as a share of the level's largest value."""


@dataclass(frozen=True)
class StageDifference:
    """Where a file and the model part."""

    stage: Stage
    detail: str


@dataclass(frozen=True)
class ModelRun:
    """What the model predicts for a batch, in the form that a file's outputs are compared with."""

    network: MaskRCNN
    batch: Batch
    size: tuple[int, int]
    """Height and width of the images in their own pixels."""
    pyramid: Pyramid
    detections: Detections

    @classmethod
    def of(cls, network: MaskRCNN, batch: Batch, size: tuple[int, int]) -> ModelRun:
        """Runs the model."""
        with torch.inference_mode():
            pyramid = network.pyramid(batch)
            proposals = network.propose(pyramid, batch)
            detections = network.describe(pyramid, network.detect(pyramid, batch, proposals))
        return cls(network, batch, size, pyramid, detections)

    @property
    def to_image(self) -> tuple[float, float]:
        """Pixels of the image per pixel of the model's input, in x and y."""
        height, width = self.batch.sizes[0].tolist()
        return self.size[1] / width, self.size[0] / height

    def objects(self, image: int) -> Instances:
        """Returns what `Predictor` returns for an image of the batch."""
        config = self.network.config
        limit = config.box.score_threshold
        return to_instances(self.detections, image, self.to_image, self.size, config, limit)

    def objects_of_file(self, outputs: Outputs, image: int) -> Instances:
        """Returns the same of a file's outputs."""
        config = self.network.config
        limit = config.box.score_threshold
        return to_instances(_detections(outputs), image, (1.0, 1.0), self.size, config, limit)

    def compare(self, outputs: Outputs) -> ImageComparison:
        """Compares the objects of all images of the batch with those of a file."""
        theirs = _detections(outputs)
        total = ImageComparison()

        for image in range(len(self.batch.sizes)):
            own, slots = self._instances(self.detections, image, self.to_image)
            other, _ = self._instances(theirs, image, (1.0, 1.0))
            heatmaps = partial(self._heatmaps, image, slots)
            config = self.network.config
            total.add(compare_objects(own, other, config, heatmaps, self.to_image))
        total.problems += contract_problems(outputs)
        return total

    def _instances(
        self, detections: Detections, image: int, to_image: tuple[float, float]
    ) -> tuple[Instances, list[int]]:
        """The valid objects of an image, neither clipped nor dropped, and their slots."""
        config = self.network.config
        factor = torch.tensor(to_image)
        slots = detections.valid[image].nonzero()[:, 0]

        def kept(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[image, slots].float()

        keypoints = kept(detections.keypoints)
        if keypoints is not None:
            keypoints = torch.cat([keypoints[..., :2] * factor, keypoints[..., 2:]], dim=-1)
        instances = Instances(
            size=self.size,
            boxes=detections.boxes[image, slots] * factor.repeat(2),
            scores=detections.scores[image, slots],
            labels=detections.labels[image, slots],
            categories=config.categories,
            mask_grids=kept(detections.masks),
            keypoints=keypoints,
            keypoint_logits=kept(detections.keypoint_logits),
            paste=config.mask.paste if config.mask else "border",
            mask_threshold=config.mask.threshold if config.mask else 0.5,
            coco_offset=config.keypoint.coco_offset if config.keypoint else 0.5,
        )
        return instances, slots.tolist()

    def _heatmaps(
        self, image: int, slots: list[int], i: int
    ) -> tuple[Float[Tensor, "J S S"], Float[Tensor, "4"]]:
        """The heat maps of an object's keypoints, and its box in the model's input."""
        box = self.detections.boxes[image, slots[i]]
        label = int(self.detections.labels[image, slots[i]])
        with torch.inference_mode():
            where = torch.tensor([image])
            maps = self.network.predict_heatmaps(self.pyramid, box[None], where)[0]
        first, count = self.network.config.keypoint_slices[label]
        return maps[first : first + count], box


def contract_problems(outputs: Outputs) -> list[str]:
    """Returns what is wrong with outputs, whatever the model predicts."""
    problems = []
    valid = outputs["valid"]
    if valid.dtype != bool or (np.diff(valid.astype(int), axis=1) > 0).any():
        problems.append('output "valid": expected the objects before the empty rows')

    for name in ("boxes", "scores", "labels", "masks", "keypoints", "keypoint_logits"):
        if name not in outputs:
            continue
        values = outputs[name]
        if not np.isfinite(values).all():
            problems.append(f'output "{name}": expected finite numbers')
        elif values[~valid].any():
            problems.append(f'output "{name}": expected zeros in the rows without an object')
    return problems


def first_difference(run: ModelRun, outputs: Outputs) -> StageDifference | list[CloseCall]:
    """Finds the first stage at which the model and a file part.

    Args:
        run: of the model on the batch.
        outputs: of the file for the batch, with its intermediate results.

    Returns:
        The stage; or what decided about each proposal that differs, if all else agrees.
    """
    network = run.network
    with torch.inference_mode():
        count = len(run.pyramid.levels)
        levels = [torch.from_numpy(outputs[f"features_{level}"]) for level in range(count)]
        for level, (ours, theirs) in enumerate(zip(run.pyramid.levels, levels, strict=True)):
            apart = (ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12)
            if not apart <= FEATURE_BOUND:
                detail = f"level {level} differs by {apart:.2g} of its largest value"
                return StageDifference("features", detail)

        pyramid = Pyramid.of(levels)
        theirs = torch.from_numpy(outputs["proposals"])
        flips = find_flips(network, pyramid, run.batch, theirs)
        if flips.unexplained:
            return StageDifference("proposals", flips.detail)

        if difference := _head_difference(run, pyramid, theirs, outputs):
            return difference
        # From the model's own features, which differ by rounding, others may be chosen.
        others = find_flips(network, run.pyramid, run.batch, theirs)
        if others.unexplained or not others.count:
            detail = others.detail or "small differences add up to those of the objects"
            return StageDifference("features", detail)
    return others.close_calls


def _head_difference(
    run: ModelRun, pyramid: Pyramid, proposals: Float[Tensor, "B P 4"], outputs: Outputs
) -> StageDifference | None:
    """Compares detections from the file's proposals, then masks and keypoints on its boxes."""
    network = run.network
    given = Proposals(proposals, torch.zeros(proposals.shape[:2]), has_area(proposals))
    own = network.detect(pyramid, run.batch, given)
    found = {name: outputs[name] for name in DETECTIONS}
    if problems := replace(run, detections=own).compare(found).problems:
        return StageDifference("detections", problems[0])

    # The file's boxes, in the model's input.
    theirs = _detections(found)
    theirs = replace(theirs, boxes=theirs.boxes / torch.tensor(run.to_image).repeat(2))
    rows = Rows.of(theirs.valid)
    boxes = rows.gather(theirs.boxes)
    labels = rows.gather(theirs.labels)

    if network.mask_head is not None:
        masks = rows.scatter(network.predict_masks(pyramid, boxes, labels, rows.image))
        parts = found | {"masks": outputs["masks"]}
        own = replace(theirs, masks=masks)
        if problems := replace(run, detections=own).compare(parts).problems:
            return StageDifference("masks", problems[0])

    if network.keypoint_head is not None:
        heatmaps = network.predict_heatmaps(pyramid, boxes, rows.image)
        points, logits = network.keypoint_head.decode(heatmaps, boxes, labels)
        own = replace(theirs, keypoints=rows.scatter(points), keypoint_logits=rows.scatter(logits))
        names = ("keypoints", "keypoint_logits")
        parts = found | {name: outputs[name] for name in names}
        if problems := replace(run, detections=own).compare(parts).problems:
            return StageDifference("keypoints", problems[0])
    return None


def _detections(outputs: Outputs) -> Detections:
    """The outputs of a file as the model's detections, in pixels of the image."""

    def part(name: str) -> Tensor | None:
        return torch.from_numpy(outputs[name]) if name in outputs else None

    return Detections(
        boxes=torch.from_numpy(outputs["boxes"]),
        scores=torch.from_numpy(outputs["scores"]),
        labels=torch.from_numpy(outputs["labels"]).long(),
        valid=torch.from_numpy(outputs["valid"]).bool(),
        masks=part("masks"),
        keypoints=part("keypoints"),
        keypoint_logits=part("keypoint_logits"),
    )
