"""Where a command computes."""

from __future__ import annotations


def chosen(name: str | None) -> str:
    """The device that `--device` names, or a GPU where there is one.

    Raises:
        ValueError: a device that this machine does not have.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--device: {name} cannot be used here ({first}); try cpu, or leave it out"
        ) from None
    return name
