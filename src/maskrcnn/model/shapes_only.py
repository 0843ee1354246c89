"""Networks without values: to be filled from a file, or of shapes alone, to count with."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..config import ModelConfig
from .maskrcnn import MaskRCNN

_INITIALIZERS = {"constant_", "fill_", "kaiming_uniform_", "normal_", "uniform_", "zero_"}


class NoInitialValues(TorchFunctionMode):
    """Leaves out initial values, most of the time that it takes to build a network."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _INITIALIZERS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def without_values(config: ModelConfig) -> MaskRCNN:
    """Returns the network that a configuration describes, with whatever is in its memory.

    Raises:
        ValueError: the parts do not fit together.
    """
    with NoInitialValues():
        return MaskRCNN.from_config(config)


def shapes_only(config: ModelConfig) -> MaskRCNN:
    """Returns the network that a configuration describes, on the meta device.

    Raises:
        ValueError: the parts do not fit together.
    """
    with torch.device("meta"):
        return without_values(config)
