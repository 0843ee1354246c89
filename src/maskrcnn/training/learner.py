"""The network and all that changes its weights: optimizer, averaged weights, precision, and one step of them.

In: a network, annotated images (and, with a teacher, others), a `TrainConfig`. Out: `step(number, total)`, the numbers of an optimizer step by
column; `tensors()`, all that a step depends on besides its number.

What a step does depends on the weights, the optimizer's state and the step's number alone. Images and their augmentation come from a stateless
plan, anchors and RoIs are drawn from the images' seeds, and torch's generator is seeded anew at every step.
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
    from ..model.maskrcnn import MaskRCNN
    from ..structures import Batch, Truth
    from .teacher import Teacher

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(ValueError):
    """A loss or gradient that is infinite or not a number; `image_ids` are the images of its batch in all processes."""

    def __init__(self, message: str, image_ids: list[int]) -> None:
        super().__init__(message)
        self.image_ids = image_ids


class TrainStep(nn.Module):
    """`losses` as a forward call, which is what DistributedDataParallel watches."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, truth: Truth) -> dict[str, Tensor]:
        """The terms of the loss."""
        return self.model.losses(batch, truth)


class Learner:
    """A network that learns.

    Args:
        network: its weights are changed.
        data: annotated images.
        config: of the training.
        processes: share the images and average the gradients.
        unlabeled: images without annotations, if any.
        clock: what measures time, in seconds.
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
        self.data, self.config, self.processes, self.clock = data, config, processes, clock
        # On a CPU the features are channels last but not the weights, for the optimizer would copy their gradients.
        layout = torch.contiguous_format if processes.device.type == "cpu" else torch.channels_last
        self.model = network.to(processes.device).to(memory_format=layout).train()
        self.model.layout = torch.channels_last
        self.optimizer = make_optimizer(self.model, config)
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.scaler = torch.amp.GradScaler(
            processes.device.type, enabled=config.precision == "fp16"
        )
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.terms = loss_terms(self.model.config)
        self.teacher = self._teacher(unlabeled) if unlabeled is not None else None
        self.images_per_step, self.rate = (
            images_per_step(config, processes.world),
            scaled_rate(config, processes.world),
        )
        self.batches: Iterator[tuple[Batch, Truth]] | None = None
        self._forward: nn.Module | None = None

    @property
    def averaged(self) -> MaskRCNN:
        """The model that is evaluated and saved."""
        return self.ema.model if self.ema else self.model

    @property
    def columns(self) -> list[str]:
        """What `step` gives."""
        names = [
            "learning_rate",
            "loss",
            *(f"loss/{term}" for term in self.terms),
            "gradient_norm",
            "data_wait",
        ]
        return names + list(self.teacher.columns if self.teacher else ())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint."""
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        return tensors | ({"ema": self.ema.model.state_dict()} if self.ema else {})

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], scaler: dict[str, Any]) -> None:
        """Goes back to a checkpoint."""
        load_model_tensors(self.model, tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, dict(tensors.get("optimizer", {})))
        if self.ema:
            load_model_tensors(self.ema.model, tensors["ema"])
        self.scaler.load_state_dict(scaler)

    def step(self, number: int, total: int | None) -> dict[str, float]:
        """Optimizer step `number` (from 0) of `total`; its numbers by column."""
        config = self.config
        rate = self.rate * rate_factor(number, total, config)
        set_rate(self.optimizer, rate)
        torch.manual_seed(step_seed(config.seed, number, self.processes.rank))

        weight = self.teacher.weight(number, total) if self.teacher else 0.0
        losses, image_ids, waited = self._backward(number, weight)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, config.clip_norm or math.inf)
        *means, norm = self.processes.average(
            torch.cat([losses, norm[None]])
        ).tolist()  # the second wait for the device, after that of the losses
        means, taught = means[: len(self.terms)], means[len(self.terms) :]
        self._stop_if_not_finite(number, means, norm, image_ids, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(number)
        row = {"learning_rate": rate, "loss": sum(means)} | {
            f"loss/{term}": value for term, value in zip(self.terms, means, strict=True)
        }
        row |= {"gradient_norm": norm, "data_wait": waited}
        return row | (self.teacher.row(weight, taught) if self.teacher and taught else {})

    def lesson_seconds(self) -> float:
        """How much longer a step with unlabeled images takes: two are made without a trace; the first is not counted, for memory is allocated."""
        assert self.teacher is not None
        seconds = 0.0
        self.model.eval()  # the statistics stay
        for _ in range(2):
            start = self.clock()
            with self._precision():
                lesson = self.teacher.sample()
            self._learn(
                lesson.batch, lesson.truth, self.teacher.taught, shared=True
            ).tolist()  # waits for the device
            seconds = self.clock() - start
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        return seconds * self.config.accumulate

    def close(self) -> None:
        """Ends the loader's processes."""
        self.batches = None
        if self.teacher:
            self.teacher.close()

    def _backward(self, number: int, unlabeled_weight: float) -> tuple[Tensor, list[int], float]:
        """Gradients of all batches of a step: mean loss terms and, if they have a weight, the numbers of the unlabeled images; the annotated
        images' ids; seconds spent waiting for data."""
        count = self.config.accumulate
        teacher = self.teacher if unlabeled_weight else None
        sums, numbers, image_ids, waited = (
            torch.zeros(len(self.terms), device=self.processes.device),
            [],
            [],
            0.0,
        )
        for micro_step in range(count):
            start = self.clock()
            batch, truth = self._next_batch(number)
            waited += self.clock() - start
            image_ids += batch.image_ids
            # Gradients travel between the processes once a step, with the last pass.
            last = micro_step == count - 1
            sums += self._learn(batch, truth, 1.0, last and teacher is None) / count
            if teacher:
                with self._precision():
                    lesson = teacher.lesson(number, micro_step)
                terms = self._learn(
                    lesson.batch, lesson.truth, teacher.taught * unlabeled_weight, last
                )
                numbers.append(teacher.numbers(lesson, terms))
        return (
            torch.cat([sums, *([torch.stack(numbers).sum(dim=0)] if numbers else [])]),
            image_ids,
            waited,
        )

    def _learn(self, batch: Batch, truth: Truth, weights: Tensor | float, shared: bool) -> Tensor:
        """Adds the gradients of one of a step's forward passes, its terms weighted; the terms. The processes share all gradients if `shared`."""
        if self._forward is None:
            self._forward = self.processes.wrap(TrainStep(self.model))
        forward, device = self._forward, self.processes.device
        apart = isinstance(forward, nn.parallel.DistributedDataParallel) and not shared
        with forward.no_sync() if apart else contextlib.nullcontext():
            with self._precision():
                losses = forward(
                    batch.to(device, non_blocking=True), truth.to(device, non_blocking=True)
                )
            terms = torch.stack([losses[term].float() for term in self.terms])
            self.scaler.scale((terms * weights).sum() / self.config.accumulate).backward()
        return terms.detach()

    def _precision(self) -> torch.autocast:
        return torch.autocast(
            self.processes.device.type,
            DTYPES[self.config.precision],
            enabled=self.config.precision != "fp32",
        )

    def _teacher(self, unlabeled: CocoDataset) -> Teacher:
        from .teacher import Teacher

        assert self.ema is not None  # checked with the settings
        return Teacher(self.ema.model, unlabeled, self.config, self.processes, self.terms)

    def _next_batch(self, number: int) -> tuple[Batch, Truth]:
        if self.batches is None:
            from ..augmentation.loader import TrainingLoader
            from ..augmentation.training_set import TrainingSet

            config, processes, model = self.config, self.processes, self.model.config
            batches = training_plan(self.data, config, processes.rank, processes.world).batches(
                start=number * config.accumulate
            )
            images, cuda = (
                TrainingSet(self.data, model, config.augment),
                processes.device.type == "cuda",
            )
            self.batches = iter(
                TrainingLoader(
                    images, batches, config.workers, model.input.size_divisor, pin_memory=cuda
                )
            )
        return next(self.batches)

    def _stop_if_not_finite(
        self, number: int, means: list[float], norm: float, image_ids: list[int], rate: float
    ) -> None:
        names = [
            f"{term} {value}"
            for term, value in zip(self.terms, means, strict=True)
            if not math.isfinite(value)
        ]
        if (
            not names and not math.isfinite(norm) and not self.scaler.is_enabled()
        ):  # a scaler skips such steps and lowers its scale
            names = [f"gradient norm {norm}"]
        if names:
            ids = [i for part in self.processes.gather(image_ids) for i in part]
            raise NonFiniteLossError(
                f"step {number + 1}: {', '.join(names)}, must be finite, for the images {', '.join(map(str, ids))}. Look at their "
                f"annotations, or lower learning_rate (now {self.config.learning_rate:g}; {rate:.3g} at this step). "
                "The run folder holds the checkpoint from before",
                ids,
            )
