"""How weights are updated: optimizer and parameter groups, learning rate of each step, averaged
weights.

In: a model and a `TrainConfig`. Out: a torch optimizer, the learning rate as a pure function of the
step, and an `EMA` of the model. The optimizer's state is saved as flat named tensors and restored
bit for bit.
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
    """Images of one optimizer step, over all processes."""
    return config.batch_size * config.accumulate * world


def scaled_rate(config: TrainConfig, world: int = 1) -> float:
    """The peak learning rate for the actual number of images per step.

    It scales linearly with that number for SGD, whose gradient noise averages out in proportion.
    For AdamW, whose steps are already normalized, it scales with the square root.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD"; Malladi et al. 2022, "On the SDEs
    and Scaling Rules for Adaptive Gradient Algorithms".
    """
    ratio = images_per_step(config, world) / config.reference_batch
    return config.learning_rate * (ratio if config.optimizer == "sgd" else math.sqrt(ratio))


def rate_factor(step: int, total: int | None, config: TrainConfig) -> float:
    """The factor on the peak learning rate at optimizer step `step` (from 0) of `total`.

    A linear warm-up of `config.warmup` steps (at most a tenth of the run), then a cosine to zero or
    steps by `gamma`. While `total` is None (a run with `max_time` before its number of steps is
    decided) only the warm-up applies.
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
    """SGD or AdamW over the weights that require a gradient.

    Vectors (biases, normalization weights) get no weight decay.
    """
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
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state (momenta, step counts) as flat tensors, "<weight's name>/<kind>"."""
    return {
        f"{name}/{kind}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restores what `optimizer_tensors` returned, in the memory layout of the weights."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, kind = key.rsplit("/", 1)
        parameter = parameters[name]
        if value.shape == parameter.shape:
            restored = torch.empty_like(parameter)
        else:
            restored = torch.empty_like(value, device=parameter.device)
        optimizer.state[parameter][kind] = restored.copy_(value)


class EMA(Generic[M]):
    """A moving average of the weights and of the running statistics, which is evaluated and saved.

    The decay starts low, min(decay, (1 + t) / (10 + t)): early weights are forgotten quickly, so
    that short runs also work.
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
