"""The pass that `fused.py` promises, chunk by chunk and tile by tile.

A chunk is the unit of the matrix products, a tile (some tokens of a chunk) the unit of everything
elementwise. A tile's logits become log-probabilities, its outputs are written, and the logit
gradient overwrites them; the formula is in `fused.py`.

Why two units: a product over a few tokens reads the whole head [V, D] for little work, so chunks
are large; softmax and divergence read every logit several times, so tiles are as small as a cache.

Legend: T tokens of the micro-batch, C tokens of a chunk, R tokens of a tile, D hidden size, V
vocabulary, N kept alternatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.kernels.dtypes import math_dtype
from sdpo.losses.head.elementwise import (
    Factors,
    TileResult,
    compiled_tile,
    finish_tile,
    log_softmax_,
    softmax_tile,
)
from sdpo.losses.head.logits import (
    Logits,
    Side,
    accumulate_product,
    are_narrow,
    chunk_size,
    spans,
    tile_size,
)
from sdpo.losses.head.outputs import NormalisedLogits, TokenOutputs, TopTokens, fill_top_tokens
from sdpo.losses.specs import DistillSpec
from sdpo.losses.terms import Terms
from sdpo.losses.token_batch import OldSupport

TermsOf = Callable[[slice, Tensor, Tensor | None], Terms]
"""(which tokens, log p(y) [R], log q(y) [R] or None for tokens without a teacher) -> what they
contribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadInputs:
    """One micro-batch of tokens and the models it is compared with. Tokens that have a teacher come
    first.

    Example:
        HeadInputs(student=Side(hidden_TD, head), targets=targets_T,
                   teacher=Side(teacher_hidden_TD, head))
    """

    student: Side
    targets: Tensor
    """[T] sampled token ids."""
    teacher: Side | None = None
    """Its hidden states may be fewer than T: they belong to the first tokens."""
    trust_reference: Side | None = None
    """Initial model that the target is mixed with, tokens as in `teacher`; with `trust` only."""
    trust: float | None = None
    initial: Side | None = None
    """Initial model in the student's prompt, for the KL component."""
    initial_weight: float = 0.0
    """Factor of the KL to the initial model, already divided."""
    temperature: float = 1.0
    vocabulary: int | None = None
    """Rows of the heads from here on are not tokens; None: all are."""
    old_support: OldSupport | None = None
    chunk_tokens: int | None = None
    top_n: int = 0
    """Most likely tokens of both sides to keep per token."""
    top_where: Tensor | None = None
    """[T] bool, on the CPU: tokens that keep them; None: all. It costs a pass over [V] per
    token."""


