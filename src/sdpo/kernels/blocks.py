"""Attention of a packed row on a CPU, for prefill and training: explicit scores in batches that fit
in cache.

PyTorch's attention takes dense masks: over a packed row it would compute every score between
sequences that do not see each other. Here a *block* is a few tokens of one run against everything
on their path, and nothing else is multiplied. Blocks of similar size are computed side by side,
which keeps all threads busy: one batched product for their scores, a softmax, and one product for
their output. The backward pass takes five products and computes the scores again instead of keeping
them. Where PyTorch's fused attention is faster (`sdpa.py`), the forward pass of a batch uses it.

Scores, softmax and every sum over tokens are in float32 (float64 for float64 inputs);
probabilities and score gradients are rounded to the inputs' type before they are multiplied, as
flash attention does.

Legend: N tokens of the row, B blocks of a batch, R tokens of its longest block, M tokens on its
longest path, P = sum of B * R over the batches, H query heads, K key-value heads, G = K * B,
Q = R * H / K queries of each, E head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdpo.kernels.dtypes import math_dtype
from sdpo.kernels.plan import Scores, Segment, paths
from sdpo.kernels.sdpa import fused_attention, is_fused_faster

Path = tuple[slice, ...]
"""Places of a sequence's tokens in the row, one slice a run, up to the run in question."""

_BATCH_SCORES = 1 << 20
"""Most scores [H, B, R, M] of a batch: 4 MiB in float32, of which the backward pass holds two."""
_BLOCK_SCORES = 1 << 19
"""Most scores [H, R, M] of a block."""
_MIN_ROWS = 32
"""Fewest tokens of a block, however long their path: products of fewer rows are slow."""
_PADDING = 1 / 8
"""Largest share of a batch's scores that may be padding."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Some tokens of one run and everything they see."""

    rows: slice
    """Places of the block's tokens."""
    path: Path
    """Places of all tokens that the last of them sees, in order."""

    @property
    def num_rows(self) -> int:
        return _length((self.rows,))

    @property
    def num_keys(self) -> int:
        return _length(self.path)


