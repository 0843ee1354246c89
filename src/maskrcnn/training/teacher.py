"""Learning from images without annotations: the averaged model teaches the one in training.

    image, plain view      ->  averaged model (evaluation mode)  ->  Detections  ->  `pseudo_truth`  ->  Truth
    the same view, disturbed ->  model in training, with that Truth  ->  losses, weighted

What the teacher says becomes truth like this:
- Detections from `threshold` on are objects. Their category, mask and keypoints are taught, their boxes' place is not: a score says what is there, not
  how well its box fits. Masks and keypoints that the teacher is unsure of are left out, as for objects that are annotated in part.
- Detections between `ignore_threshold` and `threshold` are ignore regions: neither object nor background.
- The rest of the image is background. But an image without any sure object teaches nothing at all: it may be empty, or the teacher may be blind
  to what it shows, and a student that learns "nothing is there" makes the next teacher blinder still.

It costs the teacher's answer and a second pass of the student: from the burn-in's end on a step takes about two and a half times as long.

Source: Liu et al. 2021, "Unbiased Teacher" (arXiv 2102.09480), section 3; for masks Wang et al. 2022, "Noisy Boundaries", and Filipiak et al. 2022,
"Polite Teacher" (arXiv 2211.03850); the ignore regions of scores in between are this package's own use of what crowds need anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from ..augmentation.loader import TrainingLoader
from ..augmentation.strong import strong_augmentation
from ..augmentation.training_set import TrainingSet, collate
from ..config import AugmentConfig, ModelConfig, TrainConfig, UnlabeledConfig
from ..structures import Batch, Detections, Truth
from .processes import Processes
from .sampler import BatchPlan

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..model.maskrcnn import MaskRCNN

_FAR = 1e5  # pixels: beyond every anchor, also those that reach out of their image
_NOT_TAUGHT = ("rpn_box", "box")
_STREAM = 1  # of random numbers: the unlabeled images' order and views are not those of the annotated ones


@dataclass(frozen=True)
class Lesson:
    """A batch that the student learns from, and what the teacher says of it."""

    batch: Batch
    truth: Truth
    scores: Float[Tensor, "B N"]
    """Of the sure objects, elsewhere 0."""


class Teacher:
    """Lessons for every step of a run from its unlabeled images: a function of the step's number and of the averaged weights alone.

    Args:
        model: the averaged model, in evaluation mode.
        images: without annotations.
        config: of the training.
        processes: share the images.
        terms: names of the losses, in order.
    """

    columns = (
        "unlabeled/weight",
        "unlabeled/loss",
        "unlabeled/objects",
        "unlabeled/score",
        "unlabeled/masks",
        "unlabeled/silent",
    )
    """Of metrics.csv. Weight and loss of the unlabeled part; sure objects an image, their mean score, the part of them with a mask; the part of
    the images that teach nothing."""

    def __init__(
        self,
        model: MaskRCNN,
        images: CocoDataset,
        config: TrainConfig,
        processes: Processes,
        terms: Sequence[str],
    ) -> None:
        self.model, self.images, self.config, self.processes = model, images, config, processes
        self.batch_size = max(1, round(config.unlabeled.ratio * config.batch_size))
        self.taught = torch.tensor(
            [float(term not in _NOT_TAUGHT) for term in terms], device=processes.device
        )
        """1 for the loss terms that are taught, else 0: every term takes part, so that all processes have the same gradients."""
        self._views = TrainingSet(images, model.config, plain_view(config.augment))
        ratios = [self._views.aspect_ratio(i) for i in range(len(images))]
        seed = int(np.random.SeedSequence((config.seed, _STREAM)).generate_state(1)[0])
        self._plan = BatchPlan(
            len(images), self.batch_size, ratios, seed, processes.rank, processes.world
        )
        self._batches: Iterator[tuple[Batch, Truth]] | None = None

    def weight(self, step: int, total: int | None) -> float:
        """Of the unlabeled losses at optimizer step `step` (from 0) of `total`: 0 in the burn-in, then rising in a line.

        It is 0 while the length of a run with `max_time` is not yet known.
        """
        config = self.config.unlabeled
        if total is None or step < (first := first_lesson(config, total)):
            return 0.0
        return config.weight * min(1.0, (step - first + 1) / (config.ramp * total + 1))

    def lesson(self, step: int, micro_step: int) -> Lesson:
        """The lesson of a forward pass; to be asked for in the order of the passes."""
        if self._batches is None:
            self._batches = self._from_the_plan(step * self.config.accumulate + micro_step)
        return self._taught(next(self._batches)[0])

    def sample(self) -> Lesson:
        """A lesson beside the run, to measure how long one takes."""
        return self._taught(
            collate(
                [self._views.example(*chosen) for chosen in self._plan.batch(0)],
                self.model.config.input.size_divisor,
            )[0]
        )

    def numbers(self, lesson: Lesson, terms: Float[Tensor, "T"]) -> Float[Tensor, "5"]:
        """What a lesson gives for the log, to be added up over the passes of a step and averaged over the processes (see `row`)."""
        objects = lesson.truth.valid & ~lesson.truth.ignore
        counts = torch.stack(
            [
                objects.sum(),
                lesson.scores.sum(),
                (objects & lesson.truth.has_mask).sum(),
                (~objects.any(dim=1)).sum(),
            ]
        )
        return (
            torch.cat([(terms * self.taught).sum()[None], counts / len(objects)])
            / self.config.accumulate
        )

    def row(self, weight: float, numbers: Sequence[float]) -> dict[str, float]:
        """The columns of the log for a step."""
        loss, objects, scores, masks, silent = numbers
        of_objects = (
            {"unlabeled/score": scores / objects, "unlabeled/masks": masks / objects}
            if objects
            else {}
        )
        return {
            "unlabeled/weight": weight,
            "unlabeled/loss": loss,
            "unlabeled/objects": objects,
            "unlabeled/silent": silent,
        } | of_objects

    def plan(self, total: int | None) -> str:
        """What is going to happen, in a line."""
        start = (
            f"step {first_lesson(self.config.unlabeled, total) + 1}"
            if total
            else f"{self.config.unlabeled.burn_in:.0%} of the run"
        )
        images = self.batch_size * self.config.accumulate * self.processes.world
        return f"{len(self.images)} unlabeled images, {images} a step from {start} on; such a step takes about 2.5 times as long"

    def close(self) -> None:
        """Ends the loader's processes."""
        self._batches = None

    def _from_the_plan(self, start: int) -> Iterator[tuple[Batch, Truth]]:
        batches, cuda = self._plan.batches(start), self.processes.device.type == "cuda"
        return iter(
            TrainingLoader(
                self._views,
                batches,
                self.config.workers,
                self.model.config.input.size_divisor,
                pin_memory=cuda,
            )
        )

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Lesson:
        batch = batch.to(self.processes.device, non_blocking=True)
        truth, scores = pseudo_truth(self.model(batch), self.model.config, self.config.unlabeled)
        return Lesson(strong_augmentation(batch), truth, scores)


