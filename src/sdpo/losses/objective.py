"""The whole objective of one micro-batch, and the only place that divides.

Each component (distill, pg, kl) is a sum over its tokens divided by one count over the *whole*
optimizer batch, all micro-batches and all ranks, taken before the first forward
(`count_denominators`, summed over ranks by the caller). Component sums are therefore parts of the
batch's loss: they add up, and splitting the batch differently changes rounding only. A mean per
micro-batch or per rollout, the commonest bug of existing implementations, cannot be expressed here
except where it is the method (`normalization="sequence"`).

What a token contributes is `contributions.py`; how that becomes a gradient is `fused.py`.

Legend: T rows (trained completion tokens), R rows of a block or rows with a teacher, V vocabulary,
D hidden size, K wrong demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdpo.kernels.dtypes import math_dtype
from sdpo.losses.head.fused import HeadPass, head_pass
from sdpo.losses.head.logits import Side
from sdpo.losses.head.support import OldSupport
from sdpo.losses.head.walk import HeadInputs, RowTerms, TokenOutputs
from sdpo.losses.policy_gradient import PolicyGradientSpec, sequence_lengths
from sdpo.losses.specs import DistillSpec, KlSpec, ObjectiveSpec
from sdpo.losses.terms import contributions, needs_whole_sequences
from sdpo.losses.token_batch import TokenBatch
from sdpo.records import Sample

__all__ = [
    "Denominators",
    "DistillSpec",
    "KlSpec",
    "ObjectiveResult",
    "ObjectiveSpec",
    "OldSupport",
    "PolicyGradientSpec",
    "TokenBatch",
    "count_denominators",
    "objective_loss",
]


@dataclass(frozen=True, slots=True)
class Denominators:
    """Count of each component over the whole optimizer batch, reduced over ranks before the first
    forward.

    Example:
        Denominators(*parallel.sum([counts.distill, counts.pg, counts.kl]))
    """

    distill: float
    pg: float
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
    """Per row, in the order of the batch."""


def count_denominators(samples: Sequence[Sample], spec: ObjectiveSpec) -> Denominators:
    """Counts of this rank's share of the optimizer batch; sum them over ranks before use.

    Distillation counts the trained tokens of samples that are distilled. The policy gradient counts
    those of samples it is fed (flat groups included), or their number (`sequence`), or number x
    length (`fixed`). KL counts every trained token of every sample. With `joint_count` both
    components count the tokens routed to either.
    """
    distill = pg = kl = 0.0
    for sample in samples:
        tokens = sample.num_trained
        is_distilled = sample.is_distilled and spec.distill is not None
        is_rewarded = sample.is_rewarded and spec.pg is not None
        if spec.joint_count:
            is_distilled = is_rewarded = is_distilled or is_rewarded
        distill += tokens * is_distilled
        if is_rewarded and spec.pg is not None and tokens:
            match spec.pg.normalization:
                case "token":
                    pg += tokens
                case "sequence":
                    pg += 1
                case "fixed":
                    assert spec.pg.fixed_length is not None
                    pg += spec.pg.fixed_length
        kl += tokens * (spec.kl is not None)
    return Denominators(distill=distill, pg=pg, kl=kl)


def objective_loss(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | None,
    batch: TokenBatch,
    spec: ObjectiveSpec,
    denominators: Denominators,
    *,
    reference_hidden: Tensor | None = None,
    reference_head: Tensor | None = None,
    trust_hidden: Tensor | None = None,
    top_n: int = 0,
    top_rows: Tensor | None = None,
    chunk_tokens: int | None = None,
) -> ObjectiveResult:
    """Loss of one micro-batch in one pass over the head, divided by the batch's global counts.

    `student_hidden` [T, D] and `student_head` [V, D] may require grad. `teacher_hidden` [R, D']
    belongs to `batch.teacher_rows` (all rows when that is None). `reference_hidden` [T, D''] is the
    initial model in the student's prompt (KL component); `trust_hidden` [R, D''] the initial model
    in the teacher's context (trust region); `reference_head` serves both. The `top_n` likeliest
    tokens are kept where `top_rows` [T]. T = 0 and R = 0 give zero loss with a graph.
    """
    dtype = math_dtype(student_hidden.dtype)
    num_teacher = 0 if teacher_hidden is None else len(teacher_hidden)
    assert not num_teacher or teacher_head is not None, "a teacher without a head"
    assert not num_teacher or (spec.trust is None) == (trust_hidden is None), (
        "trust_hidden goes with a trust-region spec"
    )
    assert (spec.kl is None) == (reference_hidden is None), "reference_hidden goes with spec.kl"
    order_T = _teacher_first(batch, num_teacher)
    if order_T is not None:
        student_hidden = student_hidden[order_T]
        reference_hidden = None if reference_hidden is None else reference_hidden[order_T]
        top_rows = None if top_rows is None else top_rows[order_T.to(top_rows.device)]
    columns = _Columns.prepare(batch, order_T, spec, denominators, dtype)
    assert not bool(columns.batch.distill_weights[num_teacher:].any()), (
        "a row without a teacher has a distillation weight"
    )
    kl_scale = 0.0 if spec.kl is None else spec.kl.coefficient * _inverse(denominators.kl)
    inputs = HeadInputs(
        student=Side(student_hidden, student_head),
        targets=columns.batch.targets,
        teacher=_side(teacher_hidden, teacher_head) if num_teacher else None,
        trust_reference=_side(trust_hidden, reference_head) if num_teacher else None,
        trust=spec.trust if num_teacher else None,
        initial=_side(reference_hidden, reference_head),
        initial_weight=kl_scale,
        temperature=spec.temperature,
        old_support=columns.old_support,
        chunk_tokens=chunk_tokens,
        top_n=top_n,
        top_rows=top_rows,
    )
    result = _run(inputs, columns, spec)
    tokens = result.tokens if order_T is None else result.tokens.scattered(order_T)
    return ObjectiveResult(
        loss=result.loss, distill=result.distill, pg=result.pg, kl=result.kl, tokens=tokens
    )


def _run(inputs: HeadInputs, columns: _Columns, spec: ObjectiveSpec) -> HeadPass:
    """One pass, or two where a token's credit depends on its whole rollout (a chunk may end inside
    one)."""
    measured = spec.distill
    if measured is None and inputs.teacher is not None:
        # Not optimised: the distance is a canary even where only the gap at the sampled token is
        # used.
        measured = DistillSpec()
    if not needs_whole_sequences(spec, columns.batch):

        def weigh(rows: slice, logprob_R: Tensor, teacher_logprob_R: Tensor | None) -> RowTerms:
            return contributions(columns.batch.rows(rows), spec, logprob_R, teacher_logprob_R, None)

        return head_pass(inputs, measured, weigh)
    columns.check_whole_sequences()
    needs_divergence = spec.distill is not None and spec.distill.sequence_estimator > 0
    with torch.no_grad():
        first = head_pass(
            replace(inputs, initial=None, top_n=0),
            measured if needs_divergence else None,
            lambda rows, logprob_R, teacher_logprob_R: RowTerms(),
        ).tokens
    whole = contributions(
        columns.batch, spec, first.student_logprob, first.teacher_logprob, first.divergence
    )

    def weigh_known(rows: slice, logprob_R: Tensor, teacher_logprob_R: Tensor | None) -> RowTerms:
        terms = RowTerms(*(None if term is None else term[rows] for term in whole))
        return terms._replace(distill_weight_R=None) if teacher_logprob_R is None else terms

    return head_pass(inputs, measured, weigh_known)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """A batch ready for the walk: rows in walking order, weights divided, sequences numbered
    0..S-1."""

    batch: TokenBatch
    old_support: OldSupport | None

    @classmethod
    def prepare(
        cls,
        batch: TokenBatch,
        order_T: Tensor | None,
        spec: ObjectiveSpec,
        denominators: Denominators,
        dtype: torch.dtype,
    ) -> _Columns:
        rows = slice(None) if order_T is None else order_T
        ordered = batch.rows(rows)
        sequences_T = torch.unique(ordered.sequence_ids, return_inverse=True)[1]
        pg_weights_T = ordered.pg_weights.to(dtype) * _inverse(denominators.pg)
        if spec.pg is not None and spec.pg.normalization == "sequence":
            pg_weights_T = pg_weights_T / _lengths(ordered, sequences_T)
        old, negative = ordered.old_logprobs, ordered.negative_teacher_logprobs
        support = batch.old_support
        if support is not None and order_T is not None:
            sampler = support.sampler_logprobs
            support = OldSupport(
                ids=support.ids[order_T],
                logprobs=support.logprobs[order_T],
                sampler_logprobs=None if sampler is None else sampler[order_T],
            )
        return cls(
            batch=replace(
                ordered,
                sampler_logprobs=ordered.sampler_logprobs.to(dtype),
                advantages=ordered.advantages.to(dtype),
                distill_weights=ordered.distill_weights.to(dtype) * _inverse(denominators.distill),
                pg_weights=pg_weights_T,
                sequence_ids=sequences_T,
                old_logprobs=None if old is None else old.to(dtype),
                negative_teacher_logprobs=None if negative is None else negative.to(dtype),
            ),
            old_support=support,
        )

    def check_whole_sequences(self) -> None:
        """Sequence-level credit needs whole rollouts, each one run of rows."""
        ids_T = self.batch.sequence_ids
        runs = torch.unique_consecutive(ids_T).numel()
        assert runs == torch.unique(ids_T).numel(), "a rollout's rows are not one run"
        if self.batch.sequence_lengths is not None:
            assert torch.equal(sequence_lengths(ids_T), self.batch.sequence_lengths.to(ids_T)), (
                "a rollout is split over micro-batches; sequence-level credit needs it whole"
            )


def _lengths(batch: TokenBatch, sequences_T: Tensor) -> Tensor:
    """Trained tokens of each row's rollout, as said by the batch or, when it does not say, as
    counted in it."""
    return (
        sequence_lengths(sequences_T) if batch.sequence_lengths is None else batch.sequence_lengths
    )


def _teacher_first(batch: TokenBatch, num_teacher: int) -> Tensor | None:
    """Row order with the `num_teacher` rows that have a teacher first; None when that is the order
    already."""
    count = len(batch.targets)
    if not num_teacher or num_teacher == count:
        rows = batch.teacher_rows
        assert rows is None or len(rows) == num_teacher, "teacher_rows without teacher_hidden"
        return None
    rows = batch.teacher_rows
    assert rows is not None, "teacher_hidden has fewer rows than the batch: give teacher_rows"
    assert len(rows) == num_teacher, "one teacher hidden state per teacher row"
    has_teacher_T = torch.zeros(count, dtype=torch.bool, device=rows.device)
    has_teacher_T[rows] = True
    return torch.cat([rows, (~has_teacher_T).nonzero()[:, 0]])


def _inverse(count: float) -> float:
    """1/count, or 0 for a component that nothing feeds."""
    return 1.0 / count if count else 0.0


def _side(hidden: Tensor | None, head: Tensor | None) -> Side | None:
    if hidden is None:
        return None
    assert head is not None, "hidden states without a head"
    return Side(hidden, head)
