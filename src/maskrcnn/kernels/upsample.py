"""Enlarging a feature map to the size of the next finer level: each value is repeated."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from . import nvidia


def upsample(x: Float[Tensor, "B C H W"], size: Sequence[int]) -> Float[Tensor, "B C H2 W2"]:
    """Returns the nearest value of x at each cell of a map of another size.

    PyTorch's kernel for a GPU takes ten times as long as the memory allows. Where the size doubles,
    which is the usual case, a prediction copies each feature vector to four cells instead.
    """
    height, width = x.shape[2:]
    if tuple(size) != (2 * height, 2 * width) or not nvidia.can_predict(x):
        return F.interpolate(x, size=size, mode="nearest")

    cells = x.permute(0, 2, 3, 1)[:, :, None, :, None]
    fourfold = cells.expand(-1, -1, 2, -1, 2, -1).reshape(len(x), *size, x.shape[1])
    return fourfold.permute(0, 3, 1, 2)
