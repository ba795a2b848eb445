"""One step of learning, from judged groups to weights that the engine samples from.

    groups = learner.with_contexts(groups)     what the self-teacher reads for every rollout
    samples = learner.samples(groups)          tokens, credit and routing; this rank's share
    losses = learner.update(samples)           weights change
    learner.follow(metrics)                    the self-teacher follows; the step is over
    learner.publish()                          the engine samples from the new weights

Training and test-time search both learn through this file, and no other file hands weights to an
engine. It samples nothing of the policy, keeps no records and decides nothing about a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from transformers import PreTrainedModel

from sdpo.config.objective import SftConfig
from sdpo.config.schema import OptimConfig, RunConfig
from sdpo.config.teacher import NoGateConfig, ProbeGateConfig
from sdpo.engines.base import Sleeping
from sdpo.envs.base import reference_answers
from sdpo.errors import ConfigError, NonFiniteLossError
from sdpo.inspection.tokens import choose_inspected
from sdpo.losses.specs import ObjectiveSpec
from sdpo.metrics import names
from sdpo.metrics.values import Mean, Metrics
from sdpo.models.hidden import enable_checkpointing
from sdpo.models.qualify import check_trainable
from sdpo.models.shard_files import Layout
from sdpo.models.sharding import Shards
from sdpo.models.weights import Weights, applied, trainable
from sdpo.objectives import mixes_with_initial, objective_spec, routing_rule
from sdpo.parallel import Parallel
from sdpo.records import Group, Sample
from sdpo.rollouts.sampler import Sampler
from sdpo.rollouts.together import Together
from sdpo.seeds import derive
from sdpo.teacher.context import for_own_answers
from sdpo.teacher.gate import keep_reliable, probe_rounds
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.training.optim import Optimizer
from sdpo.training.samples import SampleBuilder, teacher_prompt_tokens
from sdpo.training.self_teacher import solved_only
from sdpo.training.step import StepResult, Updater

LR_FACTOR = 0.5
"""Factor on the learning rate at each rollback."""

_ALONE = Parallel()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSamples:
    """What one step trains on.

    Example:
        StepSamples(updates=[[sample]], metrics=Metrics())
    """

    updates: Sequence[Sequence[Sample]]
    """This rank's samples of each optimizer update, in order."""
    metrics: Metrics
    """What was observed while making them, on all ranks: `teacher/solved` for `sft`."""


