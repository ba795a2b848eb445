"""One training step: samples in, weights changed, numbers out.

Counts are taken over the whole optimizer batch before the first forward; then, window by window,
the teacher's pass and the student's micro-batches; then one update. Splitting differently changes
rounding only.
Legend: T trained tokens of a micro-batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdpo.config.objective import ObjectiveConfig, ScSdpoConfig
from sdpo.config.schema import OptimConfig
from sdpo.errors import NonFiniteLossError
from sdpo.inspection.tokens import CREDIT_ALTERNATIVES, credit_of, teacher_js
from sdpo.losses.head.logits import token_statistics, token_support
from sdpo.losses.objective import Denominators, ObjectiveResult, count_denominators, objective_loss
from sdpo.losses.specs import ObjectiveSpec
from sdpo.metrics import names
from sdpo.metrics.sampler_gap import add_sampler_gap
from sdpo.metrics.values import Last, Max, Mean, Metrics, Sum
from sdpo.models.device import finish
from sdpo.models.head import lm_head
from sdpo.models.packing import packed_hidden
from sdpo.models.structure import causal_lm
from sdpo.models.weights import is_sharded
from sdpo.parallel import Parallel
from sdpo.progress import tell
from sdpo.records import Key, Sample
from sdpo.rollouts.credit import TokenCredit
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.training.fill_batch import (
    OldPolicy,
    distill_shares,
    fill_batch,
    relative_factors,
    token_factors,
)
from sdpo.training.optim import Optimizer
from sdpo.training.targets import Targets, hidden_states, score_targets, windows
from sdpo.training.weighting import token_weighting


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What the updates of a step leave besides the weights.

    Example:
        StepResult(metrics=Metrics(), credit=[])
    """

    metrics: Metrics
    """`loss/*`, `optim/*`, `policy/*`, `teacher/*` and `time/*` of the updates."""
    credit: list[TokenCredit] = field(default_factory=list)
    """Token credit of the inspected rollouts."""
    teacher_prompt_tokens: Mapping[Key, int] = field(default_factory=dict)
    """Length of the teacher's prompt of every sample that has one."""
    teacher_s: float = 0.0
    """Seconds that this process's teacher took; `time/teacher_s` is the slowest process's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What every micro-batch of one optimizer update shares."""

    is_first: bool
    """Whether the weights are still those that sampled: the first update of a step."""
    denominators: Denominators
    share: float
    """1 / the step's updates: reported losses are means over them."""
    old: Mapping[Key, OldPolicy]
    spec: ObjectiveSpec
    where: str
    inspect: frozenset[Key]


