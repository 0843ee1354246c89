"""The training loop. `train` is the whole of it; `Trainer.step` is one optimiser step.

In: a `ModelConfig` (random or pretrained weights) or a `MaskRCNN` (its weights), annotated pictures, a `TrainConfig`. Out: a run folder and a `Run`.

    out/config.json            model, training and data settings        out/best.safetensors   the model with the best validation AP
    out/metrics.csv            a row a step                             out/last.safetensors   the newest model (averaged weights where ema > 0)
    out/tensorboard/           the same as events                       out/checkpoint.safetensors   all that a resumed run continues from
    out/curves.png             the same as a picture        out/examples.png   the first pictures as the model sees them, with their truth

Exact resume: what a step does depends on the weights, the optimiser's state and the step's number alone. Pictures and their augmentation come from a
stateless plan, anchors and RoIs are drawn from the pictures' seeds, and torch's generator is seeded anew at every step.

Several processes (torchrun) average gradients and the normalisers of the losses, so that they do together what one does with all their pictures.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..config import ModelConfig, TrainConfig
from ..data.check import summary
from ..settings import to_dict
from .checkpoint import claim_folder, fingerprint, load_model_tensors, write_checkpoint
from .curves import draw_curves
from .log import RunLog, read_rows
from .optim import Ema, images_per_step, load_optimizer_tensors, make_optimizer, optimizer_tensors, rate_factor, scaled_rate, set_rate
from .pace import Pace
from .processes import Processes
from .sampler import training_plan
from .setup import check_settings, duration, first_line, make_network, run_length, step_seed
from .validate import evaluation_rows, loss_terms, validate, validation_columns

if TYPE_CHECKING:
    from ..data.coco import CocoDataset
    from ..model.maskrcnn import MaskRCNN
    from ..structures import Batch, Truth
    from .teacher import Teacher

MOST_TIME_SAVING = 0.05  # of the run: large checkpoints are written less often than `checkpoint_every` says
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(ValueError):
    """A loss or gradient that is infinite or not a number; `image_ids` are the pictures of its batch in all processes."""

    def __init__(self, message: str, image_ids: list[int]) -> None:
        super().__init__(message)
        self.image_ids = image_ids


@dataclass
class Run:
    """A finished training."""

    model: MaskRCNN
    """The best model by validation AP, the last one without validation; under torchrun the best one is in the main process only."""
    out: Path
    history: list[dict[str, float]]
    """The rows of metrics.csv that hold an evaluation; empty outside the main process."""
    best: dict[str, float] | None
    """Step and numbers of the best evaluation."""


@dataclass
class State:
    """Where a run stands, as plain data for the checkpoint."""

    step: int = 0
    total: int | None = None
    """Steps of the run; None while `max_time` is still being measured."""
    seconds: float = 0.0
    """Since the first step, in all sittings, evaluations and checkpoints included."""
    best: dict[str, float] | None = None
    evaluations_since_best: int = 0
    stopped: bool = False
    """Early, for want of progress."""
    log_bytes: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)


def train(
    model: ModelConfig | MaskRCNN,
    data: CocoDataset,
    validation: CocoDataset | None = None,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    out: str | Path = "runs/train",
    resume: bool = False,
    progress: bool = True,
    device: str | None = None,
    unlabelled: str | Path | Iterable[str | Path] | CocoDataset | None = None,
    pretrained: str | Path | None = None,
    clock: Callable[[], float] | None = None,
) -> Run:
    """Trains a model and keeps its best and its last state in a folder.

    Args:
        model: a configuration, or a model to continue from its own weights; it stays as it is.
        data: pictures to learn from; their categories are the model's.
        validation: pictures to judge by, every `config.evaluate_every` epochs and at the end.
        out: folder of the run, which all processes see.
        resume: go on from the checkpoint in `out`, to the same weights as without the interruption (bit for bit on a CPU with as many threads);
            from the beginning where there is none.
        progress: show what is going on.
        device: such as "cpu" or "cuda"; a GPU where there is one by default.
        unlabelled: pictures without annotations to learn from as well (a folder, files): what the averaged model is sure of is taught. Those that
            `data` and `validation` hold are left out. See `config.unlabelled`, and teacher.py for what is done.
        pretrained: what a configuration starts from: the name of an ImageNet trunk, or name, file or run folder of a detector, of which all that fits
            is kept; None = random weights. It is recorded in the run's config.json, with what did not fit.
        clock: what measures time, in seconds: `time.process_time` counts this process's work, whatever else the machine does.

    Raises:
        ValueError: `out` holds a run and `resume` is False; settings or data differ from those of the run to resume; categories differ.
        NonFiniteLossError: the training diverged, or a picture breaks it.
    """
    from .unlabelled import open_unlabelled

    processes = Processes.start(device)
    pictures = open_unlabelled(unlabelled, data, validation) if unlabelled is not None else None
    with contextlib.closing(Trainer(model, data, validation, config, Path(out), processes, resume, progress, pictures, pretrained, clock)) as trainer:
        trainer.draw_examples()
        while not trainer.finished:
            row = trainer.step()
            if trainer.length_due():
                row |= trainer.fix_length()
            if trainer.evaluation_due and "val_loss" not in row:
                row |= trainer.evaluate()
            trainer.log.row(row, trainer.state.total)
            if trainer.checkpoint_due or "val_loss" in row:
                trainer.save()
        return trainer.result()


class TrainStep(nn.Module):
    """`losses` as a forward call, which is what DistributedDataParallel watches."""

    def __init__(self, model: MaskRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, truth: Truth) -> dict[str, Tensor]:
        """The terms of the loss."""
        return self.model.losses(batch, truth)


class Trainer:
    """All that takes part in a run, and what is done with it."""

    def __init__(
        self,
        model: ModelConfig | MaskRCNN,
        data: CocoDataset,
        validation: CocoDataset | None,
        config: TrainConfig,
        out: Path,
        processes: Processes,
        resume: bool,
        progress: bool,
        unlabelled: CocoDataset | None = None,
        pretrained: str | Path | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        check_settings(config, data, unlabelled)
        self.config, self.data, self.validation, self.out, self.processes = config, data, validation, out, processes
        self.clock = clock or time.monotonic
        start = make_network(model, data, validation, config, pretrained)
        self.model = start.network.to(processes.device).to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, config)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.precision == "fp16")
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.terms = loss_terms(self.model.config)
        self.teacher = self._teacher(unlabelled) if unlabelled is not None else None
        self.images_per_step, self.rate = images_per_step(config, processes.world), scaled_rate(config, processes.world)
        self.state = State(total=run_length(config, len(data), self.images_per_step))
        self.settings = {"model": to_dict(self.model.config), "train": to_dict(config), "processes": processes.world}
        self.settings["pretrained"] = start.record
        parts = {"data": data, "validation": validation, "unlabelled": unlabelled}
        self.settings |= {name: fingerprint(part) for name, part in parts.items() if part is not None}
        found = claim_folder(out, self.settings, resume, processes)
        if found:
            self._restore(*found)
        self.forward = processes.wrap(TrainStep(self.model))
        self.pace = Pace(config.max_time or math.inf)
        self.saved_at, self.asides = self.clock(), {}
        self.batches: Iterator[tuple[Batch, Truth]] | None = None
        self.log = self._log(progress, resumed=bool(found))
        self.log.say(first_line(self.state.total, data, config, processes, out))
        self.log.say(f"starts from {start}")
        for part in parts.values():
            if part is not None and part.notes:
                self.log.say(f"{summary(part.name, part.notes)}; maskrcnn check lists them")
        if self.teacher:
            self.log.say(self.teacher.plan(self.state.total))
        if resume:
            self.log.say(f"resumed after step {self.state.step}" if found else f"no checkpoint in {out}: starting from the beginning")

    def draw_examples(self) -> None:
        """Writes examples.png before the first step of a run."""
        if self.processes.main and self.state.step == 0:
            from .examples import draw_examples

            draw_examples(self.data, self.model.config, self.config).save(self.out / "examples.png")

    # One step

    def step(self) -> dict[str, float]:
        """One optimiser step; its numbers by column."""
        start, state, config = self.clock(), self.state, self.config
        rate = self.rate * rate_factor(state.step, state.total, config)
        set_rate(self.optimizer, rate)
        torch.manual_seed(step_seed(config.seed, state.step, self.processes.rank))

        weight = self.teacher.weight(state.step, state.total) if self.teacher else 0.0
        losses, image_ids, waited = self._backward(weight)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, config.clip_norm or math.inf)
        *means, norm = self.processes.average(torch.cat([losses, norm[None]])).tolist()  # the only wait for the device
        means, taught = means[: len(self.terms)], means[len(self.terms) :]
        self._stop_if_not_finite(means, norm, image_ids, rate)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(state.step)

        seconds = self.clock() - start
        self.pace.steps.append(seconds)
        state.step += 1
        state.seconds += seconds
        row = {"step": state.step, "epoch": state.step * self.images_per_step / len(self.data), "time": state.seconds, "learning_rate": rate}
        row |= {"loss": sum(means)} | {f"loss/{term}": value for term, value in zip(self.terms, means, strict=True)}
        row |= {"gradient_norm": norm, "data_wait": waited, "images_per_second": self.images_per_step / seconds} | self.asides
        row |= self.teacher.row(weight, taught) if self.teacher and taught else {}
        self.asides = {}
        return row

    def _backward(self, unlabelled_weight: float) -> tuple[Tensor, list[int], float]:
        """Gradients of all batches of a step: mean loss terms and, if they have a weight, the numbers of the unlabelled pictures; the annotated
        pictures' ids; seconds spent waiting for data."""
        count = self.config.accumulate
        teacher = self.teacher if unlabelled_weight else None
        sums, numbers, image_ids, waited = torch.zeros(len(self.terms), device=self.processes.device), [], [], 0.0
        for micro_step in range(count):
            start = self.clock()
            batch, truth = self._next_batch()
            waited += self.clock() - start
            image_ids += batch.image_ids
            # Gradients travel between the processes once a step, with the last pass.
            last = micro_step == count - 1
            sums += self._learn(batch, truth, 1.0, last and teacher is None) / count
            if teacher:
                with self._precision():
                    lesson = teacher.lesson(self.state.step, micro_step)
                terms = self._learn(lesson.batch, lesson.truth, teacher.taught * unlabelled_weight, last)
                numbers.append(teacher.numbers(lesson, terms))
        return torch.cat([sums, *([torch.stack(numbers).sum(dim=0)] if numbers else [])]), image_ids, waited

    def _learn(self, batch: Batch, truth: Truth, weights: Tensor | float, shared: bool) -> Tensor:
        """Adds the gradients of one of a step's forward passes, its terms weighted; the terms. The processes share all gradients if `shared`."""
        device = self.processes.device
        apart = isinstance(self.forward, nn.parallel.DistributedDataParallel) and not shared
        with self.forward.no_sync() if apart else contextlib.nullcontext():
            with self._precision():
                losses = self.forward(batch.to(device, non_blocking=True), truth.to(device, non_blocking=True))
            terms = torch.stack([losses[term].float() for term in self.terms])
            self.scaler.scale((terms * weights).sum() / self.config.accumulate).backward()
        return terms.detach()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.processes.device.type, DTYPES[self.config.precision], enabled=self.config.precision != "fp32")

    def _teacher(self, unlabelled: CocoDataset) -> Teacher:
        from .teacher import Teacher

        assert self.ema is not None  # checked with the settings
        return Teacher(self.ema.model, unlabelled, self.config, self.processes, self.terms)

    def _next_batch(self) -> tuple[Batch, Truth]:
        if self.batches is None:
            from ..data.dataset import TrainingSet
            from ..data.loader import TrainingLoader

            config, processes, model = self.config, self.processes, self.model.config
            pictures = TrainingSet(self.data, model, config.augment)
            plan = training_plan(self.data, config, processes.rank, processes.world)
            batches = plan.batches(start=self.state.step * config.accumulate)
            self.batches = iter(
                TrainingLoader(pictures, batches, config.workers, model.input.size_divisor, pin_memory=processes.device.type == "cuda")
            )
        return next(self.batches)

    def _stop_if_not_finite(self, means: list[float], norm: float, image_ids: list[int], rate: float) -> None:
        names = [f"{term} {value}" for term, value in zip(self.terms, means, strict=True) if not math.isfinite(value)]
        if not names and not math.isfinite(norm) and not self.scaler.is_enabled():  # a scaler skips such steps and lowers its scale
            names = [f"gradient norm {norm}"]
        if names:
            ids = [i for part in self.processes.gather(image_ids) for i in part]
            raise NonFiniteLossError(
                f"step {self.state.step + 1}: {', '.join(names)}, must be finite, for the images {', '.join(map(str, ids))}. Look at their "
                f"annotations, or lower learning_rate (now {self.config.learning_rate:g}; {rate:.3g} at this step). "
                f"{self.out} holds the checkpoint from before",
                ids,
            )

    # Between steps

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.state.stopped or (self.state.total is not None and self.state.step >= self.state.total)

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation belongs to the step just done."""
        every, images = self.config.evaluate_every * len(self.data), self.state.step * self.images_per_step
        return self.validation is not None and (self.finished or images // every > (images - self.images_per_step) // every)

    @property
    def checkpoint_due(self) -> bool:
        """Whether the run is at its end or enough time has passed."""
        every = max(self.config.checkpoint_every, self.pace.checkpoint / MOST_TIME_SAVING)
        return self.finished or self.clock() - self.saved_at > every

    def length_due(self) -> bool:
        """Whether the number of steps of a run with `max_time` can be fixed now."""
        return self.state.total is None and self.processes.from_main(self.pace.ready(self.state.seconds))

    def fix_length(self) -> dict[str, float]:
        """Decides how many steps fit into `max_time`; where evaluations lie ahead, after doing one to see how long it takes."""
        state, between = self.state, self.config.evaluate_every * len(self.data) / self.images_per_step

        if self.teacher:
            self.pace.burn_in, self.pace.lesson = self.config.unlabelled.burn_in, self._lesson_seconds()

        def fitting() -> int:
            total = self.processes.from_main(self.pace.total(state.step, state.seconds, between, self.config.checkpoint_every))
            return min(total, self.config.steps or total)

        row = self.evaluate() if self.validation is not None and fitting() > between else {}
        state.total = fitting()
        self.saved_at = -math.inf  # so that the number is on the disk before the next step
        self.log.say(f"{state.total} steps fit into {duration(self.pace.max_time)}, {self.pace.step_seconds():.3g} s each")
        return row

    def _lesson_seconds(self) -> float:
        """How much longer a step with unlabelled pictures takes: two are made without a trace; the first is not counted, for memory is allocated."""
        assert self.teacher is not None
        seconds = [0.0, 0.0]
        self.model.eval()  # the statistics stay
        for i in range(2):
            start = self.clock()
            with self._precision():
                lesson = self.teacher.sample()
            self._learn(lesson.batch, lesson.truth, self.teacher.taught, shared=True).tolist()  # waits for the device
            seconds[i] = self.clock() - start
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        self.state.seconds += sum(seconds)
        return seconds[1] * self.config.accumulate

    def evaluate(self) -> dict[str, float]:
        """Judges the averaged weights, keeps them if they are the best so far; the numbers by column."""
        assert self.validation is not None
        start, state = self.clock(), self.state
        numbers = validate(self.averaged, self.validation, self.config, self.processes)
        if state.best is None or numbers["val/AP"] > state.best["val/AP"]:
            state.best, state.evaluations_since_best = {"step": state.step, **numbers}, 0
            self._keep("best.safetensors")
        else:
            state.evaluations_since_best += 1
        state.stopped = self.config.patience is not None and state.evaluations_since_best >= self.config.patience
        self.pace.evaluation = self.clock() - start
        state.seconds += self.pace.evaluation
        parts = ", ".join(f"{name.removeprefix('val/')} {value:.3f}" for name, value in numbers.items() if name.startswith("val/"))
        self.log.say(f"step {state.step}, validation: loss {numbers['val_loss']:.3f}, {parts} ({duration(self.pace.evaluation)})")
        if state.stopped:
            self.log.say(f"stopped: no better AP in {self.config.patience} evaluations")
        return numbers | {"evaluation_seconds": self.pace.evaluation}

    def save(self) -> None:
        """Writes the newest model and the checkpoint."""
        start = self.clock()
        if self.processes.main:
            self._keep("last.safetensors")
            self.state.log_bytes, self.state.scaler = self.log.length(), self.scaler.state_dict()
            tensors = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizer)}
            tensors |= {"ema": self.ema.model.state_dict()} if self.ema else {}
            write_checkpoint(self.out / "checkpoint.safetensors", tensors, {"state": asdict(self.state), "settings": self.settings})
        self.saved_at = self.clock()
        self.pace.checkpoint = self.saved_at - start
        self.state.seconds += self.pace.checkpoint
        self.asides["checkpoint_seconds"] = self.pace.checkpoint

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
        load_model_tensors(self.model, tensors["model"])
        load_optimizer_tensors(self.model, self.optimizer, tensors.get("optimizer", {}))
        if self.ema:
            load_model_tensors(self.ema.model, tensors["ema"])
        self.state = State(**state)
        self.scaler.load_state_dict(self.state.scaler)

    def _keep(self, name: str) -> None:
        """Writes the averaged weights as a model file."""
        from ..weights.load import save

        if self.processes.main:
            save(self.averaged, self.out / name, info={"step": self.state.step, "best": self.state.best})

    @property
    def averaged(self) -> MaskRCNN:
        """The model that is evaluated and saved."""
        return self.ema.model if self.ema else self.model

    def result(self) -> Run:
        """The best model and the story of its training, with a picture of it in the folder."""
        from ..weights.load import load

        model, rows = self.averaged.eval(), []
        if self.processes.main:
            rows = read_rows(self.out / "metrics.csv")
            draw_curves(rows, self.out / "curves.png")
            if self.state.best and self.validation:
                model = load(self.out / "best.safetensors", device=str(self.processes.device))
        best = f", best AP {self.state.best['val/AP']:.3f} after step {self.state.best['step']}" if self.state.best else ""
        self.log.say(f"done: {self.state.step} steps in {duration(self.state.seconds)}{best}; {self.out}")
        return Run(model, self.out, list(evaluation_rows(rows)), self.state.best)

    def close(self) -> None:
        """Ends the loader's processes and closes the log."""
        self.batches = None
        if self.teacher:
            self.teacher.close()
        self.log.close()

    def _log(self, progress: bool, resumed: bool) -> RunLog:
        columns = ["step", "epoch", "time", "learning_rate", "loss", *(f"loss/{term}" for term in self.terms)]
        columns += ["gradient_norm", "data_wait", "images_per_second", "checkpoint_seconds"]
        columns += self.teacher.columns if self.teacher else []
        columns += [*validation_columns(self.model.config), "evaluation_seconds"] if self.validation else []
        return RunLog(
            self.out if self.processes.main else None,
            columns,
            progress=progress,
            tensorboard=self.config.tensorboard,
            resume_at=self.state.log_bytes if resumed else None,
            first_step=self.state.step,
            total=self.state.total,
        )
