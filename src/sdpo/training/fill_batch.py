"""Samples of a micro-batch as the per-token columns that the objective reads: made here once, in
the order and the type that the loss takes them.

Legend: T trained tokens of the micro-batch, D hidden size, N wrong demonstrations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from sdpo.kernels.dtypes import math_dtype
from sdpo.losses.head.logits import token_statistics
from sdpo.losses.specs import ObjectiveSpec
from sdpo.losses.token_batch import OldSupport, TokenBatch
from sdpo.losses.weighting import (
    TaughtTokens,
    TokenWeighting,
    over_mean,
    success_rate_weights,
)
from sdpo.parallel import Parallel
from sdpo.records import Key, Sample
from sdpo.training.targets import Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class OldPolicy:
    """What the weights at the start of the step thought of one sample, as far as its loss reads it.

    Example:
        OldPolicy(logprobs=logprobs_T)
    """

    logprobs: torch.Tensor | None = None
    """[T], where `ObjectiveSpec.reads_old`."""
    support: OldSupport | None = None
    """For the surrogate per logit (Eq. 13), of samples that have a teacher."""


def fill_batch(
    samples: Sequence[Sample],
    hidden_TD: torch.Tensor,
    targets: Targets,
    weights: Mapping[Key, torch.Tensor],
    old: Mapping[Key, OldPolicy],
) -> tuple[list[Sample], torch.Tensor, TokenBatch]:
    """`samples` with their hidden states and their columns, sample after sample. Those that have a
    teacher come first, so that a chunk of the head has a teacher or has none."""
    samples, hidden_TD = _teacher_first(samples, hidden_TD, targets.teacher)
    device = hidden_TD.device
    counts = [s.num_trained for s in samples]
    lengths = torch.tensor(counts, device=device)
    dtype = math_dtype(targets.teacher_head.dtype)

    def spread(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=device, dtype=dtype).repeat_interleave(lengths)

    is_taught = [s.key in targets.teacher for s in samples]
    distill = [
        weights[s.key] if s.key in weights else torch.zeros(count, device=device)
        for s, count in zip(samples, counts, strict=True)
    ]
    olds = [old.get(s.key, OldPolicy()) for s in samples]
    batch = TokenBatch(
        num_taught=sum(count for count, taught in zip(counts, is_taught, strict=True) if taught),
        targets=torch.tensor(
            [t for s in samples for t in s.trained_ids], device=device, dtype=torch.long
        ),
        sampler_logprobs=torch.tensor(
            [p for s in samples for p, m in zip(s.sampler_logprobs, s.loss_mask, strict=True) if m],
            device=device,
            dtype=dtype,
        ),
        advantages=spread([s.advantage for s in samples]),
        distill_weights=torch.cat(distill).to(dtype),
        pg_weights=spread([s.component_weights.get("pg", 0.0) for s in samples]),
        sequence_ids=torch.arange(len(samples), device=device).repeat_interleave(lengths),
        sequence_lengths=lengths.repeat_interleave(lengths),
        verdicts=spread([1.0 if s.is_solved else -1.0 for s in samples]),
        old_logprobs=_old_logprobs(olds, counts, device, dtype),
        negative_teacher_logprobs=_negatives(samples, counts, targets, dtype),
        old_support=_join([o.support for o in olds]),
    )
    return samples, hidden_TD, batch


def _teacher_first(
    samples: Sequence[Sample], hidden_TD: torch.Tensor, teacher: Collection[Key]
) -> tuple[list[Sample], torch.Tensor]:
    order = sorted(range(len(samples)), key=lambda i: samples[i].key not in teacher)
    if order == list(range(len(samples))):
        return list(samples), hidden_TD
    parts = hidden_TD.split([s.num_trained for s in samples])
    return [samples[i] for i in order], torch.cat([parts[i] for i in order])


def token_factors(
    samples: Sequence[Sample], targets: Targets, weighting: TokenWeighting, spec: ObjectiveSpec
) -> dict[Key, torch.Tensor]:
    """How strongly `weighting` counts every distilled sample's tokens, [T_i] each, not yet over
    their mean where only ratios count."""
    if spec.distill is None:
        return {}
    return {s.key: weighting.weigh(_taught(s, targets, spec)) for s in samples if s.is_distilled}


def relative_factors(
    factors: Mapping[Key, torch.Tensor], parallel: Parallel
) -> dict[Key, torch.Tensor]:
    """`factors` of a whole update over their mean over all ranks; taken before the first
    forward."""
    return dict(zip(factors, over_mean(list(factors.values()), parallel.sum), strict=True))


def distill_shares(
    samples: Sequence[Sample], spec: ObjectiveSpec, parallel: Parallel, *, by_success_rate: bool
) -> dict[Key, float]:
    """Routing of every distilled sample of an update, undivided; `by_success_rate` weighs tasks too
    (SC-SDPO), relative to all ranks."""
    if spec.distill is None:
        return {}
    distilled = [s for s in samples if s.is_distilled]
    rates = [1.0] * len(distilled)
    if by_success_rate:
        rates = success_rate_weights(
            [s.solved_rate for s in distilled],
            [float(s.num_trained) for s in distilled],
            reduce=parallel.sum,
        )
    return {
        s.key: s.component_weights["distill"] * rate
        for s, rate in zip(distilled, rates, strict=True)
    }


def _taught(sample: Sample, targets: Targets, spec: ObjectiveSpec) -> TaughtTokens:
    """`sample` with the target distribution's numbers, the trust region's mixture included."""
    key, device = sample.key, targets.teacher_head.device
    trust = spec.distill.trust if spec.distill is not None else None

    def score() -> tuple[torch.Tensor, torch.Tensor]:
        return token_statistics(
            targets.teacher[key],
            targets.teacher_head,
            torch.tensor(sample.trained_ids, device=device, dtype=torch.long),
            temperature=spec.temperature,
            vocabulary=spec.vocabulary,
            reference_hidden=targets.trust.get(key),
            reference_head=targets.initial_head if trust is not None else None,
            trust=trust,
        )

    return TaughtTokens(sample=sample, device=device, score=score)


def _negatives(
    samples: Sequence[Sample], counts: Sequence[int], targets: Targets, dtype: torch.dtype
) -> torch.Tensor | None:
    """[T, N] padded with NaN where a sample has fewer wrong demonstrations."""
    width = max((t.shape[1] for t in targets.negatives.values()), default=0)
    if not width:
        return None
    rows = []
    for sample, count in zip(samples, counts, strict=True):
        row = torch.full((count, width), torch.nan, device=targets.teacher_head.device, dtype=dtype)
        found = targets.negatives.get(sample.key)
        if found is not None:
            row[:, : found.shape[1]] = found
        rows.append(row)
    return torch.cat(rows)


def _old_logprobs(
    olds: Sequence[OldPolicy], counts: Sequence[int], device: torch.device, dtype: torch.dtype
) -> torch.Tensor | None:
    """[T], 0 for samples that nobody reads it of; None where nobody reads any."""
    if all(old.logprobs is None for old in olds):
        return None
    return torch.cat(
        [
            torch.zeros(count, device=device, dtype=dtype)
            if old.logprobs is None
            else old.logprobs.to(dtype)
            for old, count in zip(olds, counts, strict=True)
        ]
    )


def _join(supports: Sequence[OldSupport | None]) -> OldSupport | None:
    known = [s for s in supports if s is not None]
    if not known:
        return None
    return OldSupport(
        ids=torch.cat([s.ids for s in known]), logprobs=torch.cat([s.logprobs for s in known])
    )
