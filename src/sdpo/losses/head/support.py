"""From log-probabilities over the vocabulary to the entries of a support, and from a divergence
over entries back to logits.

The support is the whole vocabulary, or a top-K chosen by the student, the teacher or both; a top-K
has the tail as one more entry (Eq. 11), or is renormalised. Each is found on a tile, where both
sides' distributions are at hand: no [T, V] is held to find the teacher's. For token j in entry k
the gradient of D with respect to its logit is p_j (g_k - sum_k p_k g_k) (derived in
docs/algorithm.md); it is handed back as `DivergenceGradient`, in the cheapest form the support
allows, and written in `elementwise.py`.

Legend: R tokens of a tile, V vocabulary, K tokens of the support, E = K + 1 entries with the tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from sdpo.losses.divergence import support_divergence
from sdpo.losses.importance import logit_surrogate
from sdpo.losses.specs import DistillSpec
from sdpo.losses.token_batch import OldSupport

_FLOOR_ROOM = 2.0**16
"""Least mass of an entry inside a logarithm or a quotient, in units of the smallest normal number:
mass / floor times a weight of up to 2^15 is finite. A teacher's mass on a tail that the student
gives less than that (e^-76 in float32, e^-697 in float64) loses part of its gradient."""
LOG_NOTHING = -1e30
"""Log-mass of what is not there: a repeated entry, a row of the head without a token. Finite, since
the difference of two infinities would be NaN, and so far down that exp gives 0 and no normaliser
moves it."""
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
    """[R, K] the support; `Tile.p` is zero there unless the student or the old policy chose it and
    it has no tail."""
    has_repeats: bool = False
    """Whether `ids` may name a token twice; all but one of its entries are then zero."""
    p_support: Tensor | None = None
    """[R, K] the student's probabilities on the support."""
    support: Tensor | None = None
    """[R, K]."""

    def put(self, out_RV: Tensor, values_RK: Tensor) -> None:
        """Write `values` into `out` at the support."""
        assert self.ids is not None
        if self.has_repeats:
            # `out` is zero here (see `ids`), and so is the value of a repeat: which of two entries
            # comes last does not matter, where overwriting would leave it to chance.
            out_RV.scatter_add_(1, self.ids, values_RK)
        else:
            out_RV.scatter_(1, self.ids, values_RK)


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
    chosen = _choose(spec, tile, old)
    if spec.tail:
        return _with_tail_entry(spec, tile, chosen, old)
    return _without_tail(spec, tile, chosen, old)


class _Chosen(NamedTuple):
    """A support, [R, K] each. Entries that repeat an earlier one have no mass, the same on both
    sides, so that they add nothing to any sum."""

    ids: Tensor
    log_p: Tensor
    p: Tensor
    log_q: Tensor
    q: Tensor
    has_repeats: bool


def _choose(spec: DistillSpec, tile: Tile, old: OldSupport | None) -> _Chosen:
    """The support that `spec` names, from both sides' distributions on this tile alone."""
    assert spec.top_k is not None
    is_repeat_RK = None
    if spec.importance == "logit":
        assert old is not None, "importance 'logit' needs the old policy's support"
        ids_RK = old.ids
    else:
        match spec.support:
            case "student":
                ids_RK = top_tokens(tile.log_p, spec.top_k)
            case "teacher":
                ids_RK = top_tokens(tile.log_q, spec.top_k)
            case "union":
                ids_RK, is_repeat_RK = _union(tile, spec.top_k)
            case _:
                assert_never(spec.support)
    log_p_RK, p_RK, log_q_RK, q_RK = (
        side_RV.gather(1, ids_RK) for side_RV in (tile.log_p, tile.p, tile.log_q, tile.q)
    )
    if is_repeat_RK is not None:
        for log_RK, mass_RK in ((log_p_RK, p_RK), (log_q_RK, q_RK)):
            log_RK.masked_fill_(is_repeat_RK, LOG_NOTHING)
            mass_RK.masked_fill_(is_repeat_RK, 0.0)
    return _Chosen(ids_RK, log_p_RK, p_RK, log_q_RK, q_RK, is_repeat_RK is not None)


def _union(tile: Tile, top_k: int) -> tuple[Tensor, Tensor]:
    """Ids [R, 2K] of the student's and the teacher's most likely tokens, and which [R, 2K] repeat
    an earlier one: rows differ in how many they share, and a tensor has one width."""
    student_RK, teacher_RK = top_tokens(tile.log_p, top_k), top_tokens(tile.log_q, top_k)
    # Marks in the scratch tile: K writes a token, where comparing all pairs would be K^2. Only
    # places that are read are written before, so the tile need not be cleared.
    marks_RV = tile.scratch.scatter_(1, teacher_RK, 0.0).scatter_(1, student_RK, 1.0)
    is_repeat_RK = marks_RV.gather(1, teacher_RK) > 0
    return (
        torch.cat([student_RK, teacher_RK], 1),
        torch.cat([torch.zeros_like(is_repeat_RK), is_repeat_RK], 1),
    )


