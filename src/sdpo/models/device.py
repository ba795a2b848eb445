"""Which number format a device multiplies fast, waiting for it, and keeping freed CPU memory."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
_LARGEST_KEPT_BYTES = 128 << 20
"""Tensors up to this size stay in the process: activations and the fused head's logits. Larger ones
are gradients and weights; small tensors would fill the gaps they leave, which could then not be
reused: a 0.5B model's process grew by 0.6 GB an update."""
_NEVER = -1
"""Never return freed memory: the next step allocates the same amount again."""


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


def free_bytes(device: torch.device) -> int | None:
    """Memory that `device` can still give to tensors, what PyTorch holds and does not use included;
    None where that cannot be asked."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.is_file():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def finish(device: torch.device) -> None:
    """Wait until `device` has done what was started on it, so that a clock read now is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_freed_memory() -> None:
    """Let this process reuse freed memory instead of giving it back at once.

    glibc returns large tensors to the system when they are freed, and the system clears every page
    again for the next one: measured 7 to 17% of an update on two cores. CUDA has PyTorch's own
    caching. Does nothing where the C library is another one.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """Return every free page to the system, where glibc is the C library.

    For the end of work whose tensors are not needed again, such as a search's optimizer.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
