"""What each token contributes to the objective: factors, and derivatives with respect to log p(y).

The fused head (`head/fused.py`) turns these into gradients. Credit is always a constant: nothing is
differentiated through advantages, gaps, importance weights or the teacher. Weights arrive divided
by global counts (`objective.py`).

Legend: R tokens: some of a micro-batch, or all of them where credit depends on whole rollouts.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from sdpo.losses.advantages import rlcsd_advantages, rlsd_advantages
from sdpo.losses.importance import truncated_ratio
from sdpo.losses.policy_gradient import sequence_loss, sequence_mean, sequence_sum, token_loss
from sdpo.losses.sign_gate import sign_gate_factors
from sdpo.losses.specs import DistillSpec, ObjectiveSpec, RlcsdCredit, RlsdCredit
from sdpo.losses.token_batch import TokenBatch


class Terms(NamedTuple):
    """What some tokens contribute, already divided by global counts; None: nothing."""

    distill_weight_R: Tensor | None = None
    """Factor of the divergence."""
    distill_loss_R: Tensor | None = None
    """Distillation loss that depends on log p(y) only (credit per token or sequence); its
    derivative is in `slope`."""
    pg_loss_R: Tensor | None = None
    slope_R: Tensor | None = None
    """Derivative of all losses that depend on log p(y) only, with respect to log p(y)."""

    def part(self, chosen: slice) -> Terms:
        """The same of some tokens."""
        return Terms(*(None if term is None else term[chosen] for term in self))


def needs_whole_sequences(spec: ObjectiveSpec, batch: TokenBatch) -> bool:
    """Whether some token's terms depend on the other tokens of its rollout."""
    if spec.distill is not None and (
        spec.distill.granularity == "sequence"
        or spec.distill.sequence_estimator > 0
        or (spec.distill.sign_gate is not None and spec.distill.sign_gate.per == "rollout")
    ):
        return True
    # On-policy and without importance weights, GSPO's derivative is -A at every token of a rollout.
    return (
        spec.pg is not None
        and spec.pg.kind == "gspo"
        and (batch.old_logprobs is not None or spec.pg.ratio_cap is not None)
    )


def terms_of(
    batch: TokenBatch,
    spec: ObjectiveSpec,
    logprob_R: Tensor,
    teacher_logprob_R: Tensor | None,
    divergence_R: Tensor | None,
) -> Terms:
    """What the tokens of `batch` contribute; its weights are already divided. `divergence` is given
    where whole sequences are."""
    distill = Terms()
    if spec.distill is not None and teacher_logprob_R is not None:
        distill = _distill_terms(batch, spec.distill, logprob_R, teacher_logprob_R, divergence_R)
    if spec.pg is None:
        return distill
    loss_R, slope_R = _policy_gradient_terms(batch, spec, logprob_R, teacher_logprob_R)
    if distill.slope_R is not None:
        slope_R = slope_R + distill.slope_R
    return distill._replace(pg_loss_R=loss_R, slope_R=slope_R)


def _distill_terms(
    batch: TokenBatch,
    spec: DistillSpec,
    logprob_R: Tensor,
    teacher_logprob_R: Tensor,
    divergence_R: Tensor | None,
) -> Terms:
    """Distillation: per logit a weight, per token or sequence a loss of log p(y) with the gap as
    its advantage (Fig. 10)."""
    weight_R = batch.distill_weights
    if spec.importance == "token":
        cap_R = truncated_ratio(logprob_R, batch.sampler_logprobs, spec.ratio_cap)
        weight_R = weight_R if cap_R is None else weight_R * cap_R
    if spec.sign_gate is not None:
        assert batch.verdicts is not None, "a sign gate reads verdicts"
        gap_R = (teacher_logprob_R - logprob_R).nan_to_num(0.0)
        weight_R = weight_R * sign_gate_factors(
            gap_R, batch.verdicts, batch.sequence_ids, spec.sign_gate
        )
    weight = weight_R if spec.granularity == "logit" else None
    loss_R = slope_R = None
    if spec.granularity != "logit":
        gap_R = (teacher_logprob_R - logprob_R).nan_to_num(0.0)
        if spec.advantage_clip is not None:
            gap_R = gap_R.clamp(-spec.advantage_clip, spec.advantage_clip)
        if spec.granularity == "sequence":
            gap_R = sequence_mean(gap_R, batch.sequence_ids)
        loss_R = slope_R = -gap_R * weight_R
    if spec.sequence_estimator > 0:
        assert divergence_R is not None
        after_R = _sum_after(divergence_R.nan_to_num(0.0) * weight_R, batch.sequence_ids)
        estimate_R = spec.sequence_estimator * after_R
        loss_R = estimate_R * logprob_R + (0.0 if loss_R is None else loss_R)
        slope_R = estimate_R + (0.0 if slope_R is None else slope_R)
    return Terms(distill_weight_R=weight, distill_loss_R=loss_R, slope_R=slope_R)


def _sum_after(values_T: Tensor, sequences_T: Tensor) -> Tensor:
    """Sum of `values` over the later tokens of the same sequence [T]: Eq. 8's sum over t > s."""
    # One running sum over all sequences, less what it is at the end of each: in float64, because
    # the difference of two long sums would cost a short sequence its digits.
    running_T = values_T.to(torch.float64).cumsum(0)
    is_last_T = torch.ones_like(sequences_T, dtype=torch.bool)
    is_last_T[:-1] = sequences_T[1:] != sequences_T[:-1]
    at_end_T = sequence_sum(running_T * is_last_T, sequences_T)
    return (at_end_T - running_T).to(values_T.dtype)


def _policy_gradient_terms(
    batch: TokenBatch, spec: ObjectiveSpec, logprob_R: Tensor, teacher_logprob_R: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Loss and derivative of the reward component with token credit and truncated importance
    weights."""
    pg = spec.pg
    assert pg is not None
    advantages_R = batch.advantages
    if teacher_logprob_R is not None:
        match spec.credit:
            case None:
                pass
            case RlsdCredit():
                gap_R = teacher_logprob_R - logprob_R
                advantages_R = rlsd_advantages(advantages_R, gap_R, spec.credit)
            case RlcsdCredit():
                negatives_RN = batch.negative_teacher_logprobs
                if negatives_RN is not None:
                    advantages_R = rlcsd_advantages(
                        advantages_R, teacher_logprob_R, negatives_RN, spec.credit
                    )
            case _:
                assert_never(spec.credit)
    weight_R = batch.pg_weights
    old_R = logprob_R if batch.old_logprobs is None else batch.old_logprobs
    cap_R = truncated_ratio(old_R, batch.sampler_logprobs, pg.ratio_cap)
    weight_R = weight_R if cap_R is None else weight_R * cap_R
    if pg.kind == "gspo" and needs_whole_sequences(spec, batch):
        return sequence_loss(pg, logprob_R, old_R, advantages_R, batch.sequence_ids, weight_R)
    loss_R, slope_R = token_loss(pg, logprob_R, batch.old_logprobs, advantages_R)
    return loss_R * weight_R, slope_R * weight_R
