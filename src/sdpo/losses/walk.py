"""One walk over the rows of a micro-batch: what `fused.py` promises, chunk by chunk and block by
block.

A chunk is the unit of the matrix products, a block (some rows of a chunk) the unit of everything
elementwise. A block's logits become log-probabilities, its outputs are written, and the logit
gradient overwrites them; the formula is in `fused.py`.

Legend: T rows, C rows of a chunk, R rows of a block, D hidden size, V vocabulary, K support, N
alternatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.losses.buckets import Block, LogitTerms, OldSupport, distill_block
from sdpo.losses.heads import (
    Side,
    accumulate_product,
    block_rows,
    chunk_rows,
    log_softmax_,
    logits_into,
    math_dtype,
    mixed_logits_into,
    spans,
)
from sdpo.losses.specs import DistillSpec


class RowTerms(NamedTuple):
    """What a block of rows contributes, already divided by global counts; None: nothing."""

    distill_weight_R: Tensor | None = None
    """Factor of the divergence."""
    distill_loss_R: Tensor | None = None
    """Distillation loss that depends on log p(y) only (credit per token or sequence); its
    derivative is in `slope`."""
    pg_loss_R: Tensor | None = None
    slope_R: Tensor | None = None
    """Derivative of all losses that depend on log p(y) only, with respect to log p(y)."""


Weigh = Callable[[slice, Tensor, Tensor | None], RowTerms]
"""(rows, log p(y) [R], log q(y) [R] or None for rows without a teacher) -> the terms of these
rows."""


class Alternatives(NamedTuple):
    """The most likely tokens of one side at each position, with both sides' log-probabilities; [T,
    N] each."""

    ids: Tensor
    student_logprobs: Tensor
    teacher_logprobs: Tensor
    """NaN for rows without a teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInputs:
    """One micro-batch of rows and the models it is compared with. Rows that have a teacher come
    first.

    Example:
        HeadInputs(student=Side(hidden_TD, head_VD), targets=targets_T,
                   teacher=Side(teacher_hidden_TD, head_VD))
    """

    student: Side
    targets: Tensor
    """[T] sampled token ids."""
    teacher: Side | None = None
    """Its hidden states may be fewer than T: they belong to the first rows."""
    trust_reference: Side | None = None
    """Initial model in the teacher's context, rows as in `teacher`; with `trust` only."""
    trust: float | None = None
    initial: Side | None = None
    """Initial model in the student's prompt, for the KL component."""
    initial_weight: float = 0.0
    """Factor of the KL to the initial model, already divided."""
    temperature: float = 1.0
    old_support: OldSupport | None = None
    chunk_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutputs:
    """What the pass knows about every token, detached [T], in the math dtype; NaN where there is no
    teacher (or initial model).

    Example:
        outputs.divergence[outputs.has_teacher].mean()
    """

    divergence: Tensor
    """Undivided and unweighted."""
    student_logprob: Tensor
    teacher_logprob: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    initial_kl: Tensor
    """KL(student | initial model); NaN without the KL component."""
    student_top: Alternatives | None = None
    teacher_top: Alternatives | None = None

    @property
    def has_teacher(self) -> Tensor:
        """[T] bool."""
        return ~self.teacher_logprob.isnan()

    def scattered(self, order_T: Tensor) -> TokenOutputs:
        """The same rows where row i becomes row `order[i]`."""

        def put(column: Tensor) -> Tensor:
            return torch.empty_like(column).index_copy_(0, order_T, column)

        def put_top(top: Alternatives | None) -> Alternatives | None:
            return None if top is None else Alternatives(*map(put, top))

        return TokenOutputs(
            divergence=put(self.divergence),
            student_logprob=put(self.student_logprob),
            teacher_logprob=put(self.teacher_logprob),
            student_entropy=put(self.student_entropy),
            teacher_entropy=put(self.teacher_entropy),
            initial_kl=put(self.initial_kl),
            student_top=put_top(self.student_top),
            teacher_top=put_top(self.teacher_top),
        )


