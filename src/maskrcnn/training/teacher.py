"""Training on unlabeled images: the averaged model (the teacher) makes pseudo-labels for the model
in training.

    image, plain view               ->  averaged model, evaluation mode  ->  Detections  ->
    `pseudo_truth`  ->  Truth same view, strong augmentation  ->  model in training, with that Truth
    ->  weighted losses

How detections become truth:
- Detections with a score of at least `threshold` are objects. They train category, mask and
  keypoints, but not the box: the score says what the object is, not how well its box fits. Masks
  and keypoints below their own thresholds are excluded from the loss, as for partially annotated
  objects.
- Detections between `ignore_threshold` and `threshold` are ignore regions: neither object nor
  background.
- The rest of the image is background. An image without any confident object is excluded as a whole.
  It may be empty, or the teacher may miss what it shows; training on it as background would make
  later teachers miss more.

The teacher's prediction and a second pass of the student make a step about 2.5 times as long once
the burn-in is over.

Source: Liu et al. 2021, "Unbiased Teacher" (arXiv 2102.09480), section 3; for masks Wang et al.
2022, "Noisy Boundaries", and Filipiak et al. 2022, "Polite Teacher" (arXiv 2211.03850). The ignore
regions for scores in between reuse the ignore regions that crowd annotations need anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from ..augmentation.loader import TrainingLoader
from ..augmentation.strong import strong_augmentation
from ..augmentation.training_set import TrainingSet
from ..config import AugmentConfig, ModelConfig, TrainConfig, UnlabeledConfig
from ..model.extra_head import OWN_TERMS
from ..runtime.counted import counted
from ..structures import Batch, Detections, Truth
from .processes import Processes
from .sampler import BatchPlan

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..model.maskrcnn import MaskRCNN

_FAR = 1e5  # pixels: beyond every anchor, also those that reach out of their image
_UNTRAINED_TERMS = ("rpn_box", "box")
# Random stream of the unlabeled images: their order and views differ from those of annotated ones.
_STREAM = 1


@dataclass(frozen=True)
class PseudoLabels:
    """A batch for the student, with the teacher's pseudo-labels."""

    batch: Batch
    """Strongly augmented images."""
    truth: Truth
    scores: Float[Tensor, "B N"]
    """Scores of the confident objects; 0 in other rows."""


