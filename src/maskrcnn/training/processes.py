"""The processes that train together, one per device: this one's rank, and values exchanged by all.

In: the environment of `torchrun` (RANK, WORLD_SIZE, LOCAL_RANK), absent for a single process.
docs/decisions/0011 explains why this does not use Accelerate.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops.device import usable_device
from .process_watch import ProcessWatch


@dataclass(frozen=True)
class Processes:
    """This process and the group it belongs to."""

    rank: int
    world: int
    device: torch.device
    watch: ProcessWatch | None = None
    """Of the other processes; None if there are none."""

    @classmethod
    def start(cls, device: str | torch.device | None = None) -> Processes:
        """Joins the process group that torchrun describes; without torchrun there is one process.

        The group stays open until the process ends. A second group would read the addresses that
        the first left in torchrun's store, and sometimes wait for them forever.

        Args:
            device: None = a GPU if there is one.

        Raises:
            ValueError: this machine does not have the device.
        """
        world = int(os.environ.get("WORLD_SIZE", 1))
        rank = int(os.environ.get("RANK", 0))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))

        if world > 1 and str(device or "cuda") == "cuda" and torch.cuda.is_available():
            device = f"cuda:{local_rank}"
        chosen = usable_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)

        if world > 1 and not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        if world == 1:
            return cls(rank, world, chosen)
        store = dist.distributed_c10d._get_default_store()
        return cls(rank, world, chosen, ProcessWatch(store, rank, world))

    @classmethod
    def alone(cls, device: str | torch.device | None = None) -> Processes:
        """One process on the device that `start` chooses; torchrun started no others."""
        return cls(0, 1, usable_device(device))

    @property
    def main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def together(self, what_is_safe: Callable[[], str] | None = None) -> AbstractContextManager:
        """While the block runs, a process that fails or is lost ends all of them with a message.

        Args:
            what_is_safe: returns a sentence for the message: what is saved, and how to go on.
        """
        if self.watch is None:
            return contextlib.nullcontext()
        self.watch.what_is_safe = what_is_safe or (lambda: "")
        return self.watch

    def waiting(self) -> AbstractContextManager:
        """A block in which this process waits for the others, or may wait for them.

        Entering or leaving it raises `ProcessLostError` where one of them failed or is lost.
        """
        return contextlib.nullcontext() if self.watch is None else self.watch.waiting()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wraps a module so that its gradients are averaged over the processes."""
        if self.world == 1:
            return module
        # A 1x1 convolution's weight has two descriptions of one memory layout; torch warns that
        # they differ.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes; not finite where the value of any process is not."""
        if self.world > 1:
            with self.waiting():
                dist.all_reduce(values)
                values /= self.world
                if values.is_cuda:
                    torch.cuda.current_stream(values.device).synchronize()
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        values: list[Any] = [None] * self.world
        if self.world == 1:
            return [value]
        with self.waiting():
            dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        values = [value]
        if self.world > 1:
            with self.waiting():
                dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]
