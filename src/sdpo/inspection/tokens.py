"""Per-token outputs of the fused pass as numbers for people: the token credit of single rollouts,
and how far the teacher is from the student."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from sdpo.losses.head.outputs import TokenOutputs, TopTokens
from sdpo.losses.specs import ObjectiveSpec
from sdpo.records import Key, Sample
from sdpo.rollouts.credit import TokenCredit

T = TypeVar("T")

MAX_GAP = 20.0
"""Bound of the gap inside an exponential; tokens beyond it are far from the teacher in any case."""


def teacher_js(tokens: TokenOutputs, spec: ObjectiveSpec) -> torch.Tensor:
    """Jensen-Shannon divergence between student and teacher per token, [T], nats.

    Exact over the support when that is what is optimised; otherwise the one-sample estimate f(q/p)
    at the sampled token, f(r) = (log(2/(1+r)) + r log(2r/(1+r))) / 2. It is never negative, and it
    is cut at log 2, the most that the divergence can be: unbiased but for the cut, without which
    one token that the student hardly ever says outweighs a whole step.
    """
    distill = spec.distill
    if distill is None or (distill.divergence == "jsd" and distill.beta == 0.5):
        return tokens.divergence
    gap = (tokens.teacher_logprob - tokens.student_logprob).clamp(-MAX_GAP, MAX_GAP)
    log_mean = torch.logaddexp(gap, torch.zeros_like(gap)) - math.log(2)
    return (((gap - log_mean) * gap.exp() - log_mean) / 2).clamp(max=math.log(2))


def choose_inspected(compared: Sequence[Sample], count: int, *, seed: int) -> frozenset[Key]:
    """Keys of the samples whose credit is kept: a seeded choice of `count` (all when there are
    fewer) of those the teacher is compared with."""
    chosen = random.Random(seed).sample(compared, min(count, len(compared)))
    return frozenset(sample.key for sample in chosen)


def credit_of(
    tokens: TokenOutputs,
    samples: Sequence[Sample],
    inspected: set[Key],
    tokenizer: PreTrainedTokenizerBase,
) -> list[TokenCredit]:
    """Token credit of the `inspected` samples that have a teacher, from the pass over all
    `samples`."""
    kept = []
    start = 0
    for sample in samples:
        rows = slice(start, start + sample.num_trained)
        start = rows.stop
        if sample.key in inspected and bool(tokens.has_teacher[rows].all()):
            kept.append(_credit(tokens, rows, sample, tokenizer))
    return kept


def _credit(
    tokens: TokenOutputs, rows: slice, sample: Sample, tokenizer: PreTrainedTokenizerBase
) -> TokenCredit:
    ids, trained = sample.completion_ids, sample.loss_mask
    student_top = _spread(_alternatives(tokens.student_top, rows, of_teacher=False), trained, ())
    teacher_top = _spread(_alternatives(tokens.teacher_top, rows, of_teacher=True), trained, ())
    shown = set(ids).union(*({t for t, _ in top} for top in (*student_top, *teacher_top)))
    return TokenCredit(
        task_id=sample.task_id,
        index=sample.index,
        token_ids=ids,
        student_logprobs=_spread(tokens.student_logprob[rows].tolist(), trained, 0.0),
        teacher_logprobs=_spread(tokens.teacher_logprob[rows].tolist(), trained, 0.0),
        student_entropies=_spread(tokens.student_entropy[rows].tolist(), trained, 0.0),
        teacher_entropies=_spread(tokens.teacher_entropy[rows].tolist(), trained, 0.0),
        student_top=student_top,
        teacher_top=teacher_top,
        texts={token: str(tokenizer.decode([token])) for token in shown},
        advantage=sample.advantage,
        trained=None if all(trained) else trained,
    )


def _spread(values: Sequence[T], trained: Sequence[bool], other: T) -> tuple[T, ...]:
    """`values` of the tokens that train, in their places; `other` for the environment's tokens.
    Without any values there are none to place."""
    if not values:
        return ()
    left = iter(values)
    return tuple(next(left) if trains else other for trains in trained)


def _alternatives(
    top: TopTokens | None, rows: slice, *, of_teacher: bool
) -> tuple[tuple[tuple[int, float], ...], ...]:
    """(token id, log-prob) per position, likeliest first, log-probs of the side the list belongs
    to."""
    if top is None:
        return ()
    logprobs = top.teacher_logprobs if of_teacher else top.student_logprobs
    return tuple(
        tuple(zip(ids, values, strict=True))
        for ids, values in zip(top.ids[rows].tolist(), logprobs[rows].tolist(), strict=True)
    )


CREDIT_ALTERNATIVES = 5
"""Most likely tokens of student and teacher kept per position of an inspected rollout."""
