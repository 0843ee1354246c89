"""The building blocks of all parts: normalization by name, convolution with what follows it.

`convolve` and `connect` add and apply the ReLU in the same pass over memory where the hardware
allows (`kernels/fused_layers.py`), and compute in bfloat16 on any (`kernels/onednn.py`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..config import Norm
from ..kernels import fused_layers, onednn
from ..kernels.convolution_geometry import Geometry


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm with constant statistics and affine: a scale and a shift for each channel.

    Source: He et al. 2017, appendix of the released code: small detection batches give poor
    statistics, so the pretrained ones are kept.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.folds = True
        """Whether it is folded into the convolution before it; not in the reference model."""
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        scale, shift = self.affine()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def affine(self) -> tuple[Float[Tensor, "C"], Float[Tensor, "C"]]:
        """Returns the scale and the shift of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


def make_norm(kind: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """Creates the normalization that a configuration names.

    GroupNorm has 32 groups (Wu & He 2018), fewer if the channels do not divide by 32.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    if kind == "frozen":
        return FrozenBatchNorm2d(channels, eps=eps)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)
    return nn.Identity()


class ConvNorm(nn.Module):
    """A size-preserving convolution and its normalization; it has a bias only without one."""

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
    """Returns the normalized convolution of x, plus `add`, then a ReLU if `relu`.

    Frozen BatchNorm is folded into the convolution: weight * scale, with the shift as the bias.

    Args:
        x: features.
        conv: zero-padded.
        norm: None or Identity for no normalization.
        add: of the result's shape; may be overwritten.
        relu: whether a ReLU follows.
    """
    weight, bias = conv.weight, conv.bias
    if isinstance(norm, FrozenBatchNorm2d) and norm.folds:
        scale, shift = norm.affine()
        weight = weight * scale[:, None, None, None].to(weight.dtype)
        bias = shift.to(weight.dtype)
        norm = None

    geometry = Geometry(conv.padding, conv.stride, conv.dilation, conv.groups)
    if norm is None or isinstance(norm, nn.Identity):
        return fused_layers.convolution(x, weight, bias, geometry, add=add, relu=relu)

    x = norm(onednn.plain_convolution(x, weight, bias, geometry))
    if add is not None:
        x = x.add_(add)
    return F.relu(x, inplace=True) if relu else x


def deconvolve(
    x: Float[Tensor, "B C H W"], conv: nn.ConvTranspose2d
) -> Float[Tensor, "B C2 H2 W2"]:
    """Returns the transposed convolution of x."""
    return onednn.transposed_convolution(x, conv.weight, conv.bias, conv.stride, conv.padding)


def connect(
    x: Float[Tensor, "K C"], layer: nn.Linear, *, relu: bool = True
) -> Float[Tensor, "K C2"]:
    """Returns a fully connected layer of x, by default with a ReLU."""
    return fused_layers.linear(x, layer.weight, layer.bias, relu=relu)


def conv_tower(channels_in: int, channels: tuple[int, ...], norm: Norm) -> nn.ModuleList:
    """Creates the 3x3 convolutions with which every head begins; call each with relu=True."""
    return nn.ModuleList(
        ConvNorm(c_in, c, 3, norm)
        for c_in, c in zip((channels_in, *channels), channels, strict=False)
    )


def initialize(module: nn.Module) -> None:
    """He initialization of the heads: fan-out for convolutions before a ReLU, zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            mode = "fan_in" if isinstance(part, nn.Linear) else "fan_out"
            nn.init.kaiming_normal_(part.weight, mode=mode, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
