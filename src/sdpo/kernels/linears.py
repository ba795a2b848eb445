"""Linear layers with weights laid out once for oneDNN, for decoding on a CPU.

A decode step multiplies few rows by every weight, and a plain `linear` re-orders each weight again
on every call: measured on two AVX2 cores at 64 rows, [576 x 49152] takes 59 ms plain and 28 ms
packed. Layers that read the same tensor, such as those of queries, keys and values, become one
product: three of SmolLM2's on two AMX cores take 0.16 ms instead of 0.28. Packing copies the
weights (as much memory again as the linear layers, freed when the block ends) and takes about as
long as five decode steps, so only long calls pay for it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial

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

    The first such step is plain and shows which layers read the same tensor; weights are packed in
    the second: changing them later has no effect on small batches.
    """
    linears: list[Linear] = []
    is_worth_it = steps >= _MIN_STEPS and torch.backends.mkldnn.is_available()
    packing = _Packing(min(rows, _MAX_ROWS))
    try:
        if is_worth_it:
            for module in model.modules():
                if type(module) is Linear and _is_packable(module.weight):
                    module.forward = partial(packing.forward, module)
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


class _Packing:
    """The packed layers of a block, in groups that read the same tensor."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._groups: dict[Linear, _Group] = {}
        self._last: tuple[Tensor, _Group] | None = None
        """What the first step read last, and who reads it."""

    def forward(self, module: Linear, input: Tensor) -> Tensor:
        if input.numel() > _MAX_ROWS * input.shape[-1]:
            return Linear.forward(module, input)
        if module in self._groups:
            return self._groups[module].forward(module, input)
        if self._last is None or self._last[0] is not input:
            self._last = input, _Group(self._rows)
        self._groups[module] = self._last[1]
        self._groups[module].add(module)
        return Linear.forward(module, input)


class _Group:
    """Layers that read the same tensor: whichever comes first with a new one computes all."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._members: list[Linear] = []
        self._packed: Tensor | None = None
        self._bias: Tensor | None = None
        self._x: Tensor | None = None
        self._outputs: dict[Linear, Tensor] = {}

    def add(self, module: Linear) -> None:
        self._members.append(module)
        self._packed, self._outputs = None, {}

    def forward(self, module: Linear, x: Tensor) -> Tensor:
        if self._packed is None:
            self._pack()
        if self._x is not x or module not in self._outputs:
            products = torch.ops.mkldnn._linear_pointwise(
                x, self._packed, self._bias, "none", [], ""
            )
            sizes = [member.out_features for member in self._members]
            self._x = x
            self._outputs = dict(zip(self._members, products.split(sizes, -1), strict=True))
        # Given out once: what is asked for again may have been written to meanwhile.
        return self._outputs.pop(module)

    def _pack(self) -> None:
        weights = [member.weight.detach() for member in self._members]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, self._rows)
        if any(member.bias is not None for member in self._members):
            self._bias = torch.cat(
                [
                    weight.new_zeros(member.out_features) if member.bias is None else member.bias
                    for member in self._members
                ]
            ).detach()
