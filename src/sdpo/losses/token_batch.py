"""One micro-batch as columns of per-token numbers; the objective's only view of rollouts.

`training/fill_batch.py` makes it, once and ready to use: tokens with a teacher first, sequences
numbered, all numbers in the type that losses are summed in. Nothing here computes.

Legend: T trained completion tokens, K tokens of a support, N wrong demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OldSupport:
    """The most likely tokens of the old policy and what it thought of them: what Eq. 13 remembers.

    Example:
        OldSupport(ids=ids_TK, logprobs=logprobs_TK)
    """

    ids: Tensor
    """[T, K] token ids."""
    logprobs: Tensor
    """[T, K] log-probs under the old policy."""

    def part(self, chosen: slice) -> OldSupport:
        """The same of some tokens."""
        return OldSupport(ids=self.ids[chosen], logprobs=self.logprobs[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """One micro-batch: the trained tokens (loss_mask True) of its samples, sample after sample, in
    completion order. Samples that have a teacher come first.

    Example:
        TokenBatch(num_taught=0, targets=ids_T, sampler_logprobs=logprobs_T, advantages=zeros_T,
                   distill_weights=zeros_T, pg_weights=ones_T, sequence_ids=zeros_T,
                   sequence_lengths=lengths_T)
    """

    num_taught: int
    """How many tokens, counted from the first, have a teacher: one each of `teacher_hidden`."""
    targets: Tensor
    """[T] sampled token ids."""
    sampler_logprobs: Tensor
    """[T] as recorded while sampling; NaN where it is not known what sampled."""
    advantages: Tensor
    """[T] the rollout's group advantage at each of its tokens."""
    distill_weights: Tensor
    """[T] routing x weighting, undivided; 0 where distillation is not fed."""
    pg_weights: Tensor
    """[T] the same for the policy gradient."""
    sequence_ids: Tensor
    """[T] the rollout each token belongs to, numbered from 0; tokens of one rollout are
    contiguous."""
    sequence_lengths: Tensor
    """[T] trained tokens of each token's whole rollout, also where a micro-batch holds a part of
    it."""
    verdicts: Tensor | None = None
    """[T] +1 at the tokens of solved rollouts, -1 at those of failed ones; for a sign gate."""
    old_logprobs: Tensor | None = None
    """[T] under the weights at the start of the step, or anything finite where no policy gradient
    reads it; None on-policy (ratio 1 exactly, no extra pass)."""
    negative_teacher_logprobs: Tensor | None = None
    """[T, N] log-probs of the targets under wrong demonstrations, NaN where there is none
    (RLCSD)."""
    old_support: OldSupport | None = None
    """The old policy's support, of the first `num_taught` tokens at least; for
    `importance="logit"`."""

    def part(self, chosen: slice) -> TokenBatch:
        """The columns of some tokens. `num_taught` counts them from the first of these."""
        start, stop, _ = chosen.indices(len(self.targets))

        def pick(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[chosen]

        return TokenBatch(
            num_taught=max(0, min(self.num_taught, stop) - start),
            targets=self.targets[chosen],
            sampler_logprobs=self.sampler_logprobs[chosen],
            advantages=self.advantages[chosen],
            distill_weights=self.distill_weights[chosen],
            pg_weights=self.pg_weights[chosen],
            sequence_ids=self.sequence_ids[chosen],
            sequence_lengths=self.sequence_lengths[chosen],
            verdicts=pick(self.verdicts),
            old_logprobs=pick(self.old_logprobs),
            negative_teacher_logprobs=pick(self.negative_teacher_logprobs),
            old_support=None if self.old_support is None else self.old_support.part(chosen),
        )
