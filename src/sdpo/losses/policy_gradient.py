"""The reward component per token: loss and its derivative with respect to the sampled token's
log-probability.

Pure functions of log-probs and advantages, undivided (`objective.py` divides). The derivative is
returned in closed form because the fused head turns it into a gradient without holding logits.

    grpo    -min(w A, clip(w, 1-eps_low, 1+eps_high) A), w = p / old per token (Eq. 12);
            on-policy w = 1: loss -A, derivative -A
    gspo    the same with one w per sequence, the geometric mean of its tokens' ratios
    cispo   -stop_gradient(clip(w)) A log p: no token loses its gradient
    sft     -log p, whatever the advantage (likelihood of given completions)

Dr.GRPO is `grpo` with `normalization="fixed"` and advantages without std. Legend: T tokens, S
sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdpo.losses.importance import bounded, clipped_surrogate, ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientSpec:
    """The reward component.

    Example:
        PolicyGradientSpec(kind="grpo", eps_low=0.2, eps_high=0.28, ratio_cap=2.0,
                           normalization="fixed", fixed_length=8192)
    """

    kind: Literal["grpo", "gspo", "cispo", "sft"]
    eps_low: float | None = None
    """Ratios below 1 - eps_low are clipped; None: none are."""
    eps_high: float | None = None
    """Ratios above 1 + eps_high are clipped (clip-higher, Table 13); None: none are."""
    ratio_cap: float | None = None
    """Cap of the weight old / sampler (Eq. 12, Table 13); None: no importance weight."""
    normalization: Literal["token", "sequence", "fixed"]
    """Denominator, of distillation beside it too: routed tokens of the batch, mean per sequence
    then over sequences, or sequences x `fixed_length`."""
    fixed_length: int | None = None
    """Length constant of `normalization="fixed"`, tokens (Dr.GRPO; the paper: the maximal
    completion)."""
    counts_flat_groups: bool = True
    """Whether that denominator counts a rollout that feeds the policy gradient alone and whose
    group is flat: it has no gradient, and shrinks those of the others."""

    def __post_init__(self) -> None:
        if self.kind not in ("grpo", "gspo", "cispo", "sft"):
            raise ValueError(f"policy gradient {self.kind!r} is none of grpo, gspo, cispo, sft")
        if self.normalization not in ("token", "sequence", "fixed"):
            raise ValueError(
                f"normalization {self.normalization!r} is none of token, sequence, fixed"
            )
        if self.kind == "sft" and (self.eps_low, self.eps_high, self.ratio_cap) != (None,) * 3:
            raise ValueError(
                "sft is likelihood of tokens that nothing sampled in the student's own prompt and "
                "has no ratio: leave eps_low, eps_high and ratio_cap None"
            )
        if (self.normalization == "fixed") != (self.fixed_length is not None):
            raise ValueError("fixed_length goes with normalization 'fixed', and only with it")


def token_loss(
    spec: PolicyGradientSpec, logprob_T: Tensor, old_logprob_T: Tensor | None, advantages_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss [T] and d loss / d log p [T] of a token-wise surrogate (`grpo`, `cispo`, `sft`, and
    on-policy `gspo`).

    `old_logprob` None means on-policy: the ratio is 1 exactly, and clipping never acts.
    """
    if spec.kind == "sft":
        return -logprob_T, torch.full_like(logprob_T, -1.0)
    if spec.kind == "cispo":
        weight_T = torch.ones_like(logprob_T)
        if old_logprob_T is not None:
            weight_T = bounded(ratio(logprob_T, old_logprob_T), spec.eps_low, spec.eps_high)
        slope_T = -weight_T * advantages_T
        return slope_T * logprob_T, slope_T
    if old_logprob_T is None:
        return -advantages_T, -advantages_T
    assert spec.kind == "grpo", "off-policy gspo needs whole sequences: sequence_loss"
    return clipped_surrogate(
        ratio(logprob_T, old_logprob_T), advantages_T, spec.eps_low, spec.eps_high
    )


def sequence_loss(
    spec: PolicyGradientSpec,
    logprob_T: Tensor,
    old_logprob_T: Tensor,
    advantages_T: Tensor,
    sequences_T: Tensor,
    weights_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """GSPO: weighted loss [T] and derivative [T] with the ratio s = exp(mean_t log(p/old)) of each
    token's sequence.

    `sequences` numbers the sequences 0..S-1. Every token of a sequence carries the sequence's
    surrogate times its own weight; since s depends on all its tokens alike, the derivative spreads
    evenly over them.
    """
    mean_T = sequence_mean(logprob_T - old_logprob_T, sequences_T)
    loss_T, slope_T = clipped_surrogate(
        ratio(mean_T, torch.zeros_like(mean_T)), advantages_T, spec.eps_low, spec.eps_high
    )
    return loss_T * weights_T, sequence_mean(slope_T * weights_T, sequences_T)


def sequence_mean(values_T: Tensor, sequences_T: Tensor) -> Tensor:
    """Mean of `values` over each token's sequence, per token [T]."""
    lengths_T = sequence_lengths(sequences_T).to(values_T.dtype)
    return sequence_sum(values_T, sequences_T) / lengths_T


def sequence_sum(values_T: Tensor, sequences_T: Tensor) -> Tensor:
    """Sum of `values` over each token's sequence, per token [T]."""
    num_sequences = int(sequences_T.max()) + 1 if sequences_T.numel() else 0
    sums_S = values_T.new_zeros(num_sequences).index_add_(0, sequences_T, values_T)
    return sums_S[sequences_T]


def sequence_lengths(sequences_T: Tensor) -> Tensor:
    """Number of tokens of each token's sequence [T], integers."""
    return torch.bincount(sequences_T)[sequences_T]
