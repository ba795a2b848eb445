"""Samples of a micro-batch as the per-token columns that the objective reads.

Legend: T trained tokens of the micro-batch, R those with a teacher, K wrong demonstrations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sdpo.config.objective import (
    EntropyWeightingConfig,
    ObjectiveConfig,
    PositionWeightingConfig,
    ScSdpoConfig,
)
from sdpo.losses.head.logits import token_statistics
from sdpo.losses.head.support import OldSupport
from sdpo.losses.specs import ObjectiveSpec
from sdpo.losses.token_batch import TokenBatch
from sdpo.losses.weighting import entropy_weights, position_weights, success_rate_weights
from sdpo.parallel import Parallel
from sdpo.records import Key, Sample, is_distill_fed, key_of
from sdpo.training.targets import Targets, trained_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class OldPolicy:
    """What the weights at the start of the step thought of one sample.

    Example:
        OldPolicy(logprobs=logprobs_T, support=None)
    """

    logprobs: torch.Tensor
    """[T]."""
    support: OldSupport | None
    """Only for the logit-level surrogate (Eq. 13)."""


def token_batch(
    samples: Sequence[Sample],
    targets: Targets,
    weights: Mapping[Key, torch.Tensor],
    old: Mapping[Key, OldPolicy],
    device: torch.device,
) -> TokenBatch:
    """The columns of `samples`, sample after sample."""
    counts = [sum(s.loss_mask) for s in samples]
    lengths = torch.tensor(counts, device=device)

    def spread(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=device, dtype=torch.float32).repeat_interleave(lengths)

    has_teacher = torch.tensor([key_of(s) in targets.teacher for s in samples], device=device)
    distill = [
        weights[key_of(s)] if key_of(s) in weights else torch.zeros(count, device=device)
        for s, count in zip(samples, counts, strict=True)
    ]
    olds = [old[key_of(s)] for s in samples] if old else []
    return TokenBatch(
        targets=torch.cat([trained_tokens(s, device) for s in samples]),
        sampler_logprobs=torch.tensor(
            [p for s in samples for p, m in zip(s.sampler_logprobs, s.loss_mask, strict=True) if m],
            device=device,
        ),
        advantages=spread([s.advantage for s in samples]),
        distill_weights=torch.cat(distill),
        pg_weights=spread([s.component_weights.get("pg", 0.0) for s in samples]),
        sequence_ids=torch.arange(len(samples), device=device).repeat_interleave(lengths),
        old_logprobs=torch.cat([o.logprobs for o in olds]) if olds else None,
        old_support=_join([o.support for o in olds]),
        teacher_rows=has_teacher.repeat_interleave(lengths).nonzero()[:, 0],
        negative_teacher_logprobs=_negatives(samples, counts, targets, device),
        sequence_lengths=lengths.repeat_interleave(lengths),
    )


def distill_weights(
    samples: Sequence[Sample],
    targets: Targets,
    objective: ObjectiveConfig,
    spec: ObjectiveSpec,
    parallel: Parallel,
) -> dict[Key, torch.Tensor]:
    """Routing x weighting of every distilled sample's tokens, [T_i] each, undivided.

    Weightings that are relative to the batch's mean are normalised here over all ranks, before the
    first forward.
    """
    distilled = [s for s in samples if is_distill_fed(s)]
    if spec.distill is None:
        return {}
    device = targets.teacher_head.device
    factors = [torch.ones(sum(s.loss_mask), device=device) for s in distilled]
    match getattr(objective, "weighting", None):
        case PositionWeightingConfig(w_min=w_min, tau=tau, s=s):
            factors = [
                position_weights(len(f), w_min=w_min, tau=tau, s=s, device=device) for f in factors
            ]
        case EntropyWeightingConfig(beta=beta):
            entropies = [_teacher_entropy(s, targets, spec) for s in distilled]
            factors = entropy_weights(entropies, beta=beta, reduce=parallel.sum)
    rates = [1.0] * len(distilled)
    if isinstance(objective, ScSdpoConfig):
        rates = success_rate_weights(
            [s.solved_rate for s in distilled],
            [float(sum(s.loss_mask)) for s in distilled],
            reduce=parallel.sum,
        )
    return {
        key_of(s): factor * (s.component_weights["distill"] * rate)
        for s, factor, rate in zip(distilled, factors, rates, strict=True)
    }


def _teacher_entropy(sample: Sample, targets: Targets, spec: ObjectiveSpec) -> torch.Tensor:
    """[T_i] entropy of the target distribution, the trust region's mixture included."""
    key = key_of(sample)
    trust = spec.distill.trust if spec.distill is not None else None
    return token_statistics(
        targets.teacher[key],
        targets.teacher_head,
        trained_tokens(sample, targets.teacher_head.device),
        temperature=spec.temperature,
        reference_hidden=targets.trust.get(key),
        reference_head=targets.initial_head if trust is not None else None,
        trust=trust,
    )[1].float()


def _negatives(
    samples: Sequence[Sample], counts: Sequence[int], targets: Targets, device: torch.device
) -> torch.Tensor | None:
    """[T, K] padded with NaN where a sample has fewer wrong demonstrations."""
    width = max((t.shape[1] for t in targets.negatives.values()), default=0)
    if not width:
        return None
    rows = []
    for sample, count in zip(samples, counts, strict=True):
        row = torch.full((count, width), torch.nan, device=device)
        found = targets.negatives.get(key_of(sample))
        if found is not None:
            row[:, : found.shape[1]] = found
        rows.append(row)
    return torch.cat(rows)


def _join(supports: Sequence[OldSupport | None]) -> OldSupport | None:
    known = [s for s in supports if s is not None]
    if not known:
        return None
    return OldSupport(
        ids=torch.cat([s.ids for s in known]), logprobs=torch.cat([s.logprobs for s in known])
    )
