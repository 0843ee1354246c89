"""Predictions, losses and gradients are right on other processors, simulated where they differ."""

from __future__ import annotations

import json
import platform
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh_process import FreshProcess
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskrcnn.config import TrunkConfig
from maskrcnn.kernels import onednn, probe
from maskrcnn.kernels.probe import Probe, SlowKernelWarning
from maskrcnn.model.timm_trunk import TimmTrunk

TESTS = Path(__file__).parent
X86 = platform.machine().lower() in ("x86_64", "amd64")

needs_x86 = pytest.mark.skipif(not X86, reason="the variables choose among x86 instructions")


CASES = {
    "PyTorch's avx2": "ATEN_CPU_CAPABILITY=avx2 plain",
    "PyTorch's default": "ATEN_CPU_CAPABILITY=default plain",
    "oneDNN's AVX2": "ONEDNN_MAX_CPU_ISA=AVX2 plain",
    "AVX2 of both": "ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 plain",
    "off": "off",
    "refused": "refused",
}


@pytest.fixture(scope="module")
def results(fresh_process: FreshProcess) -> dict[str, dict[str, Any]]:
    """What tests/processor_run.py saw in each case."""
    done = fresh_process.call("processor_run:main", [*CASES.values()])
    assert done.status == 0, done.err
    every = [json.loads(line) for line in done.out.splitlines()]
    return dict(zip(CASES, every, strict=True))


def result_of(results: dict[str, dict[str, Any]], case: str) -> dict[str, Any]:
    result = results[case]
    assert "error" not in result, result["error"]
    assert result["others"] == []
    return result


@needs_x86
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_other_instructions_of_pytorch_compute_the_same(results: Any, capability: str) -> None:
    result = result_of(results, f"PyTorch's {capability}")
    assert result["capability"] == capability.upper()
    assert result["private calls"] == 76, "what is fused has changed"
    emulated = [name for name, way in result["report"].items() if way != "oneDNN"]
    assert len(result["warnings"]) == bool(emulated)


@needs_x86
@pytest.mark.parametrize("case", ["oneDNN's AVX2", "AVX2 of both"])
def test_a_processor_without_avx512_emulates_bfloat16_with_one_warning(
    results: Any, case: str
) -> None:
    result = result_of(results, case)
    for name, way in result["report"].items():
        assert way.startswith("emulated: " if "bfloat16" in name else "oneDNN"), (name, way)
    (warning,) = result["warnings"]
    assert "a convolution in bfloat16 on this machine (mkldnn_convolution: bf16 path" in warning
    assert "in float32 and rounded: predictions are the same, slower" in warning
    assert result["private calls"] == 88, "what is fused in float32 has changed"
    assert not result["has bfloat16"], "--dtype auto means float32"


def test_without_onednn_public_operations_compute_the_same(results: Any) -> None:
    result = result_of(results, "off")
    assert result["private calls"] == 0
    assert result["warnings"] == [], "it was switched off on purpose"
    assert all("mkldnn.enabled is False" in way for way in result["report"].values())
    assert not result["has bfloat16"]


def test_operations_that_fail_their_trial_are_not_used_and_one_warning_says_so(
    results: Any,
) -> None:
    result = result_of(results, "refused")
    assert result["private calls"] == 0
    (warning,) = result["warnings"]
    assert "a convolution in float32 on this machine (refused by the test)" in warning
    assert "by PyTorch's public operation: predictions are the same, slower" in warning
    assert not result["has bfloat16"]


@pytest.fixture
def not_warned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(probe, "_has_warned", False)
    with warnings.catch_warnings():
        warnings.simplefilter("always", SlowKernelWarning)
        yield


def yes() -> bool:
    return True


def test_wrong_values_fail_a_trial(not_warned: None) -> None:
    expected = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    for wrong in (expected + 0.1, expected * torch.nan):
        tried = Probe("product", lambda dtype, wrong=wrong: [(wrong.to(dtype), expected)], "X", yes)
        assert not tried.works(torch.float32)
        assert "wrong values" in tried.failure(torch.float32)
    with pytest.warns(SlowKernelWarning, match="product in float32.*wrong values"):
        tried.warn(torch.float32, instead="otherwise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tried.warn(torch.float32, instead="otherwise")  # once per process


def test_a_type_is_tried_once_whatever_the_state_of_the_caller() -> None:
    tried: list[torch.dtype] = []

    def trial(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        tried.append(dtype)
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_inference_mode_enabled()
        ones = torch.ones(2)
        assert ones.device.type == "cpu"
        return [(ones.to(dtype), ones.double())]

    probed = Probe("product", trial, "X", yes)
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        threads = [threading.Thread(target=probed.works, args=(torch.float32,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert probed.works(torch.float32)
        assert probed.works(torch.bfloat16)
    assert tried == [torch.float32, torch.bfloat16]
    assert torch.equal(torch.get_rng_state(), state)


def test_onednn_can_be_switched_off_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    works = onednn.CONVOLUTION.works(torch.float32)
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "enabled", False)
        assert not onednn.CONVOLUTION.works(torch.float32)
    assert onednn.CONVOLUTION.works(torch.float32) == works


def test_a_trunk_of_timm_is_emulated_like_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own bfloat16 is up to fifty times slower than float32 where oneDNN lacks it."""
    torch.manual_seed(0)
    config = TrunkConfig(timm="convnext_atto", norm="batch", frozen_stages=0)
    trunk = TimmTrunk(config).eval()  # its blocks have convolutions and linear layers
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = trunk(x)

    for tried in (onednn.CONVOLUTION, onednn.LINEAR):
        monkeypatch.setitem(tried._failures, torch.bfloat16, "refused by the test")
    kinds: set[torch.dtype] = set()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            if func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.addmm):
                kinds.update(t.dtype for t in args[:3] if isinstance(t, Tensor))
            return func(*args, **(kwargs or {}))

    with torch.inference_mode():
        half = trunk.bfloat16()(x.bfloat16())
    for ours, level in zip(half, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - level).norm() < 0.05 * level.norm()

    # The same with gradients, under autocast, and what PyTorch is asked to compute.
    with Watched(), torch.autocast("cpu", torch.bfloat16):
        total = torch.stack([level.float().mean() for level in trunk.float()(x)]).sum()
    total.backward()
    assert kinds == {torch.float32}
    assert all(p.grad is not None for p in trunk.parameters())
