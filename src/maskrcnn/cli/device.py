"""The device on which a command computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def chosen(name: str | None, model: str) -> torch.device | str | None:
    """The device that `--device` names; by default a GPU if there is one, else the CPU.

    For an exported file its runtime chooses and checks: None for its default.

    Raises:
        ValueError: this machine does not have the device.
    """
    from ..ops.device import usable_device
    from ..prediction.graph_engine import is_graph_file

    return name if is_graph_file(model) else usable_device(name)
