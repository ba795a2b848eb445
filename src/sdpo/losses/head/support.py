"""From log-probabilities over the vocabulary to buckets, and from a divergence over buckets back to
logits.

Three supports: the whole vocabulary, the top-K plus one tail bucket (Eq. 11), the top-K
renormalised. For token j in bucket b the gradient of D with respect to its logit is p_j (g_b -
sum_b p_b g_b) (DESIGN section 3); it is handed back as `LogitTerms`, in the cheapest form the
support allows, and put together in `fused.py`.

Legend: R rows of a block, V vocabulary, K support, B = K + 1 buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.losses.divergence import bucket_divergence
from sdpo.losses.importance import logit_surrogate
from sdpo.losses.specs import DistillSpec

_MASS_FLOOR = 1e-30
"""Least mass of a bucket inside a logarithm or a quotient. Far below what float32 sums resolve next
to 1, far above its smallest number, so that mass/floor and its products with weights stay
finite."""
_STRIP = 64
"""Tokens per strip of the two-stage selection in `top_tokens`."""
_MIN_STRIPS_PER_TOKEN = 4
"""With fewer strips per wanted token, one selection over the row is as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Log-probabilities and probabilities [R, V] of student (p) and teacher (q) on one block; all
    may be overwritten.

    Example:
        Block(log_p=a, p=a.exp(), log_q=b, q=b.exp(), scratch=torch.empty_like(a))
    """

    log_p: Tensor
    p: Tensor
    log_q: Tensor
    q: Tensor
    scratch: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class OldSupport:
    """The old policy's support for Eq. 13.

    Example:
        OldSupport(ids=ids_TK, logprobs=logprobs_TK)
    """

    ids: Tensor
    """[T, K] token ids."""
    logprobs: Tensor
    """[T, K] log-probs under the old policy."""
    sampler_logprobs: Tensor | None = None
    """[T, K] under the sampler where it reports them; None: equal to the old policy."""

    def rows(self, rows: slice) -> OldSupport:
        sampler = self.sampler_logprobs
        return OldSupport(
            ids=self.ids[rows],
            logprobs=self.logprobs[rows],
            sampler_logprobs=None if sampler is None else sampler[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTerms:
    """dD/dlogit of a block at temperature 1: `base` x p_j for tokens outside the support, `support`
    for those inside; with `ids` None there is no support and it is `base` x p_j + `weighted`.

    Example:
        LogitTerms(base=base_R, ids=ids_RK, p_support=p_RK, support=gradient_RK)
    """

    base: Tensor
    """[R]."""
    weighted: Tensor | None = None
    """[R, V], p_j g_j, whole vocabulary only."""
    ids: Tensor | None = None
    """[R, K]."""
    p_support: Tensor | None = None
    """[R, K] student's probabilities on the support."""
    support: Tensor | None = None
    """[R, K]."""


def distill_block(
    spec: DistillSpec, block: Block, old: OldSupport | None
) -> tuple[Tensor, LogitTerms]:
    """Divergence [R] and its gradient on one block, over the support that `spec` names. Overwrites
    `block`."""
    if spec.top_k is None or (spec.top_k >= block.p.shape[1] and spec.importance == "token"):
        value_R, weighted_RV = bucket_divergence(
            spec.distance, block.log_p, block.p, block.log_q, block.q, block.scratch
        )
        return value_R, LogitTerms(base=-weighted_RV.sum(-1), weighted=weighted_RV)
    if spec.importance == "logit":
        assert old is not None, "importance 'logit' needs the old policy's support"
        ids_RK = old.ids
        log_p_RK = block.log_p.gather(1, ids_RK)
    else:
        log_p_RK, ids_RK = top_tokens(block.log_p, spec.top_k)
    log_q_RK = block.log_q.gather(1, ids_RK)
    p_RK, q_RK = block.p.gather(1, ids_RK), block.q.gather(1, ids_RK)
    if spec.tail:
        # Summing what is left after the support is zeroed keeps the tail's relative accuracy; 1 -
        # sum would leave rounding.
        p_tail_R1 = block.p.scatter_(1, ids_RK, 0.0).sum(-1, keepdim=True)
        q_tail_R1 = block.q.scatter_(1, ids_RK, 0.0).sum(-1, keepdim=True)
        value_R, weighted_RB = _bucket_terms(
            spec,
            (torch.cat([log_p_RK, _log(p_tail_R1)], 1), torch.cat([p_RK, p_tail_R1], 1)),
            (torch.cat([log_q_RK, _log(q_tail_R1)], 1), torch.cat([q_RK, q_tail_R1], 1)),
            None if old is None else _with_tail(old),
        )
        mean_R1 = weighted_RB.sum(-1, keepdim=True)
        tail_R1 = weighted_RB[:, -1:] / p_tail_R1.clamp_min(_MASS_FLOOR)
        return value_R, LogitTerms(
            base=(tail_R1 - mean_R1)[:, 0],
            ids=ids_RK,
            p_support=p_RK,
            support=weighted_RB[:, :-1] - p_RK * mean_R1,
        )
    student, teacher = _renormalised(log_p_RK), _renormalised(log_q_RK)
    own_RK = student[1].clone()
    value_R, weighted_RK = _bucket_terms(
        spec, student, teacher, None if old is None else _renormalised_old(old)
    )
    mean_R1 = weighted_RK.sum(-1, keepdim=True)
    return value_R, LogitTerms(
        base=torch.zeros_like(value_R),
        ids=ids_RK,
        p_support=p_RK,
        support=weighted_RK - own_RK * mean_R1,
    )


