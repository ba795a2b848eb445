"""Attention of the fast path, plugged into transformers' attention registry under the name
`sdpo_engine`.

A model runs on one flat row of tokens, [1, T], and every layer hands its fresh queries, keys and
values to the *plan* passed as the keyword `sdpo_plan`. There are two plans: `PackedPlan` (sequences
side by side, completions may branch off a prompt; prefill and scoring) and `DecodePlan` (one new
token per completion against [shared prompt | own suffix]). Plans know sliding windows and score
soft-capping; whatever else an architecture does to its scores makes `local.py` take the fallback.

Shapes: T tokens of a flat row, L keys, H query heads, K key-value heads, N = H / K queries per
key-value head, D head size, G prompts in the cache, S completions of a prompt (padded to the
largest), R completions, P prompt columns, C suffix columns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sdpo.engines.block_attention import BlockAttention

ATTENTION_NAME = "sdpo_engine"

_MASKED = -1e30
"""Finite, so that a prompt wholly outside a sliding window gives weight exp(-1e30 - max) = 0 and
not NaN.
"""

_QUERY_CHUNK = 256
"""Queries per block where scores are held explicitly (soft-capping): [1, H, 256, L] float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a layer turns q.k into scores.

    Example:
        Scores(scaling=0.125, window=None, softcap=None)
    """

    scaling: float
    window: int | None
    """A query sees the last `window` positions, its own included; None: all."""
    softcap: float | None
    """cap * tanh(score / cap) before the mask; None: none."""

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        if self.softcap is None:
            return scores
        return scores.div_(self.softcap).tanh_().mul_(self.softcap)


class MissingPlanError(RuntimeError):
    """An attention layer was reached without a plan."""


class Plan(Protocol):
    """What one forward pass attends to."""

    def attend(
        self,
        layer: int,
        query_1HTD: torch.Tensor,
        key_1KTD: torch.Tensor,
        value_1KTD: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        """Attention output [1, T, H, D]."""
        ...


def _registered(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sdpo_plan: Plan | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    if sdpo_plan is None:
        raise MissingPlanError("this architecture does not hand keyword arguments to its attention")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scaling=scaling, window=sliding_window, softcap=softcap)
    return sdpo_plan.attend(module.layer_idx, query, key, value, scores), None


# Without an entry in the mask registry transformers builds no mask: the plan is the mask.
ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, _registered)


@contextmanager
def engine_attention(model: PreTrainedModel) -> Generator[None]:
    """`model` attends through plans inside the block; afterwards its own choice is back."""
    owners: list[Any] = [module for module in model.modules() if hasattr(module, "config")]
    configs = {id(owner.config): owner.config for owner in owners}.values()
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


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
            ~_visible(stop - start, last, scores.window, query_1HTD.device), _MASKED
        )
        probs_KNTL = scores_KNTL.softmax(dim=-1).to(value_1KLD.dtype)
        blocks.append(torch.matmul(probs_KNTL, value_K1LD))
    return torch.cat(blocks, dim=2).reshape(1, num_heads, num_queries, head_dim)


@dataclass(slots=True, kw_only=True)
class DecodePlan:
    """One new token per completion; writes its key and value in place, then attends in two parts.

    The prompt part is one matrix product per prompt and key-value head, [S * N, D] x [D, P]: all
    completions of a prompt read its keys once. The suffix part is one small product per completion.
    The parts are joined by their log-sum-exps, as flash attention joins its blocks, so the prompt's
    keys are never copied per completion.
    """

    prompt_keys: Sequence[torch.Tensor]
    """Per layer [G, K, P, D]; columns at and after a prompt's length hold nothing."""
    prompt_values: Sequence[torch.Tensor]
    suffix_keys: Sequence[torch.Tensor]
    """Per layer [R, K, C, D]; written at column `lengths_R`."""
    suffix_values: Sequence[torch.Tensor]
    prompt_lengths_G: torch.Tensor
    lengths_R: torch.Tensor
    """Tokens of the suffix already in the cache: the column of the new one."""
    positions_R: torch.Tensor
    """Position of the new token in its sequence."""
    rows_GS: torch.Tensor
    """Which completion sits at (g, s); any valid row where there is none."""
    places_R: torch.Tensor
    """Where completion r sits in the flattened (g, s)."""
    mask_prompt: bool
    """False promises that every prompt fills all P columns."""
    mask_suffix: bool
    """False promises that every completion writes column C - 1."""
    max_position: int
    """Upper bound of `positions_R`: windows beyond it need no mask."""
    _rows_R: torch.Tensor = field(init=False)
    _masks: dict[int | None, tuple[torch.Tensor | None, torch.Tensor | None]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self._rows_R = torch.arange(self.lengths_R.shape[0], device=self.lengths_R.device)

    def attend(
        self,
        layer: int,
        query_1HTD: torch.Tensor,
        key_1KTD: torch.Tensor,
        value_1KTD: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        suffix_key_RKCD, suffix_value_RKCD = self.suffix_keys[layer], self.suffix_values[layer]
        num_kv_heads = suffix_key_RKCD.shape[1]
        _, num_heads, num_rows, head_dim = query_1HTD.shape
        suffix_key_RKCD[self._rows_R, :, self.lengths_R] = key_1KTD[0].transpose(0, 1)
        suffix_value_RKCD[self._rows_R, :, self.lengths_R] = value_1KTD[0].transpose(0, 1)
        query_RKND = (query_1HTD[0].transpose(0, 1) * scores.scaling).reshape(
            num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim
        )
        window = scores.window
        if window is not None and window > self.max_position:
            window = None
        if window not in self._masks:
            self._masks[window] = self._mask(window, query_RKND.shape[2])
        prompt_mask, suffix_mask = self._masks[window]

        prompt = self._attend_prompt(layer, query_RKND, prompt_mask, scores)
        suffix = _attend_part(query_RKND, suffix_key_RKCD, suffix_value_RKCD, suffix_mask, scores)
        top_RKN1 = torch.maximum(prompt[..., -1:], suffix[..., -1:])
        joined = prompt[..., :-1] * (prompt[..., -1:] - top_RKN1).exp_()
        joined += suffix[..., :-1] * (suffix[..., -1:] - top_RKN1).exp_()
        output_RKND = joined[..., :-1] / joined[..., -1:]
        return output_RKND.to(query_1HTD.dtype).reshape(1, num_rows, num_heads, head_dim)

    def _attend_prompt(
        self, layer: int, query_RKND: torch.Tensor, mask: torch.Tensor | None, scores: Scores
    ) -> torch.Tensor:
        """Prompt part per completion, laid out as `_attend_part` says."""
        num_prompts, num_slots = self.rows_GS.shape
        _, num_kv_heads, num_shared, head_dim = query_RKND.shape
        query_GKQD = (
            query_RKND[self.rows_GS]
            .transpose(1, 2)
            .reshape(num_prompts, num_kv_heads, num_slots * num_shared, head_dim)
        )
        key_GKPD, value_GKPD = self.prompt_keys[layer], self.prompt_values[layer]
        part_GKQE = _attend_part(query_GKQD, key_GKPD, value_GKPD, mask, scores)
        part_GKSNE = part_GKQE.unflatten(2, (num_slots, num_shared))
        return part_GKSNE.transpose(1, 2).flatten(0, 1)[self.places_R]

    def _mask(
        self, window: int | None, num_shared: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Additive float32 masks that broadcast over [G, K, S * N, P] and [R, K, N, C]; None where
        nothing is hidden.
        """
        prompt_mask = suffix_mask = None
        if self.mask_prompt or window is not None:
            column_P = torch.arange(self.prompt_keys[0].shape[2], device=self.lengths_R.device)
            hidden_GSP = (column_P >= self.prompt_lengths_G[:, None])[:, None]
            if window is not None:
                position_GS1 = self.positions_R[self.rows_GS][:, :, None]
                hidden_GSP = hidden_GSP | (column_P <= position_GS1 - window)
                hidden_GSP = hidden_GSP.repeat_interleave(num_shared, dim=1)
            prompt_mask = (hidden_GSP * _MASKED)[:, None]
        if self.mask_suffix or window is not None:
            column_C = torch.arange(self.suffix_keys[0].shape[2], device=self.lengths_R.device)
            length_R1 = self.lengths_R[:, None]
            hidden_RC = column_C > length_R1
            if window is not None:
                hidden_RC = hidden_RC | (column_C <= length_R1 - window)
            suffix_mask = (hidden_RC * _MASKED)[:, None, None]
        return prompt_mask, suffix_mask


def _attend_part(
    query_BKQD: torch.Tensor,
    key_BKLD: torch.Tensor,
    value_BKLD: torch.Tensor,
    mask: torch.Tensor | None,
    scores: Scores,
) -> torch.Tensor:
    """Unfinished softmax over one set of keys, float32 [B, K, Q, D + 2]: weighted values, sum of
    weights, highest score.
    """
    scores_BKQL = scores.capped(_products(query_BKQD, key_BKLD))
    if mask is not None:
        scores_BKQL += mask
    top_BKQ1 = scores_BKQL.amax(dim=-1, keepdim=True)
    weights_BKQL = scores_BKQL.sub_(top_BKQ1).exp_()
    values_BKQD = torch.matmul(weights_BKQL.to(value_BKLD.dtype), value_BKLD).float()
    return torch.cat((values_BKQD, weights_BKQL.sum(dim=-1, keepdim=True), top_BKQ1), dim=-1)


def _products(query_BKQD: torch.Tensor, key_BKLD: torch.Tensor) -> torch.Tensor:
    """q.k in float32 [B, K, Q, L]: rounding scores to bfloat16 moves probabilities by percents."""
    if query_BKQD.dtype == torch.float32:
        return torch.matmul(query_BKQD, key_BKLD.transpose(-1, -2))
    if query_BKQD.is_cuda:
        keys = key_BKLD.flatten(0, 1).transpose(-1, -2)
        flat = torch.bmm(query_BKQD.flatten(0, 1), keys, out_dtype=torch.float32)
        return flat.unflatten(0, query_BKQD.shape[:2])
    return torch.matmul(query_BKQD.float(), key_BKLD.float().transpose(-1, -2))
