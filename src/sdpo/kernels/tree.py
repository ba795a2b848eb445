"""Attention over a packed prefix tree: every token sees its ancestors' tokens and its own run.

Three plans with the same results. `BlockAttention`, in `blocks.py`, is for CPUs. `FlexAttention` is
one block-sparse kernel over the whole row, for CUDA. `BranchAttention`, for where that does not
compile, gathers the continuations of one prefix as a padded batch of queries against
[prefix | own tokens] and calls PyTorch's fused attention: no score outside the tree is computed.
All know sliding windows and soft-capping; none applies attention dropout.

Legend: N tokens of the row, S segments, B branches of a batch, L longest of them, P tokens of
their common prefix, H query heads, K key-value heads, E head size, Q blocks of the row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils.checkpoint import checkpoint

from sdpo.kernels.blocks import BlockAttention
from sdpo.kernels.dtypes import math_dtype
from sdpo.kernels.plan import Plan, Scores, Segment, paths

TreeKind = Literal["flex", "branches", "blocks"]
"""Which of the three plans attends over a tree."""

FLEX_BLOCK = 128
"""Rows for `FlexAttention` are padded to a multiple of it: the tile of its kernels."""
_MASK_ROWS = 1024
"""Rows of the visibility matrix that are held at a time while its blocks are counted."""
_SHORTEST_IN_BATCH = 0.5
"""Branches shorter than this share of the longest start a batch of their own: a padded query costs
as much as a real one."""
_VARIANTS = 64
"""Compilations of FlexAttention that a process may need."""


def tree_plan(
    segments: Sequence[Segment], device: torch.device, *, kind: TreeKind | None = None
) -> Plan:
    """Attention over `segments`, which fill a row (padded to a multiple of `FLEX_BLOCK` for
    "flex"). Without `kind` the one that needs no compiler."""
    match kind or ("blocks" if device.type == "cpu" else "branches"):
        case "flex":
            num_tokens = segments[-1].stop
            return FlexAttention(segments, num_tokens + -num_tokens % FLEX_BLOCK, device)
        case "blocks":
            return BlockAttention(segments)
        case "branches":
            return BranchAttention(segments, device)
        case other:
            assert_never(other)


@dataclass(frozen=True, slots=True)
class _BranchBatch:
    """Branches of about equal length that continue the same prefix, padded on the right."""

    prefix_P: torch.Tensor
    """Places of the prefix's tokens in the row; empty for branches that start a tree."""
    places_BL: torch.Tensor
    """Places of the branches' tokens; padding repeats a branch's first token."""
    real: torch.Tensor
    """Which of the flattened [B L] places are not padding."""
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)
    """[L, P + L] booleans per sliding window, made on first use and shared by all layers."""

    def attend(
        self,
        query_NHE: torch.Tensor,
        key_NKE: torch.Tensor,
        value_NKE: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """Output of the batch's real tokens, [tokens, H, E].

        Memory: B copies of the prefix's keys and values.
        """
        query_BHLE = query_NHE[self.places_BL].transpose(1, 2)
        key_BKME, value_BKME = self._keys(key_NKE), self._keys(value_NKE)
        num_prefix, longest = len(self.prefix_P), self.places_BL.shape[1]
        window = scores.window
        if window is not None and window >= num_prefix + longest:
            window = None
        if scores.softcap is not None:
            mask_LM = self._mask(window)
            # Explicit scores [B, H, L, M]: kept for the backward pass of every layer they would be
            # the largest tensors of all, so they are computed again.
            output_BHLE = checkpoint(
                _capped_attention, query_BHLE, key_BKME, value_BKME, mask_LM, scores,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
        else:
            # Only without a mask do PyTorch's kernels skip what a causal mask hides.
            is_causal = not num_prefix and window is None
            output_BHLE = _fused_attention(
                query_BHLE, key_BKME, value_BKME, None if is_causal else self._mask(window), scores
            )
        return output_BHLE.transpose(1, 2).flatten(0, 1)[self.real]

    def _keys(self, x_NKE: torch.Tensor) -> torch.Tensor:
        """[prefix | own] as [B, K, P + L, E]."""
        own_BLKE = x_NKE[self.places_BL]
        if not len(self.prefix_P):
            return own_BLKE.transpose(1, 2)
        prefix_BPKE = x_NKE[self.prefix_P].expand(len(own_BLKE), -1, -1, -1)
        return torch.cat((prefix_BPKE, own_BLKE), dim=1).transpose(1, 2)

    def _mask(self, window: int | None) -> torch.Tensor:
        """True where a query sees a key. Padding comes after a branch's own tokens: never seen."""
        if window not in self.masks:
            num_prefix, longest = len(self.prefix_P), self.places_BL.shape[1]
            shape = (longest, num_prefix + longest)
            mask_LM = torch.ones(shape, dtype=torch.bool, device=self.places_BL.device)
            mask_LM = mask_LM.tril(num_prefix)
            if window is not None:
                mask_LM = mask_LM.triu(num_prefix - window + 1)
            self.masks[window] = mask_LM
        return self.masks[window]


def _fused_attention(
    query_BHLE: torch.Tensor,
    key_BKME: torch.Tensor,
    value_BKME: torch.Tensor,
    mask_LM: torch.Tensor | None,
    scores: Scores,
) -> torch.Tensor:
    num_shared = query_BHLE.shape[1] // key_BKME.shape[1]
    if num_shared > 1 and query_BHLE.is_cuda:
        # With a mask, CUDA's fused kernels take no grouped heads; the plain one would run instead.
        key_BKME = key_BKME.repeat_interleave(num_shared, dim=1)
        value_BKME = value_BKME.repeat_interleave(num_shared, dim=1)
    return torch.nn.functional.scaled_dot_product_attention(
        query_BHLE,
        key_BKME,
        value_BKME,
        attn_mask=mask_LM,
        is_causal=mask_LM is None,
        scale=scores.scaling,
        enable_gqa=query_BHLE.shape[1] != key_BKME.shape[1],
    )


def _capped_attention(
    query_BHLE: torch.Tensor,
    key_BKME: torch.Tensor,
    value_BKME: torch.Tensor,
    mask_LM: torch.Tensor,
    scores: Scores,
) -> torch.Tensor:
    """Attention with soft-capped scores, which fused kernels lack."""
    assert scores.softcap is not None
    num_shared = query_BHLE.shape[1] // key_BKME.shape[1]
    key_BHME = key_BKME.repeat_interleave(num_shared, dim=1)
    value_BHME = value_BKME.repeat_interleave(num_shared, dim=1)
    scores_BHLM = torch.matmul(query_BHLE, key_BHME.transpose(-1, -2)) * scores.scaling
    scores_BHLM = (scores_BHLM / scores.softcap).tanh() * scores.softcap
    scores_BHLM = scores_BHLM.masked_fill(~mask_LM, float("-inf"))
    # Half precisions are summed in float32, as transformers' own code does.
    dtype = math_dtype(scores_BHLM.dtype)
    weights_BHLM = scores_BHLM.softmax(dim=-1, dtype=dtype).to(value_BHME.dtype)
    return torch.matmul(weights_BHLM, value_BHME)


class BranchAttention:
    """The plan of one packed row in batches of branches; index tensors serve every layer."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self._batches: list[_BranchBatch] = []
        order: list[torch.Tensor] = []
        above = paths(segments)
        for parent, siblings in _siblings(segments).items():
            runs = () if parent is None else above[parent]
            prefix = torch.tensor([t for run in runs for t in range(run.start, run.stop)]).long()
            for similar in _similar(siblings):
                lengths_B = torch.tensor([len(segment) for segment in similar])
                starts_B = torch.tensor([segment.start for segment in similar])
                column_L = torch.arange(int(lengths_B.max()))
                is_real_BL = column_L < lengths_B[:, None]
                places_BL = starts_B[:, None] + column_L * is_real_BL
                real = is_real_BL.flatten().nonzero()[:, 0]
                order.append(places_BL.flatten()[real])
                self._batches.append(
                    _BranchBatch(prefix.to(device), places_BL.to(device), real.to(device))
                )
        # Batches give their tokens one after the other; this puts them back into the row's order.
        self._row_order = torch.cat(order).argsort().to(device)

    def attend(
        self,
        layer: int,
        query_1HNE: torch.Tensor,
        key_1KNE: torch.Tensor,
        value_1KNE: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """Attention output [1, N, H, E]."""
        query_NHE, key_NKE, value_NKE = (
            x[0].transpose(0, 1) for x in (query_1HNE, key_1KNE, value_1KNE)
        )
        parts = [batch.attend(query_NHE, key_NKE, value_NKE, scores) for batch in self._batches]
        return torch.cat(parts)[self._row_order][None]


def _siblings(segments: Sequence[Segment]) -> dict[int | None, list[Segment]]:
    found: dict[int | None, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.parent, []).append(segment)
    return found


def _similar(siblings: Sequence[Segment]) -> list[list[Segment]]:
    """`siblings` in batches, the longest first."""
    batches: list[list[Segment]] = []
    for segment in sorted(siblings, key=len, reverse=True):
        if not batches or len(segment) < _SHORTEST_IN_BATCH * len(batches[-1][0]):
            batches.append([])
        batches[-1].append(segment)
    return batches


class FlexAttention:
    """The plan of one packed row, padded to `num_tokens`, as one block-sparse kernel.

    Segments stand depth first, so the tokens that see a token are those from itself to the end of
    its subtree: one number per token describes the tree, and the kernel compares two integers
    instead of walking it. Padding sees itself.
    """

    def __init__(self, segments: Sequence[Segment], num_tokens: int, device: torch.device) -> None:
        assert num_tokens % FLEX_BLOCK == 0
        end_N = torch.arange(1, num_tokens + 1)
        position_N = torch.zeros(num_tokens, dtype=torch.long)
        ends = [segment.stop for segment in segments]
        # Children stand after their parents: in reverse, a subtree's end is known before its root.
        for index in reversed(range(len(segments))):
            segment = segments[index]
            if segment.parent is not None:
                ends[segment.parent] = max(ends[segment.parent], ends[index])
            end_N[segment.start : segment.stop] = ends[index]
            position_N[segment.start : segment.stop] = torch.arange(len(segment)) + segment.position
        self._end_N, self._position_N = end_N.to(device), position_N.to(device)
        self._longest = int(position_N.max()) + 1
        self._masks: dict[int | None, BlockMask] = {}

    def attend(
        self,
        layer: int,
        query_1HNE: torch.Tensor,
        key_1KNE: torch.Tensor,
        value_1KNE: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """Attention output [1, N, H, E]."""
        window = scores.window
        if window is not None and window >= self._longest:
            window = None
        if window not in self._masks:
            self._masks[window] = self._block_mask(window)
        attend = _compiled_flex() if query_1HNE.is_cuda else flex_attention
        output_1HNE = attend(
            query_1HNE,
            key_1KNE,
            value_1KNE,
            score_mod=None if scores.softcap is None else _softcap(scores.softcap),
            block_mask=self._masks[window],
            scale=scores.scaling,
            enable_gqa=query_1HNE.shape[1] != key_1KNE.shape[1],
        )
        assert isinstance(output_1HNE, torch.Tensor)
        return output_1HNE.transpose(1, 2)

    def visible(self, window: int | None) -> Callable[..., torch.Tensor]:
        """FlexAttention's `mask_mod`: whether the token at place `q` sees the one at place `k`."""
        end_N, position_N = self._end_N, self._position_N

        def mask(b: object, h: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            seen = (k <= q) & (q < end_N[k])
            if window is not None:
                seen = seen & (position_N[q] - position_N[k] < window)
            return seen

        return mask

    def _block_mask(self, window: int | None) -> BlockMask:
        """Blocks that are seen in part and in full. Memory: `_MASK_ROWS` x N booleans at a time."""
        mask, num_tokens = self.visible(window), len(self._end_N)
        places_N = torch.arange(num_tokens, device=self._end_N.device)
        some, all_ = [], []
        for rows in places_N.split(_MASK_ROWS):
            tiles = mask(0, 0, rows[:, None], places_N).unflatten(1, (-1, FLEX_BLOCK))
            tiles = tiles.unflatten(0, (-1, FLEX_BLOCK))
            some.append(tiles.any(dim=3).any(dim=1))
            all_.append(tiles.all(dim=3).all(dim=1))
        some_QQ, all_QQ = torch.cat(some), torch.cat(all_)
        # PyTorch's own `create_block_mask` would hold the whole [N, N] matrix.
        return BlockMask.from_kv_blocks(
            *_counts_and_indices(some_QQ & ~all_QQ),
            *_counts_and_indices(all_QQ),
            BLOCK_SIZE=FLEX_BLOCK,
            mask_mod=mask,
            seq_lengths=(num_tokens, num_tokens),
        )


def _counts_and_indices(blocks_QQ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each row of blocks has, [1, 1, Q], and which: the first of [1, 1, Q, Q]."""
    counts_Q = blocks_QQ.sum(dim=1, dtype=torch.int32)
    indices_QQ = blocks_QQ.int().argsort(dim=1, descending=True, stable=True).int()
    return counts_Q[None, None], indices_QQ[None, None]


def _softcap(cap: float) -> Callable[..., torch.Tensor]:
    def capped(score: torch.Tensor, b: object, h: object, q: object, k: object) -> torch.Tensor:
        return (score / cap).tanh() * cap

    return capped


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    compiled: Any = torch.compile(flex_attention)

    def attend(*args: Any, **options: Any) -> Any:
        # Two windows, with and without gradients, at one length and then at any: eight variants.
        # Past its limit torch runs it uncompiled, many times slower, with all scores in memory.
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            return compiled(*args, **options)

    return attend
