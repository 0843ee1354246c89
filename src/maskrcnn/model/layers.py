"""The bricks of all parts: normalization by name, a convolution with what follows it, a layer with its ReLU.

On a CPU each brick is one pass over memory: the sum and the ReLU happen while the convolution writes its result. Large results are new memory each
time, which costs a CPU as much as a 1x1 convolution itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..config import Norm


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm whose statistics and affine never change: a scale and a shift for each channel.

    Source: He et al. 2017, appendix of the released code: small detection batches make bad statistics, so the pretrained ones stay.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.folds = True
        """Into the convolution before it; not so in the reference form."""
        for name, value in (
            ("weight", 1.0),
            ("bias", 0.0),
            ("running_mean", 0.0),
            ("running_var", 1.0),
        ):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        scale, shift = self.affine()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def affine(self) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
        """What each channel is multiplied by, and what is then added to it."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def make_norm(kind: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """The normalization that a configuration names; GroupNorm has 32 groups (Wu & He 2018), fewer where the channels do not divide."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    if kind == "frozen":
        return FrozenBatchNorm2d(channels, eps=eps)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)
    return nn.Identity()


class ConvNorm(nn.Module):
    """A convolution that keeps the size, then its normalization; it has a bias only where there is no normalization."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int = 3, norm: Norm = "none"
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels_in, channels, kernel, padding=kernel // 2, bias=norm == "none"
        )
        self.norm = make_norm(norm, channels)

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        *,
        add: Float[Tensor, "B C2 H W"] | None = None,
        relu: bool = False,
    ) -> Float[Tensor, "B C2 H W"]:
        return convolve(x, self.conv, self.norm, add=add, relu=relu)


def convolve(
    x: Float[Tensor, "B C H W"],
    conv: nn.Conv2d,
    norm: nn.Module | None = None,
    *,
    add: Float[Tensor, "B C2 H2 W2"] | None = None,
    relu: bool = False,
) -> Float[Tensor, "B C2 H2 W2"]:
    """The normalized convolution of x, plus `add`, its negative values cut off if `relu`.

    Frozen BatchNorm is one convolution together with the one before it: weight * scale, and shift as the bias.

    Args:
        x: features.
        conv: zero-padded.
        norm: None or Identity where there is none.
        add: of the result's shape; may be overwritten.
        relu: whether a ReLU follows.
    """
    weight, bias = conv.weight, conv.bias
    if isinstance(norm, FrozenBatchNorm2d) and norm.folds:
        scale, shift = norm.affine()
        weight = weight * scale[:, None, None, None].to(weight.dtype)
        bias, norm = shift.to(weight.dtype), None
    if isinstance(norm, nn.Identity | None) and _in_one_pass(x, weight, add):
        place = (conv.padding, conv.stride, conv.dilation, conv.groups)
        if add is None:
            return _onednn._convolution_pointwise(
                x, weight, bias, *place, "relu" if relu else "none", [], ""
            )
        return _onednn._convolution_pointwise_.binary(
            add, x, weight, bias, *place, "add", 1.0, "relu" if relu else None, [], None
        )
    if (
        relu
        and isinstance(norm, nn.Identity | None)
        and _in_one_pass(x, weight, add, training=True)
    ):
        return _TrainedConvolution.apply(
            x, weight, bias, add, (conv.padding, conv.stride, conv.dilation, conv.groups)
        )
    x = conv._conv_forward(x, weight, bias)
    if norm is not None:
        x = norm(x)
    if add is not None:
        x = x.add_(add)
    return F.relu(x, inplace=True) if relu else x


def connect(x: Float[Tensor, "K C"], layer: nn.Linear) -> Float[Tensor, "K C2"]:
    """The ReLU of a fully connected layer."""
    if _in_one_pass(x, layer.weight, None):
        return _onednn._linear_pointwise(x, layer.weight, layer.bias, "relu", [], "")
    if _in_one_pass(x, layer.weight, None, training=True):
        return _TrainedLayer.apply(x, layer.weight, layer.bias)
    return F.relu(layer(x))


# The operations of PyTorch's compiler for oneDNN, without compiling: convolution + sum + ReLU at once. They have no gradient.
_onednn: Any = torch.ops.mkldnn
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and all(
    hasattr(_onednn, name)
    for name in ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise")
)


def _in_one_pass(x: Tensor, weight: Tensor, add: Tensor | None, training: bool = False) -> bool:
    """Whether oneDNN's operations can be used: on a CPU, in its memory layout, where nothing is recorded or, in `training`, gradients in float32."""
    plain = (
        _HAS_ONEDNN
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


class _TrainedConvolution(torch.autograd.Function):
    """Convolution + sum + ReLU at once, with a gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        add: Tensor | None,
        place: tuple[Any, ...],
    ) -> Tensor:
        if add is None:
            result = _onednn._convolution_pointwise(x, weight, bias, *place, "relu", [], "")
        else:
            result = _onednn._convolution_pointwise.binary(
                x, add, weight, bias, *place, "add", 1.0, "relu", [], None
            )
        ctx.save_for_backward(x, weight, result)
        ctx.place, ctx.bias_sizes = place, None if bias is None else list(bias.shape)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, result = ctx.saved_tensors
        (padding, stride, dilation, groups), needs = ctx.place, ctx.needs_input_grad
        grad = torch.ops.aten.threshold_backward(
            grad.contiguous(memory_format=torch.channels_last), result, 0
        )
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


class _TrainedLayer(torch.autograd.Function):
    """A fully connected layer + ReLU by oneDNN's products, twice as fast as PyTorch's in float32 on processors that are not Intel's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result = _onednn._linear_pointwise(x, weight, bias, "relu", [], "")
        ctx.save_for_backward(x, weight, result)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, result = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad = torch.ops.aten.threshold_backward(grad, result, 0)
        to_x = (
            _onednn._linear_pointwise(grad, weight.t(), None, "none", [], "") if needs[0] else None
        )
        to_weight = (
            _onednn._linear_pointwise(grad.t(), x.t(), None, "none", [], "") if needs[1] else None
        )
        return to_x, to_weight, grad.sum(dim=0) if needs[2] else None


def conv_tower(channels_in: int, channels: tuple[int, ...], norm: Norm) -> nn.ModuleList:
    """3x3 convolutions one after the other, as every head begins; the caller says relu=True."""
    return nn.ModuleList(
        ConvNorm(c_in, c, 3, norm)
        for c_in, c in zip((channels_in, *channels), channels, strict=False)
    )


def initialize(module: nn.Module) -> None:
    """He initialization of the heads' convolutions and layers: fan-out for convolutions before a ReLU, zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(
                part.weight,
                mode="fan_in" if isinstance(part, nn.Linear) else "fan_out",
                nonlinearity="relu",
            )
            if part.bias is not None:
                nn.init.zeros_(part.bias)