def first_lesson(config: UnlabeledConfig, total: int) -> int:
    """The step (from 0) at which unlabeled images begin."""
    return math.ceil(config.burn_in * total)


def plain_view(augment: AugmentConfig) -> AugmentConfig:
    """The geometry of the training, in true colors and with nothing pasted: what the teacher sees."""
    return replace(augment, copy_paste=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def pseudo_truth(
    found: Detections, model: ModelConfig, config: UnlabeledConfig
) -> tuple[Truth, Float[Tensor, "B N"]]:
    """What a teacher finds, as truth for a student; the head of this file says how.

    Args:
        found: the teacher's answer for a batch, in model-input pixels.
        model: says how large mask truth is and where keypoints stand.
        config: the thresholds.

    Returns:
        The truth, and the scores of its objects (0 in other rows). The last row of an image is an ignore region over all of it, valid where
        nothing sure was found.
    """
    sure = found.valid & (found.scores >= config.threshold)
    doubtful = found.valid & (found.scores >= config.ignore_threshold) & ~sure
    used = int((sure | doubtful).sum(dim=1).max())  # best first, so these come first
    boxes, labels, sure, doubtful, scores = (
        t[:, :used] for t in (found.boxes, found.labels, sure, doubtful, found.scores)
    )
    everywhere = boxes.new_tensor([-_FAR, -_FAR, _FAR, _FAR]).expand(len(boxes), 1, 4)
    silent = ~sure.any(dim=1, keepdim=True)
    masks, has_mask = _masks(found, sure, model, config)
    keypoints = _keypoints(found, labels, model, config)
    objects = _with_row(sure, False)
    return Truth(
        boxes=torch.cat([boxes, everywhere], dim=1),
        labels=_with_row(labels, 0),
        valid=torch.cat([sure | doubtful, silent], dim=1),
        ignore=~objects,
        has_box=objects,
        masks=_with_row(masks, 0),
        has_mask=_with_row(has_mask, False),
        keypoints=_with_row(keypoints, 0.0),
        has_keypoints=objects & (_with_row(keypoints, 0.0)[..., 2] > 0).any(dim=2),
    ), _with_row(torch.where(sure, scores, 0.0), 0.0)


def _masks(
    found: Detections, sure: Bool[Tensor, "B N"], model: ModelConfig, config: UnlabeledConfig
) -> tuple[UInt8[Tensor, "B N S S"], Bool[Tensor, "B N"]]:
    """Truth crops, inside where the teacher's probability reaches the model's threshold, and which of them can be trusted.

    Trust is the mean probability of the inside: Cheng et al. 2023, "BoxTeacher", section 3.2.
    """
    if found.masks is None or model.mask is None:
        return torch.zeros(
            *sure.shape, 1, 1, dtype=torch.uint8, device=sure.device
        ), torch.zeros_like(sure)
    grids, size = found.masks[:, : sure.shape[1]].float(), model.mask.truth_size
    inside = grids >= model.mask.threshold
    trust = (grids * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)
    trusted = sure & (trust >= config.mask_threshold)
    masks = torch.zeros(*sure.shape, size, size, dtype=torch.uint8, device=grids.device)
    fine = F.interpolate(grids[trusted][:, None], size=(size, size), mode="bilinear")[
        :, 0
    ]  # as masks are pasted (ops/paste_masks.py, "border")
    masks[trusted] = (fine >= model.mask.threshold).to(torch.uint8) * 255
    return masks, trusted


def _keypoints(
    found: Detections, labels: Int64[Tensor, "B N"], model: ModelConfig, config: UnlabeledConfig
) -> Float[Tensor, "B N J 3"]:
    """Each object's keypoints at the heat-map channels of its category, unlabeled where the teacher is unsure."""
    if found.keypoints is None or model.keypoint is None:
        return torch.zeros(*labels.shape, 0, 3, device=labels.device)
    given = found.keypoints[:, : labels.shape[1]].float()
    starts, counts = torch.tensor(model.keypoint_slices, device=labels.device)[labels].unbind(
        dim=-1
    )
    keypoint = torch.arange(model.num_keypoint_channels, device=labels.device) - starts[..., None]
    place = keypoint.clamp(0, given.shape[2] - 1)[..., None].expand(-1, -1, -1, 3)
    points = given.gather(2, place)
    known = (
        (keypoint >= 0)
        & (keypoint < counts[..., None])
        & (points[..., 2] >= config.keypoint_threshold)
    )
    return (
        torch.cat([points[..., :2], torch.full_like(points[..., 2:], 2.0)], dim=-1)
        * known[..., None]
    )


def _with_row(values: Tensor, value: float) -> Tensor:
    """A row more in every image."""
    return torch.cat([values, values.new_full((len(values), 1, *values.shape[2:]), value)], dim=1)
