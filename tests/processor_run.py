"""What depends on the processor, for `fresh_process`: a process for each case.

PyTorch and oneDNN read which instructions they may use at the first operation, not at import. So
everything is imported once, and each case is a fork that sets its variables first. The operations
and a small network are compared with PyTorch's public operations in float32. Each case prints a
line of JSON: its result, or under "error" what went wrong.

CASE: variables and a way, as in "ATEN_CPU_CAPABILITY=avx2 plain". The way is "plain", "off" (oneDNN
is switched off) or "refused" (no operation of oneDNN works).
"""

from __future__ import annotations

import json
import os
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from models import make_batch, make_truth, tiny_config
from torch import Tensor

from maskrcnn.config import Category, RoIConfig
from maskrcnn.kernels import onednn
from maskrcnn.kernels.precision import computes_bfloat16
from maskrcnn.kernels.probe import SlowKernelWarning
from maskrcnn.kernels.roi_align_kernels import roi_align
from maskrcnn.model.maskrcnn import MaskRCNN, total
from maskrcnn.ops.pyramid import Pyramid
from maskrcnn.prediction.optimize import optimize_for_inference

CATEGORIES = (Category("stone", 1), Category("figure", 2, keypoints=("head", "hip", "foot")))


class Counted:
    """oneDNN's private operators, counting the calls."""

    def __init__(self, operators: Any) -> None:
        self.operators = operators
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self.operators, name)


def public() -> Any:
    """PyTorch's public operations only."""
    return patch.object(onednn, "_is_candidate", lambda x: False)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    result = function(*inputs)
    weights = torch.sin(torch.arange(result.numel()) * 0.7).view(result.shape)
    gradients = torch.autograd.grad((result.float() * weights).sum(), inputs)
    return [result.detach(), *gradients]


