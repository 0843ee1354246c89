"""Networks of shapes without values, to count with or to fill from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..config import ModelConfig
from .maskrcnn import MaskRCNN

_INITIALIZERS = {"constant_", "fill_", "kaiming_uniform_", "normal_", "uniform_", "zero_"}


class _NoInitialValues(TorchFunctionMode):
    """Leaves out initial values, which PyTorch draws by slow Python code on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _INITIALIZERS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def shapes_only(config: ModelConfig) -> MaskRCNN:
    """Returns the network that a configuration describes, on the meta device.

    Raises:
        ValueError: the parts do not fit together.
    """
    with torch.device("meta"), _NoInitialValues():
        return MaskRCNN.from_config(config)
