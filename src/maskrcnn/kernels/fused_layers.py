"""A convolution or a linear layer with the addition and the ReLU that follow it.

The one place that chooses: cuDNN and cuBLAS for predictions on an NVIDIA GPU (`cudnn.py`), else
oneDNN on a CPU (`onednn.py`), else PyTorch's public operations, which `onednn.py` calls.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from . import cudnn, onednn
from .convolution_geometry import Geometry


def convolution(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "C2 C1 K K"],
    bias: Float[Tensor, "C2"] | None,
    geometry: Geometry,
    *,
    add: Float[Tensor, "B C2 H2 W2"] | None = None,
    relu: bool = False,
) -> Float[Tensor, "B C2 H2 W2"]:
    """Returns the zero-padded convolution of x, plus `add`, then a ReLU if `relu`.

    Args:
        x: features.
        weight: of the convolution.
        bias: of the convolution.
        geometry: padding, stride, dilation and groups.
        add: of the result's shape; may be overwritten.
        relu: whether a ReLU follows.
    """
    result = cudnn.convolution(x, weight, bias, geometry, add=add, relu=relu)
    if result is not None:
        return result
    return onednn.convolution(x, weight, bias, geometry, add=add, relu=relu)


def linear(
    x: Float[Tensor, "K C"],
    weight: Float[Tensor, "C2 C"],
    bias: Float[Tensor, "C2"] | None,
    *,
    relu: bool = False,
) -> Float[Tensor, "K C2"]:
    """Returns a fully connected layer of x, then a ReLU if `relu`."""
    result = cudnn.linear_relu(x, weight, bias) if relu else None
    return onednn.linear(x, weight, bias, relu=relu) if result is None else result
