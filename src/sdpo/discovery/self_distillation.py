"""Train on one task alone until it is solved: the feedback on its failures is the only signal.

Loss, teacher, optimizer and packing are those of a training run, built anew for every search; the
initial weights are put back at its end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping

import torch

from sdpo.config.schema import RunConfig
from sdpo.discovery.log import Tally
from sdpo.envs.base import reference_answers
from sdpo.errors import CanaryStop, NonFiniteLossError
from sdpo.metrics.canaries import Canaries
from sdpo.metrics.rollout_stats import rollout_metrics
from sdpo.metrics.values import Mean
from sdpo.models.device import give_back_freed_memory
from sdpo.models.weights import trainable
from sdpo.parallel import Parallel
from sdpo.records import Group, Task
from sdpo.rollouts.sampler import Sampler
from sdpo.seeds import derive
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.training.objectives import objective_spec, routing_rule
from sdpo.training.optim import Optimizer
from sdpo.training.samples import SampleBuilder
from sdpo.training.step import Updater


def self_distillation(
    sampler: Sampler,
    config: RunConfig,
    task: Task,
    *,
    seed: int,
    tally: Tally,
    initial: Mapping[str, torch.Tensor],
    watch: Callable[[Tally], None] = lambda tally: None,
) -> str | None:
    """Alternate batches of attempts and updates until solved, out of budget, or degenerate (then
    the reason is returned). `watch` sees the tally after each.

    A stage starts from the initial weights with a new teacher and optimizer. It ends with the
    search, after the attempts that follow `discover.restart_every` updates, or where a canary wants
    a rollback: the start is the only checkpoint of a search, and later stages have a frozen teacher
    and half the rate, as after a rollback in training.

    `sampler` must hold the weights `initial`, and holds them again afterwards.
    """
    sampling = sampler.sampling(config, temperature=config.rollout.temperature)
    start = time.perf_counter()

    def attempts() -> Group:
        collected = sampler.collector.collect(
            [task],
            group_size=min(config.discover.batch, tally.left),
            sampling=sampling,
            seed=derive(seed, "rollout", len(tally.made) // config.discover.batch),
        )
        group, seconds = collected.groups[0], time.perf_counter() - start
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            tally.add(rollout.text, verdict, seconds=seconds)
        watch(tally)
        return group

    stage = rollbacks = 0
    while tally.left and not tally.solved:
        stage += 1
        try:
            # Nothing here may hold on to the student: the next one needs its memory.
            rollbacks += _stage(
                attempts, _Student(sampler, config, seed, rollbacks), stage, tally, watch
            )
        except (CanaryStop, NonFiniteLossError) as error:
            return str(error)
        finally:
            restore(sampler, initial)
            # Gaps between the freed tensors would add up from stage to stage.
            give_back_freed_memory()
    return None


def _stage(
    attempts: Callable[[], Group],
    student: _Student,
    stage: int,
    tally: Tally,
    watch: Callable[[Tally], None],
) -> bool:
    """Train `student` until its stage or the search ends; whether a canary wants a rollback."""
    for step in itertools.count():
        group = attempts()
        if tally.solved or not tally.left or step == student.most_updates:
            break
        metrics = student.learn(group, len(tally.updates))
        tally.updates.append({"stage": stage, **metrics})
        watch(tally)
        if student.degenerates(step, metrics):
            return True
    return False


@torch.no_grad()
def restore(sampler: Sampler, initial: Mapping[str, torch.Tensor]) -> None:
    """Put `initial` back into the policy and tell the engine."""
    model = sampler.policy.model
    for name, parameter in trainable(model).items():
        parameter.copy_(initial[name])
        parameter.grad = None
    sampler.collector.engine.load_weights(model, 0)


class _Student:
    """Teacher, optimizer and canaries of one stage."""

    def __init__(self, sampler: Sampler, config: RunConfig, seed: int, rollbacks: int) -> None:
        self._config = config
        self._sampler = sampler
        self._seed = seed
        self.most_updates = config.discover.restart_every or None
        model = sampler.policy.model
        self._schedule = TeacherSchedule(
            config.teacher.schedule, model, keep_initial=config.objective.kl_coefficient > 0
        )
        optimizer = Optimizer(config.optim, model)
        if rollbacks:
            self._schedule.freeze(model)
            optimizer.lr_scale = 0.5**rollbacks
        self._updater = Updater(
            model,
            sampler.policy.tokenizer,
            optimizer,
            self._schedule,
            config=config.optim.model_copy(update={"updates_per_step": 1}),
            objective=config.objective,
            parallel=Parallel(),
        )
        self._builder = SampleBuilder(
            chat=sampler.chat,
            rules=config.teacher.context,
            objective=config.objective,
            rule=routing_rule(config.objective),
            reference_answer=reference_answers(sampler.env),
        )
        self._canaries = Canaries(config.canaries.action, config.canaries.patience)

    def learn(self, group: Group, step: int) -> dict[str, float]:
        """One update on `group` (a step has one task, hence one update), the `step`th of the
        search; its metrics. Raises `NonFiniteLossError`."""
        config = self._config
        groups = self._builder.with_contexts([group], seed=derive(self._seed, "context", step))
        samples = self._builder.samples(groups[0], seed=derive(self._seed, "samples", step))
        spec = objective_spec(
            config.objective,
            step=step,
            temperature=config.rollout.temperature,
            max_completion_tokens=config.rollout.max_completion_tokens,
            trust=self._schedule.trust,
        )
        result = self._updater.step([samples], spec, where=f"update {step + 1}")
        model = self._sampler.policy.model
        self._sampler.collector.engine.load_weights(model, self._updater.optimizer.num_updates)
        metrics = rollout_metrics(groups)
        metrics.merge(result.metrics)
        logprobs = [p for rollout in group.rollouts for p in rollout.sampler_logprobs]
        metrics.add("policy/entropy", Mean(-sum(logprobs), len(logprobs)))
        return metrics.reduce()

    def degenerates(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Follow the step (0-based, of the stage) with teacher and canaries; whether one of these
        wants a rollback. Raises `CanaryStop` where one stops."""
        self._schedule.after_step(
            step,
            self._sampler.policy.model,
            mean_reward=metrics["train/reward"],
            length_p90=metrics["rollouts/length_p90"],
        )
        alerts = self._canaries.observe(step + 1, metrics)
        if any(alert.action == "stop" for alert in alerts):
            raise CanaryStop("; ".join(f"{a.canary}: {a.message}" for a in alerts))
        return any(alert.action == "rollback" for alert in alerts)
