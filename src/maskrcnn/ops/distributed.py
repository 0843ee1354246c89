"""Reductions over the processes that train together."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_count(count: Tensor) -> Tensor:
    """Returns the mean of a count over all training processes, to divide by; never 0.

    If each process divides its sum of losses by it, the average over the processes is the loss of
    the whole batch, also where fewer things are counted than there are processes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return count.clamp(min=1)
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
