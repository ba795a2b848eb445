"""Credit from rewards: group-relative advantages, and how a teacher may modulate them per token.

`group_advantages` works on plain numbers (a group is small and lives outside tensors); the token
credits work on tensors, are constants for the gradient and never turn a sign. Legend: T tokens, N
wrong demonstrations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdpo.losses.specs import RlcsdCredit, RlsdCredit

_STD_FLOOR = 1e-6
"""Added to the group's standard deviation: smaller differences of reward are not amplified
further."""


def group_advantages(rewards: Sequence[float], *, divide_by_std: bool = False) -> list[float]:
    """r_i - mean(r), without std as in the paper; optionally over the group's (biased) standard
    deviation.

    A flat group gives exactly 0.0 for everyone: a mean of equal floats may differ from them by
    rounding, and an advantage of 1e-17 would still count as credit.
    """
    if not rewards:
        return []
    if any(not math.isfinite(reward) for reward in rewards):
        raise ValueError(f"rewards must be finite, got {list(rewards)}")
    if max(rewards) == min(rewards):
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not divide_by_std:
        return centred
    std = math.sqrt(math.fsum(c * c for c in centred) / len(centred))
    return [c / (std + _STD_FLOOR) for c in centred]


def rlsd_advantages(advantages_T: Tensor, gap_T: Tensor, credit: RlsdCredit) -> Tensor:
    """Advantages [T] scaled by the clipped exponential gap log q(y_t) - log p(y_t); a token whose
    gap is NaN keeps its own."""
    factor_T = (advantages_T.sign() * gap_T).exp().clamp(1.0 - credit.clip, 1.0 + credit.clip)
    factor_T = torch.where(gap_T.isnan(), 1.0, factor_T)
    return advantages_T * ((1.0 - credit.mix) + credit.mix * factor_T)


def rlcsd_advantages(
    advantages_T: Tensor,
    teacher_logprob_T: Tensor,
    negative_logprobs_TN: Tensor,
    credit: RlcsdCredit,
) -> Tensor:
    """Advantages [T] plus the contrast r_t with e = log q+(y_t) - log mean_n q-_n(y_t).

    NaN in `negative_logprobs` marks a missing demonstration; without any, or without a teacher
    (NaN), r is 0. Where A + r would turn A's sign it is 0, and an advantage of 0 stays 0.
    """
    is_missing_TN = negative_logprobs_TN.isnan()
    count_T = (~is_missing_TN).sum(-1)
    total_T = negative_logprobs_TN.masked_fill(is_missing_TN, -torch.inf).logsumexp(-1)
    contrast_T = teacher_logprob_T - (total_T - count_T.clamp_min(1).to(total_T.dtype).log())
    bonus_T = (credit.scale * credit.mix * (contrast_T / credit.tau).tanh()).clamp(
        -credit.bound, credit.bound
    )
    is_void_T = (count_T == 0) | contrast_T.isnan() | (bonus_T.abs() <= credit.threshold)
    moved_T = advantages_T + bonus_T.masked_fill(is_void_T, 0.0)
    return torch.where(moved_T * advantages_T > 0, moved_T, torch.zeros_like(moved_T))