class _BlockBatch:
    """Blocks side by side, the shorter ones padded at the end: with rows whose output is dropped
    and with keys that no row sees."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self.blocks = blocks
        self.num_rows = max(block.num_rows for block in blocks)
        self.num_keys = max(block.num_keys for block in blocks)
        rows = torch.arange(self.num_rows)
        own_BR = [rows.clamp(max=block.num_rows - 1) for block in blocks]
        starts = [block.num_keys - block.num_rows for block in blocks]
        self.places_BR = torch.stack(
            [own_R + block.rows.start for own_R, block in zip(own_BR, blocks, strict=True)]
        )
        """Place in the packed row of each row's token; a padded row repeats the block's last."""
        self.position_BR = torch.stack(
            [own_R + start for own_R, start in zip(own_BR, starts, strict=True)]
        )
        """Index on its path of the last key that each row sees: its own token's."""
        self.is_padded_BR = torch.stack([rows >= block.num_rows for block in blocks])
        self.first_hidden = min(starts)
        """Keys before this index precede every block: without a window all rows see them, so there
        is nothing to mask."""
        self._biases: dict[tuple[int, int | None, torch.dtype], Tensor] = {}

    @property
    def num_scores(self) -> int:
        """B x R x M of one head."""
        return self.places_BR.numel() * self.num_keys

    def gather(self, x_KNE: Tensor) -> Tensor:
        """Keys or values of the paths, [G, M, E]."""
        runs = []
        for block in self.blocks:
            runs += block.path
            if missing := self.num_keys - block.num_keys:
                # Any keys do: `hide` masks what comes after a row's own token. Slices of the row
                # are copied as wholes, where an index would be gathered key by key.
                runs.append(slice(0, missing))
        return torch.cat([x_KNE[:, run] for run in runs], 1).view(-1, self.num_keys, x_KNE.shape[2])

    def add(self, total_KNE: Tensor, part_GME: Tensor, scale: float) -> None:
        """Add the paths' gradients to their tokens. In place and block by block, because paths of
        one batch share prefixes; padded keys have weight 0 and are left out."""
        part_KBME = part_GME.unflatten(0, (len(total_KNE), -1))
        for number, block in enumerate(self.blocks):
            start = 0
            for run in block.path:
                stop = start + run.stop - run.start
                total_KNE[:, run].add_(part_KBME[:, number, start:stop], alpha=scale)
                start = stop

    def hide(self, scores_GQM: Tensor, window: int | None) -> None:
        """Set to -inf what a token does not see: later ones of its block, padding, and those before
        its window."""
        first = self.first_hidden if window is None or window >= self.num_keys else 0
        hidden_BRM = self._hidden(first, window)
        shape = (
            -1,
            len(self.blocks),
            self.num_rows,
            scores_GQM.shape[1] // self.num_rows,
            self.num_keys,
        )
        scores_GQM.view(shape)[..., first:].masked_fill_(hidden_BRM[:, :, None], float("-inf"))

    def bias(self, num_queries: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """What `hide` does, as a term to add to scores: 0 or -inf, [B, 1, Q, M]."""
        # Kept for the other layers: there are as many as windows, and they take no scores' memory.
        key = num_queries, window, dtype
        if key not in self._biases:
            hidden_BQM = self._hidden(0, window).repeat_interleave(num_queries // self.num_rows, 1)
            zeros_BQM = torch.zeros(hidden_BQM.shape, dtype=dtype)
            self._biases[key] = zeros_BQM.masked_fill_(hidden_BQM, float("-inf"))[:, None]
        return self._biases[key]

    def _hidden(self, first: int, window: int | None) -> Tensor:
        """Whether a row does not see a key, for keys from `first` on."""
        key_M = torch.arange(first, self.num_keys)
        hidden_BRM = key_M > self.position_BR[:, :, None]
        if window is not None:
            hidden_BRM |= key_M <= self.position_BR[:, :, None] - window
        return hidden_BRM


class _Layout:
    """The batches of a row for a number of query heads, and room for one batch's [G, Q, M] tensors.

    Every batch of every layer uses that room again: the system clears fresh pages, which takes
    longer than what is computed in them.
    """

    def __init__(self, paths: Sequence[Path], num_heads: int, dtype: torch.dtype) -> None:
        self.batches = _batches(paths, num_heads)
        self._places_P = torch.cat([batch.places_BR.flatten() for batch in self.batches])
        is_padded_P = torch.cat([batch.is_padded_BR.flatten() for batch in self.batches])
        self._padded = is_padded_P.nonzero()[:, 0]
        own = (~is_padded_P).nonzero()[:, 0]
        # Every token is a row of exactly one block, so this is the inverse of `_places_P`.
        self._rows_N = torch.empty_like(own)
        self._rows_N[self._places_P[own]] = own
        size = num_heads * max(batch.num_scores for batch in self.batches)
        wide = math_dtype(dtype)
        self._scores, self._gradient = (torch.empty(size, dtype=wide) for _ in range(2))
        self._narrow = torch.empty(size, dtype=dtype)

    def split(self, x_NHE: Tensor, num_kv_heads: int, *, padding: bool = True) -> list[Tensor]:
        """[G, Q, E] of every batch: for each token the queries of one key-value head side by side,
        so that grouped heads are one product. Padded rows are copies, or zero without `padding`: a
        gradient there would be added to real keys."""
        x_PHE = x_NHE.index_select(0, self._places_P)
        if not padding and len(self._padded):
            x_PHE.index_fill_(0, self._padded, 0.0)
        parts = x_PHE.split([batch.places_BR.numel() for batch in self.batches])
        return [
            part.view(len(batch.blocks), batch.num_rows, num_kv_heads, -1, part.shape[2])
            .permute(2, 0, 1, 3, 4)
            .reshape(num_kv_heads * len(batch.blocks), -1, part.shape[2])
            for part, batch in zip(parts, self.batches, strict=True)
        ]

    def join(self, parts: Sequence[Tensor], num_kv_heads: int) -> Tensor:
        """The reverse of `split`, [N, H, E]; padded rows are dropped."""
        x_PHE = torch.cat(
            [
                part.view(num_kv_heads, batch.places_BR.numel(), -1, part.shape[2])
                .transpose(0, 1)
                .flatten(1, 2)
                for part, batch in zip(parts, self.batches, strict=True)
            ]
        )
        return x_PHE.index_select(0, self._rows_N)

    def scores(self, query_GQE: Tensor, key_GME: Tensor, scaling: float) -> Tensor:
        """Scaled products [G, Q, M] in the wide type; overwritten by the next call."""
        return _products(self._scores, query_GQE, key_GME, scaling)

    def gradient(self, grad_GQE: Tensor, value_GME: Tensor) -> Tensor:
        """Products [G, Q, M] in another buffer, so that the weights are still there."""
        return _products(self._gradient, grad_GQE, value_GME, 1.0)

    def narrow(self, x_GQM: Tensor) -> Tensor:
        """`x` in the inputs' type; overwritten by the next call."""
        if x_GQM.dtype == self._narrow.dtype:
            return x_GQM
        return self._narrow[: x_GQM.numel()].view(x_GQM.shape).copy_(x_GQM)


class BlockAttention:
    """The plan of one packed row of `segments`; its batches serve every layer."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._paths = paths(segments)
        self._layouts: dict[int, _Layout] = {}

    def attend(
        self,
        layer: int,
        query_1HNE: Tensor,
        key_1KNE: Tensor,
        value_1KNE: Tensor,
        scores: Scores,
    ) -> Tensor:
        """Attention output [1, N, H, E]. Memory: one batch of scores, and copies of the inputs."""
        num_heads = query_1HNE.shape[1]
        if num_heads not in self._layouts:
            self._layouts[num_heads] = _Layout(self._paths, num_heads, query_1HNE.dtype)
        layout = self._layouts[num_heads]
        # Squeezed and not indexed: the gradient of an index is copied into a tensor of zeros.
        query_HNE, key_KNE, value_KNE = (x.squeeze(0) for x in (query_1HNE, key_1KNE, value_1KNE))
        output: Any = _BlockAttention.apply(
            query_HNE.transpose(0, 1), key_KNE, value_KNE, layout, scores
        )
        return output[None]


def _batches(paths: Sequence[Path], num_heads: int) -> list[_BlockBatch]:
    """Blocks of similar size together, the largest first: neighbours then pad each other least."""
    batches: list[list[_Block]] = []
    for block in sorted(_blocks(paths, num_heads), key=_size, reverse=True):
        if batches and _go_together([*batches[-1], block], num_heads):
            batches[-1].append(block)
        else:
            batches.append([block])
    return [_BlockBatch(blocks) for blocks in batches]


def _size(block: _Block) -> tuple[int, int]:
    return block.num_keys, block.num_rows


def _go_together(blocks: Sequence[_Block], num_heads: int) -> bool:
    keys, rows = zip(*map(_size, blocks), strict=True)
    num_scores = len(blocks) * max(keys) * max(rows)
    num_own = sum(key * row for key, row in zip(keys, rows, strict=True))
    is_small = num_heads * num_scores <= _BATCH_SCORES
    return is_small and num_own >= (1 - _PADDING) * num_scores


def _blocks(paths: Sequence[Path], num_heads: int) -> Iterator[_Block]:
    for *before, run in paths:
        size = max(_MIN_ROWS, _BLOCK_SCORES // (num_heads * _length((*before, run))))
        num_blocks = -(-_length((run,)) // size)
        size = -(-_length((run,)) // num_blocks)
        for start in range(run.start, run.stop, size):
            rows = slice(start, min(start + size, run.stop))
            yield _Block(rows, (*before, slice(run.start, rows.stop)))


def _length(path: Path) -> int:
    return sum(run.stop - run.start for run in path)


class _BlockAttention(torch.autograd.Function):
    """Batch after batch, in the backward pass too, which sums the gradients of shared keys in the
    wide type: a prompt's key gets one from each of its completions."""

    @staticmethod
    def forward(
        ctx: Any,
        query_NHE: Tensor,
        key_KNE: Tensor,
        value_KNE: Tensor,
        layout: _Layout,
        scores: Scores,
    ) -> Tensor:
        num_kv_heads = len(key_KNE)
        attended = []
        for batch, query_GQE in zip(
            layout.batches, layout.split(query_NHE, num_kv_heads), strict=True
        ):
            key_GME, value_GME = batch.gather(key_KNE), batch.gather(value_KNE)
            if is_fused_faster(scores, query_NHE):
                attended.append(_fused(query_GQE, key_GME, value_GME, batch, scores))
            else:
                weights_GQM, _ = _weights(query_GQE, key_GME, batch, layout, scores)
                attended.append(torch.bmm(layout.narrow(weights_GQM), value_GME))
        output_NHE = layout.join(attended, num_kv_heads)
        ctx.save_for_backward(query_NHE, key_KNE, value_KNE, output_NHE)
        ctx.layout, ctx.scores = layout, scores
        return output_NHE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHE: Tensor) -> tuple[Tensor | None, ...]:
        query_NHE, key_KNE, value_KNE, output_NHE = ctx.saved_tensors
        layout, scaling, num_kv_heads = ctx.layout, ctx.scores.scaling, len(key_KNE)
        wide = math_dtype(query_NHE.dtype)
        grad_key_KNE, grad_value_KNE = (
            torch.zeros_like(x, dtype=wide) for x in (key_KNE, value_KNE)
        )
        # d/d(score) = p (dp - sum p dp), where sum p dp = gradient . output: known without the
        # weights, and for the whole row at once.
        means_NH1 = (grad_NHE.to(wide) * output_NHE).sum(-1, keepdim=True)
        parts = zip(
            layout.batches,
            layout.split(query_NHE, num_kv_heads),
            layout.split(grad_NHE, num_kv_heads, padding=False),
            layout.split(means_NH1, num_kv_heads, padding=False),
            strict=True,
        )
        grad_query = []
        for batch, query_GQE, grad_GQE, means_GQ1 in parts:
            key_GME, value_GME = batch.gather(key_KNE), batch.gather(value_KNE)
            weights_GQM, slope_GQM = _weights(query_GQE, key_GME, batch, layout, ctx.scores)
            weights = layout.narrow(weights_GQM).transpose(1, 2)
            batch.add(grad_value_KNE, torch.bmm(weights, grad_GQE), 1.0)
            # `weights_GQM` is read for the last time here, and overwritten by the next batch.
            grad_GQM = layout.gradient(grad_GQE, value_GME).sub_(means_GQ1).mul_(weights_GQM)
            if slope_GQM is not None:
                grad_GQM.mul_(slope_GQM)
            narrow_GQM = layout.narrow(grad_GQM)
            grad_query.append(torch.bmm(narrow_GQM, key_GME).mul_(scaling))
            batch.add(grad_key_KNE, torch.bmm(narrow_GQM.transpose(1, 2), query_GQE), scaling)
        grad_key, grad_value = (x.to(query_NHE.dtype) for x in (grad_key_KNE, grad_value_KNE))
        return layout.join(grad_query, num_kv_heads), grad_key, grad_value, None, None


def _fused(
    query_GQE: Tensor, key_GME: Tensor, value_GME: Tensor, batch: _BlockBatch, scores: Scores
) -> Tensor:
    """Attention [G, Q, E] in one pass; 1.1 to 2.8 times as fast as scores, softmax and product
    where it pays."""
    query_BKQE, key_BKME, value_BKME = (
        x.unflatten(0, (-1, len(batch.blocks))).transpose(0, 1)
        for x in (query_GQE, key_GME, value_GME)
    )
    bias = batch.bias(query_GQE.shape[1], scores.window, query_GQE.dtype)
    attended_BKQE, _ = fused_attention(query_BKQE, key_BKME, value_BKME, bias, scores.scaling)
    return attended_BKQE.transpose(0, 1).flatten(0, 1)


def _products(out: Tensor, a_GQE: Tensor, b_GME: Tensor, scale: float) -> Tensor:
    """scale * a . b in the type of the flat buffer `out`, [G, Q, M] in its beginning."""
    shape = (len(a_GQE), a_GQE.shape[1], b_GME.shape[1])
    out_GQM = out[: shape[0] * shape[1] * shape[2]].view(shape)
    b_GEM = b_GME.to(out.dtype).transpose(1, 2)
    return torch.baddbmm(out_GQM, a_GQE.to(out.dtype), b_GEM, beta=0.0, alpha=scale, out=out_GQM)


def _weights(
    query_GQE: Tensor, key_GME: Tensor, batch: _BlockBatch, layout: _Layout, scores: Scores
) -> tuple[Tensor, Tensor | None]:
    """Attention weights [G, Q, M] in the wide type, and what soft-capping multiplies their gradient
    with."""
    scores_GQM = layout.scores(query_GQE, key_GME, scores.scaling)
    slope_GQM = None
    if scores.softcap is not None:
        scores_GQM = scores.capped(scores_GQM)
        slope_GQM = 1.0 - (scores_GQM / scores.softcap).square_()
    batch.hide(scores_GQM, scores.window)
    return torch.softmax(scores_GQM, -1, out=scores_GQM), slope_GQM
