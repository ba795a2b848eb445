"""The whole objective of one micro-batch, and the only place that divides.

Read `reference.py` first: it is the same objective on one page. Each component (distill, pg, kl) is
a sum over its tokens divided by a count over the *whole* optimizer batch, all micro-batches and all
ranks, taken before the first forward (`count_denominators`, summed over ranks by the caller).
Component sums are therefore parts of the batch's loss: they add up, and splitting the batch
differently changes rounding only. A mean per micro-batch or per rollout, the commonest bug of
existing implementations, cannot be expressed here except where it is the method
(`normalization="sequence"`). Distillation and policy gradient share one count (Eq. 3): with a count
each, how much distillation weighs would follow the share of rollouts that have a teacher.

What a token contributes is `terms.py`; how that becomes a gradient is `head/fused.py`.

Legend: T trained completion tokens, R those with a teacher, or some of T; V vocabulary, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import assert_never

import torch
from torch import Tensor

from sdpo.kernels.dtypes import math_dtype
from sdpo.losses.head.chunks import HeadInputs
from sdpo.losses.head.fused import HeadPass, head_pass
from sdpo.losses.head.logits import LmHead, Side
from sdpo.losses.head.outputs import TokenOutputs
from sdpo.losses.policy_gradient import sequence_lengths
from sdpo.losses.specs import DistillSpec, ObjectiveSpec, PolicyGradientSpec
from sdpo.losses.terms import Terms, needs_whole_sequences, terms_of
from sdpo.losses.token_batch import TokenBatch
from sdpo.records import Sample

_CANARY = DistillSpec(
    divergence="jsd",
    beta=0.5,
    support="student",
    top_k=100,
    tail=True,
    granularity="logit",
    importance="token",
    ratio_cap=None,
)
"""The distance that is measured, and not optimised, where a teacher is used for token credit only:
Jensen-Shannon going to 0 means that nothing is left to learn, or a collapse."""


@dataclass(frozen=True, slots=True)
class Denominators:
    """Counts over the whole optimizer batch, reduced over ranks before the first forward.

    Example:
        Denominators(*parallel.sum([counts.routed, counts.kl]))
    """

    routed: float
    """Of what is fed to distillation, policy gradient or both."""
    kl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveResult:
    """`loss` has a graph; the components are detached parts of the batch's loss, add up to it, and
    add up over micro-batches.

    Example:
        result = objective_loss(...); result.loss.backward(); total += result.distill
    """

    loss: Tensor
    distill: Tensor
    pg: Tensor
    kl: Tensor
    tokens: TokenOutputs
    """Per token, in the order of the batch."""


def count_denominators(samples: Sequence[Sample], spec: ObjectiveSpec) -> Denominators:
    """Counts of this rank's share of the optimizer batch; sum them over ranks before use.

    One count serves distillation and policy gradient: the trained tokens of samples that are fed to
    either, or, as the policy gradient is normalised, the number of these samples (`sequence`) or
    number x length (`fixed`). Samples of flat groups that only the policy gradient is fed count
    unless the spec leaves them out. KL counts every trained token of every sample.
    """
    routed = kl = 0.0
    for sample in samples:
        tokens = sample.num_trained
        is_distilled = sample.is_distilled and spec.distill is not None
        is_rewarded = (
            sample.is_rewarded
            and spec.pg is not None
            and (spec.pg.counts_flat_groups or not sample.is_flat)
        )
        if tokens and (is_distilled or is_rewarded):
            routed += _count(spec.pg, tokens)
        kl += tokens * (spec.kl is not None)
    return Denominators(routed=routed, kl=kl)


def _count(pg: PolicyGradientSpec | None, tokens: int) -> int:
    """What a routed rollout of `tokens` trained tokens adds to the denominator."""
    normalization = "token" if pg is None else pg.normalization
    match normalization:
        case "token":
            return tokens
        case "sequence":
            return 1
        case "fixed":
            assert pg is not None
            assert pg.fixed_length is not None
            return pg.fixed_length
        case _:
            assert_never(normalization)


def objective_loss(
    student_hidden: Tensor,
    student_head: Tensor | LmHead,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | LmHead | None,
    batch: TokenBatch,
    spec: ObjectiveSpec,
    denominators: Denominators,
    *,
    reference_hidden: Tensor | None = None,
    reference_head: Tensor | LmHead | None = None,
    trust_hidden: Tensor | None = None,
    top_n: int = 0,
    top_where: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> ObjectiveResult:
    """Loss of one micro-batch in one pass over the head, divided by the batch's global counts.

    `student_hidden` [T, D] and `student_head` [V, D] may require grad. `teacher_hidden` [R, D']
    belongs to the first R = `batch.num_taught` tokens. `reference_hidden` [T, D''] is the initial
    model in the student's prompt (KL component); `trust_hidden` [R, D''] the initial model in the
    prompt that `spec.trust_prompt` names (mixed targets); `reference_head` serves both. The `top_n`
    likeliest tokens are kept where `top_where` [T]. T = 0 and R = 0 give zero loss with a graph.
    """
    taught = batch.num_taught
    _check_teacher(batch, teacher_hidden)
    assert not taught or (spec.trust is None) == (trust_hidden is None), (
        "trust_hidden goes with a trust-region spec"
    )
    assert (spec.kl is None) == (reference_hidden is None), "reference_hidden goes with spec.kl"
    assert batch.pg_weights.dtype == math_dtype(student_hidden.dtype), (
        "the batch's numbers are in the math dtype of the hidden states"
    )
    batch = _divided(batch, spec, denominators)
    inputs = HeadInputs(
        student=Side(student_hidden, LmHead.of(student_head)),
        targets=batch.targets,
        teacher=Side.of(teacher_hidden, teacher_head) if taught else None,
        trust_reference=Side.of(trust_hidden, reference_head) if taught else None,
        trust=spec.trust if taught else None,
        initial=Side.of(reference_hidden, reference_head),
        initial_weight=0.0 if spec.kl is None else spec.kl.coefficient * _inverse(denominators.kl),
        temperature=spec.temperature,
        vocabulary=spec.vocabulary,
        old_support=batch.old_support,
        chunk_tokens=chunk_tokens,
        top_n=top_n,
        top_where=top_where,
    )
    result = _run(inputs, batch, spec)
    return ObjectiveResult(
        loss=result.loss,
        distill=result.distill,
        pg=result.pg,
        kl=result.kl,
        tokens=result.tokens,
    )


def _check_teacher(batch: TokenBatch, teacher_hidden: Tensor | None) -> None:
    """Tokens with a teacher come first, and nothing is distilled into the others."""
    assert batch.num_taught == (0 if teacher_hidden is None else len(teacher_hidden)), (
        "one teacher hidden state for each of the batch's first num_taught tokens"
    )
    assert not bool(batch.distill_weights[batch.num_taught :].any()), (
        "a token without a teacher has a distillation weight"
    )


def _divided(batch: TokenBatch, spec: ObjectiveSpec, denominators: Denominators) -> TokenBatch:
    """`batch` with its weights divided by the global count (and, for a mean per rollout, by the
    rollout's length)."""
    distill_weights_T, pg_weights_T = (
        weights_T * _inverse(denominators.routed)
        for weights_T in (batch.distill_weights, batch.pg_weights)
    )
    if spec.pg is not None and spec.pg.normalization == "sequence":
        distill_weights_T = distill_weights_T / batch.sequence_lengths
        pg_weights_T = pg_weights_T / batch.sequence_lengths
    return replace(batch, distill_weights=distill_weights_T, pg_weights=pg_weights_T)


def _run(inputs: HeadInputs, batch: TokenBatch, spec: ObjectiveSpec) -> HeadPass:
    """One pass, or two where a token's credit depends on its whole rollout (a chunk may end inside
    one)."""
    measured = spec.distill
    if measured is None and inputs.teacher is not None:
        measured = _CANARY
    if not needs_whole_sequences(spec, batch):

        def terms(chosen: slice, logprob_R: Tensor, teacher_logprob_R: Tensor | None) -> Terms:
            return terms_of(batch.part(chosen), spec, logprob_R, teacher_logprob_R, None)

        return head_pass(inputs, measured, terms)
    _check_whole_sequences(batch)
    needs_divergence = spec.distill is not None and spec.distill.sequence_estimator > 0
    with torch.no_grad():
        first = head_pass(
            replace(inputs, initial=None, top_n=0),
            measured if needs_divergence else None,
            lambda chosen, logprob_R, teacher_logprob_R: Terms(),
        ).tokens
    whole = terms_of(batch, spec, first.student_logprob, first.teacher_logprob, first.divergence)

    def known_terms(chosen: slice, logprob_R: Tensor, teacher_logprob_R: Tensor | None) -> Terms:
        terms = whole.part(chosen)
        return terms._replace(distill_weight_R=None) if teacher_logprob_R is None else terms

    return head_pass(inputs, measured, known_terms)


def _check_whole_sequences(batch: TokenBatch) -> None:
    """Sequence-level credit needs whole rollouts, the tokens of each contiguous."""
    ids_T = batch.sequence_ids
    assert torch.unique_consecutive(ids_T).numel() == torch.unique(ids_T).numel(), (
        "the tokens of a rollout are not contiguous"
    )
    assert torch.equal(sequence_lengths(ids_T), batch.sequence_lengths.to(ids_T)), (
        "a rollout is split over micro-batches; sequence-level credit needs it whole"
    )


def _inverse(count: float) -> float:
    """1/count, or 0 for a component that nothing feeds."""
    return 1.0 / count if count else 0.0