class Updater:
    """Turns samples into optimizer updates."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        optimizer: Optimizer,
        schedule: TeacherSchedule,
        *,
        config: OptimConfig,
        objective: ObjectiveConfig,
        parallel: Parallel,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self._tokenizer = tokenizer
        self._config = config
        self._weighting = token_weighting(objective)
        self._by_success_rate = isinstance(objective, ScSdpoConfig)
        self._parallel = parallel

    def step(
        self,
        updates: Sequence[Sequence[Sample]],
        spec: ObjectiveSpec,
        *,
        where: str,
        inspect: frozenset[Key] = frozenset(),
    ) -> StepResult:
        """All updates of a step, `optim.passes` times. `updates` are this rank's samples of each
        update; `inspect` are the rollouts whose credit in the first pass is kept.

        Raises `NonFiniteLossError` naming `where` and the tasks, before the weights change.
        """
        result = StepResult(metrics=Metrics())
        for name in ("total", "distill", "pg", "kl"):
            # Present in every row, also when nothing had a gradient.
            result.metrics.add(names.loss(name), Sum(0.0))
        counted = [(part, self._denominators(part, spec)) for part in updates]
        counted = [(part, counts) for part, counts in counted if any(astuple(counts))]
        result.metrics.add(names.OPTIM_LR, Last(self.optimizer.lr))
        result.metrics.add(names.OPTIM_GRAD_NORM, Mean(0.0, 0.0 if counted else 1.0))
        passes = self._config.passes
        old = self._old_policy([part for part, _ in counted], spec)
        # A teacher that stands still during a step need not read an attempt twice.
        keeps = passes > 1 and self.schedule.weights is not None
        targets: list[Targets | None] = [None] * len(counted)
        for number, (index, (part, denominators)) in enumerate([*enumerate(counted)] * passes):
            batch = _Batch(
                is_first=number == 0,
                denominators=denominators,
                share=1.0 / (len(counted) * passes),
                spec=spec,
                old=old,
                where=where,
                inspect=inspect if number < len(counted) else frozenset(),
            )
            active = [sample for sample in part if spec.trains(sample)]
            scored = self._update(active, targets[index], batch, result)
            targets[index] = scored if keeps else None
        result.metrics.add(names.TIME_TEACHER_S, Max(result.teacher_s))
        return result

    def _score(self, active: Sequence[Sample], spec: ObjectiveSpec, result: StepResult) -> Targets:
        """What the loss compares the student with."""
        start = time.perf_counter()
        targets = score_targets(
            self.model,
            self.schedule,
            active,
            budget_tokens=self._config.micro_batch_tokens,
            spec=spec,
        )
        finish(self.model.device)
        result.teacher_s += time.perf_counter() - start
        return targets

    def _denominators(self, samples: Sequence[Sample], spec: ObjectiveSpec) -> Denominators:
        """Counts of one update over all ranks."""
        counts = count_denominators(samples, spec)
        return Denominators(*self._parallel.sum([counts.routed, counts.kl]))

    def _update(
        self, active: Sequence[Sample], scored: Targets | None, batch: _Batch, result: StepResult
    ) -> Targets | None:
        """One update, window by window. `scored` are the targets of all of `active`, where they are
        known; they come back where one window held them all."""
        spec, parallel = batch.spec, self._parallel
        parts = self._windows(active, spec)
        shares = distill_shares(active, spec, parallel, by_success_rate=self._by_success_rate)
        factors: dict[Key, torch.Tensor] = {}
        if self._weighting.is_relative and spec.distill is not None:
            for part in parts:
                scored = scored or self._score(part, spec, result)
                factors |= token_factors(part, scored, self._weighting, spec)
                scored = scored if len(parts) == 1 else None
            factors = relative_factors(factors, parallel)
        problem = ""
        done = 0
        tell("update", 0, len(active))
        for part in parts:
            scored = scored or self._score(part, spec, result)
            own = factors or token_factors(part, scored, self._weighting, spec)
            weights = {s.key: own[s.key] * shares[s.key] for s in part if s.key in own}
            problem = self._train(part, scored, weights, batch, result, done, len(active), problem)
            done += len(part)
            scored = scored if len(parts) == 1 else None
            if problem and not is_sharded(causal_lm(self.model)):
                break
        self.optimizer.finish_sums(parallel)
        # All ranks stop together; one that raised alone would leave the others waiting for it.
        if problem := next(filter(None, parallel.gather(problem)), ""):
            self.optimizer.clear()
            raise NonFiniteLossError(problem)
        result.metrics.add(names.OPTIM_LR, Last(self.optimizer.lr))
        tasks = ", ".join(dict.fromkeys(sample.task_id for sample in active))
        norm = self.optimizer.update(parallel, where=f"{batch.where}, tasks {tasks}")
        # Equal on all ranks, so the merged mean is the mean over updates.
        result.metrics.add(names.OPTIM_GRAD_NORM, Mean(norm, 1.0))
        return scored

    def _windows(self, active: Sequence[Sample], spec: ObjectiveSpec) -> list[list[Sample]]:
        """`active` in parts whose targets are kept together; as many on every rank."""
        head: Any = causal_lm(self.model).get_output_embeddings()
        parts = windows(
            active,
            spec,
            token_bytes=head.weight.shape[1] * self.model.dtype.itemsize,
            budget_tokens=self._config.micro_batch_tokens,
        )
        return parts + [[] for _ in range(max(self._parallel.gather(len(parts))) - len(parts))]

    def _train(
        self,
        part: Sequence[Sample],
        targets: Targets,
        weights: Mapping[Key, torch.Tensor],
        batch: _Batch,
        result: StepResult,
        done: int,
        total: int,
        problem: str,
    ) -> str:
        """The micro-batches of one window. Empty, or the message of a loss that is not finite:
        `problem` if an earlier window had one, after which nothing more is learnt."""
        packed = packed_hidden(
            self.model,
            part,
            lambda sample: sample.prompt_ids,
            budget_tokens=self._config.micro_batch_tokens,
        )
        with self.optimizer.accumulating():
            for chosen, hidden in packed:
                done += len(chosen)
                if done == total and not is_sharded(causal_lm(self.model)):
                    self.optimizer.begin_sums(self._parallel)
                if chosen and not problem:
                    problem = self._micro_batch(chosen, hidden, targets, weights, batch, result)
                if not chosen or problem:
                    if not is_sharded(causal_lm(self.model)):
                        break
                    # The other processes gather the layers' weights in this backward pass.
                    (hidden.sum() * 0.0).backward()
                tell("update", done, total)
        return problem

    def _micro_batch(
        self,
        samples: Sequence[Sample],
        hidden: torch.Tensor,
        targets: Targets,
        weights: Mapping[Key, torch.Tensor],
        batch: _Batch,
        result: StepResult,
    ) -> str:
        """Loss and backward of one micro-batch with its `hidden` [T, D]; gradients are added to
        the optimizer's sums. Empty, or the message of a loss that is not finite."""
        samples, hidden, columns = fill_batch(samples, hidden, targets, weights, batch.old)
        inspected = {sample.key for sample in samples} & batch.inspect
        loss = objective_loss(
            hidden,
            lm_head(self.model),
            _stack(samples, targets.teacher),
            targets.teacher_head,
            columns,
            batch.spec,
            batch.denominators,
            reference_hidden=_stack(samples, targets.reference),
            reference_head=targets.initial_head,
            trust_hidden=_stack(samples, targets.trust),
            top_n=CREDIT_ALTERNATIVES if inspected else 0,
            top_where=_rows_of(samples, inspected),
        )
        value = float(loss.loss.detach())
        if not math.isfinite(value):
            tasks = ", ".join(dict.fromkeys(sample.task_id for sample in samples))
            return (
                f"{batch.where}: the loss is {value} on tasks {tasks}; no weight was changed. "
                "Lower optim.lr, or resume from the last checkpoint"
            )
        loss.loss.backward()
        self._observe(loss, samples, batch, result.metrics)
        result.credit += credit_of(loss.tokens, samples, inspected, self._tokenizer)
        return ""

    def _observe(
        self,
        loss: ObjectiveResult,
        samples: Sequence[Sample],
        batch: _Batch,
        metrics: Metrics,
    ) -> None:
        """Add one micro-batch to the step's metrics; component losses are parts of a sum, averaged
        over the updates."""
        spec, share = batch.spec, batch.share
        for name, part in (("distill", loss.distill), ("pg", loss.pg), ("kl", loss.kl)):
            metrics.add(names.loss(name), Sum(float(part) * share))
        metrics.add(names.LOSS_TOTAL, Sum(float(loss.loss.detach()) * share))
        tokens = loss.tokens
        if batch.is_first and not (spec.pg is not None and spec.pg.kind == "sft"):
            sampled = [
                p
                for s in samples
                for p, m in zip(s.sampler_logprobs, s.loss_mask, strict=True)
                if m
            ]
            of_sampler = torch.tensor(sampled, device=tokens.student_logprob.device)
            component = spec.pg or spec.distill
            assert component is not None
            cap = component.ratio_cap
            add_sampler_gap(metrics, tokens.student_logprob, of_sampler, ratio_cap=cap)
        metrics.add(names.POLICY_ENTROPY_TRAINED, _mean(tokens.student_entropy))
        if spec.needs_initial:
            metrics.add(names.POLICY_INITIAL_KL, _mean(tokens.initial_kl))
        taught = tokens.has_teacher
        if not bool(taught.any()):
            return
        gap = (tokens.teacher_logprob - tokens.student_logprob)[taught]
        solved = torch.tensor(
            [s.advantage > 0 for s in samples for m in s.loss_mask if m], device=taught.device
        )[taught]
        metrics.add(names.POLICY_TEACHER_JS, _mean(teacher_js(tokens, spec)[taught]))
        metrics.add(names.TEACHER_ENTROPY, _mean(tokens.teacher_entropy[taught]))
        metrics.add(names.TEACHER_GAP, _mean(gap))
        metrics.add(names.TEACHER_GAP_ABOVE_AVERAGE, _mean(gap[solved]))

    @torch.no_grad()
    def _old_policy(
        self, updates: Sequence[Sequence[Sample]], spec: ObjectiveSpec
    ) -> dict[Key, OldPolicy]:
        """What the weights at the start of the step think of the samples whose loss reads it.

        The first update trains these very weights, so its ratios are 1 without a pass, unless it
        is repeated; the support of Eq. 13 must be looked up for it too.
        """
        later = updates[1:] if self._config.passes == 1 else updates
        with_logprobs = {s.key for part in later for s in part if spec.reads_old(s)}
        with_support = {
            s.key for part in updates for s in part if spec.needs_old_support and spec.is_taught(s)
        }
        read = [s for part in updates for s in part if s.key in with_logprobs | with_support]
        head = lm_head(self.model)
        old: dict[Key, OldPolicy] = {}
        budget = self._config.micro_batch_tokens
        for sample, hidden in hidden_states(self.model, read, lambda s: s.prompt_ids, budget):
            logprobs = support = None
            if sample.key in with_logprobs:
                tokens = torch.tensor(sample.trained_ids, device=hidden.device, dtype=torch.long)
                logprobs, _ = token_statistics(
                    hidden,
                    head,
                    tokens,
                    temperature=spec.temperature,
                    vocabulary=spec.vocabulary,
                )
            if sample.key in with_support:
                assert spec.distill is not None
                assert spec.distill.top_k is not None
                support = token_support(
                    hidden,
                    head,
                    spec.distill.top_k,
                    temperature=spec.temperature,
                    vocabulary=spec.vocabulary,
                )
            old[sample.key] = OldPolicy(logprobs=logprobs, support=support)
        return old


def _stack(samples: Sequence[Sample], parts: Mapping[Key, torch.Tensor]) -> torch.Tensor | None:
    """The rows of the samples that have any, in order; None when none has."""
    rows = [parts[s.key] for s in samples if s.key in parts]
    return torch.cat(rows) if rows else None


def _rows_of(samples: Sequence[Sample], chosen: Collection[Key]) -> torch.Tensor:
    """[T] whether a trained token belongs to one of the chosen samples; on the CPU."""
    return torch.tensor([s.key in chosen for s in samples for m in s.loss_mask if m])


def _mean(values: torch.Tensor) -> Mean:
    return Mean(float(values.sum(dtype=torch.float64)), float(values.numel()))
