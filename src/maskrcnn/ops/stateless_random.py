"""Stateless random numbers: functions of a seed and a position alone.

They are the same on every device and in every process, whatever was drawn before.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def _signed(value: int) -> int:
    """Reinterprets an unsigned 64-bit integer as signed."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


# The increment and the multipliers of SplitMix64 (Steele et al. 2014).
_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def random_keys(seeds: Int64[Tensor, "B"], count: int, stream: int) -> Int64[Tensor, "B count"]:
    """Returns independent uniform integers in 0 .. 2^31 - 1; sorting by them shuffles.

    Args:
        seeds: one per row.
        count: integers per row.
        stream: another stream gives independent integers for the same seeds.

    Source: SplitMix64, Steele et al. 2014, applied to positions instead of a running state.
    """
    position = torch.arange(1, count + 1, device=seeds.device)
    x = _mix(seeds + _signed(stream * _MIX1))[:, None] + position * _GAMMA
    return (_mix(x) >> 20) & 0x7FFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)
