"""The floating-point type of sums and reductions, one rule for kernels, losses and engines."""

from __future__ import annotations

import torch


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs (finite differences), float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
