"""Which number format a device multiplies fast."""

from __future__ import annotations

import torch


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware has it, else float32.

    A CPU without AMX or AVX512-BF16 emulates bfloat16 products: measured on AVX2, hundreds of times
    slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    if device.type == "cpu":
        has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    return torch.float32
