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

import torch
from torch import Tensor

from sdpo.losses.importance import bounded, clipped_surrogate, ratio
from sdpo.losses.specs import PolicyGradientSpec


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
