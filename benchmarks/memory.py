"""Peak memory of this process, or of its CUDA device, since a moment of one's choice."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def reset_peak(device: str) -> int:
    """Bytes in use now, with the peak counter set back to them."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    """Most memory this process ever had resident, or had allocated on its CUDA device.

    `ru_maxrss` outlives `exec` and starts at what the parent had; the kernel's own mark does not.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/status").is_file():
        return status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
