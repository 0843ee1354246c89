"""The valid entries of padded tensors [B, N, ...] as rows [K, ...], as the heads take them.

In:  which entries are valid, bool [B, N].
Out: `Rows`, which gathers rows from padded tensors and scatters rows back into padded tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from . import device


class Rows(NamedTuple):
    """For each row the entry of the padded tensor that it comes from."""

    image: Int64[Tensor, "K"]
    slot: Int64[Tensor, "K"]
    valid: Bool[Tensor, "B N"]

    @classmethod
    def of(
        cls, valid: Bool[Tensor, "B N"], count: int | None = None, most: int | None = None
    ) -> Rows:
        """Selects the valid entries, image by image.

        Args:
            valid: which entries are valid.
            count: number of rows, if the host knows it. Otherwise the CPU counts the valid
                entries. Other devices do not count, which would be a sync; they append invalid
                entries up to the largest possible number.
            most: upper bound of the number of valid entries per image; default N.
        """
        images, slots = valid.shape
        if torch.compiler.is_exporting():
            # At least one row: not every runtime computes layers of an empty batch.
            exists = valid.flatten() | (torch.arange(images * slots, device=valid.device) == 0)
            index = exists.nonzero()[:, 0]
            torch._check(index.shape[0] > 0)
            return cls(index.div(slots, rounding_mode="floor"), index % slots, valid)

        if count is None:
            if device.is_async(valid.device):
                count = images * min(most or slots, slots)
            else:
                count = int(valid.sum())

        if count == valid.numel():
            index = torch.arange(count, device=valid.device)
        else:  # a stable sort puts the valid entries first and keeps their order
            index = (~valid).flatten().to(torch.uint8).argsort(stable=True)[:count]
        return cls(index.div(slots, rounding_mode="floor"), index % slots, valid)

    def gather(self, values: Tensor) -> Tensor:
        """Returns the rows of a padded tensor."""
        return values[self.image, self.slot]

    def scatter(self, rows: Tensor) -> Tensor:
        """Returns a padded tensor that holds the rows in their entries and zeros elsewhere."""
        shape = (*self.valid.shape, *rows.shape[1:])
        if torch.compiler.is_exporting():
            rows = torch.where(self.gather(self.valid).view(-1, *(1,) * (rows.dim() - 1)), rows, 0)
        elif len(self.image) == self.valid.numel():
            return rows.view(shape)
        return rows.new_zeros(shape).index_put((self.image, self.slot), rows)
