"""The processes that train together, one for each device: who am I, what do all have, what is their mean.

In: the environment of `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK), absent for a single process. Why this is not Accelerate: docs/decisions/0011.
"""

from __future__ import annotations

import atexit
import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """This process among all."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def start(cls, device: str | torch.device | None = None) -> Processes:
        """Joins the group that torchrun describes; alone without one. The device is a GPU where there is one, unless named.

        The group stays open until the process ends: a second one would read the addresses that the first left in torchrun's store, and now and
        then wait for them for ever.
        """
        world, rank, local = (
            int(os.environ.get(name, default))
            for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
        )
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type == "cuda":
            place = torch.device("cuda", local if place.index is None else place.index)
            torch.cuda.set_device(place)
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(rank, world, place)

    @property
    def main(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are averaged over the processes."""
        if self.world == 1:
            return module
        # A 1x1 convolution's weight has two names for one layout, and torch takes them for two.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes; not finite where one of them is not."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of the ranks."""
        values: list[Any] = [None] * self.world
        if self.world == 1:
            return [value]
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value, in all."""
        return self.gather(value)[0]
