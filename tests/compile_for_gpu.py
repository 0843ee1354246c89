"""Compiles the Triton kernels for a GPU, in a process in which its interpreter has not run.

The interpreter replaces parts of Triton's language.
"""

from __future__ import annotations

import os

SUM = ("*bf16", "*i64", "*i64", "*fp32", "*i64", "*fp32", "*i64", "*bf16", "i32", "i32")
SUPPRESS = ("*fp32", "*i64", "*i1", "*i1", "i32", "fp32")


def main(cache: str) -> None:
    """Prints the size of the code of each kernel."""
    os.environ["TRITON_CACHE_DIR"] = cache
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from maskrcnn.kernels.triton_nms import _suppress
    from maskrcnn.kernels.triton_roi_align import _sum_row_of_bins

    for kernel, given, constants, warps in (
        (_sum_row_of_bins, SUM, {"TAPS": 4, "BLOCK": 256}, 1),
        (_suppress, SUPPRESS, {"BLOCK": 1024}, 4),
    ):
        types = (*given, *["constexpr"] * len(constants))
        signature = dict(zip(kernel.arg_names, types, strict=True))
        source = ASTSource(kernel, signature, constexprs=constants)
        target = GPUTarget("cuda", 90, 32)
        made = triton.compile(source, target=target, options={"num_warps": warps})
        print(len(made.asm["cubin"]))
