"""The device on which a command computes."""

from __future__ import annotations


def chosen(name: str | None, model: str = "") -> str | None:
    """The device that `--device` names; by default a GPU if there is one, else the CPU.

    For the model of an exported file its runtime chooses and checks: None for its default.

    Raises:
        ValueError: this machine does not have the device.
    """
    import torch

    from ..prediction.graph_engine import is_graph_file

    if is_graph_file(model):
        return name
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--device: cannot use {name} on this machine ({first}); try cpu, or omit the option"
        ) from None
    return name
