"""Working on a device that computes on its own time, as a GPU does: the program runs ahead of it and must hardly ever wait.

The program waits wherever a value or a shape depends on a result (`nonzero`, `.item()`, a mask as an index) and wherever memory of its own goes to
the device. The model waits in `ask` only, once in `forward` (twice with soft NMS or torchvision's keypoints) and once in `losses`: shapes are fixed up
to there. On a processor, which never lets anybody wait, shapes are what they need to be.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def is_async(device: torch.device) -> bool:
    """Whether work on this device is queued, so that to know a result is to wait for all that was queued before."""
    return device.type != "cpu"


def to_host(*numbers: Tensor) -> list[Any]:
    """The values of whole numbers (tensors of one shape, as nested lists), with one wait."""
    return torch.stack([n.long() for n in numbers]).tolist()


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Products in the types of what is multiplied, for arithmetic that bfloat16 would spoil."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else contextlib.nullcontext()


def constant(
    values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A small tensor of known numbers. On a device that runs ahead it is copied there once and kept: each copy would be a wait. Not to be changed."""
    return _kept(values, device, dtype) if is_async(device) else torch.tensor(values, dtype=dtype)


@lru_cache(maxsize=8192)  # some for each padded shape
def _kept(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # made while predicting, it may be used while training
        return torch.tensor(values, dtype=dtype, device=device)
