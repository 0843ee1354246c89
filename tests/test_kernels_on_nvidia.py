"""Predictions on an NVIDIA GPU use private operators only where they are right.

Here the CPU takes the GPU's place, and public operations the place of cuDNN's. tests/test_gpu.py
compares the real ones.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fresh_process import FreshProcess
from torch import Tensor, nn

from maskrcnn.config import RoIConfig
from maskrcnn.kernels import cudnn, nms, nvidia, probe, roi_align_kernels
from maskrcnn.kernels.probe import SlowKernelWarning
from maskrcnn.kernels.upsample import upsample
from maskrcnn.model.layers import connect, convolve
from maskrcnn.ops import device as devices
from maskrcnn.ops.pyramid import Pyramid


def convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Tensor:
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()


def convolution_add_relu(
    x: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor, *steps: Any
) -> Tensor:
    stride, padding, dilation, groups = steps
    return (F.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()


def product_relu(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight + bias).relu()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The private operators that were called, none of which is one; the CPU stands for the GPU."""
    names: list[str] = []

    def named(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any) -> Tensor:
            names.append(name)
            return function(*args)

        return call

    operators = {
        "cudnn_convolution_relu": convolution_relu,
        "cudnn_convolution_add_relu": convolution_add_relu,
        "_addmm_activation": product_relu,
    }
    stand_ins = SimpleNamespace(**{k: named(k, v) for k, v in operators.items()})
    monkeypatch.setattr(cudnn, "_operators", stand_ins)
    monkeypatch.setattr(nvidia, "can_predict", lambda *tensors: not torch.is_grad_enabled())
    monkeypatch.setattr(probe, "_has_warned", False)
    for tried in (cudnn.CONVOLUTION, cudnn.PRODUCT):
        monkeypatch.setattr(tried, "_probes", {})
    return names


def tried_before(calls: list[str], dtype: torch.dtype) -> None:
    """Lets the trials pass, and forgets their calls."""
    for tried in (cudnn.CONVOLUTION, cudnn.PRODUCT):
        assert tried.works(torch.ones(1, dtype=dtype))
    calls.clear()


def layer(kernel: int, stride: int, dilation: int, groups: int) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, kernel, stride, kernel // 2 * dilation, dilation, groups)
    x = torch.randn(2, 8, 9, 7)
    return conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


RELU, ADD, PRODUCT = "cudnn_convolution_relu", "cudnn_convolution_add_relu", "_addmm_activation"