class Teacher:
    """Makes the pseudo-labels of every step of a run.

    They depend on the step's number and on the averaged weights alone.

    Args:
        model: the averaged model, in evaluation mode.
        images: unlabeled images.
        config: settings of the training.
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
    """Columns of metrics.csv: weight and loss of the unlabeled part; confident objects per image,
    their mean score, the share of them with a mask; the share of images without a confident object.
    """

    def __init__(
        self,
        model: MaskRCNN,
        images: CocoDataset,
        config: TrainConfig,
        processes: Processes,
        terms: Sequence[str],
    ) -> None:
        self.model = model
        self.images = images
        self.config = config
        self.processes = processes
        self.batch_size = max(1, round(config.unlabeled.ratio * config.batch_size))
        self.term_weights = torch.tensor(
            [float(term in OWN_TERMS and term not in _UNTRAINED_TERMS) for term in terms],
            device=processes.device,
        )
        """1 for the loss terms that pseudo-labels train, else 0. Every term takes part, so that all
        processes have the same gradients."""

        self._views = TrainingSet(images, model.config, plain_view(config.augment))
        ratios = [self._views.aspect_ratio(i) for i in range(len(images))]
        seed = int(np.random.SeedSequence((config.seed, _STREAM)).generate_state(1)[0])
        self._plan = BatchPlan(
            len(images), self.batch_size, ratios, seed, processes.rank, processes.world
        )
        self._batches: Iterator[tuple[Batch, Truth]] | None = None
        self.note_unreadable: Callable[[int, str], None] | None = None
        """Called for images that cannot be read, which others replace; None = they are an error."""

    def weight(self, step: int, total: int | None) -> float:
        """Weight of the unlabeled losses at optimizer step `step` (from 0) of `total`.

        It is 0 during the burn-in and then rises linearly. In a run with `max_time` it is 0 until
        the number of steps is known.
        """
        config = self.config.unlabeled
        if total is None or step < (first := first_unlabeled_step(config, total)):
            return 0.0
        return config.weight * min(1.0, (step - first + 1) / (config.ramp * total + 1))

    def pseudo_labels(self, step: int, micro_step: int) -> PseudoLabels:
        """The pseudo-labels of a forward pass. Call it in the order of the passes."""
        if self._batches is None:
            first = step * self.config.accumulate + micro_step
            self._batches = self._load(first, self.config.workers)
        return self._label(next(self._batches)[0])

    def sample(self) -> PseudoLabels:
        """Pseudo-labels of the first batch, to measure how long they take; the run's order is
        unaffected.
        """
        return self._label(next(self._load(0, workers=0))[0])

    def numbers(self, labels: PseudoLabels, terms: Float[Tensor, "T"]) -> Float[Tensor, "5"]:
        """Numbers for the log (see `row`), to be summed over the passes of a step and averaged over
        the processes.
        """
        objects = labels.truth.valid & ~labels.truth.ignore
        counts = torch.stack(
            [
                objects.sum(),
                labels.scores.sum(),
                (objects & labels.truth.has_mask).sum(),
                (~objects.any(dim=1)).sum(),
            ]
        )
        loss = (terms * self.term_weights).sum()
        return torch.cat([loss[None], counts / len(objects)]) / self.config.accumulate

    def row(self, weight: float, numbers: Sequence[float]) -> dict[str, float]:
        """The columns of the log for a step."""
        loss, objects, scores, masks, silent = numbers
        row = {
            "unlabeled/weight": weight,
            "unlabeled/loss": loss,
            "unlabeled/objects": objects,
            "unlabeled/silent": silent,
        }
        if objects:
            row |= {"unlabeled/score": scores / objects, "unlabeled/masks": masks / objects}
        return row

    def plan(self, total: int | None) -> str:
        """One line of text: how many unlabeled images are used, and from which step on."""
        config = self.config.unlabeled
        start = (
            f"step {first_unlabeled_step(config, total) + 1}"
            if total
            else f"{config.burn_in:.0%} of the run"
        )
        images = self.batch_size * self.config.accumulate * self.processes.world
        return (
            f"{counted(len(self.images), 'unlabeled image')}, {images} per step from {start} on; "
            "these steps take about 2.5 times as long"
        )

    def close(self) -> None:
        """Stops the loader's processes."""
        self._batches = None

    def _load(self, start: int, workers: int) -> Iterator[tuple[Batch, Truth]]:
        loader = TrainingLoader(
            self._views,
            self._plan.batches(start),
            workers,
            self.model.config.input.size_divisor,
            pin_memory=self.processes.device.type == "cuda",
            note_unreadable=self.note_unreadable,
        )
        return iter(loader)

    @torch.no_grad()
    def _label(self, batch: Batch) -> PseudoLabels:
        batch = batch.to(self.processes.device, non_blocking=True)
        truth, scores = pseudo_truth(self.model(batch), self.model.config, self.config.unlabeled)
        return PseudoLabels(strong_augmentation(batch), truth, scores)


def first_unlabeled_step(config: UnlabeledConfig, total: int) -> int:
    """The first step (from 0) that trains on unlabeled images."""
    return math.ceil(config.burn_in * total)


def plain_view(augment: AugmentConfig) -> AugmentConfig:
    """The geometric augmentation alone, for the teacher's input: true colors, nothing pasted."""
    return replace(augment, copy_paste=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)


