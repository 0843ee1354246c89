"""What several training processes must agree on."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def average_over_ranks(count: Tensor) -> Tensor:
    """The mean of a scalar over all training processes, itself where there is one.

    A loss that each rank divides by this average is, averaged over the ranks, the loss of the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return count
    total = count.detach().float().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
