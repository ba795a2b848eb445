"""The teacher's side of an update: hidden states of every attempt under its teacher context,
without a graph.

Legend: R trained completion tokens of one sample, D hidden size. Kept per sample in the compute
type, R x D numbers each, until the samples that were scored with it are trained: so the student's
micro-batches need not match the teacher's. An update's samples are scored and trained window by
window, whose states take `KEPT_BYTES`: for 256 attempts of 8,192 tokens at D = 4096 in bfloat16 all
of them would take 17 GB. Logits are never made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from sdpo.losses.head.logits import LmHead, token_statistics
from sdpo.losses.specs import ObjectiveSpec
from sdpo.models.head import head_of, lm_head
from sdpo.models.packing import most_of_all, packed_hidden
from sdpo.models.weights import applied
from sdpo.progress import tell
from sdpo.records import Key, Sample
from sdpo.teacher.schedule import TeacherSchedule

KEPT_BYTES = 1 << 30
"""Hidden states that are kept at once, of the teacher and of the initial model. Whole updates of
small models fit; a window of a large one is still several packs of the teacher's."""
BUDGET_WITHOUT_GRAPH = 4
"""Micro-batches without a graph are this many times the student's: a layer's activations are freed
after it, and larger ones keep the contexts that share a task together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Hidden states per sample and the heads they belong to.

    Example:
        Targets(teacher={("clamp", 0): hidden_RD}, teacher_head=head, trust={}, reference={},
        initial_head=None, negatives={})
    """

    teacher: dict[Key, torch.Tensor]
    """Teacher's hidden states [R, D] of distilled samples."""
    teacher_head: LmHead
    trust: dict[Key, torch.Tensor]
    """Initial model's hidden states in the teacher's context, or in the student's prompt; empty
    unless the target mixes with them."""
    reference: dict[Key, torch.Tensor]
    """Initial model's hidden states in the student's own prompt; empty without a KL to it."""
    initial_head: LmHead | None
    """Of the initial model when `trust` or `reference` need it."""
    negatives: dict[Key, torch.Tensor]
    """[R, K] log-probs of the sampled tokens under K wrong demonstrations; empty unless
    contrasted."""


def windows(
    samples: Sequence[Sample], spec: ObjectiveSpec, *, token_bytes: int, budget_tokens: int
) -> list[list[Sample]]:
    """`samples` in order, cut where the states that `score_targets` keeps would exceed
    `KEPT_BYTES`, but not below a micro-batch of `budget_tokens`. `token_bytes` are those of one
    token's hidden state."""
    states = 1 + (spec.trust is not None) + spec.needs_initial
    most = max(KEPT_BYTES // (token_bytes * states), budget_tokens)
    parts: list[list[Sample]] = [[]]
    held = 0
    for sample in samples:
        if parts[-1] and held + sample.num_trained > most:
            parts.append([])
            held = 0
        parts[-1].append(sample)
        held += sample.num_trained
    return parts


@torch.no_grad()
def score_targets(
    model: PreTrainedModel,
    schedule: TeacherSchedule,
    samples: Sequence[Sample],
    *,
    budget_tokens: int,
    spec: ObjectiveSpec,
) -> Targets:
    """What the loss compares the student with, for `samples`, all of which train. Only taught
    samples (`ObjectiveSpec.is_taught`) have a teacher entry."""
    taught = [s for s in samples if spec.is_taught(s)]
    read = [s.as_taught for s in taught]

    def hidden(
        chosen: Sequence[Sample], prompt: Callable[[Sample], tuple[int, ...]]
    ) -> dict[Key, torch.Tensor]:
        states = hidden_states(model, chosen, prompt, budget_tokens)
        return {sample.key: rows for sample, rows in states}

    with applied(model, schedule.weights):
        teacher: dict[Key, torch.Tensor] = {}
        tell("teacher", 0, len(read))
        for sample, rows in hidden_states(
            model, read, lambda s: s.teacher_prompt_ids or (), budget_tokens
        ):
            teacher[sample.key] = rows
            tell("teacher", len(teacher), len(read))
        negatives = _negatives(model, samples, budget_tokens, spec)
    trust: dict[Key, torch.Tensor] = {}
    reference: dict[Key, torch.Tensor] = {}
    needs_initial = spec.trust is not None or spec.needs_initial
    if needs_initial:
        assert schedule.initial is not None
        with applied(model, schedule.initial):
            if spec.needs_initial:
                reference = hidden(samples, lambda s: s.prompt_ids)
            if spec.trust is not None and spec.trust_prompt == "teacher":
                trust = hidden(read, lambda s: s.teacher_prompt_ids or ())
            elif spec.trust is not None and spec.needs_initial:
                trust = {s.key: reference[s.key] for s in taught}
            elif spec.trust is not None:
                trust = hidden(taught, lambda s: s.prompt_ids)
    return Targets(
        teacher=teacher,
        teacher_head=head_of(model, schedule.weights),
        trust=trust,
        reference=reference,
        initial_head=head_of(model, schedule.initial) if needs_initial else None,
        negatives=negatives,
    )


def hidden_states(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    prompt: Callable[[Sample], tuple[int, ...]],
    budget_tokens: int,
) -> Iterator[tuple[Sample, torch.Tensor]]:
    """Each sample with its hidden states [R, D] after `prompt`, in packs of a few times the
    student's `budget_tokens`. Gradients must be off."""
    budget = budget_tokens * BUDGET_WITHOUT_GRAPH
    for packed, rows in packed_hidden(model, samples, prompt, budget_tokens=budget):
        yield from zip(packed, rows.split([s.num_trained for s in packed]), strict=True)


def _negatives(
    model: PreTrainedModel, samples: Sequence[Sample], budget_tokens: int, spec: ObjectiveSpec
) -> dict[Key, torch.Tensor]:
    """Log-probs of the sampled tokens after each wrong demonstration, [R, K] per sample that has
    any."""
    columns: dict[Key, list[torch.Tensor]] = {}
    head = lm_head(model)
    most = max((len(s.negative_prompt_ids) for s in samples), default=0)
    for k in range(most_of_all(model, most)):
        chosen = [s for s in samples if len(s.negative_prompt_ids) > k]
        states = hidden_states(
            model, chosen, lambda s, k=k: s.negative_prompt_ids[k], budget_tokens
        )
        for sample, rows in states:
            tokens = torch.tensor(sample.trained_ids, device=model.device, dtype=torch.long)
            logprob, _ = token_statistics(
                rows, head, tokens, temperature=spec.temperature, vocabulary=spec.vocabulary
            )
            columns.setdefault(sample.key, []).append(logprob)
    return {key: torch.stack(parts, dim=1) for key, parts in columns.items()}