def pseudo_truth(
    detections: Detections, model: ModelConfig, config: UnlabeledConfig
) -> tuple[Truth, Float[Tensor, "B N"]]:
    """The teacher's detections as truth for a student; the head of this file says how.

    Args:
        detections: the teacher's predictions for a batch, in model-input pixels, best first.
        model: gives the size of mask truth and the channels of keypoints.
        config: the thresholds.

    Returns:
        The truth, and the scores of its objects (0 in other rows). The last row of an image is an
        ignore region over all of it, valid where no detection is confident.
    """
    confident = detections.valid & (detections.scores >= config.threshold)
    uncertain = detections.valid & (detections.scores >= config.ignore_threshold) & ~confident

    # Detections are sorted by score, so the used ones come first.
    used = int((confident | uncertain).sum(dim=1).max())
    confident = confident[:, :used]
    uncertain = uncertain[:, :used]
    boxes = detections.boxes[:, :used]
    labels = detections.labels[:, :used]
    scores = detections.scores[:, :used]

    masks, has_mask = _masks(detections, confident, model, config)
    keypoints = _with_row(_keypoints(detections, labels, model, config), 0.0)
    objects = _with_row(confident, False)
    everywhere = boxes.new_tensor([-_FAR, -_FAR, _FAR, _FAR]).expand(len(boxes), 1, 4)
    silent = ~confident.any(dim=1, keepdim=True)
    truth = Truth(
        boxes=torch.cat([boxes, everywhere], dim=1),
        labels=_with_row(labels, 0),
        valid=torch.cat([confident | uncertain, silent], dim=1),
        ignore=~objects,
        has_box=objects,
        masks=_with_row(masks, 0),
        has_mask=_with_row(has_mask, False),
        spans=torch.zeros_like(objects)[..., None].expand(-1, -1, 2),
        keypoints=keypoints,
        has_keypoints=objects & (keypoints[..., 2] > 0).any(dim=2),
    )
    return truth, _with_row(torch.where(confident, scores, 0.0), 0.0)


def _masks(
    detections: Detections,
    confident: Bool[Tensor, "B N"],
    model: ModelConfig,
    config: UnlabeledConfig,
) -> tuple[UInt8[Tensor, "B N S S"], Bool[Tensor, "B N"]]:
    """Mask truth of the detections, and which masks are confident.

    A cell is foreground where the teacher's probability reaches the model's threshold. A mask is
    confident where the mean probability of its foreground reaches `mask_threshold`.

    Source: Cheng et al. 2023, "BoxTeacher", section 3.2, for the mean probability.
    """
    if detections.masks is None or model.mask is None:
        empty = torch.zeros(*confident.shape, 1, 1, dtype=torch.uint8, device=confident.device)
        return empty, torch.zeros_like(confident)

    grids = detections.masks[:, : confident.shape[1]].float()
    foreground = grids >= model.mask.threshold
    area = foreground.sum(dim=(2, 3)).clamp(min=1)
    has_mask = confident & ((grids * foreground).sum(dim=(2, 3)) / area >= config.mask_threshold)

    # Resized as masks are pasted (ops/paste_masks.py, "border").
    size = model.mask.truth_size
    fine = F.interpolate(grids[has_mask][:, None], size=(size, size), mode="bilinear")[:, 0]
    masks = torch.zeros(*confident.shape, size, size, dtype=torch.uint8, device=grids.device)
    masks[has_mask] = (fine >= model.mask.threshold).to(torch.uint8) * 255
    return masks, has_mask


def _keypoints(
    detections: Detections,
    labels: Int64[Tensor, "B N"],
    model: ModelConfig,
    config: UnlabeledConfig,
) -> Float[Tensor, "B N J 3"]:
    """Each object's keypoints at the heat-map channels of its category; unlabeled below
    `keypoint_threshold`.
    """
    if detections.keypoints is None or model.keypoint is None:
        return torch.zeros(*labels.shape, 0, 3, device=labels.device)

    # From each object's own keypoints, numbered from 0, to the channels of all categories.
    given = detections.keypoints[:, : labels.shape[1]].float()
    slices = torch.tensor(model.keypoint_slices, device=labels.device)
    starts, counts = slices[labels].unbind(dim=-1)
    channels = torch.arange(model.num_keypoint_channels, device=labels.device)
    keypoint = channels - starts[..., None]
    index = keypoint.clamp(0, given.shape[2] - 1)[..., None].expand(-1, -1, -1, 3)
    points = given.gather(2, index)

    exists = (keypoint >= 0) & (keypoint < counts[..., None])
    confident = exists & (points[..., 2] >= config.keypoint_threshold)
    labeled = torch.cat([points[..., :2], torch.full_like(points[..., 2:], 2.0)], dim=-1)
    return labeled * confident[..., None]


def _with_row(values: Tensor, value: float) -> Tensor:
    """Appends a row filled with `value` to every image."""
    return torch.cat([values, values.new_full((len(values), 1, *values.shape[2:]), value)], dim=1)
