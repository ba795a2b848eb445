"""Importance weights for tokens sampled by a different version of the policy: truncated per token,
and the logit-level surrogate.

Three policies are told apart: the *sampler* drew the token, the *old* policy is the trained model
at the start of the step (the same weights, another implementation or precision), the *student* is
what is trained now. Nothing here is differentiated through: weights are constants, and the
surrogate returns its own derivative.

Legend: T and R tokens, K entries of a support.
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
    cap is None (off). A cap of less than 1 bounds the weight 1 of an unknown sampler too.

    The policy gradient passes the old policy (its own ratio corrects from there on), distillation
    the student.
    """
    if ratio_cap is None:
        return None
    # Where the sampler is not known (NaN), nothing can be corrected: weight 1.
    known_T = torch.where(sampler_logprob_T.isnan(), logprob_T.detach(), sampler_logprob_T)
    return ratio(logprob_T.detach(), known_T).clamp_max(ratio_cap)


def logit_surrogate(
    log_p_RK: Tensor,
    log_q_RK: Tensor,
    old_log_p_RK: Tensor,
    *,
    eps_low: float | None,
    eps_high: float | None,
    advantage_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate with one advantage per logit (Eq. 13): value [R] and p_k g_k [R, K].

        -sum_k old_k * min(w_k A_k, clip(w_k, 1-eps_low, 1+eps_high) A_k)

    with w_k = p_k / old_k and A_k = log q_k - log p_k held constant (bounded by `advantage_clip`).
    The paper's factor is min(old_k, cap * sampler_k); samplers report the drawn token only, so the
    sampler is taken equal to the old policy, and a cap of 1 or more does nothing. On-policy
    (old = p) the derivative is that of reverse KL.
    """
    advantage_RK = log_q_RK - log_p_RK
    if advantage_clip is not None:
        advantage_RK = advantage_RK.clamp_(-advantage_clip, advantage_clip)
    mass_RK = old_log_p_RK.exp()
    ratio_RK = ratio(log_p_RK, old_log_p_RK)
    value_RK, slope_RK = clipped_surrogate(ratio_RK, advantage_RK, eps_low, eps_high)
    return (mass_RK * value_RK).sum(-1), mass_RK * slope_RK


def bounded(ratio_T: Tensor, eps_low: float | None, eps_high: float | None) -> Tensor:
    """`ratio` [T] within [1 - eps_low, 1 + eps_high]; None: no bound on that side."""
    if eps_low is None and eps_high is None:
        return ratio_T
    return ratio_T.clamp(
        None if eps_low is None else 1.0 - eps_low, None if eps_high is None else 1.0 + eps_high
    )


def clipped_surrogate(
    ratio_T: Tensor, advantage_T: Tensor, eps_low: float | None, eps_high: float | None
) -> tuple[Tensor, Tensor]:
    """-min(w A, clip(w) A) and its derivative with respect to log w, elementwise (clip-higher when
    eps_high > eps_low)."""
    bounded_T = bounded(ratio_T, eps_low, eps_high)
    gain_T = ratio_T * advantage_T
    is_clipped_T = bounded_T * advantage_T < gain_T
    loss_T = -torch.minimum(gain_T, bounded_T * advantage_T)
    return loss_T, (-gain_T).masked_fill_(is_clipped_T, 0.0)
