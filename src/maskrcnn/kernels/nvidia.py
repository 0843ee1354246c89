"""When the kernels for an NVIDIA GPU may be used, and whether they work on each device.

They are `cudnn.py`, `triton_roi_align.py` and `triton_nms.py`. None has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor

from .probe import Probe

# As `probe.Trial`, on a device.
DeviceTrial = Callable[[torch.device, torch.dtype], Iterable[tuple[Tensor, Tensor]]]


def is_plain(x: Tensor) -> bool:
    """Whether this is a plain tensor on an NVIDIA GPU, and not one of a graph or without values.

    Where cuDNN is switched off or must be deterministic, PyTorch's public operations are used.
    """
    return (
        x.device.type == "cuda"
        and type(x) is Tensor
        and torch.version.cuda is not None  # not AMD's
        and not torch.compiler.is_compiling()
        and is_enabled()
    )


def can_predict(*tensors: Tensor) -> bool:
    """Whether the first is plain, no gradient is recorded of any, and there is no autocast."""
    return (
        is_plain(tensors[0])
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch.is_autocast_enabled("cuda")
    )


def is_enabled() -> bool:
    """Whether PyTorch may use cuDNN, and any algorithm of it."""
    return bool(torch.backends.cudnn.enabled) and not torch.backends.cudnn.deterministic


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


class DeviceProbe:
    """Tries an operation once per device and type; see `Probe`."""

    def __init__(self, operation: str, trial: DeviceTrial, library: str) -> None:
        self.operation = operation
        self.trial = trial
        self.library = library
        self._probes: dict[torch.device, Probe] = {}

    def works(self, x: Tensor) -> bool:
        """Returns whether the operation works in x's type on its device; warns if it does not."""
        probe = self.on(x.device)
        if probe.works(x.dtype):
            return True
        probe.warn(x.dtype, instead="by PyTorch's public operation")
        return False

    def on(self, device: torch.device) -> Probe:
        """Returns the probe of one device."""
        if device not in self._probes:
            trial = partial(self.trial, device)
            probe = Probe(self.operation, trial, self.library, is_enabled)
            self._probes.setdefault(device, probe)
        return self._probes[device]
