"""Reductions over the processes that train together."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_reduce_mean(count: Tensor) -> Tensor:
    """Returns the mean of a scalar over all training processes; `count` itself in a single process.

    If each rank divides its loss by this mean, the average over ranks is the loss of the whole
    batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
