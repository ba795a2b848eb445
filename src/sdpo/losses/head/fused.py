"""The fused head: loss and closed-form gradient of every component in one pass over chunks of
tokens.

A chunk's hidden states are multiplied by the heads of student and teacher (and initial model);
softmax, divergence and gradient with respect to the logits are computed in place; two more products
turn it into d/d(hidden) and d/d(head), which is all that is kept. Autograd never sees a logit, so
the exact whole-vocabulary loss costs the memory of a top-K loss. The logit gradient of everything
this project optimises has the form

    [ w (p_j g_j - p_j sum p g) + k (p_j log(p_j/r_j) - p_j KL) + s (1[j = y] - p_j) ] / temperature

distillation with weight w, KL to the initial model r with weight k, and any loss that depends on
log p(y) alone with derivative s (policy gradient). What w, k and s are is `terms.py`. What a head
does after its product (a bias, a scale, a soft-cap) is `LmHead`'s; its slope multiplies the above.

Memory: at most one chunk of [C, V] logits per model (`logits.py` says how large), three tiles [R,
V], the gradient [T, D], and, only if the head trains, its gradient [V, D] in float32. Legend: T
tokens, C tokens of a chunk, R tokens of a tile, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdpo.losses.head.chunks import ChunkedPass, HeadInputs, TermsOf
from sdpo.losses.head.logits import LmHead, Side
from sdpo.losses.head.outputs import TokenOutputs
from sdpo.losses.specs import CustomDivergence, DistillSpec, DivergenceKind
from sdpo.losses.terms import Terms


class HeadPass(NamedTuple):
    """`loss` is a scalar with a graph; the component sums are detached and add up to it."""

    loss: Tensor
    distill: Tensor
    pg: Tensor
    kl: Tensor
    tokens: TokenOutputs


def head_pass(inputs: HeadInputs, distill: DistillSpec | None, terms_of: TermsOf) -> HeadPass:
    """Loss, component sums and token outputs of one micro-batch.

    `distill` says which divergence is measured (and optimised where `terms_of` gives it a weight);
    None measures none. No gradient reaches teacher, reference or initial tensors. The graph holds
    d/d(hidden) and d/d(head) only, for one backward pass.
    """
    passes: list[ChunkedPass] = []

    student = inputs.student if torch.is_grad_enabled() else inputs.student.detached()

    def compute(
        hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, needs: tuple[bool, bool, bool]
    ) -> ChunkedPass:
        head = student.head._replace(weight_VD=weight_VD, bias_V=bias_V)
        # An autograd function returns tensors only: the rest of the pass leaves through the list.
        passes.append(ChunkedPass(inputs, Side(hidden_TD, head), distill, terms_of, needs))
        passes[0].run()
        return passes[0]

    loss = _FusedHead.apply(student.hidden_TD, student.head.weight_VD, student.head.bias_V, compute)
    distill_sum, pg_sum, kl_sum = passes[0].component_sums.unbind()
    return HeadPass(loss, distill_sum, pg_sum, kl_sum, passes[0].tokens)


class _FusedHead(torch.autograd.Function):
    """Hands the gradients that the pass computed to autograd, scaled by the one that arrives."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        compute: Callable[..., ChunkedPass],
    ) -> Tensor:
        done = compute(hidden_TD, weight_VD, bias_V, tuple(ctx.needs_input_grad[:3]))
        ctx.gradients = (done.grad_hidden_TD, done.grad_head_VD, done.grad_bias_V)
        return done.component_sums.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "backward() was called twice on a fused loss; its gradients are handed over, not "
                "kept: compute the loss again"
            )
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_loss)
        return (*gradients, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationResult:
    """A scalar with a graph, and per token what the pass knows; detached [T] in the math dtype.

    Example:
        distillation_loss(hidden_TD, head_VD, teacher_hidden_TD, head_VD, targets_T).loss.backward()
    """

    loss: Tensor
    divergence: Tensor
    """Undivided and unweighted."""
    student_logprob: Tensor
    teacher_logprob: Tensor
    student_entropy: Tensor
    """Of the whole vocabulary, nats; so is the next."""
    teacher_entropy: Tensor


def distillation_loss(
    student_hidden: Tensor,
    student_head: Tensor | LmHead,
    teacher_hidden: Tensor,
    teacher_head: Tensor | LmHead,
    targets: Tensor,
    *,
    divergence: DivergenceKind | CustomDivergence = "jsd",
    beta: float = 0.5,
    support: Literal["student", "teacher", "union"] = "student",
    top_k: int | None = 100,
    tail: bool = True,
    weights: Tensor | None = None,
    temperature: float = 1.0,
    vocabulary: int | None = None,
    reference_hidden: Tensor | None = None,
    reference_head: Tensor | LmHead | None = None,
    trust: float | None = None,
    chunk_tokens: int | None = None,
) -> DistillationResult:
    """Sum of weights x D(student, teacher) over T tokens (Eq. 1, Eq. 11), with gradients to the
    student's side only.

    `student_hidden` [T, D] and `student_head` [V, D] may require grad; `teacher_hidden` [T, D'] and
    `teacher_head` [V, D'] may have another width. A head that does more than multiply is an
    `LmHead`. `weights` [T] carry 1/(global count); None means the mean over the T tokens.

    The divergence is over the `top_k` likeliest tokens of `support` (the student, the teacher, or
    the union of both) and the `tail`; `tail` False renormalises, `top_k` None is the whole
    vocabulary. jsd is (1-beta) KL(p|m) + beta KL(q|m) with m = (1-beta) p + beta q; `reverse_kl` is
    KL(p|q), `forward_kl` KL(q|p), `forward_ce` the cross-entropy, a `CustomDivergence` yours. With
    `trust`, the target is ref^(1-trust) teacher^trust over the whole vocabulary (Eq. 10). Rows of
    the heads from `vocabulary` on are not tokens. `chunk_tokens` bounds the logits held at once.
    """
    count = len(targets)
    if weights is None:
        weights = student_hidden.new_full((count,), 1.0 / max(count, 1), dtype=torch.float64)
    if (trust is None) != (reference_hidden is None) or (trust is None) != (reference_head is None):
        raise ValueError("trust, reference_hidden and reference_head go together")
    inputs = HeadInputs(
        student=Side(student_hidden, LmHead.of(student_head)),
        targets=targets,
        teacher=Side(teacher_hidden, LmHead.of(teacher_head)),
        trust_reference=Side.of(reference_hidden, reference_head),
        trust=trust,
        temperature=temperature,
        vocabulary=vocabulary,
        chunk_tokens=chunk_tokens,
    )
    spec = DistillSpec(
        divergence=divergence,
        beta=beta if divergence == "jsd" else None,
        support=support,
        top_k=top_k,
        tail=tail,
        granularity="logit",
        importance="token",
        ratio_cap=None,
    )
    return _distillation(inputs, spec, weights)


def _distillation(inputs: HeadInputs, spec: DistillSpec, weights: Tensor) -> DistillationResult:
    def terms_of(chosen: slice, logprob_R: Tensor, teacher_logprob_R: Tensor | None) -> Terms:
        return Terms(distill_weight_R=weights[chosen].to(logprob_R.dtype))

    result = head_pass(inputs, spec, terms_of)
    return DistillationResult(
        loss=result.loss,
        divergence=result.tokens.divergence,
        student_logprob=result.tokens.student_logprob,
        teacher_logprob=result.tokens.teacher_logprob,
        student_entropy=result.tokens.student_entropy,
        teacher_entropy=result.tokens.teacher_entropy,
    )
