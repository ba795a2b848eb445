"""The most likely tokens of student and teacher at each position, kept for people to read.

Legend: T rows of a micro-batch, R rows of a block, V vocabulary, N kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Scores = tuple[Tensor | None, Tensor | float | None]
"""Logits [R, V] of one side and what to subtract from them to get log-probabilities."""


class Alternatives(NamedTuple):
    """The most likely tokens of one side at each position, with both sides' log-probabilities; [T,
    N] each."""

    ids: Tensor
    student_logprobs: Tensor
    teacher_logprobs: Tensor
    """NaN for rows without a teacher."""


def fill_alternatives(
    tops: Sequence[Alternatives | None],
    rows: slice,
    student: Scores,
    teacher: Scores,
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


def _chosen(side: Scores, rows_R: Tensor) -> Scores:
    """`side` at some rows; itself, without a copy, at all of them."""
    logits_RV, normaliser = side
    if logits_RV is None or len(rows_R) == len(logits_RV):
        return side
    rows_R = rows_R.to(logits_RV.device)
    return logits_RV[rows_R], normaliser[rows_R] if isinstance(normaliser, Tensor) else normaliser
