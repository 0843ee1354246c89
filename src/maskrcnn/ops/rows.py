"""What is valid in padded tensors [B, N, ..], row below row [K, ..] as the heads take it, and back at its places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .device import is_async


class Rows(NamedTuple):
    """Where the rows come from, in their order."""

    image: Int64[Tensor, "K"]
    slot: Int64[Tensor, "K"]
    valid: Bool[Tensor, "B N"]

    @classmethod
    def of(
        cls, valid: Bool[Tensor, "B N"], count: int | None = None, most: int | None = None
    ) -> Rows:
        """The valid ones, image by image.

        Args:
            valid: which there are.
            count: how many. Without it they are counted on a processor; on a device that runs ahead, where to count is to wait, the rest of the rows
                are invalid ones.
            most: how many an image has at most.
        """
        if count is None:
            count = (
                len(valid) * min(most or valid.shape[1], valid.shape[1])
                if is_async(valid.device)
                else int(valid.sum())
            )
        if count == valid.numel():
            place = torch.arange(count, device=valid.device)
        else:
            place = (~valid).flatten().to(torch.uint8).argsort(stable=True)[:count]
        return cls(place.div(valid.shape[1], rounding_mode="floor"), place % valid.shape[1], valid)

    def take(self, values: Tensor) -> Tensor:
        """The rows of padded values."""
        return values[self.image, self.slot]

    def back(self, values: Tensor) -> Tensor:
        """Padded values with the rows at their places, zero elsewhere."""
        if len(self.image) == self.valid.numel():
            return values.view(*self.valid.shape, *values.shape[1:])
        return values.new_zeros(*self.valid.shape, *values.shape[1:]).index_put(
            (self.image, self.slot), values
        )
