"""The network and everything that changes its weights: optimizer, averaged weights, precision, and
one optimizer step.

In: a network, annotated images (and unlabeled ones, where there is a teacher), a `TrainConfig`.
Out: `step(number, total)`, the numbers of an optimizer step by column; `tensors()`, the state for a
checkpoint.

A step depends on the weights, the optimizer's state and the step's number alone. Images and their
augmentation come from a stateless plan, anchors and RoIs are sampled with the images' seeds, and
torch's generator is seeded at every step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from .checkpoint import load_model_tensors
from .optim import (
    EMA,
    images_per_step,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    rate_factor,
    scaled_rate,
    set_rate,
)
from .processes import Processes
from .sampler import training_plan
from .setup import step_seed
from .validate import loss_terms

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..augmentation.own_augmentation import Augmentation
    from ..model.maskrcnn import MaskRCNN
    from ..structures import Batch, Truth
    from .teacher import Teacher

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteLossError(ValueError):
    """A loss or gradient is infinite or not a number.

    `image_ids` are the images of its batch in all processes.
    """

    def __init__(self, message: str, image_ids: list[int]) -> None:
        super().__init__(message)
        self.image_ids = image_ids

    def __reduce__(self) -> tuple[type, tuple[str, list[int]]]:
        return type(self), (str(self), self.image_ids)


class TrainStep(nn.Module):
    """`losses` as a forward call, which is what DistributedDataParallel hooks into."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, truth: Truth, progress: float) -> dict[str, Tensor]:
        """The terms of the loss, where a share `progress` of the training is done."""
        return self.model.losses(batch, truth, progress)


