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

from sdpo.kernels.dtypes import math_dtype
from sdpo.losses.head.alternatives import Alternatives, Scores, fill_alternatives
from sdpo.losses.head.elementwise import (
    Factors,
    Finished,
    compiled_rows,
    finish_rows,
    log_softmax_,
    softmax_rows,
)
from sdpo.losses.head.logits import (
    Logits,
    Side,
    accumulate_product,
    are_narrow,
    block_rows,
    chunk_rows,
    spans,
)
from sdpo.losses.head.support import OldSupport
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
    top_n: int = 0
    """Most likely tokens of both sides to keep per row."""
    top_rows: Tensor | None = None
    """[T] bool, on the CPU: rows that keep them; None: all. It costs a pass over [V] per row."""


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
    ) -> None:
        self._inputs = inputs
        self._student = student
        self._distill = distill
        self._weigh = weigh
        self._needs = needs
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
        self._initial_weight = self._full((), inputs.initial_weight)
        self._compiled = compiled_rows(
            distill, any(needs), inputs.targets.device, self._count * self._vocabulary
        )

    def run(self) -> None:
        """Walk all rows, those with a teacher first: a chunk is all of one kind."""
        inputs = self._inputs
        with_teacher = 0 if inputs.teacher is None else len(inputs.teacher.hidden_TD)
        assert with_teacher <= self._count, "more teacher rows than rows"
        device = inputs.targets.device
        sides = (self._student, inputs.teacher, inputs.initial)
        is_narrow = inputs.trust is None and are_narrow(sides)
        size = chunk_rows(
            self._count, self._vocabulary, device, inputs.chunk_tokens, is_narrow=is_narrow
        )
        self._block_size = min(block_rows(self._vocabulary, device), size)
        student, teacher, initial = (self._logits(side, size, is_narrow) for side in sides)
        assert student is not None
        num_scratch = 3 if self._compiled is None else 0
        shape = (self._block_size, self._vocabulary)
        self._scratch = [self._empty(shape) for _ in range(num_scratch)]
        for start, stop in ((0, with_teacher), (with_teacher, self._count)):
            for chunk in spans(start, stop, size):
                self._chunk(chunk, student, teacher if start < with_teacher else None, initial)
        if self.grad_head_VD is not None:
            if not self._is_head_written:
                self.grad_head_VD.zero_()
            self.grad_head_VD = self.grad_head_VD.to(self._student.head_VD.dtype)
        del self._scratch

    def _logits(self, side: Side | None, size: int, is_narrow: bool) -> Logits | None:
        """Room for the logits of a model that is there."""
        inputs = self._inputs
        if side is None:
            return None
        is_mixed = side is inputs.teacher
        return Logits(
            side,
            size,
            self._block_size,
            temperature=inputs.temperature,
            is_narrow=is_narrow,
            reference=inputs.trust_reference if is_mixed else None,
            trust=inputs.trust if is_mixed else None,
        )

    def _chunk(
        self, chunk: slice, student: Logits, teacher: Logits | None, initial: Logits | None
    ) -> None:
        """Logits of every model, the blocks' softmax and gradient in place, then d/d(hidden) and
        d/d(head)."""
        for logits in (student, teacher, initial):
            if logits is not None:
                logits.fill(chunk)
        for rows in spans(chunk.start, chunk.stop, self._block_size):
            local = slice(rows.start - chunk.start, rows.stop - chunk.start)
            student_RV = student.block(local)
            self._block(
                rows,
                student_RV,
                None if teacher is None else teacher.block(local),
                None if initial is None else initial.block(local),
            )
            if any(self._needs):
                student.put(local, student_RV)
        if any(self._needs):
            self._collect(chunk, student.chunk(chunk.stop - chunk.start))

    def _block(
        self, rows: slice, student_RV: Tensor, teacher_RV: Tensor | None, initial_RV: Tensor | None
    ) -> None:
        """Outputs of `rows`, and their logit gradient written over `student`; all arguments are
        logits."""
        run = self._block_eager if self._compiled is None else self._block_compiled
        run(rows, student_RV, teacher_RV, initial_RV)

    def _block_eager(
        self, rows: slice, log_p_RV: Tensor, log_q_RV: Tensor | None, log_r_RV: Tensor | None
    ) -> None:
        out, targets_R1 = self.tokens, self._inputs.targets[rows, None]
        p_RV, q_RV, scratch_RV = (buffer[: len(log_p_RV)] for buffer in self._scratch)
        softmax_rows(log_p_RV, p_RV, scratch_RV, out.student_entropy[rows])
        out.student_logprob[rows] = log_p_RV.gather(1, targets_R1)[:, 0]
        teacher = None
        if log_q_RV is not None:
            softmax_rows(log_q_RV, q_RV, scratch_RV, out.teacher_entropy[rows])
            out.teacher_logprob[rows] = log_q_RV.gather(1, targets_R1)[:, 0]
            teacher = (log_q_RV, q_RV, scratch_RV)
        self._note_alternatives(rows, (log_p_RV, 0.0), (log_q_RV, 0.0))
        terms = self._terms(rows, has_teacher=teacher is not None)
        finished, _ = finish_rows(
            self._distill,
            any(self._needs),
            log_p_RV,
            p_RV,
            teacher,
            None if log_r_RV is None else log_softmax_(log_r_RV),
            targets_R1,
            self._factors(terms),
            self._old(rows),
        )
        self._add_losses(rows, terms, finished)

    def _block_compiled(
        self,
        rows: slice,
        logits_p_RV: Tensor,
        logits_q_RV: Tensor | None,
        logits_r_RV: Tensor | None,
    ) -> None:
        assert self._compiled is not None
        measure, finish = self._compiled
        out, targets_R1 = self.tokens, self._inputs.targets[rows, None]
        normaliser_p_R1, out.student_entropy[rows], logprob_R1 = measure(logits_p_RV, targets_R1)
        out.student_logprob[rows] = logprob_R1[:, 0]
        normaliser_q_R1 = None
        if logits_q_RV is not None:
            normaliser_q_R1, out.teacher_entropy[rows], logprob_R1 = measure(
                logits_q_RV, targets_R1
            )
            out.teacher_logprob[rows] = logprob_R1[:, 0]
        self._note_alternatives(
            rows, (logits_p_RV, normaliser_p_R1), (logits_q_RV, normaliser_q_R1)
        )
        terms = self._terms(rows, has_teacher=logits_q_RV is not None)
        finished = finish(
            logits_p_RV,
            normaliser_p_R1,
            logits_q_RV,
            normaliser_q_R1,
            logits_r_RV,
            targets_R1,
            self._factors(terms),
            self._old(rows),
        )
        self._add_losses(rows, terms, finished)

    def _terms(self, rows: slice, *, has_teacher: bool) -> RowTerms:
        out = self.tokens
        teacher_logprob_R = out.teacher_logprob[rows] if has_teacher else None
        return self._weigh(rows, out.student_logprob[rows], teacher_logprob_R)

    def _factors(self, terms: RowTerms) -> Factors:
        """Terms divided by the temperature, through which every gradient with respect to a logit
        passes."""
        scale = 1.0 / self._inputs.temperature
        weight_R, slope_R = terms.distill_weight_R, terms.slope_R
        return Factors(
            distill_R1=None if weight_R is None else scale * weight_R[:, None],
            slope_R1=None if slope_R is None else scale * slope_R[:, None],
            kl=None if self._inputs.initial is None else scale * self._initial_weight,
        )

    def _old(self, rows: slice) -> OldSupport | None:
        old = self._inputs.old_support
        return None if old is None else old.rows(rows)

    def _add_losses(self, rows: slice, terms: RowTerms, finished: Finished) -> None:
        out, sums = self.tokens, self.component_sums
        if finished.divergence_R is not None:
            out.divergence[rows] = finished.divergence_R
        if terms.distill_weight_R is not None:
            sums[0] += (terms.distill_weight_R * out.divergence[rows]).sum()
        if terms.distill_loss_R is not None:
            sums[0] += terms.distill_loss_R.sum()
        if terms.pg_loss_R is not None:
            sums[1] += terms.pg_loss_R.sum()
        if finished.initial_kl_R is not None:
            out.initial_kl[rows] = finished.initial_kl_R
            sums[2] += self._initial_weight * finished.initial_kl_R.sum()

    def _note_alternatives(self, rows: slice, student: Scores, teacher: Scores) -> None:
        tops = (self.tokens.student_top, self.tokens.teacher_top)
        fill_alternatives(tops, rows, student, teacher, self._inputs.top_rows)

    def _collect(self, chunk: slice, gradient_CV: Tensor) -> None:
        """Turn a chunk's logit gradient into d/d(hidden) and add to d/d(head)."""
        hidden_CD, head_VD = self._student.hidden_TD[chunk], self._student.head_VD
        if self.grad_hidden_TD is not None:
            torch.mm(gradient_CV, head_VD.to(hidden_CD.dtype), out=self.grad_hidden_TD[chunk])
        if self.grad_head_VD is None:
            return
        add = self._is_head_written
        accumulate_product(self.grad_head_VD, gradient_CV.t(), hidden_CD, add=add)
        self._is_head_written = True

    def _empty_outputs(self) -> TokenOutputs:
        def column() -> Tensor:
            return self._full((self._count,), torch.nan)

        def alternatives() -> Alternatives:
            shape = (self._count, min(self._inputs.top_n, self._vocabulary))
            ids = torch.zeros(shape, dtype=torch.long, device=self._inputs.targets.device)
            return Alternatives(ids, self._full(shape, torch.nan), self._full(shape, torch.nan))

        return TokenOutputs(
            divergence=column(),
            student_logprob=column(),
            teacher_logprob=column(),
            student_entropy=column(),
            teacher_entropy=column(),
            initial_kl=column(),
            student_top=alternatives() if self._inputs.top_n else None,
            teacher_top=alternatives() if self._inputs.top_n else None,
        )

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return self._student.hidden_TD.new_empty(shape, dtype=self._dtype)

    def _full(self, shape: tuple[int, ...], value: float) -> Tensor:
        return self._student.hidden_TD.new_full(shape, value, dtype=self._dtype)