@pytest.mark.parametrize(
    ("steps", "dtype", "added", "relu", "expected"),
    [
        ((3, 2, 1, 1), torch.float32, False, True, [RELU]),
        ((3, 1, 2, 1), torch.float32, True, True, [ADD]),
        ((1, 2, 1, 1), torch.float32, False, True, [RELU]),
        ((1, 1, 1, 1), torch.float32, True, False, []),
        ((3, 1, 1, 4), torch.bfloat16, False, True, [RELU]),
        ((3, 1, 1, 1), torch.bfloat16, True, False, []),
        ((1, 1, 1, 1), torch.bfloat16, True, True, [ADD]),
        ((1, 1, 1, 4), torch.bfloat16, False, True, [RELU]),
        ((1, 2, 1, 1), torch.bfloat16, False, True, [PRODUCT]),
        ((1, 2, 1, 1), torch.bfloat16, False, False, []),
        ((1, 1, 1, 1), torch.bfloat16, True, False, []),
    ],
)
@torch.no_grad()
def test_a_fused_convolution_equals_the_operations_one_by_one(
    calls: list[str],
    steps: tuple[int, int, int, int],
    dtype: torch.dtype,
    added: bool,
    relu: bool,
    expected: list[str],
) -> None:
    conv, x = layer(*steps)
    wanted = conv(x)
    add = torch.randn_like(wanted) if added else None
    wanted = wanted if add is None else wanted + add
    wanted = wanted.relu() if relu else wanted

    tried_before(calls, dtype)
    add = None if add is None else add.to(dtype)
    result = convolve(x.to(dtype), conv.to(dtype), add=add, relu=relu)
    assert calls == expected
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(result.float(), wanted, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_a_linear_layer_has_its_relu_in_the_product(calls: list[str]) -> None:
    fc, x = nn.Linear(6, 4), torch.randn(5, 6)
    tried_before(calls, torch.float32)
    torch.testing.assert_close(connect(x, fc), F.relu(F.linear(x, fc.weight, fc.bias)))
    assert calls == [PRODUCT]
    connect(x, fc, relu=False)
    connect(x[:0], fc)
    assert calls == [PRODUCT]


def test_what_cannot_be_fused_is_left_to_pytorch(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = layer(3, 1, 1, 1)
    tried_before(calls, torch.float32)
    convolve(x, conv, relu=True)  # with a gradient
    with torch.no_grad():
        convolve(x.contiguous(), conv, relu=True)
        convolve(x[:0], conv, relu=True)
        monkeypatch.setattr(cudnn, "MOST_ELEMENTS", 1000)
        convolve(x, conv, relu=True)
    assert calls == []


def off_by_one(*args: Any) -> Tensor:
    return convolution_relu(*args) + 1


def reads_the_result(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    """As an algorithm would that multiplies what the memory held by zero."""
    return convolution_relu(x, weight, *args) + 0 * torch.full((1,), torch.nan, dtype=x.dtype)


def raises(*args: Any) -> Tensor:
    raise RuntimeError("GET was unable to find an engine\nmore")


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        (off_by_one, "wrong values: off by 1"),
        (reads_the_result, "wrong values: off by nan"),
        (raises, "GET was unable to find an engine"),
    ],
)
def test_an_operator_that_fails_its_trial_is_replaced_with_one_warning(
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    operator: Callable[..., Tensor],
    reason: str,
) -> None:
    monkeypatch.setattr(cudnn._operators, RELU, operator)
    conv, x = layer(3, 1, 1, 1)
    with torch.no_grad(), pytest.warns(SlowKernelWarning) as caught:
        results = [convolve(x, conv, relu=True) for _ in range(2)]
    for result in results:
        torch.testing.assert_close(result, conv(x).relu())
    (warning,) = caught
    assert "cuDNN cannot compute a convolution with a ReLU in float32" in str(warning.message)
    assert f"({reason}" in str(warning.message)
    assert ADD not in calls[-2:], "the other operator is not trusted either"


@torch.no_grad()
def test_a_map_of_twice_the_size_repeats_each_value(calls: list[str]) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for size in ((8, 10), (7, 10), (5, 5)):
        result = upsample(x, size)
        assert torch.equal(result, F.interpolate(x, size=size, mode="nearest"))
        assert result.is_contiguous(memory_format=torch.channels_last)


def test_without_a_gpu_nothing_is_tried() -> None:
    x = torch.ones(1)
    assert not nvidia.can_predict(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert roi_align_kernels._adder(x[:, None]) == roi_align_kernels._PatchedSum.apply


def test_cudnn_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert nvidia.is_enabled()
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    assert not nvidia.is_enabled()
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    assert not nvidia.is_enabled()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module of Triton kernels, which Triton's interpreter runs on the CPU."""
    pytest.importorskip("triton", minversion="3.8", reason="older interpreters need numpy < 2.4")
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(tl, "sum", InterpretedFunction(tl.sum.fn))
    monkeypatch.setattr(nvidia, "can_predict", lambda *tensors: not torch.is_grad_enabled())
    monkeypatch.setattr(nvidia, "is_plain", lambda x: True)
    monkeypatch.setattr(devices, "is_async", lambda device: True)
    monkeypatch.setattr(probe, "_has_warned", False)
    names = []

    def load(name: str) -> Any:
        names.append(f"maskrcnn.kernels.{name}")
        sys.modules.pop(names[-1], None)
        return importlib.import_module(names[-1])

    yield load
    for name in names:
        del sys.modules[name]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roi_align_by_triton_equals_a_bag_of_pixels(
    interpreted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    kernel = interpreted("triton_roi_align")
    levels = [torch.randn(2, 24, side, side + 1).to(dtype) for side in (12, 6)]
    pyramid = Pyramid.of([x.to(memory_format=torch.channels_last) for x in levels])
    boxes = torch.tensor([[3.0, 2.0, 30.0, 41.0], [-9.0, 8.0, 60.0, 60.0], [1.0, 1.0, 1.0, 1.0]])
    image = torch.tensor([0, 1, 1])
    given = (pyramid, boxes, image, torch.tensor([0, 1, 0]), (4, 8))
    config = RoIConfig(size=3, sampling_ratio=2)
    monkeypatch.setattr(kernel.WEIGHTED_SUM, "works", lambda table: False)
    wanted = roi_align_kernels.bag_of_pixels(*given, config)

    monkeypatch.setattr(kernel.WEIGHTED_SUM, "works", lambda table: True)
    result = roi_align_kernels.bag_of_pixels(*given, config)
    assert result.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(result, wanted, atol=tolerance, rtol=tolerance)


def test_the_roi_align_kernel_is_tried_and_a_wrong_one_is_not_used(
    interpreted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = interpreted("triton_roi_align")
    monkeypatch.setattr(kernel, "TRIED", kernel.TRIED[1:])  # the interpreter is slow
    table = torch.zeros(1, 1)
    with torch.no_grad():
        assert roi_align_kernels._adder(table) is kernel.weighted_sum
    assert roi_align_kernels._adder(table) is roi_align_kernels.weighted_sum, "with a gradient"

    kernel.WEIGHTED_SUM._probes.clear()
    right = kernel.weighted_sum
    monkeypatch.setattr(kernel, "weighted_sum", lambda *given: right(*given) + 1)
    with torch.no_grad(), pytest.warns(SlowKernelWarning, match="Triton.*wrong values: off by 1"):
        assert roi_align_kernels._adder(table) is roi_align_kernels.weighted_sum


def crowd(images: int, count: int) -> Tensor:
    """Boxes in no order, many of which overlap."""
    low = torch.rand(images, count, 2) * 60
    return torch.cat([low, low + 10 + 40 * torch.rand(images, count, 2)], dim=-1)


def test_nms_by_triton_keeps_what_the_cpu_keeps(
    interpreted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    kernel = interpreted("triton_nms")
    monkeypatch.setattr(kernel, "TRIED", 30)
    assert kernel.GREEDY.works(torch.zeros(1))
    valid = torch.rand(2, 40) < 0.9
    scores = torch.rand(2, 40)
    candidates = nms.Candidates(crowd(2, 40), scores, torch.randint(3, (2, 40)), valid)
    found = nms.select_at_once(candidates, 0.5, 50)
    wanted = nms.select_one_by_one(candidates, 0.5, 50)
    assert bool(found[2])
    assert 20 < int(found[1].sum()) < 70
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0][found[1]], wanted[0][wanted[1]])

    sizes = [25, 15]
    scores = torch.cat([part.sort(descending=True)[0] for part in scores.split(sizes, 1)], dim=1)
    given = (candidates.boxes, scores, valid, sizes, 0.5, 30)
    found = nms.select_by_level(*given)
    monkeypatch.setattr(devices, "is_async", lambda device: False)
    index, kept = nms.select_by_level(*given)
    assert torch.equal(found[1], kept)
    assert torch.equal(found[0][kept], index[kept])


def test_the_nms_kernel_is_tried_and_a_wrong_one_is_not_used(
    interpreted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = interpreted("triton_nms")
    monkeypatch.setattr(kernel, "TRIED", 30)
    right = kernel.survivors
    monkeypatch.setattr(kernel, "survivors", lambda *given: ~right(*given))
    with pytest.warns(SlowKernelWarning, match="Triton.*greedy NMS.*wrong values: off by 1"):
        assert nms._triton_kernel(torch.zeros(1)) is None


def test_the_triton_kernels_compile_for_a_gpu(fresh_process: FreshProcess, tmp_path: Path) -> None:
    """The interpreter accepts what the compiler refuses."""
    pytest.importorskip("triton")
    done = fresh_process.call("compile_for_gpu:main", str(tmp_path))
    assert done.status == 0, done.err
    assert len(done.out.split()) == 2