class ChunkedPass:
    """One pass over the tokens of a micro-batch: fills outputs and gradients."""

    def __init__(
        self,
        inputs: HeadInputs,
        student: Side,
        distill: DistillSpec | None,
        terms_of: TermsOf,
        needs: tuple[bool, bool, bool],
    ) -> None:
        """`needs` says whether hidden states, matrix and bias of the student want a gradient."""
        self._inputs = inputs
        self._student = student
        self._distill = distill
        self._terms_of = terms_of
        self._needs = needs
        self._count, self._vocabulary = len(inputs.targets), len(student.head_VD)
        self._dtype = math_dtype(student.hidden_TD.dtype)
        assert len(student.hidden_TD) == self._count, "one hidden state per target"
        self.tokens = self._empty_outputs()
        self.component_sums = self._full((3,), 0.0)
        """Distillation, policy gradient and KL, each a sum of divided terms."""
        needs_hidden, needs_head, needs_bias = needs
        self.grad_hidden_TD = torch.empty_like(student.hidden_TD) if needs_hidden else None
        # In the math dtype: a sum over chunks kept in bfloat16 would round the later ones away.
        self.grad_head_VD = self._empty(student.head_VD.shape) if needs_head else None
        self._is_head_written = False
        self.grad_bias_V = self._full((self._vocabulary,), 0.0) if needs_bias else None
        # A tensor, because a number would be compiled in and is another one at every step.
        self._initial_weight = self._full((), inputs.initial_weight)
        self._compiled = compiled_tile(
            distill, any(needs), inputs.targets.device, self._count * self._vocabulary
        )

    def run(self) -> None:
        """Go through all tokens, those with a teacher first: a chunk is all of one kind."""
        inputs = self._inputs
        with_teacher = 0 if inputs.teacher is None else len(inputs.teacher.hidden_TD)
        assert with_teacher <= self._count, "more teacher states than tokens"
        device = inputs.targets.device
        sides = (self._student, inputs.teacher, inputs.initial)
        is_narrow = inputs.trust is None and are_narrow(sides)
        size = chunk_size(
            self._count, self._vocabulary, device, inputs.chunk_tokens, is_narrow=is_narrow
        )
        self._tile_size = min(tile_size(self._vocabulary, device), size)
        student, teacher, initial = (self._logits(side, size, is_narrow) for side in sides)
        assert student is not None
        # p, q and one spare: the eager way works in place and allocates no [R, V] on its way.
        num_scratch = 3 if self._compiled is None else 0
        shape = (self._tile_size, self._vocabulary)
        self._scratch = [self._empty(shape) for _ in range(num_scratch)]
        for start, stop in ((0, with_teacher), (with_teacher, self._count)):
            for chunk in spans(start, stop, size):
                self._chunk(chunk, student, teacher if start < with_teacher else None, initial)
        if self.grad_head_VD is not None:
            if not self._is_head_written:  # no tokens: nothing has overwritten the fresh memory
                self.grad_head_VD.zero_()
            self.grad_head_VD = self.grad_head_VD.to(self._student.head_VD.dtype)
        if self.grad_bias_V is not None:
            assert self._student.head.bias_V is not None
            self.grad_bias_V = self.grad_bias_V.to(self._student.head.bias_V.dtype)

    def _logits(self, side: Side | None, size: int, is_narrow: bool) -> Logits | None:
        """Room for the logits of a model that is there."""
        inputs = self._inputs
        if side is None:
            return None
        is_mixed = side is inputs.teacher
        return Logits(
            side,
            size,
            self._tile_size,
            temperature=inputs.temperature,
            is_narrow=is_narrow,
            vocabulary=inputs.vocabulary,
            reference=inputs.trust_reference if is_mixed else None,
            trust=inputs.trust if is_mixed else None,
        )

    def _chunk(
        self, chunk: slice, student: Logits, teacher: Logits | None, initial: Logits | None
    ) -> None:
        """Logits of every model, the tiles' softmax and gradient in place, then d/d(hidden) and
        d/d(head)."""
        for logits in (student, teacher, initial):
            if logits is not None:
                logits.fill(chunk)
        for span in spans(chunk.start, chunk.stop, self._tile_size):
            local = slice(span.start - chunk.start, span.stop - chunk.start)
            student_RV = student.tile(local)
            self._tile(
                span,
                student_RV,
                None if teacher is None else teacher.tile(local),
                None if initial is None else initial.tile(local),
            )
            if any(self._needs):
                student.put(local, student_RV)
        if any(self._needs):
            self._collect(chunk, student.chunk(chunk.stop - chunk.start))

    def _tile(
        self, span: slice, student_RV: Tensor, teacher_RV: Tensor | None, initial_RV: Tensor | None
    ) -> None:
        """Outputs of `span`, and their logit gradient written over `student`; all arguments are
        logits."""
        run = self._tile_eager if self._compiled is None else self._tile_compiled
        run(span, student_RV, teacher_RV, initial_RV)

    def _tile_eager(
        self, span: slice, log_p_RV: Tensor, log_q_RV: Tensor | None, log_r_RV: Tensor | None
    ) -> None:
        out, targets_R1 = self.tokens, self._inputs.targets[span, None]
        p_RV, q_RV, scratch_RV = (buffer[: len(log_p_RV)] for buffer in self._scratch)
        softmax_tile(log_p_RV, p_RV, scratch_RV, out.student_entropy[span])
        out.student_logprob[span] = log_p_RV.gather(1, targets_R1)[:, 0]
        teacher = None
        if log_q_RV is not None:
            softmax_tile(log_q_RV, q_RV, scratch_RV, out.teacher_entropy[span])
            out.teacher_logprob[span] = log_q_RV.gather(1, targets_R1)[:, 0]
            teacher = (log_q_RV, q_RV, scratch_RV)
        self._note_top_tokens(span, (log_p_RV, 0.0), (log_q_RV, 0.0))
        # After both log-probs of y are known and before the tile is overwritten: what a token
        # weighs depends on them (importance weights, gaps), and the gradient on what it weighs.
        terms = self._terms(span, has_teacher=teacher is not None)
        finished, _ = finish_tile(
            self._distill,
            any(self._needs),
            log_p_RV,
            p_RV,
            teacher,
            None if log_r_RV is None else log_softmax_(log_r_RV),
            targets_R1,
            self._factors(terms),
            self._old(span) if teacher is not None else None,
        )
        self._add_losses(span, terms, finished)

    def _tile_compiled(
        self,
        span: slice,
        logits_p_RV: Tensor,
        logits_q_RV: Tensor | None,
        logits_r_RV: Tensor | None,
    ) -> None:
        assert self._compiled is not None
        measure, finish = self._compiled
        out, targets_R1 = self.tokens, self._inputs.targets[span, None]
        normaliser_p_R1, out.student_entropy[span], logprob_R1 = measure(logits_p_RV, targets_R1)
        out.student_logprob[span] = logprob_R1[:, 0]
        normaliser_q_R1 = None
        if logits_q_RV is not None:
            normaliser_q_R1, out.teacher_entropy[span], logprob_R1 = measure(
                logits_q_RV, targets_R1
            )
            out.teacher_logprob[span] = logprob_R1[:, 0]
        self._note_top_tokens(span, (logits_p_RV, normaliser_p_R1), (logits_q_RV, normaliser_q_R1))
        terms = self._terms(span, has_teacher=logits_q_RV is not None)
        finished = finish(
            logits_p_RV,
            normaliser_p_R1,
            logits_q_RV,
            normaliser_q_R1,
            logits_r_RV,
            targets_R1,
            self._factors(terms),
            self._old(span) if logits_q_RV is not None else None,
        )
        self._add_losses(span, terms, finished)

    def _terms(self, span: slice, *, has_teacher: bool) -> Terms:
        out = self.tokens
        teacher_logprob_R = out.teacher_logprob[span] if has_teacher else None
        return self._terms_of(span, out.student_logprob[span], teacher_logprob_R)

    def _factors(self, terms: Terms) -> Factors:
        """Terms divided by the temperature, through which every gradient with respect to a logit
        passes."""
        scale = 1.0 / self._inputs.temperature
        weight_R, slope_R = terms.distill_weight_R, terms.slope_R
        return Factors(
            distill_R1=None if weight_R is None else scale * weight_R[:, None],
            slope_R1=None if slope_R is None else scale * slope_R[:, None],
            kl=None if self._inputs.initial is None else scale * self._initial_weight,
        )

    def _old(self, span: slice) -> OldSupport | None:
        old = self._inputs.old_support
        return None if old is None else old.part(span)

    def _add_losses(self, span: slice, terms: Terms, finished: TileResult) -> None:
        out, sums = self.tokens, self.component_sums
        if finished.divergence_R is not None:
            out.divergence[span] = finished.divergence_R
        if terms.distill_weight_R is not None:
            sums[0] += (terms.distill_weight_R * out.divergence[span]).sum()
        if terms.distill_loss_R is not None:
            sums[0] += terms.distill_loss_R.sum()
        if terms.pg_loss_R is not None:
            sums[1] += terms.pg_loss_R.sum()
        if finished.initial_kl_R is not None:
            out.initial_kl[span] = finished.initial_kl_R
            sums[2] += self._initial_weight * finished.initial_kl_R.sum()

    def _note_top_tokens(
        self, span: slice, student: NormalisedLogits, teacher: NormalisedLogits
    ) -> None:
        tops = (self.tokens.student_top, self.tokens.teacher_top)
        fill_top_tokens(tops, span, student, teacher, self._inputs.top_where)

    def _collect(self, chunk: slice, gradient_CV: Tensor) -> None:
        """Turn a chunk's gradient of W h + bias into d/d(hidden), and add to d/d(head)."""
        if self.grad_bias_V is not None:
            self.grad_bias_V += gradient_CV.sum(0, dtype=self._dtype)
        hidden_CD, head_VD = self._student.hidden_TD[chunk], self._student.head_VD
        if self.grad_hidden_TD is not None:
            torch.mm(gradient_CV, head_VD.to(hidden_CD.dtype), out=self.grad_hidden_TD[chunk])
        if self.grad_head_VD is None:
            return
        # The first chunk overwrites, so the largest tensor of the pass is never filled with zeros.
        add = self._is_head_written
        accumulate_product(self.grad_head_VD, gradient_CV.t(), hidden_CD, add=add)
        self._is_head_written = True

    def _empty_outputs(self) -> TokenOutputs:
        def column() -> Tensor:
            return self._full((self._count,), torch.nan)

        def top_tokens() -> TopTokens:
            shape = (self._count, min(self._inputs.top_n, self._vocabulary))
            ids = torch.zeros(shape, dtype=torch.long, device=self._inputs.targets.device)
            return TopTokens(ids, self._full(shape, torch.nan), self._full(shape, torch.nan))

        return TokenOutputs(
            divergence=column(),
            student_logprob=column(),
            teacher_logprob=column(),
            student_entropy=column(),
            teacher_entropy=column(),
            initial_kl=column(),
            student_top=top_tokens() if self._inputs.top_n else None,
            teacher_top=top_tokens() if self._inputs.top_n else None,
        )

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return self._student.hidden_TD.new_empty(shape, dtype=self._dtype)

    def _full(self, shape: tuple[int, ...], value: float) -> Tensor:
        return self._student.hidden_TD.new_full(shape, value, dtype=self._dtype)
