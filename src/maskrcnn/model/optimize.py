"""The forms in which a trained model answers: optimized, or exactly as its peers.

`optimize` folds BatchNorm into the convolutions and lays the weights out channels last: the same answers to 0.05 px, in two thirds of the time on a
CPU; in bfloat16, where the processor has it, in a third. `reference` is the plain network with torchvision's RoIAlign, for comparisons to 1e-3 px.
Neither changes the model that it is given.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .layers import ConvNorm, FrozenBatchNorm2d
from .maskrcnn import MaskRCNN
from .resnet import BasicBlock, Bottleneck, ResNet
from .roi_align import RoIPooler


def optimize_for_inference(
    model: MaskRCNN,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
    compile: bool = False,
) -> MaskRCNN:
    """A copy for prediction: BatchNorm folded into convolutions, weights channels last, no gradients.

    Args:
        model: stays as it is.
        dtype: of the convolutions and layers; the RPN's last ones, box arithmetic, scores and mask probabilities stay float32. auto: bfloat16 where
            the model's device computes in it, else float32.
        compile: compile trunk and pyramid with torch.compile: some seconds to minutes at the first image of each padded shape, and a C++
            compiler on a CPU, for a few per cent of speed.

    Raises:
        ValueError: an unknown dtype.
    """
    if dtype not in ("float32", "bfloat16", "auto"):
        raise ValueError(f'dtype "{dtype}" is unknown; choose "float32", "bfloat16" or "auto"')
    half = dtype == "bfloat16" or (
        dtype == "auto" and computes_bfloat16(next(model.parameters()).device)
    )
    given = {id(weight) for weight in model.parameters()}
    model = _view(model).eval()
    for part in model.modules():
        for conv, norm in _pairs(part):
            _fold(part, conv, norm)
    exact = {
        model.rpn.objectness,
        model.rpn.deltas,
    }  # their offsets are as large as anchors, the box head's a tenth of that
    for part in model.modules():
        kind = torch.bfloat16 if half and part not in exact else torch.float32
        for name, weight in [*part.named_parameters(recurse=False)]:
            if (
                id(weight) in given or weight.dtype != kind
            ):  # each is copied once: the first prediction waits for it
                setattr(part, name, _frozen(weight, kind))
        for name, value in [*part.named_buffers(recurse=False)]:
            setattr(
                part, name, value.to(kind if value.is_floating_point() else value.dtype, copy=True)
            )
    if compile:
        model.trunk.compile()
        model.neck.compile()
    model.optimized, model.layout = True, torch.channels_last
    return model


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware (AVX512-BF16, AMX, Ampere or later), not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def reference(model: MaskRCNN) -> MaskRCNN:
    """A view of the model (it shares the weights) that answers as its peers do: unfused, in evaluation mode, torchvision's RoIAlign."""
    view = _view(model).eval()
    view.layout = torch.preserve_format
    for part in view.modules():
        if isinstance(part, RoIPooler):
            part.use_torchvision_kernel = True
        if isinstance(part, FrozenBatchNorm2d):
            part.folds = False
    return view


def _view(part: Any) -> Any:
    """The same modules anew, with the same tensors: what is replaced or set in them leaves the given ones as they are."""
    view = copy.copy(part)
    vars(view).update(
        {name: value.copy() for name, value in vars(part).items() if isinstance(value, dict)}
    )
    view._modules = {
        name: None if child is None else _view(child) for name, child in part._modules.items()
    }
    return view


def _frozen(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A copy that is not trained, laid out for convolutions where it has four dimensions."""
    layout = torch.channels_last if weight.dim() == 4 else torch.preserve_format
    return nn.Parameter(
        weight.detach().to(dtype, memory_format=layout, copy=True), requires_grad=False
    )


def _pairs(part: nn.Module) -> list[tuple[str, str]]:
    """Names of the (convolution, normalization) pairs that a module applies one right after the other."""
    if isinstance(part, ConvNorm):
        return [("conv", "norm")]
    if isinstance(part, BasicBlock):
        return [("conv1", "bn1"), ("conv2", "bn2"), *_downsample(part)]
    if isinstance(part, Bottleneck):
        return [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), *_downsample(part)]
    if isinstance(part, ResNet):
        return [("conv1", "bn1")]
    return []


def _downsample(block: nn.Module) -> list[tuple[str, str]]:
    return [] if block.downsample is None else [("downsample.0", "downsample.1")]


@torch.no_grad()
def _fold(owner: nn.Module, conv_name: str, norm_name: str) -> None:
    """Gives the convolution a new weight, times the normalization's scale, and its shift as the bias."""
    conv, norm = owner.get_submodule(conv_name), owner.get_submodule(norm_name)
    if not isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)) or not isinstance(conv, nn.Conv2d):
        return
    assert isinstance(norm.running_var, Tensor)
    assert isinstance(norm.running_mean, Tensor)
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    bias = shift if conv.bias is None else shift + conv.bias.double() * scale
    weight = torch.empty_like(conv.weight, memory_format=torch.channels_last)
    torch.mul(conv.weight, scale.to(weight.dtype)[:, None, None, None], out=weight)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    owner.set_submodule(norm_name, nn.Identity())
