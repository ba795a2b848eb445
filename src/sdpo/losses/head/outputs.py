"""What the pass over the head keeps of every token, and the most likely tokens of student and
teacher for people to read.

Legend: T tokens of a micro-batch, R tokens of a tile, V vocabulary, N kept alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class TopTokens(NamedTuple):
    """The most likely tokens of one side at each position, with both sides' log-probabilities; [T,
    N] each."""

    ids: Tensor
    student_logprobs: Tensor
    teacher_logprobs: Tensor
    """NaN for tokens without a teacher."""


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
    student_top: TopTokens | None = None
    teacher_top: TopTokens | None = None

    @property
    def has_teacher(self) -> Tensor:
        """[T] bool."""
        return ~self.teacher_logprob.isnan()


NormalisedLogits = tuple[Tensor | None, Tensor | float | None]
"""Logits [R, V] of one side and what to subtract from them to get log-probabilities."""


def fill_top_tokens(
    tops: Sequence[TopTokens | None],
    rows: slice,
    student: NormalisedLogits,
    teacher: NormalisedLogits,
    wanted_T: Tensor | None,
) -> None:
    """Write the likeliest tokens of student and teacher at `rows` into `tops` (student's,
    teacher's); with `wanted_T` only where it is true."""
    places_R = torch.arange(rows.start, rows.stop)
    if wanted_T is not None:
        places_R = places_R[wanted_T[rows]]
    if tops[0] is None or not len(places_R):
        return
    own_R = places_R - rows.start
    student, teacher = _chosen(student, own_R), _chosen(teacher, own_R)
    for (own_RV, _), top in zip((student, teacher), tops, strict=True):
        if own_RV is None or top is None:
            continue
        ids_RN = own_RV.topk(top.ids.shape[1]).indices
        places = places_R.to(ids_RN.device)
        top.ids[places] = ids_RN
        for (logits_RV, normaliser), logprobs in (
            (student, top.student_logprobs),
            (teacher, top.teacher_logprobs),
        ):
            if logits_RV is not None and normaliser is not None:
                logprobs[places] = logits_RV.gather(1, ids_RN) - normaliser


def _chosen(side: NormalisedLogits, rows_R: Tensor) -> NormalisedLogits:
    """`side` at some rows; itself, without a copy, at all of them."""
    logits_RV, normaliser = side
    if logits_RV is None or len(rows_R) == len(logits_RV):
        return side
    rows_R = rows_R.to(logits_RV.device)
    return logits_RV[rows_R], normaliser[rows_R] if isinstance(normaliser, Tensor) else normaliser
