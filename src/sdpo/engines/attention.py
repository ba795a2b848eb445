"""Attention of the fast path, plugged into transformers' attention registry under the name
`sdpo_engine`.

A model runs on one flat row of tokens, [1, T], and every layer hands its fresh queries, keys and
values to the *plan* passed as the keyword `sdpo_plan`. There are two plans: `PackedPlan` (sequences
side by side, completions may branch off a prompt; prefill and scoring) and `DecodePlan` (one new
token per completion against [shared prompt | own suffix]). Plans know sliding windows and score
soft-capping; whatever else an architecture does to its scores makes `local.py` take the fallback.

Shapes: T tokens of a flat row, L keys, H query heads, K key-value heads, N = H / K queries per
key-value head, D head size, G prompts in the cache, S completions of a prompt (padded to the
largest), R completions, U completions as (G, S) where that is their order and as (R,) elsewhere,
Q = S * N queries below each other, P prompt columns, C suffix columns.
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
"""Finite, so that times the False of a boolean mask it is 0 and not NaN."""

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
        /,
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
    """One new token per completion; writes its key and value in place, then attends to the prompt
    and to the completion's own suffix.

    The prompt part is one matrix product per prompt and key-value head, [S * N, D] x [D, P]: all
    completions of a prompt read its keys once, and they are never copied per completion. The suffix
    part is one small product per completion. One softmax spans the scores of both.
    """

    prompt_keys: Sequence[torch.Tensor]
    """Per layer [G, K, P, D]; columns at and after a prompt's length hold nothing."""
    prompt_values: Sequence[torch.Tensor]
    suffix_keys: Sequence[torch.Tensor]
    """Per layer [R, K, C, D]; written at column `lengths_R`."""
    suffix_values: Sequence[torch.Tensor]
    prompt_lengths_R: torch.Tensor
    """Tokens of each completion's prompt in the cache."""
    lengths_R: torch.Tensor
    """Tokens of the suffix already in the cache: the column of the new one."""
    rows_GS: torch.Tensor
    """Which completion sits at (g, s); any valid row where there is none."""
    places_R: torch.Tensor
    """Where completion r sits in the flattened (g, s)."""
    is_dense: bool
    """True promises that completion r sits at place r and every place is taken."""
    mask_prompt: bool
    """False promises that every prompt fills all P columns."""
    mask_suffix: bool
    """False promises that every completion writes column C - 1."""
    max_position: int
    """Upper bound of `positions_R`: windows beyond it need no mask."""
    _rows_R: torch.Tensor = field(init=False)
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows_R = torch.arange(self.lengths_R.shape[0], device=self.lengths_R.device)

    @property
    def positions_R(self) -> torch.Tensor:
        """Position of the new token in its sequence."""
        return self.prompt_lengths_R + self.lengths_R

    def attend(
        self,
        layer: int,
        query_1HTD: torch.Tensor,
        key_1KTD: torch.Tensor,
        value_1KTD: torch.Tensor,
        scores: Scores,
    ) -> torch.Tensor:
        prompt_key_GKPD, prompt_value_GKPD = self.prompt_keys[layer], self.prompt_values[layer]
        suffix_key_RKCD, suffix_value_RKCD = self.suffix_keys[layer], self.suffix_values[layer]
        self._store(suffix_key_RKCD, key_1KTD)
        self._store(suffix_value_RKCD, value_1KTD)
        _, num_heads, num_rows, head_dim = query_1HTD.shape
        query_RKND = (query_1HTD[0].transpose(0, 1) * scores.scaling).reshape(
            num_rows, suffix_key_RKCD.shape[1], -1, head_dim
        )
        query_GKQD = self._by_prompt(query_RKND, query_RKND.dtype)
        prompt_UKNP = self._by_row(_products(query_GKQD, prompt_key_GKPD))
        suffix_UKNC = _products(query_RKND, suffix_key_RKCD).unflatten(0, self._rows_shape)
        scores_UKNL = scores.capped(torch.cat((prompt_UKNP, suffix_UKNC), dim=-1))
        mask_RL = self._mask(scores.window)
        if mask_RL is not None:
            scores_UKNL += mask_RL.unflatten(0, self._rows_shape)[..., None, None, :]
        weights_UKNL = torch.softmax(scores_UKNL, -1, out=scores_UKNL)
        prompt_UKNP, suffix_UKNC = weights_UKNL.tensor_split((prompt_key_GKPD.shape[2],), dim=-1)
        prompt_GKQP = self._by_prompt(prompt_UKNP, value_1KTD.dtype)
        suffix_RKNC = suffix_UKNC.flatten(0, -4).to(value_1KTD.dtype)
        output_UKND = self._by_row(torch.matmul(prompt_GKQP, prompt_value_GKPD))
        output_RKND = torch.matmul(suffix_RKNC, suffix_value_RKCD)
        output_UKND = output_UKND + output_RKND.unflatten(0, self._rows_shape)
        return output_UKND.reshape(1, num_rows, num_heads, -1)

    def _store(self, cache_RKCD: torch.Tensor, new_1KTD: torch.Tensor) -> None:
        new_RKD = new_1KTD[0].transpose(0, 1)
        if self.mask_suffix:
            cache_RKCD[self._rows_R, :, self.lengths_R] = new_RKD
        else:
            cache_RKCD[:, :, -1] = new_RKD

    @property
    def _rows_shape(self) -> tuple[int, ...]:
        """U. With (G, S) the transposed results of prompts are copied once, not once more into
        rows."""
        return tuple(self.rows_GS.shape) if self.is_dense else tuple(self.places_R.shape)

    def _by_prompt(self, x_UKNX: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """[G, K, S * N, X] in `dtype`, the completions of a prompt below each other."""
        if not self.is_dense:
            x_UKNX = x_UKNX.index_select(0, self.rows_GS.flatten())
        x_GSKNX = x_UKNX.reshape(*self.rows_GS.shape, *x_UKNX.shape[-3:])
        x_GKSNX = x_GSKNX.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)
        return x_GKSNX.flatten(2, 3)

    def _by_row(self, x_GKQX: torch.Tensor) -> torch.Tensor:
        """[U, K, N, X], the reverse of `_by_prompt`."""
        x_GSKNX = x_GKQX.unflatten(2, (self.rows_GS.shape[1], -1)).transpose(1, 2)
        if self.is_dense:
            return x_GSKNX
        return x_GSKNX.flatten(0, 1).index_select(0, self.places_R)

    def _mask(self, window: int | None) -> torch.Tensor | None:
        """Additive float32 mask [R, P + C]; None where nothing is hidden."""
        if window is not None and window > self.max_position:
            window = None
        if window not in self._masks:
            self._masks[window] = self._new_mask(window)
        return self._masks[window]

    def _new_mask(self, window: int | None) -> torch.Tensor | None:
        if window is None and not self.mask_prompt and not self.mask_suffix:
            return None
        device, length_R1 = self.lengths_R.device, self.lengths_R[:, None]
        prompt_length_R1 = self.prompt_lengths_R[:, None]
        column_P = torch.arange(self.prompt_keys[0].shape[2], device=device)
        column_C = torch.arange(self.suffix_keys[0].shape[2], device=device)
        hidden_RP, hidden_RC = column_P >= prompt_length_R1, column_C > length_R1
        if window is not None:
            hidden_RP |= column_P <= prompt_length_R1 + length_R1 - window
            hidden_RC |= column_C <= length_R1 - window
        return torch.cat((hidden_RP, hidden_RC), dim=1) * _MASKED


def _products(query_BKQD: torch.Tensor, key_BKLD: torch.Tensor) -> torch.Tensor:
    """q.k in float32 [B, K, Q, L]: rounding scores to bfloat16 moves probabilities by percents."""
    if query_BKQD.dtype == torch.float32:
        return torch.matmul(query_BKQD, key_BKLD.transpose(-1, -2))
    if query_BKQD.is_cuda:
        keys = key_BKLD.flatten(0, 1).transpose(-1, -2)
        flat = torch.bmm(query_BKQD.flatten(0, 1), keys, out_dtype=torch.float32)
        return flat.unflatten(0, query_BKQD.shape[:2])
    return torch.matmul(query_BKQD.float(), key_BKLD.float().transpose(-1, -2))