def _with_tail_entry(
    spec: DistillSpec, tile: Tile, chosen: _Chosen, old: OldSupport | None
) -> tuple[Tensor, DivergenceGradient]:
    """Over the support and one entry for all the rest (Eq. 11)."""
    # Summing what is left after the support is zeroed keeps the tail's relative accuracy; 1 - sum
    # would leave rounding.
    p_tail_R1 = tile.p.scatter_(1, chosen.ids, 0.0).sum(-1, keepdim=True)
    q_tail_R1 = tile.q.scatter_(1, chosen.ids, 0.0).sum(-1, keepdim=True)
    value_R, weighted_RE = _value_and_weighted(
        spec,
        (torch.cat([chosen.log_p, _log(p_tail_R1)], 1), torch.cat([chosen.p, p_tail_R1], 1)),
        (torch.cat([chosen.log_q, _log(q_tail_R1)], 1), torch.cat([chosen.q, q_tail_R1], 1)),
        None if old is None else _remembered_with_tail(old.logprobs),
    )
    mean_R1 = weighted_RE.sum(-1, keepdim=True)
    tail_R1 = weighted_RE[:, -1:] / _floored(p_tail_R1)
    return value_R, DivergenceGradient(
        base=(tail_R1 - mean_R1)[:, 0],
        ids=chosen.ids,
        has_repeats=chosen.has_repeats,
        p_support=chosen.p,
        support=weighted_RE[:, :-1] - chosen.p * mean_R1,
    )


def _without_tail(
    spec: DistillSpec, tile: Tile, chosen: _Chosen, old: OldSupport | None
) -> tuple[Tensor, DivergenceGradient]:
    """Over the support alone, both sides renormalised to it."""
    if chosen.has_repeats:
        tile.p.scatter_(1, chosen.ids, 0.0)
    student, teacher = _renormalised(chosen.log_p), _renormalised(chosen.log_q)
    own_RK = student[1].clone()
    value_R, weighted_RK = _value_and_weighted(
        spec, student, teacher, None if old is None else old.logprobs.log_softmax(-1)
    )
    mean_R1 = weighted_RK.sum(-1, keepdim=True)
    return value_R, DivergenceGradient(
        base=torch.zeros_like(value_R),
        ids=chosen.ids,
        has_repeats=chosen.has_repeats,
        p_support=chosen.p,
        support=weighted_RK - own_RK * mean_R1,
    )


def top_tokens(log_p_RV: Tensor, top_k: int) -> Tensor:
    """Ids [R, K] of the most likely tokens, in no order; which of equally likely ones is not
    defined.

    A token among the K largest lies in one of the K strips of the vocabulary with the largest
    maxima: reading those strips alone is several times faster than selecting from whole rows.
    """
    rows, vocabulary = log_p_RV.shape
    strips = vocabulary // _STRIP
    if strips < _MIN_STRIPS_PER_TOKEN * top_k:
        return log_p_RV.topk(top_k, sorted=False).indices
    body = strips * _STRIP
    maxima = log_p_RV[:, :body].unflatten(1, (strips, _STRIP)).amax(-1)
    best_RK1 = maxima.topk(top_k, sorted=False).indices[:, :, None] * _STRIP
    within = torch.arange(_STRIP, device=log_p_RV.device)
    rest = torch.arange(body, vocabulary, device=log_p_RV.device).expand(rows, -1)
    candidates = torch.cat([(best_RK1 + within).flatten(1), rest], 1)
    top = log_p_RV.gather(1, candidates).topk(top_k, sorted=False)
    return candidates.gather(1, top.indices)


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


def _floored(mass_R1: Tensor) -> Tensor:
    return mass_R1.clamp_min(_FLOOR_ROOM * torch.finfo(mass_R1.dtype).tiny)


def _log(mass_R1: Tensor) -> Tensor:
    return _floored(mass_R1).log()


def _renormalised(log_p_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-masses and masses that sum to one over the support."""
    log_RK = log_p_RK.log_softmax(-1)
    return log_RK, log_RK.exp()


def _remembered_with_tail(old_log_p_RK: Tensor) -> Tensor:
    """The old policy's log-masses with those of its tail: 1 - sum, since nothing else is remembered
    of the rest of the vocabulary."""
    tail_R1 = -torch.expm1(old_log_p_RK.logsumexp(-1, keepdim=True))
    return torch.cat([old_log_p_RK, _log(tail_R1)], 1)
