"""Whether the kernels for an NVIDIA GPU may be used (`cudnn.py`, `triton_roi_align.py`).

They are for predictions alone: none has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def can_predict(*tensors: Tensor) -> bool:
    """Whether these are plain tensors on an NVIDIA GPU, of which no gradient is recorded.

    In a graph, under autocast, and where cuDNN is switched off or must be deterministic, PyTorch's
    public operations are used.
    """
    first = tensors[0]
    return (
        first.device.type == "cuda"
        and type(first) is Tensor  # not one without values
        and torch.version.cuda is not None  # not AMD's
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cuda")
        and is_enabled()
    )


def is_enabled() -> bool:
    """Whether PyTorch may use cuDNN, and any algorithm of it."""
    return bool(torch.backends.cudnn.enabled) and not torch.backends.cudnn.deterministic
