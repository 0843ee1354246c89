"""Working on an asynchronous device such as a GPU with as few host-device syncs as possible.

The host has to wait for the device wherever a Python value or a tensor's shape depends on a result
(`nonzero`, `.item()`, indexing with a mask), and wherever pageable host memory is copied to the
device. The model syncs in `to_host` only: once in `forward` (twice with soft NMS or bicubic
keypoint decoding) and once in `losses`. Until then all shapes are fixed. On the CPU a sync costs
nothing, so there shapes are as small as the data allows.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor


def usable_device(device: torch.device | str | None) -> torch.device:
    """Returns the device to compute on, with its index; None = a GPU if there is one.

    Raises:
        ValueError: this machine does not have the device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            f"device (--device): cannot use {device} on this machine ({reason}); "
            "use cpu, or omit it"
        ) from None


def is_async(device: torch.device) -> bool:
    """Whether work on this device is queued, so that reading a result waits for the queue."""
    return device.type != "cpu"


def to_host(*numbers: Tensor) -> list[Any]:
    """Returns the values of integer tensors of one shape as nested lists, with one sync."""
    return torch.stack([n.long() for n in numbers]).tolist()


def may_contain(mask: Bool[Tensor, "..."]) -> bool:
    """Whether any element may be True; never syncs, so on an asynchronous device always True."""
    return is_async(mask.device) or bool(mask.any())


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Disables autocast, for arithmetic that needs more precision than bfloat16."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else contextlib.nullcontext()


def constant(
    values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns a small tensor of known numbers, which must not be modified.

    On an asynchronous device it is copied once and cached, because every copy is a sync.
    """
    if is_async(device) and not torch.compiler.is_exporting():
        return _cached(values, device, dtype)
    return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=8192)  # a few for each padded shape
def _cached(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # A constant created while predicting may later be used while training.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
