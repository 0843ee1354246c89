"""2. ResNet and ResNeXt: the paper's trunk.

Images [B, 3, H, W], normalized  ->  C2..C5, a list of [B, c, H/s, W/s] with s = 4, 8, 16, 32.

Source: He et al. 2016, table 1; Xie et al. 2017 for groups. Parameter names are torchvision's, so
that its published ImageNet weights load.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import TrunkConfig
from .layers import convolve, make_norm

# Blocks in res2, res3, res4, res5.
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity: the block of depth 18 and 34."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, dilation: int, config: TrunkConfig
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            channels_in, channels, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn1 = make_norm(config.norm, channels, config.norm_eps)
        self.conv2 = nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = make_norm(config.norm, channels, config.norm_eps)
        self.downsample = _projection(channels_in, channels, stride, config)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        identity = x
        if self.downsample is not None:
            identity = convolve(x, *self.downsample)  # ty: ignore[invalid-argument-type]
        x = convolve(x, self.conv1, self.bn1, relu=True)
        return convolve(x, self.conv2, self.bn2, add=identity, relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and the identity: the block of depth 50 and more."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, dilation: int, config: TrunkConfig
    ) -> None:
        super().__init__()
        # The inner width grows with the stage as the output does: groups * width_per_group in res2,
        # twice that in res3, and so on.
        inner = config.groups * config.width_per_group * channels // config.res2_channels
        stride_1x1, stride_3x3 = (stride, 1) if config.stride_in_1x1 else (1, stride)

        self.conv1 = nn.Conv2d(channels_in, inner, 1, stride_1x1, bias=False)
        self.bn1 = make_norm(config.norm, inner, config.norm_eps)
        self.conv2 = nn.Conv2d(
            inner,
            inner,
            3,
            stride_3x3,
            padding=dilation,
            dilation=dilation,
            groups=config.groups,
            bias=False,
        )
        self.bn2 = make_norm(config.norm, inner, config.norm_eps)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = make_norm(config.norm, channels, config.norm_eps)
        self.downsample = _projection(channels_in, channels, stride, config)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        identity = x
        if self.downsample is not None:
            identity = convolve(x, *self.downsample)  # ty: ignore[invalid-argument-type]
        x = convolve(x, self.conv1, self.bn1, relu=True)
        x = convolve(x, self.conv2, self.bn2, relu=True)
        return convolve(x, self.conv3, self.bn3, add=identity, relu=True)


def _projection(
    channels_in: int, channels: int, stride: int, config: TrunkConfig
) -> nn.Sequential | None:
    """The 1x1 convolution on the shortcut, where the shape changes."""
    if stride == 1 and channels_in == channels:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 1, stride, bias=False),
        make_norm(config.norm, channels, config.norm_eps),
    )


def stage_channels(config: TrunkConfig, stage: int) -> int:
    """Returns the output channels of a stage: 2 for res2, ..., 5 for res5."""
    return config.res2_channels * 2 ** (stage - 2)


def make_stage(config: TrunkConfig, stage: int) -> nn.Sequential:
    """Creates a stage: 2 for res2, ..., 5 for res5."""
    block = BasicBlock if config.depth < 50 else Bottleneck
    channels = stage_channels(config, stage)
    channels_in = config.stem_channels if stage == 2 else channels // 2
    dilation = config.res5_dilation if stage == 5 else 1
    stride = 1 if stage == 2 or dilation > 1 else 2

    blocks = [block(channels_in, channels, stride, dilation, config)]
    blocks += [
        block(channels, channels, 1, dilation, config)
        for _ in range(BLOCKS[config.depth][stage - 2] - 1)
    ]
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """The stem, res2 and so on up to `last_stage` (5, or 4 if res5 is the RoI head).

    The first `config.frozen_stages` of these parts keep their weights and BatchNorm statistics.
    """

    def __init__(self, config: TrunkConfig, last_stage: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.stem_channels, 7, 2, padding=3, bias=False)
        self.bn1 = make_norm(config.norm, config.stem_channels, config.norm_eps)
        self.layer1 = make_stage(config, 2)
        self.layer2 = make_stage(config, 3)
        self.layer3 = make_stage(config, 4)
        self.layer4 = make_stage(config, 5) if last_stage == 5 else None
        self.channels = tuple(stage_channels(config, s) for s in range(2, last_stage + 1))
        self.frozen_stages = config.frozen_stages
        self.activation_checkpointing = False
        """Training stores only the outputs of the stages and recomputes the rest in the backward
        pass: less memory, about a tenth more time."""

        initialize_trunk(self)
        for part in self._frozen():
            part.requires_grad_(False)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        x = F.max_pool2d(convolve(x, self.conv1, self.bn1, relu=True), 3, 2, padding=1)
        checkpointed = self.activation_checkpointing and torch.is_grad_enabled()

        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            if stage is None:
                continue
            x = _checkpointed(stage, x) if checkpointed else stage(x)
            features.append(x)
        return features

    def train(self, mode: bool = True) -> ResNet:
        """Sets the training mode of all parts but the frozen stages."""
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        stages = [
            nn.ModuleList([self.conv1, self.bn1]),
            self.layer1,
            self.layer2,
            self.layer3,
            self.layer4,
        ]
        return [s for s in stages[: self.frozen_stages] if s is not None]


def _checkpointed(stage: nn.Sequential, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
    """Output of a stage, without storing its inner activations for the backward pass.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    """

    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _statistics_kept(stage)

    return checkpoint(stage, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Generator[None]:
    """Keeps BatchNorm's running statistics unchanged while a forward pass is recomputed."""
    norms = [
        (m, m.momentum, m.num_batches_tracked)
        for m in module.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    for norm, *_ in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, count in norms:
            norm.momentum = momentum
            norm.num_batches_tracked = count


def initialize_trunk(module: nn.Module) -> None:
    """Initializes every convolution as in He et al. 2015: normal, fan-out."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
