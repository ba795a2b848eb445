"""Stand-ins for what an outline cannot run, attention and the LM head: they compute nothing and
hold what the real ones hold.

Legend: N tokens of a packed row, R trained tokens of it, D hidden size, V vocabulary, H query
heads, K key-value heads, E head size, C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdpo.kernels.plan import Scores
from sdpo.losses.head.logits import chunk_size, tile_size

_TILES = {"cpu": 3, "cuda": 2}
"""Tiles [tokens, V] in float32 beside the chunks: a CPU's scratch, a compiled tile's
temporaries."""


@dataclass(slots=True)
class OutlinePlan:
    """A plan that attends to nothing and holds what attention holds."""

    sizes: dict[int, int] = field(default_factory=dict)
    """Bytes of a token's keys and values by layer."""

    def attend(
        self,
        layer: int,
        query_1HNE: Tensor,
        key_1KNE: Tensor,
        value_1KNE: Tensor,
        scores: Scores,
    ) -> Tensor:
        """[1, N, H, E] without values."""
        tokens = key_1KNE.shape[2]
        numbers = (key_1KNE.numel() + value_1KNE.numel()) // tokens
        self.sizes[layer] = numbers * key_1KNE.dtype.itemsize
        output: Any = _Attention.apply(query_1HNE, key_1KNE, value_1KNE)
        return output

    def cached_bytes(self) -> int:
        """Of one token in all layers that attended."""
        return sum(self.sizes.values())


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = (1, query.shape[2], query.shape[1], value.shape[3])
        output = query.new_empty(shape)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """Where a head runs and what it compares.

    Example:
        HeadShape(device="cuda", sides=2)
    """

    device: str
    """`cpu` or `cuda`, whatever the tensors are on."""
    sides: int
    """Models whose logits are there at once."""


class HeadOutline(torch.autograd.Function):
    """The fused head: (hidden states [R, D], matrix [V, D], `HeadShape`) to a scalar."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, shape: HeadShape) -> Tensor:
        ctx.gradients = head_buffers(hidden_RD, weight_VD, shape, trains=ctx.needs_input_grad[1])
        return hidden_RD.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return (*gradients, None)


def head_buffers(
    hidden_RD: Tensor, weight_VD: Tensor, shape: HeadShape, *, trains: bool
) -> tuple[Tensor, Tensor | None]:
    """What `ChunkedPass` allocates, and the gradients that it leaves."""
    num_rows, rows = len(hidden_RD), len(weight_VD)
    where = torch.device(shape.device)
    is_narrow = shape.device == "cpu" and hidden_RD.dtype != torch.float32
    size = chunk_size(num_rows, rows, where, None, is_narrow=is_narrow)
    tile = min(tile_size(rows, where), size)
    make: Callable[..., Tensor] = torch.empty
    kind = hidden_RD.dtype if is_narrow else torch.float32
    held = [make(size, rows, dtype=kind) for _ in range(shape.sides)]
    num_tiles = _TILES[shape.device] + (shape.sides if is_narrow else 0)
    held += [make(tile, rows, dtype=torch.float32) for _ in range(num_tiles)]
    if not is_narrow and hidden_RD.dtype != torch.float32:
        held.append(make(size, rows, dtype=hidden_RD.dtype))  # the gradient that is multiplied
    grad_hidden_RD = torch.empty_like(hidden_RD)
    if not trains:
        return grad_hidden_RD, None
    grad_head_VD = make(weight_VD.shape, dtype=torch.float32)
    return grad_hidden_RD, grad_head_VD.to(weight_VD.dtype)
