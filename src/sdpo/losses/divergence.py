"""Divergences between student and teacher over the entries of a support, and their derivative.

An entry is one token, or the tail: all the mass outside the support. With p_k the student's and q_k
the teacher's mass of entry k:

    reverse_kl   KL(p|q) = sum p log(p/q)                            g = log(p/q) + 1
    forward_kl   KL(q|p) = sum q log(q/p)                            g = -q/p
    forward_ce   -sum q log p                                        g = -q/p
    jsd          (1-beta) KL(p|m) + beta KL(q|m)                     g = (1-beta) log(p/m)
                 with m = (1-beta) p + beta q

where g_k = dD/dp_k. The chain through a softmax needs only p_k (g_k - sum p g) (derived in
docs/algorithm.md), so the *product* p_k g_k is what is computed: it stays finite where g itself
does not (p_k = 0), and a constant added to g drops out (the +1 above is left out). This file knows
entries only: where they come from is `head/support.py`, weights and denominators are
`objective.py`. A divergence of the user's own is a function.

Legend: R completion tokens, K entries of the support.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor

from sdpo.losses.specs import CustomDivergence, Divergence

_MAX_LOG_RATIO = 80.0
"""exp(80) is near the end of float32. Beyond it the student's mass is below e^-80 and the
Jensen-Shannon divergence no longer depends on how far."""


def evaluate_custom(
    custom: CustomDivergence, log_p_RK: Tensor, log_q_RK: Tensor
) -> tuple[Tensor, Tensor]:
    """D per token [R] and p_k g_k [R, K] of a divergence of the user's own. With log-masses as the
    free variables autograd gives p_k g_k itself: dD/d(log p_k) = p_k dD/dp_k."""
    log_q_RK = log_q_RK.detach()
    with torch.enable_grad():
        leaf_RK = log_p_RK.detach().requires_grad_()
        result = custom.function(leaf_RK, log_q_RK)
        if isinstance(result, tuple):
            value_R, weighted_RK = result
        else:
            value_R = result
            (weighted_RK,) = torch.autograd.grad(value_R.sum(), leaf_RK)
    return value_R.detach(), weighted_RK.detach()


def support_divergence(
    spec: Divergence,
    log_p_RK: Tensor,
    p_RK: Tensor,
    log_q_RK: Tensor,
    q_RK: Tensor,
    scratch_RK: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Divergence per token [R] and p_k g_k per entry [R, K]; both in the dtype of the inputs.

    `p` and `q` are exp of the log-masses (the caller has them anyway) and sum to one per token.
    Log-masses are finite: a caller with an empty entry passes a floor. Overwrites `log_q`, `q` and
    `scratch` (allocated when None); the second result is one of them. With `clip`, g is the clipped
    log-ratio as a constant, so that the gradient is the policy gradient of Prop. 2.1 with bounded
    advantages; the value is taken with the same clipped ratio.
    """
    if isinstance(spec.kind, CustomDivergence):
        return evaluate_custom(spec.kind, log_p_RK, log_q_RK)
    scratch_RK = torch.empty_like(q_RK) if scratch_RK is None else scratch_RK
    match spec.kind:
        case "reverse_kl":
            value_R, weighted_RK = _reverse_kl(spec, log_p_RK, p_RK, log_q_RK, q_RK)
        case "forward_kl" | "forward_ce":
            value_R, weighted_RK = _forward(spec, log_p_RK, p_RK, log_q_RK, q_RK, scratch_RK)
        case "jsd":
            value_R, weighted_RK = _jsd(spec, log_p_RK, p_RK, log_q_RK, q_RK, scratch_RK)
        case _:
            assert_never(spec.kind)
    # Every unclipped value is a sum of terms that are non-negative in exact arithmetic.
    return (value_R if spec.clip is not None else value_R.clamp_min_(0.0)), weighted_RK


def _reverse_kl(
    spec: Divergence, log_p_RK: Tensor, p_RK: Tensor, log_q_RK: Tensor, q_RK: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and p g. The masses' sums are added because p (log p - log q) + q - p is non-negative
    per entry: an error in the normaliser of one side then enters squared instead of linearly."""
    # One buffer serves three names from here on: log q becomes the log-ratio, then p g. A pass over
    # [R, V] costs as much as the arithmetic in it, and a fourth buffer would leave the cache.
    log_ratio_RK = _clipped(log_q_RK.sub_(log_p_RK), spec.clip)
    weighted_RK = log_ratio_RK.mul_(p_RK).neg_()
    value_R = weighted_RK.sum(-1)
    if spec.clip is None:
        value_R += q_RK.sum(-1) - p_RK.sum(-1)
    return value_R, weighted_RK


def _forward(
    spec: Divergence,
    log_p_RK: Tensor,
    p_RK: Tensor,
    log_q_RK: Tensor,
    q_RK: Tensor,
    scratch_RK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Value and p g of KL(q|p) or of the cross-entropy, which differ by the teacher's entropy
    only."""
    log_ratio_RK = _clipped(log_q_RK.sub_(log_p_RK), spec.clip)
    if spec.kind == "forward_ce":
        value_R = torch.mul(q_RK, log_p_RK, out=scratch_RK).sum(-1).neg_()
    else:
        value_R = torch.mul(q_RK, log_ratio_RK, out=scratch_RK).sum(-1)
        if spec.clip is None:
            value_R += p_RK.sum(-1) - q_RK.sum(-1)
    if spec.clip is None:
        # p g = p (-q/p) = -q: written without the quotient, it is exact where p underflows to 0, so
        # a token the student never says still gets the gradient p - q.
        return value_R, q_RK.neg_()
    return value_R, log_ratio_RK.exp_().mul_(p_RK).neg_()


def _jsd(
    spec: Divergence,
    log_p_RK: Tensor,
    p_RK: Tensor,
    log_q_RK: Tensor,
    q_RK: Tensor,
    scratch_RK: Tensor,
) -> tuple[Tensor, Tensor]:
    """Value and p g. Works on s = log(m/p) = log1p(beta expm1(log q - log p)), exact where teacher
    and student nearly agree; the difference of three entropies would lose every digit there."""
    assert spec.beta is not None
    bound = _MAX_LOG_RATIO if spec.clip is None else min(spec.clip, _MAX_LOG_RATIO)
    log_ratio_RK = _clipped(log_q_RK.sub_(log_p_RK), bound)
    shift_RK = torch.expm1(log_ratio_RK, out=scratch_RK).mul_(spec.beta).log1p_()
    teacher_R = log_ratio_RK.sub_(shift_RK).mul_(q_RK).sum(-1)
    weighted_RK = shift_RK.mul_(p_RK).mul_(spec.beta - 1.0)
    return weighted_RK.sum(-1).add_(teacher_R, alpha=spec.beta), weighted_RK


def _clipped(log_ratio_RK: Tensor, bound: float | None) -> Tensor:
    """`log_ratio` held within +-bound, in place."""
    return log_ratio_RK if bound is None else log_ratio_RK.clamp_(-bound, bound)
