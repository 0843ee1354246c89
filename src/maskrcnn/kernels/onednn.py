"""Convolutions and linear layers on a CPU: fused with the addition and the ReLU that follow them,
and in bfloat16 on processors without it. On other devices they are PyTorch's.

PyTorch's compiler lowers to oneDNN operators that add and apply the ReLU while they write their
result. They are called here without compiling. Large results are new memory each time, which costs
a CPU as much as a 1x1 convolution itself, so a fused operation also saves that.

The operators are private and have no gradient: `_FusedConvolution` and `_FusedLinear` add one. They
are used where a `Probe` has seen them work. Elsewhere PyTorch's public operations compute the same
in float32; 16-bit types are emulated: float32 arithmetic on the rounded inputs, the result rounded.
PyTorch's own operations do that too, up to fifty times slower than float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..ops.device import no_autocast
from .convolution_geometry import Geometry
from .probe import Probe, whole_numbers

_operators: Any = torch.ops.mkldnn

HALVES = (torch.bfloat16, torch.float16)


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

    Arguments are those of `fused_layers.convolution`.
    """
    if dtype := _emulated_type(x, weight, CONVOLUTION):

        def compute(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor:
            return convolution(x, weight, bias, geometry, add=add, relu=relu)

        return _emulate(compute, dtype, x, weight, bias, add)

    if _is_fusable(x, weight, add):
        if add is None:
            return _fused_convolution(x, weight, bias, geometry, relu)
        return _fused_addition_into(add, x, weight, bias, geometry, relu)
    if relu and _is_fusable(x, weight, add, training=True):
        return _FusedConvolution.apply(x, weight, bias, add, geometry)

    x = plain_convolution(x, weight, bias, geometry)
    if add is not None:
        x = x.add_(add)
    return F.relu(x, inplace=True) if relu else x


def plain_convolution(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "C2 C1 K K"],
    bias: Float[Tensor, "C2"] | None,
    geometry: Geometry,
) -> Float[Tensor, "B C2 H2 W2"]:
    """Returns the zero-padded convolution of x by PyTorch's own operation, where nothing is fused.

    It rounds differently from the fused one in some layouts.
    """
    padding, stride, dilation, groups = geometry
    if dtype := _emulated_type(x, weight, CONVOLUTION):

        def compute(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

        return _emulate(compute, dtype, x, weight, bias)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def transposed_convolution(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "C C2 K K"],
    bias: Float[Tensor, "C2"] | None,
    stride: Any,
    padding: Any,
) -> Float[Tensor, "B C2 H2 W2"]:
    """Returns the transposed convolution of x."""
    if dtype := _emulated_type(x, weight, TRANSPOSED_CONVOLUTION):

        def compute(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return F.conv_transpose2d(x, weight, bias, stride, padding)

        return _emulate(compute, dtype, x, weight, bias)
    return F.conv_transpose2d(x, weight, bias, stride, padding)


def linear(
    x: Float[Tensor, "K C"],
    weight: Float[Tensor, "C2 C"],
    bias: Float[Tensor, "C2"] | None,
    *,
    relu: bool = False,
) -> Float[Tensor, "K C2"]:
    """Returns a fully connected layer of x, then a ReLU if `relu`."""
    if dtype := _emulated_type(x, weight, LINEAR):

        def compute(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return linear(x, weight, bias, relu=relu)

        return _emulate(compute, dtype, x, weight, bias)

    if relu and _is_fusable(x, weight, None):
        return _fused_linear(x, weight, bias, relu)
    if relu and _is_fusable(x, weight, None, training=True):
        return _FusedLinear.apply(x, weight, bias)
    x = F.linear(x, weight, bias)
    return F.relu(x) if relu else x


def emulated(network: Callable[[Tensor], Any], x: Tensor) -> Any:
    """Returns the output of another package's network, with 16-bit types computed as ours are.

    Its convolutions and linear layers call PyTorch, which is slow where oneDNN lacks the type.
    Where oneDNN has the type, the network is simply called.
    """
    if not _is_candidate(x):
        return network(x)
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    if dtype not in HALVES or (CONVOLUTION.works(dtype) and LINEAR.works(dtype)):
        return network(x)
    with _Emulation():
        return network(x)


class _Emulation(TorchFunctionMode):
    """Computes PyTorch's convolutions and linear layers by this module's functions."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d:
            return _plain_convolution(*args, **kwargs)
        if func is F.linear:
            return _linear_of_any_shape(*args, **kwargs)
        return func(*args, **kwargs)


def _plain_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`plain_convolution` with the arguments of F.conv2d."""
    return plain_convolution(input, weight, bias, Geometry(padding, stride, dilation, groups))


def _linear_of_any_shape(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with the arguments of F.linear."""
    rows = linear(input.reshape(-1, input.shape[-1]), weight, bias)
    return rows.view(*input.shape[:-1], len(weight))


def report() -> dict[str, str]:
    """Returns how each operation is computed on this processor, by operation and type.

    Example:
        >>> from maskrcnn.kernels import onednn
        >>> sorted(onednn.report())[:2]
        ['convolution, bfloat16', 'convolution, float32']
    """
    ways: dict[str, str] = {}
    for probe in (CONVOLUTION, TRANSPOSED_CONVOLUTION, LINEAR):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{probe.operation}, {str(dtype).removeprefix('torch.')}"
            if probe.works(dtype):
                ways[name] = "oneDNN"
                continue
            way = "emulated" if dtype in HALVES else "PyTorch"
            reason = probe.failure(dtype) or "torch.backends.mkldnn.enabled is False"
            ways[name] = f"{way}: {reason}"
    return ways


def _is_candidate(x: Tensor) -> bool:
    """Whether oneDNN may compute something: on a CPU, called directly."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _emulated_type(x: Tensor, weight: Tensor, probe: Probe) -> torch.dtype | None:
    """The 16-bit type in which an operation is to be computed and that oneDNN does not have."""
    if not _is_candidate(x):
        return None
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    else:
        dtype = x.dtype if x.dtype == weight.dtype else torch.float32

    if dtype not in HALVES or probe.works(dtype):
        return None
    probe.warn(dtype, instead="in float32 and rounded")
    return dtype


def _emulate(compute: Callable[..., Tensor], dtype: torch.dtype, *tensors: Tensor | None) -> Tensor:
    """The result in a 16-bit type: inputs and result are rounded, sums are float32."""
    rounded = [None if t is None else t.to(dtype).float() for t in tensors]
    with no_autocast(torch.device("cpu")):
        return compute(*rounded).to(dtype)


def _is_fusable(x: Tensor, weight: Tensor, add: Tensor | None, training: bool = False) -> bool:
    """Whether the fused operators can be used: on a CPU, in oneDNN's memory layout.

    Without `training` they apply where no gradient is recorded, with `training` where gradients are
    recorded in float32.
    """
    plain = (
        _is_candidate(x)
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, *HALVES)
        and not torch.is_autocast_enabled("cpu")
    )
    if not plain:
        return False

    recorded = torch.is_grad_enabled() and any(
        t.requires_grad for t in (x, weight, add) if t is not None
    )
    if recorded != training or (training and (x.dtype != torch.float32 or len(x) == 0)):
        return False
    if x.dim() == 4 and not x.is_contiguous(memory_format=torch.channels_last):
        return False

    probe = LINEAR if x.dim() == 2 else CONVOLUTION
    if probe.works(x.dtype):
        return True
    probe.warn(x.dtype, instead="by PyTorch's public operation")
    return False


def _fused_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    after = "relu" if relu else "none"
    return _operators._convolution_pointwise(x, weight, bias, *geometry, after, [], "")


def _fused_addition(
    x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor, geometry: Geometry
) -> Tensor:
    """The ReLU of a convolution plus `add`."""
    return _operators._convolution_pointwise.binary(
        x, add, weight, bias, *geometry, "add", 1.0, "relu", [], None
    )


def _fused_addition_into(
    add: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """Adds a convolution to `add`, in its memory."""
    after = "relu" if relu else None
    return _operators._convolution_pointwise_.binary(
        add, x, weight, bias, *geometry, "add", 1.0, after, [], None
    )


def _fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    return _operators._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")


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
            result = _fused_convolution(x, weight, bias, geometry, relu=True)
        else:
            result = _fused_addition(x, weight, bias, add, geometry)

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
        result = _fused_linear(x, weight, bias, relu=True)
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
            to_x = _fused_linear(grad, weight.t(), None, relu=False)
        to_weight = None
        if needs_weight:
            to_weight = _fused_linear(grad.t(), x.t(), None, relu=False)
        to_bias = grad.sum(dim=0) if needs_bias else None
        return to_x, to_weight, to_bias


# Input channels, output channels, kernel, stride and groups: as the stem, in 1x1 convolutions, in
# blocks, and in the blocks of ResNeXt.
TRIED = ((3, 16, 7, 2, 1), (16, 32, 1, 1, 1), (16, 16, 3, 1, 1), (16, 16, 3, 2, 4))


def _try_convolution(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for channels_in, channels, kernel, stride, groups in TRIED:
        x = whole_numbers(2, channels_in, 10, 9)
        weight = whole_numbers(channels, channels_in // groups, kernel, kernel)
        bias = whole_numbers(channels)
        padding = kernel // 2
        expected = F.conv2d(x, weight, bias, stride, padding, 1, groups)

        geometry = Geometry((padding, padding), (stride, stride), (1, 1), groups)
        x = x.to(dtype, memory_format=torch.channels_last)
        weight = weight.to(dtype, memory_format=torch.channels_last)
        bias = bias.to(dtype)
        if dtype in HALVES:
            yield F.conv2d(x, weight, bias, stride, padding, 1, groups), expected
        yield _fused_convolution(x, weight, bias, geometry, relu=False), expected
        yield _fused_convolution(x, weight, bias, geometry, relu=True), expected.relu()

        add = whole_numbers(*expected.shape).to(memory_format=torch.channels_last)
        wanted = (expected + add).relu()
        add = add.to(dtype)
        if dtype not in HALVES:  # with a gradient, in float32 only
            yield _fused_addition(x, weight, bias, add, geometry), wanted
        yield _fused_addition_into(add, x, weight, bias, geometry, relu=True), wanted


def _try_transposed_convolution(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    # Without oneDNN PyTorch's own operation is right as well, but slower than float32.
    if dtype in HALVES and (failure := CONVOLUTION.failure(dtype)):
        raise NotImplementedError(failure)

    x = whole_numbers(2, 16, 7, 6)
    weight = whole_numbers(16, 8, 4, 4)
    bias = whole_numbers(8)
    expected = F.conv_transpose2d(x, weight, bias, 2, 1)
    x = x.to(dtype, memory_format=torch.channels_last)
    yield F.conv_transpose2d(x, weight.to(dtype), bias.to(dtype), 2, 1), expected


def _try_linear(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    x = whole_numbers(9, 49)
    weight = whole_numbers(32, 49)
    bias = whole_numbers(32)
    expected = F.linear(x, weight, bias)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    yield F.linear(x, weight, bias), expected
    yield _fused_linear(x, weight, bias, relu=True), expected.relu()

    # The gradient multiplies by transposed matrices.
    transposed = weight.t().contiguous().t()
    yield _fused_linear(x, transposed, None, relu=False), expected - bias.double()


def _is_enabled() -> bool:
    return bool(torch.backends.mkldnn.enabled)


CONVOLUTION = Probe("convolution", _try_convolution, "oneDNN", _is_enabled)
TRANSPOSED_CONVOLUTION = Probe(
    "transposed convolution", _try_transposed_convolution, "oneDNN", _is_enabled
)
LINEAR = Probe("linear layer", _try_linear, "oneDNN", _is_enabled)
