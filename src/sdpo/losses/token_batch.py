"""One micro-batch as columns of per-token numbers; the objective's only view of rollouts.

Legend: T rows (trained completion tokens), R rows with a teacher, K wrong demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sdpo.losses.head.support import OldSupport


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """One micro-batch: the trained tokens (loss_mask True) of its samples, sample after sample, in
    completion order.

    Example:
        TokenBatch(targets=ids_T, sampler_logprobs=logprobs_T, advantages=zeros_T,
                   distill_weights=ones_T, pg_weights=zeros_T, sequence_ids=ids_T)
    """

    targets: Tensor
    """[T] sampled token ids."""
    sampler_logprobs: Tensor
    """[T] as recorded while sampling."""
    advantages: Tensor
    """[T] the rollout's group advantage at each of its tokens."""
    distill_weights: Tensor
    """[T] routing x weighting, undivided; 0 where distillation is not fed."""
    pg_weights: Tensor
    """[T] the same for the policy gradient."""
    sequence_ids: Tensor
    """[T] any integer per rollout; one run of rows each."""
    old_logprobs: Tensor | None = None
    """[T] under the weights at the start of the step; None on-policy (ratio 1 exactly, no extra
    pass)."""
    teacher_rows: Tensor | None = None
    """[R] ascending rows that have a teacher, in the order of `teacher_hidden`; None: all of them
    (if there is a teacher)."""
    negative_teacher_logprobs: Tensor | None = None
    """[T, K] log-probs of the targets under wrong demonstrations, NaN where there is none
    (RLCSD)."""
    old_support: OldSupport | None = None
    """The old policy's support of all T rows, for `importance="logit"`."""
    sequence_lengths: Tensor | None = None
    """[T] trained tokens of each row's whole rollout; when given, a rollout split over
    micro-batches is noticed."""

    def rows(self, rows: slice | Tensor) -> TokenBatch:
        """These rows of every per-token column; `teacher_rows` and `old_support` do not travel."""

        def pick(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        return TokenBatch(
            targets=self.targets[rows],
            sampler_logprobs=self.sampler_logprobs[rows],
            advantages=self.advantages[rows],
            distill_weights=self.distill_weights[rows],
            pg_weights=self.pg_weights[rows],
            sequence_ids=self.sequence_ids[rows],
            old_logprobs=pick(self.old_logprobs),
            negative_teacher_logprobs=pick(self.negative_teacher_logprobs),
            sequence_lengths=pick(self.sequence_lengths),
        )
