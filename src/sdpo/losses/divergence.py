"""Divergences between student and teacher over buckets of probability mass, and their derivative.

A bucket is one token (whole vocabulary, support) or the tail. With p_b the student's and q_b the
teacher's mass of bucket b:

    reverse_kl   KL(p|q) = sum p log(p/q)                            g = log(p/q) + 1
    forward_kl   KL(q|p) = sum q log(q/p)                            g = -q/p
    forward_ce   -sum q log p                                        g = -q/p
    jsd          (1-beta) KL(p|m) + beta KL(q|m)                     g = (1-beta) log(p/m)
                 with m = (1-beta) p + beta q

where g_b = dD/dp_b. The chain through a softmax needs only p_b (g_b - sum p g) (DESIGN section 3),
so the *product* p_b g_b is what is computed: it stays finite where g itself does not (p_b = 0), and
a constant added to g drops out (the +1 above is left out). This file knows buckets only: where they
come from is `buckets.py`, weights and denominators are `objective.py`.

Legend: R rows (tokens), B buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

DivergenceKind = Literal["reverse_kl", "forward_kl", "jsd", "forward_ce"]

_MAX_LOG_RATIO = 80.0
"""exp(80) is near the end of float32. Beyond it the student's mass is below e^-80 and the
Jensen-Shannon divergence no longer depends on how far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Which distance, with its parameters.

    Example:
        Divergence(kind="reverse_kl", clip=5.0)
    """

    kind: DivergenceKind = "jsd"
    beta: float = 0.5
    """Weight of the teacher in the Jensen-Shannon mixture, strictly between 0 and 1; unused
    otherwise."""
    clip: float | None = None
    """Bound on |log q_b - log p_b|, the advantage of a logit, before it becomes credit (Table 12,
    test time: 5). None: off."""

    def __post_init__(self) -> None:
        if self.kind not in ("reverse_kl", "forward_kl", "jsd", "forward_ce"):
            raise ValueError(
                f"divergence {self.kind!r} is none of reverse_kl, forward_kl, jsd, forward_ce"
            )
        if self.kind == "jsd" and not 0.0 < self.beta < 1.0:
            raise ValueError(
                f"jsd needs 0 < beta < 1, got {self.beta}; its limits are reverse_kl, forward_kl"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"advantage clip must be positive, got {self.clip}")


def bucket_divergence(
    spec: Divergence,
    log_p_RB: Tensor,
    p_RB: Tensor,
    log_q_RB: Tensor,
    q_RB: Tensor,
    scratch_RB: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Divergence per row [R] and p_b g_b per bucket [R, B]; both in the dtype of the inputs.

    `p` and `q` are exp of the log-masses (the caller has them anyway) and sum to one per row.
    Log-masses are finite: a caller with an empty bucket passes a floor. Overwrites `log_q`, `q` and
    `scratch` (allocated when None); the second result is one of them. With `clip`, g is the clipped
    log-ratio as a constant, so that the gradient is the policy gradient of Prop. 2.1 with bounded
    advantages; the value is taken with the same clipped ratio.
    """
    scratch_RB = torch.empty_like(q_RB) if scratch_RB is None else scratch_RB
    match spec.kind:
        case "reverse_kl":
            value_R, weighted_RB = _reverse_kl(spec, log_p_RB, p_RB, log_q_RB, q_RB)
        case "forward_kl" | "forward_ce":
            value_R, weighted_RB = _forward(spec, log_p_RB, p_RB, log_q_RB, q_RB, scratch_RB)
        case "jsd":
            value_R, weighted_RB = _jsd(spec, log_p_RB, p_RB, log_q_RB, q_RB, scratch_RB)
    # Every unclipped value is a sum of terms that are non-negative in exact arithmetic.
    return (value_R if spec.clip is not None else value_R.clamp_min_(0.0)), weighted_RB


def _reverse_kl(
    spec: Divergence, log_p_RB: Tensor, p_RB: Tensor, log_q_RB: Tensor, q_RB: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and p g. The masses' sums are added because p (log p - log q) + q - p is non-negative
    per bucket: an error in the normaliser of one side then enters squared instead of linearly."""
    log_ratio_RB = _clipped(log_q_RB.sub_(log_p_RB), spec.clip)
    weighted_RB = log_ratio_RB.mul_(p_RB).neg_()
    value_R = weighted_RB.sum(-1)
    if spec.clip is None:
        value_R += q_RB.sum(-1) - p_RB.sum(-1)
    return value_R, weighted_RB


def _forward(
    spec: Divergence,
    log_p_RB: Tensor,
    p_RB: Tensor,
    log_q_RB: Tensor,
    q_RB: Tensor,
    scratch_RB: Tensor,
) -> tuple[Tensor, Tensor]:
    """Value and p g of KL(q|p) or of the cross-entropy, which differ by the teacher's entropy
    only."""
    log_ratio_RB = _clipped(log_q_RB.sub_(log_p_RB), spec.clip)
    if spec.kind == "forward_ce":
        value_R = torch.mul(q_RB, log_p_RB, out=scratch_RB).sum(-1).neg_()
    else:
        value_R = torch.mul(q_RB, log_ratio_RB, out=scratch_RB).sum(-1)
        if spec.clip is None:
            value_R += p_RB.sum(-1) - q_RB.sum(-1)
    if spec.clip is None:
        return value_R, q_RB.neg_()
    return value_R, log_ratio_RB.exp_().mul_(p_RB).neg_()


def _jsd(
    spec: Divergence,
    log_p_RB: Tensor,
    p_RB: Tensor,
    log_q_RB: Tensor,
    q_RB: Tensor,
    scratch_RB: Tensor,
) -> tuple[Tensor, Tensor]:
    """Value and p g. Works on s = log(m/p) = log1p(beta expm1(log q - log p)), exact where teacher
    and student nearly agree; the difference of three entropies would lose every digit there."""
    bound = _MAX_LOG_RATIO if spec.clip is None else min(spec.clip, _MAX_LOG_RATIO)
    log_ratio_RB = _clipped(log_q_RB.sub_(log_p_RB), bound)
    shift_RB = torch.expm1(log_ratio_RB, out=scratch_RB).mul_(spec.beta).log1p_()
    teacher_R = log_ratio_RB.sub_(shift_RB).mul_(q_RB).sum(-1)
    weighted_RB = shift_RB.mul_(p_RB).mul_(spec.beta - 1.0)
    return weighted_RB.sum(-1).add_(teacher_R, alpha=spec.beta), weighted_RB


def _clipped(log_ratio_RB: Tensor, bound: float | None) -> Tensor:
    """`log_ratio` held within +-bound, in place."""
    return log_ratio_RB if bound is None else log_ratio_RB.clamp_(-bound, bound)
