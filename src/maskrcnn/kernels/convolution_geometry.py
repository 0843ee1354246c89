"""How a convolution moves over its input: `Geometry`."""

from __future__ import annotations

from typing import Any, NamedTuple


class Geometry(NamedTuple):
    """Padding, stride, dilation and groups, in the order that oneDNN's operators take."""

    padding: Any
    stride: Any
    dilation: Any
    groups: int


# Each kernel position is read once: no padding, no stride.
DENSE = Geometry((0, 0), (1, 1), (1, 1), 1)