class Walk:
    """One walk over the rows of a micro-batch: fills outputs and gradients."""

    def __init__(
        self,
        inputs: HeadInputs,
        student: Side,
        distill: DistillSpec | None,
        weigh: Weigh,
        needs: tuple[bool, bool],
        top_n: int,
    ) -> None:
        self._inputs = inputs
        self._student = student
        self._distill = distill
        self._weigh = weigh
        self._needs = needs
        self._top_n = top_n
        self._count, self._vocabulary = len(inputs.targets), len(student.head_VD)
        self._dtype = math_dtype(student.hidden_TD.dtype)
        assert len(student.hidden_TD) == self._count, "one hidden state per target"
        self.tokens = self._empty_outputs()
        self.component_sums = self._full((3,), 0.0)
        """Distillation, policy gradient and KL, each a sum of divided terms."""
        needs_hidden, needs_head = needs
        self.grad_hidden_TD = torch.empty_like(student.hidden_TD) if needs_hidden else None
        self.grad_head_VD = self._empty(student.head_VD.shape) if needs_head else None
        self._is_head_written = False

    def run(self) -> None:
        """Walk all rows, those with a teacher first: a chunk is all of one kind."""
        inputs = self._inputs
        with_teacher = 0 if inputs.teacher is None else len(inputs.teacher.hidden_TD)
        assert with_teacher <= self._count, "more teacher rows than rows"
        device = inputs.targets.device
        size = chunk_rows(self._count, self._vocabulary, device, inputs.chunk_tokens)
        size = min(size, self._count)
        sides = 1 + (with_teacher > 0) + (inputs.initial is not None)
        self._logits = [self._empty((size, self._vocabulary)) for _ in range(sides)]
        rows = min(block_rows(self._vocabulary, device), size)
        self._scratch = [self._empty((rows, self._vocabulary)) for _ in range(3)]
        for start, stop in ((0, with_teacher), (with_teacher, self._count)):
            for chunk in spans(start, stop, max(size, 1)):
                self._chunk(chunk, has_teacher=start < with_teacher)
        if self.grad_head_VD is not None:
            if not self._is_head_written:
                self.grad_head_VD.zero_()
            self.grad_head_VD = self.grad_head_VD.to(self._student.head_VD.dtype)
        del self._logits, self._scratch

    def _chunk(self, chunk: slice, *, has_teacher: bool) -> None:
        """Logits of every model, the blocks' softmax and gradient in place, then d/d(hidden) and
        d/d(head)."""
        inputs, count = self._inputs, chunk.stop - chunk.start
        free = iter(self._logits)
        scale = 1.0 / inputs.temperature
        student_CV = next(free)[:count]
        logits_into(student_CV, self._student, chunk, scale)
        teacher_CV = initial_CV = None
        if has_teacher:
            assert inputs.teacher is not None
            teacher_CV = next(free)[:count]
            mixed_logits_into(
                teacher_CV, inputs.teacher, inputs.trust_reference, inputs.trust, chunk, scale
            )
        if inputs.initial is not None:
            initial_CV = next(free)[:count]
            logits_into(initial_CV, inputs.initial, chunk, scale)
        for rows in spans(chunk.start, chunk.stop, len(self._scratch[0])):
            local = slice(rows.start - chunk.start, rows.stop - chunk.start)
            self._block(
                rows,
                student_CV[local],
                None if teacher_CV is None else teacher_CV[local],
                None if initial_CV is None else initial_CV[local],
            )
        self._collect(chunk, student_CV)

    def _block(
        self, rows: slice, log_p_RV: Tensor, log_q_RV: Tensor | None, log_r_RV: Tensor | None
    ) -> None:
        """Outputs of `rows`, and their logit gradient written over `log_p`; all arguments arrive as
        logits."""
        out, targets_R1 = self.tokens, self._inputs.targets[rows, None]
        p_RV, q_RV, scratch_RV = (buffer[: len(log_p_RV)] for buffer in self._scratch)
        _softmax(log_p_RV, p_RV, scratch_RV, out.student_entropy[rows])
        student_logprob_R = log_p_RV.gather(1, targets_R1)[:, 0]
        out.student_logprob[rows] = student_logprob_R
        teacher_logprob_R = None
        if log_q_RV is not None:
            _softmax(log_q_RV, q_RV, scratch_RV, out.teacher_entropy[rows])
            teacher_logprob_R = log_q_RV.gather(1, targets_R1)[:, 0]
            out.teacher_logprob[rows] = teacher_logprob_R
        self._alternatives(rows, log_p_RV, log_q_RV)
        if log_r_RV is not None:
            log_ratio_RV = torch.sub(log_p_RV, log_softmax_(log_r_RV), out=log_r_RV)
            out.initial_kl[rows] = log_ratio_RV.mul_(p_RV).sum(-1)
        terms = self._weigh(rows, student_logprob_R, teacher_logprob_R)
        pull = None
        if log_q_RV is not None and self._distill is not None:
            old = self._inputs.old_support
            value_R, pull = distill_block(
                self._distill,
                Block(log_p=log_p_RV, p=p_RV, log_q=log_q_RV, q=q_RV, scratch=scratch_RV),
                None if old is None else old.rows(rows),
            )
            out.divergence[rows] = value_R
        self._add_losses(rows, terms)
        if any(self._needs):
            self._gradient(rows, log_p_RV, p_RV, terms, pull, log_r_RV)

    def _add_losses(self, rows: slice, terms: RowTerms) -> None:
        sums = self.component_sums
        if terms.distill_weight_R is not None:
            sums[0] += (terms.distill_weight_R * self.tokens.divergence[rows]).sum()
        if terms.distill_loss_R is not None:
            sums[0] += terms.distill_loss_R.sum()
        if terms.pg_loss_R is not None:
            sums[1] += terms.pg_loss_R.sum()
        if self._inputs.initial is not None:
            sums[2] += self._inputs.initial_weight * self.tokens.initial_kl[rows].sum()

    def _gradient(
        self,
        rows: slice,
        out_RV: Tensor,
        p_RV: Tensor,
        terms: RowTerms,
        pull: LogitTerms | None,
        kl_weighted_RV: Tensor | None,
    ) -> None:
        """Write the logit gradient of all components to `out` (module docstring's formula)."""
        scale = 1.0 / self._inputs.temperature
        rest_R = torch.zeros_like(self.tokens.student_logprob[rows])
        if terms.slope_R is not None:
            rest_R -= scale * terms.slope_R
        kl_scale = scale * self._inputs.initial_weight
        if kl_weighted_RV is not None:
            rest_R -= kl_scale * self.tokens.initial_kl[rows]
        weight_R = terms.distill_weight_R
        if pull is None or weight_R is None:
            self._restore_support(p_RV, pull)
            torch.mul(p_RV, rest_R[:, None], out=out_RV)
        else:
            weight_R1 = scale * weight_R[:, None]
            torch.mul(p_RV, weight_R1 * pull.base[:, None] + rest_R[:, None], out=out_RV)
            if pull.ids is None:
                assert pull.weighted is not None
                out_RV.addcmul_(pull.weighted, weight_R1)
            else:
                assert pull.support is not None
                assert pull.p_support is not None
                support_RK = weight_R1 * pull.support + rest_R[:, None] * pull.p_support
                out_RV.scatter_(1, pull.ids, support_RK)
        if kl_weighted_RV is not None:
            out_RV.add_(kl_weighted_RV, alpha=kl_scale)
        if terms.slope_R is not None:
            out_RV.scatter_add_(1, self._inputs.targets[rows, None], scale * terms.slope_R[:, None])

    @staticmethod
    def _restore_support(p_RV: Tensor, pull: LogitTerms | None) -> None:
        """Undo the zeroing that measured the tail, for rows whose divergence is only measured."""
        if pull is not None and pull.ids is not None:
            assert pull.p_support is not None
            p_RV.scatter_(1, pull.ids, pull.p_support)

    def _alternatives(self, rows: slice, log_p_RV: Tensor, log_q_RV: Tensor | None) -> None:
        out = self.tokens
        if out.student_top is None or out.teacher_top is None:
            return
        for own_RV, top in ((log_p_RV, out.student_top), (log_q_RV, out.teacher_top)):
            if own_RV is None:
                continue
            ids_RN = own_RV.topk(top.ids.shape[1]).indices
            top.ids[rows] = ids_RN
            top.student_logprobs[rows] = log_p_RV.gather(1, ids_RN)
            if log_q_RV is not None:
                top.teacher_logprobs[rows] = log_q_RV.gather(1, ids_RN)

    def _collect(self, chunk: slice, gradient_CV: Tensor) -> None:
        """Turn a chunk's logit gradient into d/d(hidden) and add to d/d(head)."""
        if not any(self._needs):
            return
        hidden_CD, head_VD = self._student.hidden_TD[chunk], self._student.head_VD
        narrow_CV = gradient_CV.to(hidden_CD.dtype)
        if self.grad_hidden_TD is not None:
            torch.mm(narrow_CV, head_VD.to(hidden_CD.dtype), out=self.grad_hidden_TD[chunk])
        if self.grad_head_VD is None:
            return
        accumulate_product(self.grad_head_VD, narrow_CV.t(), hidden_CD, add=self._is_head_written)
        self._is_head_written = True

    def _empty_outputs(self) -> TokenOutputs:
        def column() -> Tensor:
            return self._full((self._count,), torch.nan)

        def alternatives() -> Alternatives:
            shape = (self._count, min(self._top_n, self._vocabulary))
            ids = torch.zeros(shape, dtype=torch.long, device=self._inputs.targets.device)
            return Alternatives(ids, self._full(shape, torch.nan), self._full(shape, torch.nan))

        return TokenOutputs(
            divergence=column(),
            student_logprob=column(),
            teacher_logprob=column(),
            student_entropy=column(),
            teacher_entropy=column(),
            initial_kl=column(),
            student_top=alternatives() if self._top_n else None,
            teacher_top=alternatives() if self._top_n else None,
        )

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return self._student.hidden_TD.new_empty(shape, dtype=self._dtype)

    def _full(self, shape: tuple[int, ...], value: float) -> Tensor:
        return self._student.hidden_TD.new_full(shape, value, dtype=self._dtype)


def _softmax(log_p_RV: Tensor, p_RV: Tensor, scratch_RV: Tensor, entropy_R: Tensor) -> None:
    """Logits become log-probabilities in place; `p` and the entropy are filled in."""
    torch.exp(log_softmax_(log_p_RV), out=p_RV)
    torch.sum(torch.mul(p_RV, log_p_RV, out=scratch_RV), -1, out=entropy_R).neg_()