def top_tokens(log_p_RV: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Log-probs [R, K] and ids [R, K] of the most likely tokens, in no order.

    A token among the K largest lies in one of the K strips of the vocabulary with the largest
    maxima: reading those strips alone is several times faster than selecting from whole rows.
    """
    rows, vocabulary = log_p_RV.shape
    strips = vocabulary // _STRIP
    if strips < _MIN_STRIPS_PER_TOKEN * top_k:
        top = log_p_RV.topk(top_k, sorted=False)
        return top.values, top.indices
    body = strips * _STRIP
    maxima = log_p_RV[:, :body].unflatten(1, (strips, _STRIP)).amax(-1)
    best_RK1 = maxima.topk(top_k, sorted=False).indices[:, :, None] * _STRIP
    within = torch.arange(_STRIP, device=log_p_RV.device)
    rest = torch.arange(body, vocabulary, device=log_p_RV.device).expand(rows, -1)
    candidates = torch.cat([(best_RK1 + within).flatten(1), rest], 1)
    top = log_p_RV.gather(1, candidates).topk(top_k, sorted=False)
    return top.values, candidates.gather(1, top.indices)


def _bucket_terms(
    spec: DistillSpec,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    old: OldSupport | None,
) -> tuple[Tensor, Tensor]:
    """Value [R] and p_b g_b [R, B] of pairs (log-mass, mass), by the divergence or by Eq. 13's
    surrogate."""
    if spec.importance == "token":
        return bucket_divergence(spec.distance, *student, *teacher)
    assert old is not None
    return logit_surrogate(
        student[0],
        teacher[0],
        old.logprobs,
        eps_low=spec.eps_low,
        eps_high=spec.eps_high,
        ratio_cap=spec.ratio_cap,
        advantage_clip=spec.advantage_clip,
        sampler_log_p_RB=old.sampler_logprobs,
    )


def _log(mass_R1: Tensor) -> Tensor:
    return mass_R1.clamp_min(_MASS_FLOOR).log()


def _renormalised(log_p_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-masses and masses that sum to one over the support."""
    log_RK = log_p_RK.log_softmax(-1)
    return log_RK, log_RK.exp()


def _with_tail(old: OldSupport) -> OldSupport:
    """`old` with its tail as one more bucket: all that is remembered of the rest of the
    vocabulary."""

    def extended(log_p_RK: Tensor) -> Tensor:
        tail_R1 = -torch.expm1(log_p_RK.logsumexp(-1, keepdim=True))
        return torch.cat([log_p_RK, _log(tail_R1)], 1)

    return _map(old, extended)


def _renormalised_old(old: OldSupport) -> OldSupport:
    return _map(old, lambda log_p_RK: log_p_RK.log_softmax(-1))


def _map(old: OldSupport, change: Callable[[Tensor], Tensor]) -> OldSupport:
    sampler = old.sampler_logprobs
    return OldSupport(
        ids=old.ids,
        logprobs=change(old.logprobs),
        sampler_logprobs=None if sampler is None else change(sampler),
    )
