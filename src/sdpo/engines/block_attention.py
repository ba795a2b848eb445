"""Attention of a packed row on a CPU, for prefill, scoring and training: explicit scores, in blocks
that stay in cache.

PyTorch's fused attention multiplies small tiles there, at a quarter of the speed of its batched
products. A block is some tokens of one run against everything on their path: one product
for its scores, a softmax, one for its output, and five in the backward pass, which computes the
scores again instead of keeping them. Nothing is padded, and keys behind the block are left out.

Scores, softmax and every sum over tokens are in float32 (float64 for float64 inputs);
probabilities and score gradients are rounded to the inputs' type before they are multiplied, as
flash attention does.

Legend: N tokens of the row, R tokens of a block, M tokens on their path, H query heads, K
key-value heads, Q = R * H / K queries of each, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from sdpo.engines.attention import Scores

Path = tuple[slice, ...]
"""Places of a run of tokens, the last slice, after those of all it continues, from the start of its
sequence."""

_BLOCK_SCORES = 1 << 19
"""Scores [H, R, M] of a block: 2 MiB in float32, of which the backward pass holds two."""
_MIN_ROWS = 32
"""Tokens of a block at least, however long their path: products of fewer rows are slow."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Some tokens of one run and everything they see."""

    rows: slice
    """Places of the block's tokens."""
    path: Path
    """Places of all tokens that the last of them sees, in order."""

    @property
    def num_scores(self) -> int:
        """R x M."""
        return _length((self.rows,)) * _length(self.path)


class _Plan:
    """The blocks of a row for a number of query heads, and one block's [K, Q, M] tensors.

    Those are used again by every block of every layer: fresh memory would cost more time than what
    is computed in it.
    """

    def __init__(self, paths: Sequence[Path], num_heads: int, dtype: torch.dtype) -> None:
        self.blocks = _blocks(paths, num_heads)
        size = num_heads * max(block.num_scores for block in self.blocks)
        self._scores, self._gradient = (torch.empty(size, dtype=_wide(dtype)) for _ in range(2))
        self._narrow = torch.empty(size, dtype=dtype)

    def scores(self, query_KQE: Tensor, key_KME: Tensor, scaling: float) -> Tensor:
        """Scaled products [K, Q, M] in the wide type; overwritten by the next call."""
        return _products(self._scores, query_KQE, key_KME, scaling)

    def gradient(self, grad_KQE: Tensor, value_KME: Tensor) -> Tensor:
        """Products in another buffer."""
        return _products(self._gradient, grad_KQE, value_KME, 1.0)

    def narrow(self, x_KQM: Tensor) -> Tensor:
        """`x` in the inputs' type; overwritten by the next call."""
        if x_KQM.dtype == self._narrow.dtype:
            return x_KQM
        return self._narrow[: x_KQM.numel()].view(x_KQM.shape).copy_(x_KQM)


