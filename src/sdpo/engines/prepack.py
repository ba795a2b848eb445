"""Linear layers with weights laid out once for oneDNN, for decoding on a CPU.

A decode step multiplies few rows by every weight, and a plain `linear` re-orders each weight again
on every call: measured on two AVX2 cores at 64 rows, [576 x 49152] takes 59 ms plain and 28 ms
packed. Packing copies the weights (as much memory again as the linear layers, freed when the block
ends) and takes about as long as five decode steps, so only long calls pay for it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

_MAX_ROWS = 256
"""Above this many rows the plain product amortises its own re-ordering and is as fast."""

_MIN_STEPS = 24
"""Decode steps from which packing pays."""


@contextmanager
def packed_linears(model: torch.nn.Module, *, rows: int, steps: int) -> Generator[None]:
    """Inside the block the plain `Linear` layers of a CPU model multiply up to 256 rows with packed
    weights.

    Weights are packed on entry: changing them inside the block has no effect on small batches.
    """
    linears: list[torch.nn.Linear] = []
    is_worth_it = steps >= _MIN_STEPS and torch.backends.mkldnn.is_available()
    try:
        if is_worth_it:
            for module in model.modules():
                if type(module) is torch.nn.Linear and _is_packable(module.weight):
                    _pack(module, min(rows, _MAX_ROWS))
                    linears.append(module)
        yield
    finally:
        for module in linears:
            del module.forward  # the instance attribute; the class's method is back


def _is_packable(weight: torch.Tensor) -> bool:
    return (
        type(weight) is torch.nn.Parameter  # neither a DTensor nor a quantised weight
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
    )


def _pack(module: torch.nn.Linear, rows: int) -> None:
    weight, bias = module.weight.detach(), module.bias
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.numel() > _MAX_ROWS * x.shape[-1]:
            return torch.nn.functional.linear(x, weight, bias)
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    module.forward = forward  # ty: ignore[invalid-assignment]
