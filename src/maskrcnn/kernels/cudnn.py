"""Convolutions and linear layers on an NVIDIA GPU, fused with what follows them, for predictions.

PyTorch adds the bias of a convolution, adds the shortcut and applies the ReLU in passes of their
own over memory. On a fast card they take longer than the convolutions. Here they are part of:

- a convolution with a ReLU, with or without an addition: one operator of cuDNN;
- a 1x1 convolution in a 16-bit type: a product of matrices, to which cuBLAS adds the bias and
  applies the ReLU. In float32 it would be computed in another precision than a convolution (TF32);
- a linear layer with a ReLU: that product.

The bias of any other convolution without a ReLU remains PyTorch's. The operators are private and
have no gradient. They are used where a `Probe` has seen them work, on each device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from . import nvidia
from .convolution_geometry import Geometry
from .probe import whole_numbers

_operators: Any = torch

HALVES = (torch.bfloat16, torch.float16)
# The operators count in 32 bits; PyTorch's own convolution divides a larger batch.
MOST_ELEMENTS = 2**31 - 1


def convolution(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "C2 C1 K K"],
    bias: Float[Tensor, "C2"] | None,
    geometry: Geometry,
    *,
    add: Float[Tensor, "B C2 H2 W2"] | None,
    relu: bool,
) -> Float[Tensor, "B C2 H2 W2"] | None:
    """Returns what `fused_layers.convolution` does, or None where nothing can be fused."""
    if not _is_fusable(x, weight, bias, add):
        return None

    padding, stride, dilation, groups = geometry
    is_product = weight.shape[2:] == (1, 1) and tuple(padding) == (0, 0) and groups == 1
    if is_product and x.dtype in HALVES and (add is None or not relu):
        rows = x[:, :, :: stride[0], :: stride[1]].permute(0, 2, 3, 1)
        product = _product(rows.flatten(0, 2), weight.flatten(1), bias, relu)
        if product is not None:
            result = product.view(*rows.shape[:3], len(weight)).permute(0, 3, 1, 2)
            return result if add is None else result.add_(add)

    if not relu or not CONVOLUTION.works(x):
        return None
    if add is None:
        return _operators.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    return _operators.cudnn_convolution_add_relu(
        x, weight, add, 1.0, bias, stride, padding, dilation, groups
    )


def linear_relu(
    x: Float[Tensor, "K C"], weight: Float[Tensor, "C2 C"], bias: Float[Tensor, "C2"] | None
) -> Float[Tensor, "K C2"] | None:
    """Returns the ReLU of a fully connected layer of x, or None where it cannot be fused."""
    return _product(x, weight, bias, relu=True) if _is_fusable(x, weight, bias, None) else None


def _is_fusable(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None) -> bool:
    """Whether the operators can be used: for a prediction, in one type, channels last."""
    if bias is None or not nvidia.can_predict(x, weight, bias, *(() if add is None else (add,))):
        return False
    channels = max(x.shape[1], len(weight))
    return (
        x.dtype == weight.dtype == bias.dtype
        and x.dtype in (torch.float32, *HALVES)
        and 0 < x.numel() // x.shape[1] * channels <= MOST_ELEMENTS
        and (x.dim() == 2 or x.is_contiguous(memory_format=torch.channels_last))
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor | None:
    """A linear layer with its bias, then a ReLU if `relu`; None where that cannot be fused."""
    if not relu:
        return F.linear(x, weight, bias)
    return _operators._addmm_activation(bias, x, weight.t()) if PRODUCT.works(x) else None


# Input channels, output channels, kernel, stride, dilation and groups: as the stem, in blocks, in
# DC5 and in ResNeXt.
TRIED = (
    (3, 64, 7, 2, 1, 1),
    (64, 256, 1, 1, 1, 1),
    (64, 64, 3, 1, 1, 1),
    (128, 64, 3, 2, 1, 1),
    (64, 64, 3, 1, 2, 1),
    (128, 128, 3, 1, 1, 32),
)


def _try_convolution(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for channels_in, channels, kernel, stride, dilation, groups in TRIED:
        x = whole_numbers(2, channels_in, 12, 9)
        weight = whole_numbers(channels, channels_in // groups, kernel, kernel)
        bias = whole_numbers(channels)
        padding = kernel // 2 * dilation
        expected = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        add = whole_numbers(*expected.shape)

        x, weight, add = (
            t.to(device, dtype).to(memory_format=torch.channels_last) for t in (x, weight, add)
        )
        bias = bias.to(device, dtype)
        steps = [[stride] * 2, [padding] * 2, [dilation] * 2, groups]
        # Without an addition cuDNN gets the memory of the result as a summand, times zero. It must
        # not read it: nan times zero is nan.
        left = [torch.full_like(add, torch.nan) for _ in range(8)]
        del left
        result = _operators.cudnn_convolution_relu(x, weight, bias, *steps)
        yield result.cpu(), expected.relu()

        result = _operators.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *steps)
        yield result.cpu(), (expected + add.cpu()).relu()


def _try_product(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for rows, channels_in, channels in ((72, 64, 256), (9, 48, 24)):
        x = whole_numbers(rows, channels_in)
        weight = whole_numbers(channels, channels_in)
        bias = whole_numbers(channels)
        expected = F.linear(x, weight, bias).relu()
        x, weight, bias = (t.to(device, dtype) for t in (x, weight, bias))
        yield _operators._addmm_activation(bias, x, weight.t()).cpu(), expected


CONVOLUTION = nvidia.DeviceProbe("convolution with a ReLU", _try_convolution, "cuDNN")
PRODUCT = nvidia.DeviceProbe("linear layer with a ReLU", _try_product, "cuBLAS")