def check_operations() -> None:
    """Results and gradients in float32; in bfloat16, the rounded result of rounded inputs."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 7).to(memory_format=torch.channels_last)
    weight = torch.randn(8, 16, 3, 3) / 12
    bias = torch.randn(8)
    add = torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last)
    geometry = onednn.Geometry((1, 1), (1, 1), (1, 1), 1)

    def added(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor) -> Tensor:
        return onednn.convolution(x, weight, bias, geometry, add=add, relu=True)

    def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return onednn.convolution(x, weight, bias, geometry, relu=True)

    def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return onednn.linear(x, weight, bias, relu=True)

    def transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return onednn.transposed_convolution(x, weight, bias, (2, 2), (1, 1))

    operations = (
        (convolution, (x, weight, bias)),
        (added, (x, weight, bias, add)),
        (linear, (torch.randn(5, 49), torch.randn(8, 49) / 7, bias)),
        (transposed, (x, torch.randn(16, 8, 4, 4) / 8, bias)),
    )
    for operation, inputs in operations:
        with public():
            expected = with_gradients(operation, *inputs)
        torch.testing.assert_close(with_gradients(operation, *inputs), expected)
        without = operation(*(t.clone() for t in inputs))
        torch.testing.assert_close(without, expected[0])

        halves = tuple(t.bfloat16() for t in inputs)
        with public():
            exact = with_gradients(operation, *(t.float() for t in halves))
        coarse = {"atol": 0.02, "rtol": 2**-7}
        half = operation(*(t.clone() for t in halves))
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), exact[0], **coarse)
        result, *gradients = with_gradients(operation, *halves)
        torch.testing.assert_close(result.float(), exact[0], **coarse)
        for gradient, wanted in zip(gradients, exact[1:], strict=True):
            assert gradient.dtype == torch.bfloat16
            similarity = F.cosine_similarity(gradient.float().flatten(), wanted.flatten(), dim=0)
            assert similarity > 0.99, operation.__name__


def check_roi_align() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 8, n, n + 3) for n in (16, 8)]
    corner = torch.rand(12, 2) * 40
    boxes = torch.cat([corner, corner + 5 + 30 * torch.rand(12, 2)], dim=1)
    image, level = torch.arange(12) % 2, torch.arange(12) // 6

    for config in (RoIConfig(size=7, sampling_ratio=2), RoIConfig(size=7, sampling_ratio=0)):

        def read(*levels: Tensor, config: RoIConfig = config, exact: bool = False) -> Tensor:
            pyramid = Pyramid.of([*levels])
            return roi_align(pyramid, boxes, image, level, (4, 8), config, exact=exact)

        expected = with_gradients(partial(read, exact=True), *levels)
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(with_gradients(read, *levels), expected, **close)
        half = read(*[x.bfloat16() for x in levels])
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected[0], atol=0.05, rtol=0.05)


def check_network() -> dict[str, Any]:
    """Predictions and losses of a small joint network, in float32 and in bfloat16."""
    config = tiny_config(CATEGORIES)
    config = replace(config, rpn=replace(config.rpn, post_nms_test=30, post_nms_train=30))
    torch.manual_seed(0)
    model = MaskRCNN.from_config(config).eval()
    for part in (model.rpn.objectness, model.box_head.class_logits):
        torch.nn.init.normal_(part.weight, std=0.1)
    batch = make_batch(((64, 64), (64, 64)))
    truth = make_truth(config, batch)

    with public():
        expected = model(batch)
        losses = model.losses(batch, truth)
        total(losses).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert expected.valid.sum() >= 20, "too few detections prove nothing"

    # float32: the same detections, losses and gradients.
    with torch.inference_mode():
        found = optimize_for_inference(model)(batch)
    assert torch.equal(found.labels, expected.labels)
    for name in ("boxes", "scores", "masks", "keypoint_logits"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=0.01, rtol=1e-3
        )
    model.layout = torch.channels_last
    model.zero_grad()
    torch.testing.assert_close(model.losses(batch, truth), losses, atol=1e-4, rtol=1e-4)
    total(model.losses(batch, truth)).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[name], atol=1e-3, rtol=1e-3, msg=name)

    # bfloat16: nearly the same scores and losses. Detections may change their order.
    half = optimize_for_inference(model, "bfloat16")
    with torch.inference_mode():
        assert half.pyramid(batch).table.dtype == torch.bfloat16
        scores = half(batch).scores
        half_losses = half.losses(batch, truth)
    torch.testing.assert_close(scores.mean(), expected.scores.mean(), atol=0, rtol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        trained_losses = model.losses(batch, truth)
    total(trained_losses).backward()
    for term in ("rpn_objectness", "rpn_box"):  # of the others the samples may differ
        close = {"atol": 0.02, "rtol": 0.05}
        torch.testing.assert_close(half_losses[term], losses[term], **close)
        torch.testing.assert_close(trained_losses[term], losses[term], **close)
    return {"detections": int(expected.valid.sum())}


def compare(case: str) -> dict[str, Any]:
    """Compares everything in this process, and returns what was seen."""
    *variables, way = case.split()
    os.environ.update(variable.split("=") for variable in variables)
    torch.set_num_threads(1)
    if way == "off":
        torch.backends.mkldnn.enabled = False
    if way == "refused":

        def refuse(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
            raise NotImplementedError("refused by the test")

        for probe in (onednn.CONVOLUTION, onednn.TRANSPOSED_CONVOLUTION, onednn.LINEAR):
            probe.trial = refuse

    generator_before = torch.get_rng_state()
    report = onednn.report()
    assert torch.equal(torch.get_rng_state(), generator_before)
    onednn._operators = Counted(onednn._operators)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_operations()
        check_roi_align()
        numbers = check_network()

    slow = [str(w.message) for w in caught if w.category is SlowKernelWarning]
    others = [str(w.message) for w in caught if w.category is not SlowKernelWarning]
    capability = torch.backends.cpu.get_cpu_capability()
    result = {"report": report, "warnings": slow, "others": others, "capability": capability}
    result |= {"private calls": onednn._operators.calls, **numbers}
    result["has bfloat16"] = computes_bfloat16(torch.device("cpu"))
    return result


def main(cases: list[str]) -> None:
    for case in cases:
        child = os.fork()
        if child == 0:
            try:
                result = compare(case)
            except BaseException:
                result = {"error": traceback.format_exc()}
            print(json.dumps(result), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
