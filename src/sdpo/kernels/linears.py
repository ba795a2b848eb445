"""Linear layers with weights laid out once for oneDNN, for decoding on a CPU.

A decode step multiplies few rows by every weight, and a plain `linear` re-orders each weight again
on every call: measured on two AVX2 cores at 64 rows, [576 x 49152] takes 59 ms plain and 28 ms
packed; whole calls of SmolLM2 in bfloat16 on one AVX512-BF16 core take 0.89 of the time at 8 rows
and 0.98 at 64. Packing copies the weights (as much memory again as the linear layers, freed when
the block ends) and takes about as long as five decode steps, so only long calls pay for it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Linear

_MAX_ROWS = 256
"""Above this many rows the plain product amortises its own re-ordering and is as fast."""

_MIN_STEPS = 24
"""Decode steps from which packing pays."""


@contextmanager
def packed_linears(model: torch.nn.Module, *, rows: int, steps: int) -> Generator[None]:
    """Inside the block the plain `Linear` layers of a CPU model multiply up to 256 rows with packed
    weights.

    A layer's weight is packed at its first such call: changing it later has no effect on small
    batches.
    """
    linears: list[Linear] = []
    is_worth_it = steps >= _MIN_STEPS and torch.backends.mkldnn.is_available()
    try:
        if is_worth_it:
            for module in model.modules():
                if type(module) is Linear and _is_packable(module.weight):
                    module.forward = _Packed(module, min(rows, _MAX_ROWS))
                    linears.append(module)
        yield
    finally:
        for module in linears:
            del module.forward  # the instance attribute; the class's method is back


def _is_packable(weight: Tensor) -> bool:
    return (
        type(weight) is torch.nn.Parameter  # neither a DTensor nor a quantised weight
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
    )


class _Packed:
    """A layer's forward pass with its weight in oneDNN's layout for products of about `rows`
    rows."""

    def __init__(self, module: Linear, rows: int) -> None:
        self._module = module
        self._rows = rows
        self._weight: Tensor | None = None

    def __call__(self, input: Tensor) -> Tensor:
        if input.numel() > _MAX_ROWS * input.shape[-1]:
            return Linear.forward(self._module, input)
        if self._weight is None:
            weight = self._module.weight.detach()
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, self._rows)
        bias = self._module.bias
        return torch.ops.mkldnn._linear_pointwise(input, self._weight, bias, "none", [], "")
