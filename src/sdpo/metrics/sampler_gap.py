"""How far the sampler's log-probs are from the trainer's, as metrics of a step.

Sampler and trainer run the same weights by different code, in vLLM by another library's. What they
disagree by is off-policy noise that no one asked for: rounding gives some hundredths of a nat in
bfloat16, a wrong mask, a stale copy of the weights or a buffer that was not copied gives tenths.

Legend: T tokens.
"""

from __future__ import annotations

import math

import torch

from sdpo.metrics import names
from sdpo.metrics.values import Mean, Metrics, Percentile

_POOL = 1024
"""Tokens of a micro-batch that the percentile is taken from, evenly spaced: a pool of all of them
would be sent between processes and sorted at every step."""


def add_sampler_gap(
    metrics: Metrics,
    trainer_logprobs_T: torch.Tensor,
    sampler_logprobs_T: torch.Tensor,
    *,
    ratio_cap: float | None,
) -> None:
    """Add |log p trainer - log p sampler| of a micro-batch's tokens to `metrics`, in nats:

    `policy/sampler_gap` (mean), `policy/sampler_gap_p99`, `policy/sampler_gap_max`, and
    `policy/ratio_capped`, the share of tokens whose probability ratio exceeds `ratio_cap`. The
    trainer's log-probs are those of the weights that sampled, at the same temperature. Tokens of an
    unknown sampler (NaN) are left out.
    """
    difference_T = (trainer_logprobs_T.detach() - sampler_logprobs_T).double()
    difference_T = difference_T[~sampler_logprobs_T.isnan()]
    if len(sampler_logprobs_T) and not len(difference_T):
        return
    gap_T = difference_T.abs()
    count = len(gap_T)
    metrics.add(names.POLICY_SAMPLER_GAP, Mean(float(gap_T.sum()), float(count)))
    step = max(1, math.ceil(count / _POOL))
    metrics.add(names.POLICY_SAMPLER_GAP_P99, Percentile(99.0, tuple(gap_T[::step].tolist())))
    largest = (float(gap_T.max()),) if count else ()
    metrics.add(names.POLICY_SAMPLER_GAP_MAX, Percentile(100.0, largest))
    limit = math.inf if ratio_cap is None else math.log(ratio_cap)
    metrics.add(names.POLICY_RATIO_CAPPED, Mean(float((difference_T > limit).sum()), float(count)))
