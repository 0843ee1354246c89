"""The bricks of all parts: normalisation by name, and a convolution with its normalisation."""

from __future__ import annotations

import math

import torch
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
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


def make_norm(kind: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """The normalisation that a configuration names; GroupNorm has 32 groups (Wu & He 2018), fewer where the channels do not divide."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=eps)
    if kind == "frozen":
        return FrozenBatchNorm2d(channels, eps=eps)
    if kind == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)
    return nn.Identity()


class ConvNorm(nn.Module):
    """A convolution that keeps the size, then its normalisation; it has a bias only where there is no normalisation."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 3, norm: Norm = "none") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=norm == "none")
        self.norm = make_norm(norm, channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H W"]:
        return self.norm(self.conv(x))


def conv_tower(channels_in: int, channels: tuple[int, ...], norm: Norm) -> nn.ModuleList:
    """3x3 convolutions one after the other, as every head begins; the caller puts a ReLU after each."""
    return nn.ModuleList(ConvNorm(c_in, c, 3, norm) for c_in, c in zip((channels_in, *channels), channels, strict=False))


def initialise(module: nn.Module) -> None:
    """He initialisation of the heads' convolutions and layers: fan-out for convolutions before a ReLU, zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, mode="fan_in" if isinstance(part, nn.Linear) else "fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
