"""Importance weights for tokens that other weights sampled: truncated per token, and the
logit-level surrogate.

Three policies are told apart: the *sampler* drew the token, the *old* policy is the trained model
at the start of the step (the same weights, another implementation or precision), the *student* is
what is trained now. Nothing here is differentiated through: weights are constants, and the
surrogate returns its own derivative.

Legend: T tokens, R rows, B buckets.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX_LOG_RATIO = 20.0
"""Log-ratios are held within +-20 before exp: e^20 is beyond any cap or clip range, and its square
is still finite."""


def ratio(logprob_T: Tensor, sampled_logprob_T: Tensor) -> Tensor:
    """exp(logprob - sampled_logprob) [T], the probability ratio of two policies at the sampled
    tokens."""
    return (logprob_T - sampled_logprob_T).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()


def truncated_ratio(
    logprob_T: Tensor, sampler_logprob_T: Tensor, ratio_cap: float | None
) -> Tensor | None:
    """min(pi / pi_sampler, ratio_cap) [T]: the truncated importance weight of Eq. 12. None when the
    cap is None (off).

    The policy gradient passes the old policy (its own ratio corrects from there on), distillation
    the student.
    """
    if ratio_cap is None:
        return None
    return ratio(logprob_T.detach(), sampler_logprob_T).clamp_max(ratio_cap)


def logit_surrogate(
    log_p_RB: Tensor,
    log_q_RB: Tensor,
    old_log_p_RB: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    ratio_cap: float | None,
    advantage_clip: float | None = None,
    sampler_log_p_RB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate with one advantage per logit (Eq. 13): value [R] and p_b g_b [R, B].

        -sum_b min(old_b, cap * sampler_b) * min(w_b A_b, clip(w_b, 1-eps_low, 1+eps_high) A_b)

    with w_b = p_b / old_b and A_b = log q_b - log p_b held constant (bounded by `advantage_clip`).
    Samplers rarely report more than the drawn token, so `sampler_log_p` may be None: it is then
    taken equal to the old policy, and the cap has no effect above 1. On-policy (old = p) the
    derivative is that of reverse KL.
    """
    advantage_RB = log_q_RB - log_p_RB
    if advantage_clip is not None:
        advantage_RB = advantage_RB.clamp_(-advantage_clip, advantage_clip)
    mass_RB = old_log_p_RB.exp()
    if sampler_log_p_RB is not None and ratio_cap is not None:
        mass_RB = torch.minimum(mass_RB, sampler_log_p_RB.exp() * ratio_cap)
    ratio_RB = ratio(log_p_RB, old_log_p_RB)
    value_RB, slope_RB = clipped_surrogate(ratio_RB, advantage_RB, eps_low, eps_high)
    return (mass_RB * value_RB).sum(-1), mass_RB * slope_RB


def clipped_surrogate(
    ratio_T: Tensor, advantage_T: Tensor, eps_low: float, eps_high: float
) -> tuple[Tensor, Tensor]:
    """-min(w A, clip(w) A) and its derivative with respect to log w, elementwise (clip-higher when
    eps_high > eps_low)."""
    bounded_T = ratio_T.clamp(1.0 - eps_low, 1.0 + eps_high)
    gain_T = ratio_T * advantage_T
    is_clipped_T = bounded_T * advantage_T < gain_T
    loss_T = -torch.minimum(gain_T, bounded_T * advantage_T)
    return loss_T, (-gain_T).masked_fill_(is_clipped_T, 0.0)
