"""Tokens and their log-probabilities from logits, by inverse CDF on each completion's own random
numbers.

Every completion has its own counter-based random stream (Philox keyed by its seed): number t
decides token t, whatever else is in the batch. That is also the fast way: `torch.multinomial` draws
one exponential per vocabulary entry instead of one number per token, which would be most of a
decode step's time on a CPU. This file knows neither model nor cache.

Shapes: R rows (completions in the batch), V vocabulary, N completions, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sdpo.engines.base import Sampling
from sdpo.errors import EngineError

_BLOCK = 128
"""Entries whose masses are summed before the search: a running sum over the whole vocabulary costs
ten times as much on a CPU, and its rounding errors grow with the vocabulary."""

_CACHED = 1 << 20
"""Logits that a CPU samples from at a time. A buffer of this size stays in cache and is reused for
the next rows; sampling all rows at once would touch fresh pages at every step."""


def uniforms(seeds: Sequence[int], num_tokens: int) -> torch.Tensor:
    """Numbers in [0, 1), float32 [N, T]; entry (n, t) is a function of (seeds[n], t) alone."""
    numbers_NT = np.empty((len(seeds), num_tokens), dtype=np.float32)
    for row_T, seed in zip(numbers_NT, seeds, strict=True):
        # float32 draws are multiples of 2^-24 below 1: rounding a float64 draw could give 1.0.
        np.random.Generator(np.random.Philox(key=seed)).random(out=row_T, dtype=np.float32)
    return torch.from_numpy(numbers_NT)


def sample_tokens(
    logits_RV: torch.Tensor, uniforms_R: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled ids [R] (int64) and their log-probabilities [R] (float32, nats).

    `logits_RV` is overwritten when it is float32 already. Memory: one float32 [R, V] tensor (four
    more with top_p), on a CPU of so many rows that it stays in cache. At temperature 0 the
    distribution is one point, so every log-probability is 0.
    """
    num_rows = len(logits_RV)
    if logits_RV.device.type == "cpu":
        num_rows = max(1, _CACHED // logits_RV.shape[1])
    parts = [
        _sample(logits.float(), numbers, sampling)
        for logits, numbers in zip(
            logits_RV.split(num_rows), uniforms_R.split(num_rows), strict=True
        )
    ]
    tokens, logprobs = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample(
    logits_RV: torch.Tensor, uniforms_R: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sample_tokens` of float32 logits, which are overwritten."""
    logits_RV = logits_RV[:, : sampling.vocabulary]
    if sampling.temperature == 0.0:
        tokens_R = logits_RV.argmax(dim=-1)
        # A NaN row must not look like a certain choice: NaN * 0 stays NaN and is refused at the
        # end.
        return tokens_R, logits_RV.amax(dim=-1) * 0.0
    if sampling.temperature != 1.0:
        logits_RV.div_(sampling.temperature)
    if sampling.top_p < 1.0:
        _keep_nucleus(logits_RV, sampling.top_p)
    masses_RV = logits_RV.sub_(logits_RV.amax(dim=-1, keepdim=True)).exp_()
    cdf_RB = _block_sums(masses_RV).cumsum(dim=-1)
    total_R1 = cdf_RB[:, -1:]
    tokens_R1 = _inverse_cdf(masses_RV, cdf_RB, uniforms_R[:, None] * total_R1)
    # A NaN logit makes the total NaN, and what ends as a NaN log-probability is refused.
    logprobs_R1 = masses_RV.gather(1, tokens_R1).log() - total_R1.log()
    return tokens_R1[:, 0], logprobs_R1[:, 0]


def _block_sums(masses_RV: torch.Tensor) -> torch.Tensor:
    """Sums [R, B] of `_BLOCK` neighbouring entries, of fewer in the last."""
    whole = masses_RV.shape[1] // _BLOCK * _BLOCK
    sums_RB = masses_RV[:, :whole].unflatten(1, (-1, _BLOCK)).sum(dim=-1)
    if whole == masses_RV.shape[1]:
        return sums_RB
    return torch.cat((sums_RB, masses_RV[:, whole:].sum(dim=-1, keepdim=True)), dim=-1)


def _inverse_cdf(
    masses_RV: torch.Tensor, cdf_RB: torch.Tensor, threshold_R1: torch.Tensor
) -> torch.Tensor:
    """The first entries [R, 1] at which the running sum exceeds the threshold: first the block,
    then the entry in it. They have mass; where the sums are NaN they are any."""
    block_R1 = _first_above(cdf_RB, threshold_R1)
    before_R1 = torch.where(block_R1 > 0, cdf_RB.gather(1, (block_R1 - 1).clamp_(min=0)), 0.0)
    columns_RC = block_R1 * _BLOCK + torch.arange(_BLOCK, device=masses_RV.device)
    last = masses_RV.shape[1] - 1
    cdf_RC = masses_RV.gather(1, columns_RC.clamp(max=last)).masked_fill_(columns_RC > last, 0.0)
    cdf_RC = cdf_RC.cumsum(dim=-1)
    tokens_R1 = block_R1 * _BLOCK + _first_above(cdf_RC, threshold_R1 - before_R1)
    return tokens_R1.clamp_(max=last)


def _first_above(cdf_RN: torch.Tensor, threshold_R1: torch.Tensor) -> torch.Tensor:
    total_R1 = cdf_RN[:, -1:]
    # Strictly below the total, so that the first entry above the threshold exists and has mass.
    below_R1 = torch.minimum(threshold_R1, total_R1.nextafter(torch.zeros_like(total_R1)))
    # NaN sums put the search past the end.
    return torch.searchsorted(cdf_RN, below_R1, right=True).clamp_(max=cdf_RN.shape[1] - 1)


def _keep_nucleus(logits_RV: torch.Tensor, top_p: float) -> None:
    """Sets to -inf, in place, every token outside the smallest most likely set of mass >= top_p
    (ties: lowest id).
    """
    sorted_RV, order_RV = logits_RV.sort(dim=-1, descending=True, stable=True)
    probs_RV = sorted_RV.softmax(dim=-1)
    mass_before_RV = probs_RV.cumsum(dim=-1) - probs_RV
    outside_RV = torch.zeros_like(logits_RV, dtype=torch.bool)
    outside_RV.scatter_(1, order_RV, mass_before_RV >= top_p)
    logits_RV.masked_fill_(outside_RV, float("-inf"))


def check_sampling(sampling: Sampling) -> None:
    """Refuses values outside the ranges that `Sampling` documents."""
    if sampling.max_new_tokens < 1:
        raise EngineError(f"max_new_tokens is {sampling.max_new_tokens}; it must be at least 1")
    if not 0.0 <= sampling.temperature < float("inf"):
        raise EngineError(
            f"temperature is {sampling.temperature}; it must be 0 or a positive number"
        )
    if not 0.0 < sampling.top_p <= 1.0:
        raise EngineError(f"top_p is {sampling.top_p}; it must be in (0, 1]")
