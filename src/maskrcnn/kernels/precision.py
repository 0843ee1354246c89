"""What the hardware computes natively."""

from __future__ import annotations

import torch

from . import onednn


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware supports bfloat16 natively (AVX512-BF16, AMX, Ampere or later).

    On a CPU, oneDNN must be able to use it as well.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device.type == "cpu"
        and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        and onednn.CONVOLUTION.works(torch.bfloat16)
    )
