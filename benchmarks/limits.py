"""Limits of the machine: its best measured rates of arithmetic and of memory copies.

The rates are the best that PyTorch reaches on this machine in a matrix product and a convolution:
a bound that a PyTorch program can reach, unlike the number in a data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F

from maskrcnn.kernels.precision import computes_bfloat16

Rates = dict[str, float]


def dtypes(device: str = "cpu") -> tuple[Literal["float32", "bfloat16"], ...]:
    """The types worth measuring: bfloat16 only where the device does not emulate it."""
    if device == "cpu" and not computes_bfloat16(torch.device(device)):
        return ("float32",)
    return ("float32", "bfloat16")


def left_out() -> dict[str, str]:
    """What a benchmark on the CPU has to add to its result if it leaves bfloat16 out."""
    if "bfloat16" in dtypes():
        return {}
    return {"left out": "bfloat16, which this processor does not compute but emulates in float32"}


def rates(seconds: float = 1.0, device: str = "cpu") -> Rates:
    """Best GFLOP/s in float32 and bfloat16, and GB/s of a copy (read and write counted).

    On a CPU that emulates bfloat16, the rate in bfloat16 is left out: a product would take minutes.
    """
    best_rates: Rates = {}
    size = 2048 if device == "cpu" else 8192
    for name in dtypes(device):
        dtype = getattr(torch, name)
        square = torch.randn(size, size, device=device, dtype=dtype)
        table = torch.randn(100, 256, 14, 14, device=device, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        kernel = torch.randn(256, 256, 3, 3, device=device, dtype=dtype).to(
            memory_format=torch.channels_last
        )

        candidates = [
            (2.0 * size**3, lambda square=square: square @ square),
            (
                2.0 * table.numel() * 256 * 9,
                lambda table=table, kernel=kernel: F.conv2d(table, kernel, padding=1),
            ),
        ]
        with torch.inference_mode():
            best = max(work / _best(function, seconds / 4, device) for work, function in candidates)
        best_rates[f"{name} GFLOP/s"] = best / 1e9

    source = torch.ones(64_000_000, device=device)
    target = torch.empty_like(source)
    best_rates["copy GB/s"] = (
        2 * source.nbytes / _best(lambda: target.copy_(source), seconds / 4, device) / 1e9
    )
    return best_rates


def _best(function: Callable[[], Any], seconds: float, device: str) -> float:
    """The shortest of the runs that fit into the time; at least three runs."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
