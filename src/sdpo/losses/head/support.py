"""From log-probabilities over the vocabulary to the entries of a support, and from a divergence
over entries back to logits.

Three supports: the whole vocabulary, the top-K plus the tail as one more entry (Eq. 11), the top-K
renormalised. For token j in entry k the gradient of D with respect to its logit is p_j (g_k -
sum_k p_k g_k) (derived in docs/algorithm.md); it is handed back as `DivergenceGradient`, in the
cheapest form the support allows, and written in `elementwise.py`.

Legend: R tokens of a tile, V vocabulary, K tokens of the support, E = K + 1 entries with the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from sdpo.losses.divergence import support_divergence
from sdpo.losses.importance import logit_surrogate
from sdpo.losses.specs import DistillSpec
from sdpo.losses.token_batch import OldSupport

_MASS_FLOOR = 1e-30
"""Least mass of an entry inside a logarithm or a quotient. Far below what float32 sums resolve next
to 1, far above its smallest number, so that mass/floor and its products with weights stay
finite."""
_STRIP = 64
"""Tokens per strip of the two-stage selection in `top_tokens`."""
_MIN_STRIPS_PER_TOKEN = 4
"""With fewer strips per wanted token, one selection over the row is as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Log-probabilities and probabilities [R, V] of student (p) and teacher (q) on one tile; all
    may be overwritten.

    Example:
        Tile(log_p=a, p=a.exp(), log_q=b, q=b.exp(), scratch=torch.empty_like(a))
    """

    log_p: Tensor
    p: Tensor
    log_q: Tensor
    q: Tensor
    scratch: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceGradient:
    """Gradient of the divergence with respect to the logits, not yet spread over the vocabulary:

        p_j * base, plus weighted_j (whole vocabulary), or with support_j in its place (support)

    Example:
        DivergenceGradient(base=-weighted_RV.sum(-1), weighted=weighted_RV)
    """

    base: Tensor
    """[R]."""
    weighted: Tensor | None = None
    """[R, V]."""
    ids: Tensor | None = None
    """[R, K] the support; `Tile.p` is zero there when the tail has an entry."""
    p_support: Tensor | None = None
    """[R, K] the student's probabilities on the support."""
    support: Tensor | None = None
    """[R, K]."""


def divergence_of_tile(
    spec: DistillSpec, tile: Tile, old: OldSupport | None
) -> tuple[Tensor, DivergenceGradient]:
    """Divergence [R] and its gradient on one tile, over the support that `spec` names. Overwrites
    `tile`."""
    if spec.top_k is None or (spec.top_k >= tile.p.shape[1] and spec.importance == "token"):
        value_R, weighted_RV = support_divergence(
            spec.distance, tile.log_p, tile.p, tile.log_q, tile.q, tile.scratch
        )
        return value_R, DivergenceGradient(base=-weighted_RV.sum(-1), weighted=weighted_RV)
    if spec.importance == "logit":
        assert old is not None, "importance 'logit' needs the old policy's support"
        ids_RK = old.ids
        log_p_RK = tile.log_p.gather(1, ids_RK)
    else:
        log_p_RK, ids_RK = top_tokens(tile.log_p, spec.top_k)
    log_q_RK = tile.log_q.gather(1, ids_RK)
    if spec.tail:
        return _with_tail_entry(spec, tile, ids_RK, log_p_RK, log_q_RK, old)
    return _without_tail(spec, tile, ids_RK, log_p_RK, log_q_RK, old)


def _with_tail_entry(
    spec: DistillSpec,
    tile: Tile,
    ids_RK: Tensor,
    log_p_RK: Tensor,
    log_q_RK: Tensor,
    old: OldSupport | None,
) -> tuple[Tensor, DivergenceGradient]:
    """Over the support and one entry for all the rest (Eq. 11)."""
    p_RK, q_RK = tile.p.gather(1, ids_RK), tile.q.gather(1, ids_RK)
    # Summing what is left after the support is zeroed keeps the tail's relative accuracy; 1 - sum
    # would leave rounding.
    p_tail_R1 = tile.p.scatter_(1, ids_RK, 0.0).sum(-1, keepdim=True)
    q_tail_R1 = tile.q.scatter_(1, ids_RK, 0.0).sum(-1, keepdim=True)
    value_R, weighted_RE = _value_and_weighted(
        spec,
        (torch.cat([log_p_RK, _log(p_tail_R1)], 1), torch.cat([p_RK, p_tail_R1], 1)),
        (torch.cat([log_q_RK, _log(q_tail_R1)], 1), torch.cat([q_RK, q_tail_R1], 1)),
        None if old is None else _remembered_with_tail(old.logprobs),
    )
    mean_R1 = weighted_RE.sum(-1, keepdim=True)
    tail_R1 = weighted_RE[:, -1:] / p_tail_R1.clamp_min(_MASS_FLOOR)
    return value_R, DivergenceGradient(
        base=(tail_R1 - mean_R1)[:, 0],
        ids=ids_RK,
        p_support=p_RK,
        support=weighted_RE[:, :-1] - p_RK * mean_R1,
    )


def _without_tail(
    spec: DistillSpec,
    tile: Tile,
    ids_RK: Tensor,
    log_p_RK: Tensor,
    log_q_RK: Tensor,
    old: OldSupport | None,
) -> tuple[Tensor, DivergenceGradient]:
    """Over the support alone, both sides renormalised to it."""
    student, teacher = _renormalised(log_p_RK), _renormalised(log_q_RK)
    own_RK = student[1].clone()
    value_R, weighted_RK = _value_and_weighted(
        spec, student, teacher, None if old is None else old.logprobs.log_softmax(-1)
    )
    mean_R1 = weighted_RK.sum(-1, keepdim=True)
    return value_R, DivergenceGradient(
        base=torch.zeros_like(value_R),
        ids=ids_RK,
        p_support=tile.p.gather(1, ids_RK),
        support=weighted_RK - own_RK * mean_R1,
    )


def top_tokens(log_p_RV: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Log-probs [R, K] and ids [R, K] of the most likely tokens, in no order; which of equally
    likely ones is not defined.

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


def _value_and_weighted(
    spec: DistillSpec,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    old_log_p_RE: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Value [R] and p_k g_k [R, E] of pairs (log-mass, mass), by the divergence or by Eq. 13's
    surrogate."""
    match spec.importance:
        case "token":
            return support_divergence(spec.distance, *student, *teacher)
        case "logit":
            assert old_log_p_RE is not None
            return logit_surrogate(
                student[0],
                teacher[0],
                old_log_p_RE,
                eps_low=spec.eps_low,
                eps_high=spec.eps_high,
                advantage_clip=spec.advantage_clip,
            )
        case _:
            assert_never(spec.importance)


def _log(mass_R1: Tensor) -> Tensor:
    return mass_R1.clamp_min(_MASS_FLOOR).log()


def _renormalised(log_p_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-masses and masses that sum to one over the support."""
    log_RK = log_p_RK.log_softmax(-1)
    return log_RK, log_RK.exp()


def _remembered_with_tail(old_log_p_RK: Tensor) -> Tensor:
    """The old policy's log-masses with those of its tail: 1 - sum, since nothing else is remembered
    of the rest of the vocabulary."""
    tail_R1 = -torch.expm1(old_log_p_RK.logsumexp(-1, keepdim=True))
    return torch.cat([old_log_p_RK, _log(tail_R1)], 1)