class BlockAttention:
    """Attention of one packed row, whose runs have `paths`; its blocks serve every layer."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._plans: dict[int, _Plan] = {}

    def attend(
        self,
        layer: int,
        query_1HNE: Tensor,
        key_1KNE: Tensor,
        value_1KNE: Tensor,
        scores: Scores,
    ) -> Tensor:
        """Attention output [1, N, H, E]. Memory: a few blocks of scores."""
        num_heads = query_1HNE.shape[1]
        if num_heads not in self._plans:
            self._plans[num_heads] = _Plan(self._paths, num_heads, query_1HNE.dtype)
        query_NHE, key_NKE, value_NKE = (
            x[0].transpose(0, 1) for x in (query_1HNE, key_1KNE, value_1KNE)
        )
        plan = self._plans[num_heads]
        output: Any = _BlockAttention.apply(query_NHE, key_NKE, value_NKE, plan, scores)
        return output[None]


def _blocks(paths: Sequence[Path], num_heads: int) -> list[_Block]:
    blocks: list[_Block] = []
    for *before, run in paths:
        size = max(_MIN_ROWS, _BLOCK_SCORES // (num_heads * _length((*before, run))))
        for start in range(run.start, run.stop, size):
            rows = slice(start, min(start + size, run.stop))
            blocks.append(_Block(rows, (*before, slice(run.start, rows.stop))))
    return blocks


def _length(path: Path) -> int:
    return sum(run.stop - run.start for run in path)


class _BlockAttention(torch.autograd.Function):
    """Block after block; the backward pass too, which sums the gradients of shared keys in the
    wide type."""

    @staticmethod
    def forward(
        ctx: Any,
        query_NHE: Tensor,
        key_NKE: Tensor,
        value_NKE: Tensor,
        plan: _Plan,
        scores: Scores,
    ) -> Tensor:
        num_tokens, num_heads, _ = query_NHE.shape
        output_NHE = query_NHE.new_empty(num_tokens, num_heads, value_NKE.shape[2])
        num_kv_heads = key_NKE.shape[1]
        for block in plan.blocks:
            key_KME, value_KME = _path(key_NKE, block), _path(value_NKE, block)
            query_KQE = _grouped(query_NHE[block.rows], num_kv_heads)
            weights_KQM, _ = _weights(query_KQE, key_KME, block, plan, scores)
            attended_KQE = torch.bmm(plan.narrow(weights_KQM), value_KME)
            output_NHE[block.rows] = _ungrouped(attended_KQE, num_heads)
        ctx.save_for_backward(query_NHE, key_NKE, value_NKE, output_NHE)
        ctx.plan, ctx.scores = plan, scores
        return output_NHE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHE: Tensor) -> tuple[Tensor | None, ...]:
        query_NHE, key_NKE, value_NKE, output_NHE = ctx.saved_tensors
        plan, scaling = ctx.plan, ctx.scores.scaling
        dtype, (_, num_heads, _), num_kv_heads = query_NHE.dtype, query_NHE.shape, key_NKE.shape[1]
        grad_query_NHE = torch.empty_like(query_NHE, memory_format=torch.contiguous_format)
        grad_key_KNE, grad_value_KNE = (
            torch.zeros(x.transpose(0, 1).shape, dtype=_wide(dtype)) for x in (key_NKE, value_NKE)
        )
        for block in plan.blocks:
            key_KME, value_KME = _path(key_NKE, block), _path(value_NKE, block)
            query_KQE, grad_KQE, output_KQE = (
                _grouped(x[block.rows], num_kv_heads) for x in (query_NHE, grad_NHE, output_NHE)
            )
            weights_KQM, slope_KQM = _weights(query_KQE, key_KME, block, plan, ctx.scores)
            weights = plan.narrow(weights_KQM).transpose(1, 2)
            _add(grad_value_KNE, block, torch.bmm(weights, grad_KQE), 1.0)
            # d/d(score) = p (dp - sum p dp), where sum p dp = gradient . output.
            wide_KQE = grad_KQE.to(_wide(dtype))
            grad_KQM = plan.gradient(wide_KQE, value_KME)
            grad_KQM.sub_((wide_KQE * output_KQE).sum(-1, keepdim=True)).mul_(weights_KQM)
            if slope_KQM is not None:
                grad_KQM.mul_(slope_KQM)
            narrow_KQM = plan.narrow(grad_KQM)
            attended_KQE = torch.bmm(narrow_KQM, key_KME).mul_(scaling)
            grad_query_NHE[block.rows] = _ungrouped(attended_KQE, num_heads)
            _add(grad_key_KNE, block, torch.bmm(narrow_KQM.transpose(1, 2), query_KQE), scaling)
        grad_key_NKE, grad_value_NKE = (
            x.to(dtype).transpose(0, 1) for x in (grad_key_KNE, grad_value_KNE)
        )
        return grad_query_NHE, grad_key_NKE, grad_value_NKE, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _products(out: Tensor, a_KQE: Tensor, b_KME: Tensor, scale: float) -> Tensor:
    """scale * a . b in the type of the flat buffer `out`, [K, Q, M] in its beginning."""
    shape = (len(a_KQE), a_KQE.shape[1], b_KME.shape[1])
    out_KQM = out[: shape[0] * shape[1] * shape[2]].view(shape)
    b_KEM = b_KME.to(out.dtype).transpose(1, 2)
    return torch.baddbmm(out_KQM, a_KQE.to(out.dtype), b_KEM, beta=0.0, alpha=scale, out=out_KQM)


def _path(x_NKE: Tensor, block: _Block) -> Tensor:
    """Keys or values of a block's path, [K, M, E], contiguous."""
    parts = [x_NKE[run] for run in block.path]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1).contiguous()


def _grouped(x_RHE: Tensor, num_kv_heads: int) -> Tensor:
    """[K, Q, E]: for every token the query heads of a key-value head side by side."""
    num_rows, num_heads, head_dim = x_RHE.shape
    x_RKGE = x_RHE.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    return x_RKGE.transpose(0, 1).reshape(num_kv_heads, -1, head_dim)


def _ungrouped(x_KQE: Tensor, num_heads: int) -> Tensor:
    """The reverse of `_grouped`, [R, H, E]."""
    num_kv_heads, _, head_dim = x_KQE.shape
    x_KRGE = x_KQE.reshape(num_kv_heads, -1, num_heads // num_kv_heads, head_dim)
    return x_KRGE.transpose(0, 1).reshape(-1, num_heads, head_dim)


def _weights(
    query_KQE: Tensor, key_KME: Tensor, block: _Block, plan: _Plan, scores: Scores
) -> tuple[Tensor, Tensor | None]:
    """Attention weights [K, Q, M] in the wide type, and what soft-capping multiplies their
    gradient with."""
    scores_KQM = plan.scores(query_KQE, key_KME, scores.scaling)
    slope_KQM = None
    if scores.softcap is not None:
        scores_KQM = scores.capped(scores_KQM)
        slope_KQM = 1.0 - (scores_KQM / scores.softcap).square_()
    _hide(scores_KQM, block, scores.window)
    return torch.softmax(scores_KQM, -1, out=scores_KQM), slope_KQM


def _hide(scores_KQM: Tensor, block: _Block, window: int | None) -> None:
    """Set to -inf what a token does not see: later ones of its block, and those before its
    window."""
    num_rows, num_keys = block.rows.stop - block.rows.start, scores_KQM.shape[2]
    first = 0 if window is not None and window < num_keys else num_keys - num_rows
    hidden_RM = torch.ones(num_rows, num_keys - first, dtype=torch.bool)
    hidden_RM = hidden_RM.triu_(num_keys - first - num_rows + 1)
    if not first and window is not None:
        hidden_RM |= torch.ones_like(hidden_RM).tril_(num_keys - num_rows - window)
    scores_KRGM = scores_KQM.unflatten(1, (num_rows, -1))
    scores_KRGM[..., first:].masked_fill_(hidden_RM[:, None], float("-inf"))


def _add(total_KNE: Tensor, block: _Block, part_KME: Tensor, scale: float) -> None:
    """Add a path's gradient to its tokens."""
    start = 0
    for run in block.path:
        stop = start + run.stop - run.start
        total_KNE[:, run].add_(part_KME[:, start:stop], alpha=scale)
        start = stop
