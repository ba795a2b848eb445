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
from sdpo.records import Key, Sample
from sdpo.training.targets import Targets


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
    counts = [s.num_trained for s in samples]
    lengths = torch.tensor(counts, device=device)

    def spread(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, device=device, dtype=torch.float32).repeat_interleave(lengths)

    has_teacher = torch.tensor([s.key in targets.teacher for s in samples], device=device)
    distill = [
        weights[s.key] if s.key in weights else torch.zeros(count, device=device)
        for s, count in zip(samples, counts, strict=True)
    ]
    olds = [old[s.key] for s in samples] if old else []
    return TokenBatch(
        targets=torch.tensor(
            [t for s in samples for t in s.trained_ids], device=device, dtype=torch.long
        ),
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
    distilled = [s for s in samples if s.is_distilled]
    if spec.distill is None:
        return {}
    device = targets.teacher_head.device
    factors = [torch.ones(s.num_trained, device=device) for s in distilled]
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
            [float(s.num_trained) for s in distilled],
            reduce=parallel.sum,
        )
    return {
        s.key: factor * (s.component_weights["distill"] * rate)
        for s, factor, rate in zip(distilled, factors, rates, strict=True)
    }


def _teacher_entropy(sample: Sample, targets: Targets, spec: ObjectiveSpec) -> torch.Tensor:
    """[T_i] entropy of the target distribution, the trust region's mixture included."""
    key = sample.key
    trust = spec.distill.trust if spec.distill is not None else None
    return token_statistics(
        targets.teacher[key],
        targets.teacher_head,
        torch.tensor(sample.trained_ids, device=targets.teacher_head.device, dtype=torch.long),
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
        found = targets.negatives.get(sample.key)
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