class Learner:
    """A policy with its self-teacher and optimizer, and the engine that samples from it."""

    def __init__(
        self,
        sampler: Sampler,
        config: RunConfig,
        *,
        seed: int,
        step: int = 0,
        num_inspected: int = 0,
        parallel: Parallel = _ALONE,
        shards: Shards | None = None,
    ) -> None:
        """Takes the weights `sampler` holds as the initial ones. `num_inspected` is the number of
        rollouts of a step, over all ranks, whose token credit is kept. With `shards` of its model
        they train in its place."""
        self.step = step
        """Steps completed; with `seed` it decides the random numbers of the next."""
        self.shards = shards
        self.model = sampler.policy.model if shards is None else shards.model
        """What trains. Engine, probes and checkpoints read the sampler's, which holds the same
        weights except during an update."""
        self.optimizer = Optimizer(config.optim, self.model)
        keep_initial = config.objective.kl_coefficient > 0 or mixes_with_initial(config.objective)
        self.schedule = TeacherSchedule(
            config.teacher.schedule, self.model, keep_initial=keep_initial
        )
        self._num_updates_followed = 0
        """Updates that the self-teacher has followed."""
        self._sampler = sampler
        self._config = config
        self._seed = seed
        self._num_inspected = num_inspected
        self._parallel = parallel
        self._builder = SampleBuilder(
            chat=sampler.chat,
            rules=for_own_answers(config.teacher.context)
            if isinstance(config.objective, SftConfig)
            else config.teacher.context,
            objective=config.objective,
            rule=routing_rule(config.objective),
            reference_answer=reference_answers(sampler.env),
        )
        self._updater = Updater(
            self.model,
            sampler.policy.tokenizer,
            self.optimizer,
            self.schedule,
            config=config.optim,
            objective=config.objective,
            parallel=parallel,
        )

    def with_contexts(self, groups: Sequence[Group]) -> list[Group]:
        """`groups` from all ranks, each with what the self-teacher reads for its rollouts, of tasks
        that `teacher.gate` lets it teach. Raises `PromptTooLongError` when a task alone exceeds the
        teacher's budget."""
        seed = self._derived("context")
        made = self._builder.with_contexts(groups, seed=seed)
        gate = self._config.teacher.gate
        match gate:
            case NoGateConfig():
                return made
            case ProbeGateConfig():
                rules = for_own_answers(self._config.teacher.context)
                asked = replace(self._builder, rules=rules).with_contexts(groups, seed=seed)
                return keep_reliable(made, self._probed(asked, gate.attempts), gate)
            case _:
                assert_never(gate)

    def _probed(self, groups: Sequence[Group], attempts: int) -> dict[str, list[bool]]:
        """Which of its answers to each task the self-teacher solved, `attempts` of them."""
        solved: dict[str, list[bool]] = {}
        for number, asked in enumerate(probe_rounds(groups, attempts, seed=self._derived("gate"))):
            for answers in self._sample_teacher(asked, f"gate {number}"):
                outcomes = [verdict.solved for verdict in answers.verdicts]
                solved.setdefault(answers.task.id, []).extend(outcomes)
        return solved

    def samples(self, groups: Sequence[Group]) -> StepSamples:
        """The samples of `groups` from all ranks, which have their contexts; for `sft` those of
        the attempts that the self-teacher makes and solves in these contexts.

        Groups are dealt out to updates first and to ranks second, so that what an update sees does
        not depend on the number of ranks. An update with fewer groups than ranks is shared by
        rollouts, so that no rank is idle; otherwise groups stay whole, since their rollouts share
        a prompt that is computed once.
        """
        metrics = Metrics()
        if isinstance(self._config.objective, SftConfig):
            attempts = self._sample_teacher(groups, "teacher")
            solved = [verdict.solved for group in attempts for verdict in group.verdicts]
            metrics.add(names.TEACHER_SOLVED, Mean.of(solved))
            groups = solved_only(attempts)
        updates = self._parallel.agreed(lambda: self._shares(groups))
        return StepSamples(updates=updates, metrics=metrics)

    def _shares(self, groups: Sequence[Group]) -> list[list[Sample]]:
        """This rank's samples of every update."""
        count = self._config.optim.updates_per_step
        seed = self._derived("samples")
        return [self._share_of(groups[number::count], seed) for number in range(count)]

    def _share_of(self, groups: Sequence[Group], seed: int) -> list[Sample]:
        """This rank's samples of one update."""
        has_enough = len(groups) >= self._parallel.world_size
        samples = [
            sample
            for group in (self._parallel.share(groups) if has_enough else groups)
            for sample in self._builder.samples(group, seed=seed)
        ]
        return samples if has_enough else self._parallel.share(samples)

    def update(self, samples: StepSamples) -> StepResult:
        """Train on `samples`; losses and credit of all ranks. The engine gets the weights by
        `publish`.

        Raises `NonFiniteLossError`, naming the tasks, before the weights change.
        """
        engine = self._sampler.collector.engine
        if isinstance(engine, Sleeping):
            self._parallel.agreed(engine.sleep)
        spec = self._spec()
        inspected = choose_inspected(
            [s for part in samples.updates for s in part if spec.is_taught(s)],
            len(self._parallel.share(range(self._num_inspected))),
            seed=self._derived("credit"),
        )
        if self.shards is not None:
            self.shards.empty()
        try:
            result = self._updater.step(
                samples.updates, spec, where=f"step {self.step + 1}", inspect=inspected
            )
        except NonFiniteLossError:
            # Raised on every rank alike; whoever owns the model finds its weights as they were.
            if self.shards is not None:
                self.shards.fill()
            raise
        result.metrics.merge(samples.metrics)
        gather = self._parallel.gather
        lengths: dict[tuple[str, int], int] = {}
        for part in gather(teacher_prompt_tokens(samples.updates)):
            lengths |= part
        return StepResult(
            metrics=Metrics.merged(gather(result.metrics.state())),
            credit=[credit for part in gather(result.credit) for credit in part],
            teacher_prompt_tokens=lengths,
        )

    def follow(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """End the step: the self-teacher follows the policy as its schedule says, which may depend
        on the step's `metrics`; `teacher/refreshed` is 1 when it was replaced by the policy."""
        refreshed = self.schedule.after_step(
            self.model,
            self.optimizer.masters,
            metrics,
            has_moved=self.is_within_step,
        )
        self._num_updates_followed = self.optimizer.num_updates
        self.optimizer.num_steps += 1
        self.step += 1
        return {names.TEACHER_REFRESHED: float(refreshed)}

    def publish(self) -> None:
        """Let the engine sample from the current weights, under the number of updates so far."""
        self._publish(self.optimizer.num_updates)

    @property
    def is_within_step(self) -> bool:
        """Whether weights have changed since the last step ended."""
        return self.optimizer.num_updates != self._num_updates_followed

    @property
    def layout(self) -> Layout | None:
        """Which tensors of `state` are parts of which sharded parameters; None if all are
        whole."""
        if self.shards is None or not self.shards.trained:
            return None
        return Layout(parameters=self.shards.trained, order=self.optimizer.order)

    def state(self) -> dict[str, Any]:
        """Everything exact resume needs besides the weights themselves."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state(),
            "schedule": self.schedule.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`, whose weights the model already has, and publish them."""
        self.step = state["step"]
        self.optimizer.load_state(state["optimizer"])
        self.schedule.load_state(state["schedule"])
        self._num_updates_followed = self.optimizer.num_updates
        self.publish()

    def roll_back(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier `state()`, whose weights the model already has, but
        slower. Steps and updates count on: weights that differ must never share a policy
        version."""
        step, scale, updates = self.step, self.optimizer.lr_scale, self.optimizer.num_updates
        self.optimizer.load_state(state["optimizer"])
        self.schedule.load_state(state["schedule"])
        self.step, self.optimizer.lr_scale = step, scale
        self.optimizer.num_updates = self._num_updates_followed = updates + 1
        self.slow_down(1)
        self.publish()

    def slow_down(self, rollbacks: int) -> None:
        """Learn as after `rollbacks` more rollbacks: half the rate for each, and from the first on
        a self-teacher that stays as it is."""
        if rollbacks:
            self.optimizer.lr_scale *= LR_FACTOR**rollbacks
            self.schedule.freeze(self.model)

    @torch.no_grad()
    def restore(self, initial: Weights) -> None:
        """Put `initial` back into the policy and publish it as version 0. The optimizer and the
        self-teacher are not reset: the next search makes a new learner."""
        for name, parameter in trainable(self.model).items():
            parameter.copy_(initial[name])
        self.optimizer.clear()
        # Alone: after an error the other ranks may not be here.
        self._sampler.collector.engine.load_weights(self._sampler.policy.model, 0)

    def _sample_teacher(self, groups: Sequence[Group], purpose: str) -> list[Group]:
        """One judged attempt of the self-teacher in each of its contexts, from all ranks; random
        numbers are derived for `purpose`. Leaves its weights in the engine; `update` publishes the
        policy's."""
        collector = self._sampler.collector
        with applied(self.model, self.schedule.weights):
            if self.schedule.weights is not None:
                self._publish(collector.engine.policy_version)
            return Together(parallel=self._parallel).collect_in_contexts(
                collector,
                groups,
                sampling=self._sampler.sampling(
                    self._config, temperature=self._config.rollout.temperature
                ),
                seed=self._derived(purpose),
            )

    def _spec(self) -> ObjectiveSpec:
        rollout = self._config.rollout
        return objective_spec(
            self._config.objective,
            step=self.step,
            temperature=rollout.temperature,
            max_completion_tokens=rollout.max_completion_tokens,
            trust=self.schedule.trust,
            vocabulary=self._sampler.vocabulary,
        )

    def _derived(self, purpose: str) -> int:
        return derive(self._seed, purpose, self.step)

    def _publish(self, version: int) -> None:
        if self.shards is not None:
            self.shards.fill()
        engine, model = self._sampler.collector.engine, self._sampler.policy.model
        self._parallel.agreed(lambda: engine.load_weights(model, version))


def make_trainable(model: PreTrainedModel, optim: OptimConfig) -> None:
    """Prepare `model` for updates, once: activations are recomputed where `optim` asks for it.
    Raises `ModelError` for a model that cannot be trained, or where nothing can be recomputed,
    `ConfigError` where nothing can be moved to the CPU."""
    check_trainable(model)
    check_offload(model.device, optim)
    if optim.gradient_checkpointing:
        enable_checkpointing(model)


def check_offload(device: torch.device, optim: OptimConfig) -> None:
    """Raises `ConfigError` for `optim.offload` on a CPU."""
    if optim.offload and device.type == "cpu":
        raise ConfigError(
            "optim.offload = true moves optimizer state to the CPU's memory, and the model is on "
            "the CPU already: set optim.offload = false"
        )
