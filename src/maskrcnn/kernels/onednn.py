"""Convolutions and linear layers fused with the addition and the ReLU that follow them, on a CPU.

PyTorch's compiler lowers to oneDNN operators that add and apply the ReLU while they write their
result. They are called here without compiling. Large results are new memory each time, which costs
a CPU as much as a 1x1 convolution itself, so a fused operation also saves that.

The operators are private and have no gradient: `_FusedConvolution` and `_FusedLinear` add one.
Where they cannot be used, PyTorch's public operations compute the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_operators: Any = torch.ops.mkldnn
_AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(_operators, name)
    for name in ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise")
)


class Geometry(NamedTuple):
    """How a convolution moves over its input, in the order that the operators take."""

    padding: Any
    stride: Any
    dilation: Any
    groups: int


def available() -> bool:
    """Whether this build of PyTorch has the fused operators."""
    return _AVAILABLE


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
    if _is_fusable(x, weight, add):
        if add is None:
            after = "relu" if relu else "none"
            return _operators._convolution_pointwise(x, weight, bias, *geometry, after, [], "")
        after = "relu" if relu else None
        return _operators._convolution_pointwise_.binary(
            add, x, weight, bias, *geometry, "add", 1.0, after, [], None
        )
    if relu and _is_fusable(x, weight, add, training=True):
        return _FusedConvolution.apply(x, weight, bias, add, geometry)

    padding, stride, dilation, groups = geometry
    x = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if add is not None:
        x = x.add_(add)
    return F.relu(x, inplace=True) if relu else x


def linear_relu(
    x: Float[Tensor, "K C"], weight: Float[Tensor, "C2 C"], bias: Float[Tensor, "C2"] | None
) -> Float[Tensor, "K C2"]:
    """Returns the ReLU of a fully connected layer."""
    if _is_fusable(x, weight, None):
        return _operators._linear_pointwise(x, weight, bias, "relu", [], "")
    if _is_fusable(x, weight, None, training=True):
        return _FusedLinear.apply(x, weight, bias)
    return F.relu(F.linear(x, weight, bias))


def _is_fusable(x: Tensor, weight: Tensor, add: Tensor | None, training: bool = False) -> bool:
    """Whether the fused operators can be used: on a CPU, in oneDNN's memory layout.

    Without `training` they apply where no gradient is recorded, with `training` where gradients are
    recorded in float32.
    """
    plain = (
        available()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
    )
    if not plain or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False

    recorded = torch.is_grad_enabled() and any(
        t.requires_grad for t in (x, weight, add) if t is not None
    )
    if recorded != training or (training and (x.dtype != torch.float32 or len(x) == 0)):
        return False
    return x.dim() == 2 or x.is_contiguous(memory_format=torch.channels_last)


class _FusedConvolution(torch.autograd.Function):
    """Convolution + addition + ReLU at once, with a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        add: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        if add is None:
            result = _operators._convolution_pointwise(x, weight, bias, *geometry, "relu", [], "")
        else:
            result = _operators._convolution_pointwise.binary(
                x, add, weight, bias, *geometry, "add", 1.0, "relu", [], None
            )

        ctx.save_for_backward(x, weight, result)
        ctx.geometry = geometry
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, result = ctx.saved_tensors
        padding, stride, dilation, groups = ctx.geometry
        needs = ctx.needs_input_grad

        grad = grad.contiguous(memory_format=torch.channels_last)
        grad = torch.ops.aten.threshold_backward(grad, result, 0)
        grads = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            ctx.bias_sizes,
            stride,
            padding,
            dilation,
            False,
            [0] * len(stride),
            groups,
            list(needs[:3]),
        )
        return *grads, grad if needs[3] else None, None


class _FusedLinear(torch.autograd.Function):
    """A linear layer + ReLU by oneDNN.

    In float32, on CPUs that are not Intel's, it is twice as fast as PyTorch's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = _operators._linear_pointwise(x, weight, bias, "relu", [], "")
        ctx.save_for_backward(x, weight, result)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, result = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad = torch.ops.aten.threshold_backward(grad, result, 0)

        to_x = None
        if needs_x:
            to_x = _operators._linear_pointwise(grad, weight.t(), None, "none", [], "")
        to_weight = None
        if needs_weight:
            to_weight = _operators._linear_pointwise(grad.t(), x.t(), None, "none", [], "")
        to_bias = grad.sum(dim=0) if needs_bias else None
        return to_x, to_weight, to_bias
