"""Attention of the fast path, plugged into transformers' attention registry under the name
`sdpo_engine`.

A model runs on one flat row of tokens, [1, T], and every layer hands its fresh queries, keys and
values to the *plan* passed as the keyword `sdpo_plan`: `PackedPlan` (sequences side by side,
completions may branch off a prompt; prefill and scoring) or that of a decode step
(`decode_attention.py`). Plans know sliding windows and score soft-capping; whatever else an
architecture does to its scores makes `local.py` take the fallback.

Shapes: T tokens of a flat row, L keys, H query heads, K key-value heads, N = H / K queries per
key-value head, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from sdpo.kernels.blocks import BlockAttention
from sdpo.kernels.plan import MASKED, Scores

_QUERY_CHUNK = 256
"""Queries per block where scores are held explicitly (soft-capping): [1, H, 256, L] float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A run of tokens in the flat row, continuing an earlier run or starting anew.

    Example:
        Span(start=7, stop=12, prompt=Span(start=0, stop=7))
    """

    start: int
    stop: int
    prompt: Span | None = None
    """The run it continues: seen in full before its own tokens."""


@dataclass(slots=True, kw_only=True)
class PackedPlan:
    """Sequences side by side in one row, without padding; each sees itself and its prompt only."""

    spans: Sequence[Span]
    """Cover the row, in order."""
    keep: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
    """Receives (layer, keys [1, K, T, D], values); how prefill fills the cache."""
    windows: set[int] = field(default_factory=set)
    """Sliding windows that layers asked for, noted for the architecture check."""
    _blocks: BlockAttention = field(init=False)

    def __post_init__(self) -> None:
        places = [(span.prompt, span) if span.prompt else (span,) for span in self.spans]
        self._blocks = BlockAttention(
            [tuple(slice(span.start, span.stop) for span in path) for path in places]
        )

    def attend(
        self,
        layer: int,
        query_1HTD: torch.Tensor,
        key_1KTD: torch.Tensor,
        value_1KTD: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        if self.keep is not None:
            self.keep(layer, key_1KTD, value_1KTD)
        if scores.window is not None:
            self.windows.add(scores.window)
        if query_1HTD.device.type == "cpu":
            return self._blocks.attend(layer, query_1HTD, key_1KTD, value_1KTD, scores)
        output_1THD = torch.empty_like(
            query_1HTD.transpose(1, 2), memory_format=torch.contiguous_format
        )
        for span in self.spans:
            own = slice(span.start, span.stop)
            key, value = key_1KTD[:, :, own], value_1KTD[:, :, own]
            if span.prompt is not None:
                seen = slice(span.prompt.start, span.prompt.stop)
                key = torch.cat((key_1KTD[:, :, seen], key), dim=2)
                value = torch.cat((value_1KTD[:, :, seen], value), dim=2)
            attended = causal_attention(query_1HTD[:, :, own], key, value, scores)
            output_1THD[:, own] = attended.transpose(1, 2)
        return output_1THD


def causal_attention(
    query_1HTD: torch.Tensor, key_1KLD: torch.Tensor, value_1KLD: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """Attention [1, H, T, D] of the last T of L positions, each to itself and what precedes it
    within the window.
    """
    num_queries, num_keys = query_1HTD.shape[2], key_1KLD.shape[2]
    if scores.softcap is not None:
        return _explicit_attention(query_1HTD, key_1KLD, value_1KLD, scores)
    is_windowed = scores.window is not None and scores.window < num_keys
    mask_TL = None
    if num_queries != num_keys or is_windowed:
        mask_TL = _visible(num_queries, num_keys, scores.window, query_1HTD.device)
    return torch.nn.functional.scaled_dot_product_attention(
        query_1HTD,
        key_1KLD,
        value_1KLD,
        attn_mask=mask_TL,
        is_causal=mask_TL is None,
        scale=scores.scaling,
        enable_gqa=query_1HTD.shape[1] != key_1KLD.shape[1],
    )


def _visible(
    num_queries: int, num_keys: int, window: int | None, device: torch.device
) -> torch.Tensor:
    position_T1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    position_L = torch.arange(num_keys, device=device)
    visible_TL = position_L <= position_T1
    if window is not None:
        visible_TL &= position_L > position_T1 - window
    return visible_TL


def _explicit_attention(
    query_1HTD: torch.Tensor, key_1KLD: torch.Tensor, value_1KLD: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """`causal_attention` with soft-capping, which fused kernels lack; in blocks of queries, keys
    after a block skipped.
    """
    _, num_heads, num_queries, head_dim = query_1HTD.shape
    _, num_kv_heads, num_keys, _ = key_1KLD.shape
    query_KNTD = query_1HTD.reshape(num_kv_heads, -1, num_queries, head_dim) * scores.scaling
    blocks = []
    for start in range(0, num_queries, _QUERY_CHUNK):
        stop = min(start + _QUERY_CHUNK, num_queries)
        last = num_keys - num_queries + stop
        key_K1LD, value_K1LD = key_1KLD[0, :, None, :last], value_1KLD[0, :, None, :last]
        scores_KNTL = torch.matmul(query_KNTD[:, :, start:stop], key_K1LD.transpose(-1, -2)).float()
        scores_KNTL = scores.capped(scores_KNTL)
        scores_KNTL.masked_fill_(
            ~_visible(stop - start, last, scores.window, query_1HTD.device), MASKED
        )
        probs_KNTL = scores_KNTL.softmax(dim=-1).to(value_1KLD.dtype)
        blocks.append(torch.matmul(probs_KNTL, value_K1LD))
    return torch.cat(blocks, dim=2).reshape(1, num_heads, num_queries, head_dim)
