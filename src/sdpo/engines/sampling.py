"""Tokens and their log-probabilities from logits, by inverse CDF on numbers that belong to the
completion.

Every completion owns a counter-based random stream (Philox keyed by its seed): number t decides
token t, whatever else is in the batch. `torch.multinomial` draws one exponential per vocabulary
entry instead of one number per token, which is most of the cost of a decode step on a CPU. This
file knows no model and no cache.

Shapes: R rows (completions in the batch), V vocabulary, N completions, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sdpo.engines.base import Sampling
from sdpo.errors import EngineError


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

    `logits_RV` is overwritten when it is float32 already. Memory: two float32 [R, V] tensors (four
    more with top_p). At temperature 0 the distribution is one point, so every log-probability is 0.
    """
    logits_RV = logits_RV.float()
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
    cdf_RV = masses_RV.cumsum(dim=-1)
    total_R1 = cdf_RV[:, -1:]
    # Strictly below the total, so that the first entry above the threshold exists and has mass.
    threshold_R1 = torch.minimum(
        uniforms_R[:, None] * total_R1, total_R1.nextafter(torch.zeros_like(total_R1))
    )
    # NaN logits put the search past the end; the log-probability then says NaN, which is refused at
    # the end.
    tokens_R1 = torch.searchsorted(cdf_RV, threshold_R1, right=True).clamp_(max=cdf_RV.shape[1] - 1)
    logprobs_R1 = masses_RV.gather(1, tokens_R1).log() - total_R1.log()
    return tokens_R1[:, 0], logprobs_R1[:, 0]


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
