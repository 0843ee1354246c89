"""The fused operations of the layers have the gradients of the plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskrcnn.kernels import onednn
from maskrcnn.model.layers import FrozenBatchNorm2d, connect, convolve

needs_onednn = pytest.mark.skipif(
    not (onednn.CONVOLUTION.works(torch.float32) and onednn.LINEAR.works(torch.float32)),
    reason="oneDNN does not work here",
)


def gradients(result: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.sin(torch.arange(result.numel()) * 0.7).view(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), inputs)]


@needs_onednn
@pytest.mark.parametrize(
    ("kernel", "stride", "bias", "frozen", "added"),
    [(3, 1, True, False, False), (1, 2, False, True, False), (3, 2, False, True, True)],
)
def test_a_fused_convolution_has_the_gradients_of_the_plain_one(
    kernel, stride, bias, frozen, added
):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 6, kernel, stride, padding=kernel // 2, bias=bias).to(
        memory_format=torch.channels_last
    )
    norm = FrozenBatchNorm2d(6) if frozen else None
    if norm is not None:
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    x = torch.randn(2, 5, 9, 7).to(memory_format=torch.channels_last).requires_grad_()
    add = torch.randn_like(conv(x)).requires_grad_() if added else None
    assert convolve(x, conv, norm, add=add, relu=True).grad_fn.name() == "_FusedConvolutionBackward"
    inputs = [x, *conv.parameters(), *([] if add is None else [add])]
    plain = conv(x) if norm is None else norm(conv(x))
    wanted = gradients(F.relu(plain if add is None else plain + add), inputs)
    torch.testing.assert_close(
        gradients(convolve(x, conv, norm, add=add, relu=True), inputs), wanted
    )


@needs_onednn
def test_a_fused_linear_layer_has_the_gradients_of_the_plain_one():
    torch.manual_seed(0)
    layer, x = nn.Linear(11, 7), torch.randn(5, 11, requires_grad=True)
    assert connect(x, layer).grad_fn.name() == "_FusedLinearBackward"
    inputs = [x, *layer.parameters()]
    torch.testing.assert_close(
        gradients(connect(x, layer), inputs), gradients(F.relu(layer(x)), inputs)
    )


def test_layers_of_no_rois_have_gradients():
    layer, x = nn.Linear(11, 7), torch.randn(0, 11, requires_grad=True)
    assert all((g == 0).all() for g in gradients(connect(x, layer), [x, *layer.parameters()]))