class Learner:
    """A network and the state of its training.

    Args:
        network: its weights are changed.
        data: annotated images.
        config: settings of the training.
        processes: share the images and average the gradients.
        unlabeled: images without annotations, if any.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        network: MaskRCNN,
        data: CocoDataset,
        config: TrainConfig,
        processes: Processes,
        unlabeled: CocoDataset | None,
        clock: Callable[[], float],
    ) -> None:
        self.data = data
        self.config = config
        self.processes = processes
        self.clock = clock

        # On a CPU the features are channels last but not the weights: the optimizer would copy
        # their gradients.
        layout = torch.contiguous_format if processes.device.type == "cpu" else torch.channels_last
        self.model = network.to(processes.device).to(memory_format=layout).train()
        self.model.channels_last = True

        self.optimizer = make_optimizer(self.model, config)
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.dtype == "float16")
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.terms = loss_terms(self.model)
        self.teacher = self._teacher(unlabeled) if unlabeled is not None else None

        self.augmentation: Augmentation | None = None
        """Random changes of one's own to the annotated images."""
        self.note_unreadable: Callable[[int, str], None] | None = None
        """Called for images that cannot be read, which others replace; None = they are an error."""
        self.images_per_step = images_per_step(config, processes.world)
        self.rate = scaled_rate(config, processes.world)
        self.batches: Iterator[tuple[Batch, Truth]] | None = None
        self._forward: nn.Module | None = None
        self._progress = 0.0
        """Share of the run that is done (0..1); 0 while the number of steps is unknown."""

    @property
    def averaged(self) -> MaskRCNN:
        """The model that is evaluated and saved."""
        return self.ema.model if self.ema else self.model

    @property
    def columns(self) -> list[str]:
        """The columns that `step` returns."""
        losses = ("loss", *(f"loss/{term}" for term in self.terms))
        names = ["learning_rate", *losses, "gradient_norm", "data_wait"]
        return names + list(self.teacher.columns if self.teacher else ())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The state for a checkpoint, by group."""
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        if self.ema:
            tensors["ema"] = self.ema.model.state_dict()
        return tensors

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], scaler: dict[str, Any]) -> None:
        """Restores the state of a checkpoint."""
        load_model_tensors(self.model, tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, dict(tensors.get("optimizer", {})))
        if self.ema:
            load_model_tensors(self.ema.model, tensors["ema"])
        self.scaler.load_state_dict(scaler)

    def step(self, number: int, total: int | None) -> dict[str, float]:
        """Runs optimizer step `number` (from 0) of `total`; returns its numbers by column.

        Raises:
            NonFiniteLossError: the training diverged.
            ImageError: no image can be read for the batch.
            ProcessLostError: another process failed or is lost.
        """
        with self.processes.waiting():
            return self._step(number, total)

    def _step(self, number: int, total: int | None) -> dict[str, float]:
        config = self.config
        rate = self.rate * rate_factor(number, total, config)
        set_rate(self.optimizer, rate)
        torch.manual_seed(step_seed(config.seed, number, self.processes.rank))

        self._progress = number / total if total else 0.0
        unlabeled_weight = self.teacher.weight(number, total) if self.teacher else 0.0
        losses, image_ids, waited = self._backward(number, unlabeled_weight)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, config.clip_norm or math.inf)

        # The second host-device sync of a step; the first is that of the losses.
        *numbers, norm = self.processes.average(torch.cat([losses, norm[None]])).tolist()
        means = numbers[: len(self.terms)]
        of_unlabeled = numbers[len(self.terms) :]
        self._stop_if_not_finite(number, means, norm, image_ids, rate)

        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(number)

        row = {"learning_rate": rate, "loss": sum(means)}
        row |= {f"loss/{term}": value for term, value in zip(self.terms, means, strict=True)}
        row |= {"gradient_norm": norm, "data_wait": waited}
        if self.teacher and of_unlabeled:
            row |= self.teacher.row(unlabeled_weight, of_unlabeled)
        return row

    def unlabeled_seconds(self) -> float:
        """Extra seconds of a step that also trains on unlabeled images.

        Runs two throwaway steps; the first is a warm-up, in which memory is allocated.
        """
        assert self.teacher is not None
        seconds = 0.0
        self.model.eval()  # the running statistics stay as they are
        for _ in range(2):
            start = self.clock()
            with self._precision():
                labels = self.teacher.sample()
            terms = self._learn(labels.batch, labels.truth, self.teacher.term_weights, shared=True)
            terms.tolist()  # host-device sync
            seconds = self.clock() - start
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        return seconds * self.config.accumulate

    def close(self) -> None:
        """Stops the loader's processes."""
        self.batches = None
        if self.teacher:
            self.teacher.close()

    def _backward(self, number: int, unlabeled_weight: float) -> tuple[Tensor, list[int], float]:
        """Computes the gradients of all batches of a step.

        Returns:
            The mean loss terms, followed by the teacher's numbers if `unlabeled_weight` is not 0;
            the ids of the annotated images; the seconds spent waiting for data.
        """
        count = self.config.accumulate
        teacher = self.teacher if unlabeled_weight else None
        sums = torch.zeros(len(self.terms), device=self.processes.device)
        numbers: list[Tensor] = []
        image_ids: list[int] = []
        waited = 0.0

        for micro_step in range(count):
            start = self.clock()
            batch, truth = self._next_batch(number)
            waited += self.clock() - start
            image_ids += batch.image_ids

            # Processes exchange gradients once a step, with the last pass.
            last = micro_step == count - 1
            truth = self._with_teacher_masks(batch, truth)
            sums += self._learn(batch, truth, 1.0, last and teacher is None) / count
            if teacher:
                with self._precision():
                    labels = teacher.pseudo_labels(number, micro_step)
                weights = teacher.term_weights * unlabeled_weight
                terms = self._learn(labels.batch, labels.truth, weights, last)
                numbers.append(teacher.numbers(labels, terms))

        if numbers:
            sums = torch.cat([sums, torch.stack(numbers).sum(dim=0)])
        return sums, image_ids, waited

    def _with_teacher_masks(self, batch: Batch, truth: Truth) -> Truth:
        """Adds the averaged model's masks of objects with a box alone, where settings say so."""
        mask = self.model.config.mask
        if mask is None or self.ema is None or not mask.from_boxes.teacher_weight:
            return truth
        if self.model.mask_context == 1 or self._progress < mask.from_boxes.ramp:
            return truth
        from .mask_teacher import with_teacher_masks

        device = self.processes.device
        with self._precision():
            batch = batch.to(device, non_blocking=True)
            return with_teacher_masks(self.ema.model, batch, truth.to(device, non_blocking=True))

    def _learn(self, batch: Batch, truth: Truth, weights: Tensor | float, shared: bool) -> Tensor:
        """Adds the gradients of one forward pass of a step, with weighted terms; returns the terms.

        If `shared`, the processes average all gradients of the step.
        """
        if self._forward is None:
            self._forward = self.processes.wrap(TrainStep(self.model))
        forward = self._forward
        device = self.processes.device

        alone = isinstance(forward, nn.parallel.DistributedDataParallel) and not shared
        with forward.no_sync() if alone else contextlib.nullcontext():
            with self._precision():
                losses = forward(
                    batch.to(device, non_blocking=True),
                    truth.to(device, non_blocking=True),
                    self._progress,
                )
            terms = torch.stack([losses[term].float() for term in self.terms])
            self.scaler.scale((terms * weights).sum() / self.config.accumulate).backward()
        return terms.detach()

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.processes.device.type,
            DTYPES[self.config.dtype],
            enabled=self.config.dtype != "float32",
        )

    def _teacher(self, unlabeled: CocoDataset) -> Teacher:
        from .teacher import Teacher

        assert self.ema is not None  # checked with the settings
        return Teacher(self.ema.model, unlabeled, self.config, self.processes, self.terms)

    def _next_batch(self, number: int) -> tuple[Batch, Truth]:
        if self.batches is None:
            from ..augmentation.loader import TrainingLoader
            from ..augmentation.training_set import TrainingSet

            config = self.config
            processes = self.processes
            model = self.model.config
            plan = training_plan(self.data, config, processes.rank, processes.world)
            loader = TrainingLoader(
                TrainingSet(self.data, model, config.augment, augmentation=self.augmentation),
                plan.batches(start=number * config.accumulate),
                config.workers,
                model.input.size_divisor,
                pin_memory=processes.device.type == "cuda",
                note_unreadable=self.note_unreadable,
            )
            self.batches = iter(loader)
        return next(self.batches)

    def _stop_if_not_finite(
        self, number: int, means: list[float], norm: float, image_ids: list[int], rate: float
    ) -> None:
        wrong = [
            f"{term} {value}"
            for term, value in zip(self.terms, means, strict=True)
            if not math.isfinite(value)
        ]
        # A gradient scaler skips steps whose gradients overflow, and lowers its scale.
        if not wrong and not math.isfinite(norm) and not self.scaler.is_enabled():
            wrong = [f"gradient norm {norm}"]

        if wrong:
            ids = [i for part in self.processes.gather(image_ids) for i in part]
            shown = ", ".join(map(str, ids))
            raise NonFiniteLossError(
                f"step {number + 1}: expected finite losses, got {', '.join(wrong)} for the images "
                f"{shown}. Check their annotations, or lower learning_rate "
                f"(now {self.config.learning_rate:g}; {rate:.3g} at this step). "
                "The run folder holds the last checkpoint before this step",
                ids,
            )
