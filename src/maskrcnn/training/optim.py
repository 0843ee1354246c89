"""How weights move: the optimizer and its parameter groups, the learning rate of every step, the averaged weights.

In: a model and a `TrainConfig`. Out: a torch optimizer, a rate for each step as a pure function of the step, and an `Ema` of the model.
What has a state gives it as flat named tensors and takes it back bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ..config import TrainConfig

M = TypeVar("M", bound=nn.Module)


def images_per_step(config: TrainConfig, world: int = 1) -> int:
    """Images that one optimizer step averages over, in all processes."""
    return config.batch_size * config.accumulate * world


def scaled_rate(config: TrainConfig, world: int = 1) -> float:
    """The peak learning rate for the actual number of images per step.

    Linear in it for SGD, whose noise is averaged away in proportion; by the square root for AdamW, whose steps are already normalized.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD"; Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms".
    """
    ratio = images_per_step(config, world) / config.reference_batch
    return config.learning_rate * (ratio if config.optimizer == "sgd" else math.sqrt(ratio))


def rate_factor(step: int, total: int | None, config: TrainConfig) -> float:
    """What the peak learning rate is multiplied by at optimizer step `step` (from 0) of `total`.

    A linear warm-up of `config.warmup` steps, at most a tenth of the run, then a cosine to zero or steps by `gamma`. While the length of a
    run is not yet known (`total` None, the measured start of a run with `max_time`) there is the warm-up alone.
    """
    warmup = config.warmup if total is None else min(config.warmup, total // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if total is None:
        return 1.0
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
    return config.gamma ** sum(step >= milestone * total for milestone in config.milestones)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the weights that require a gradient; vectors (biases, norms) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, fused=fused
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors, "<weight's name>/<kind>": its momenta and step counts."""
    return {
        f"{name}/{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Takes back what `optimizer_tensors` gave, in the memory layout of the weights."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, kind = key.rsplit("/", 1)
        parameter = parameters[name]
        like = (
            torch.empty_like(parameter)
            if value.shape == parameter.shape
            else torch.empty_like(value, device=parameter.device)
        )
        optimizer.state[parameter][kind] = like.copy_(value)


class EMA(Generic[M]):
    """A moving average of the weights and of the running statistics, which is what gets evaluated and saved.

    The decay starts low, min(decay, (1 + t) / (10 + t)), so that the untrained start is forgotten and short runs work too.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the model after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average, current = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(average, current, 1 - decay)
        for average, current in self._copied:
            average.copy_(current)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
