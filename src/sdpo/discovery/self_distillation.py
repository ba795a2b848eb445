"""Train on one task alone until it is solved: the feedback on its failures is the only signal.

Loss, teacher, optimizer and packing are those of a training run, built anew for every search; the
initial weights are put back at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from sdpo.config.schema import RunConfig
from sdpo.discovery.attempts import Tally
from sdpo.errors import NonFiniteLossError
from sdpo.metrics.canaries import Canaries
from sdpo.metrics.rollout_stats import rollout_metrics
from sdpo.metrics.values import Mean
from sdpo.records import Group, Task
from sdpo.seeds import derive
from sdpo.teacher.schedule import TeacherSchedule, trainable
from sdpo.training.assemble import Sampler
from sdpo.training.objectives import objective_spec, routing_rule
from sdpo.training.optim import Optimizer
from sdpo.training.parallel import Parallel
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

    `sampler` must hold the weights `initial`, and holds them again afterwards.
    """
    sampling = sampler.sampling(config, temperature=config.rollout.temperature)
    start = time.perf_counter()
    student = _Student(sampler, config, seed)
    step = 0
    try:
        while tally.left and not tally.solved:
            collected = sampler.collector.collect(
                [task],
                group_size=min(config.discover.batch, tally.left),
                sampling=sampling,
                seed=derive(seed, "rollout", step),
            )
            group, seconds = collected.groups[0], time.perf_counter() - start
            for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
                tally.add(rollout.text, verdict, seconds=seconds)
            watch(tally)
            if tally.left and not tally.solved:
                reason = student.learn(group, step, tally)
                watch(tally)
                if reason is not None:
                    return reason
            step += 1
    finally:
        restore(sampler, initial)
    return None


@torch.no_grad()
def restore(sampler: Sampler, initial: Mapping[str, torch.Tensor]) -> None:
    """Put `initial` back into the policy and tell the engine."""
    model = sampler.policy.model
    for name, parameter in trainable(model).items():
        parameter.copy_(initial[name])
        parameter.grad = None
    sampler.collector.engine.load_weights(model, 0)


class _Student:
    """Teacher, optimizer and canaries of one search."""

    def __init__(self, sampler: Sampler, config: RunConfig, seed: int) -> None:
        self._config = config
        self._sampler = sampler
        self._seed = seed
        model = sampler.policy.model
        self._schedule = TeacherSchedule(
            config.teacher.schedule, model, keep_initial=config.objective.kl_coefficient > 0
        )
        self._updater = Updater(
            model,
            sampler.policy.tokenizer,
            Optimizer(config.optim, model),
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
        )
        self._canaries = Canaries(config.canaries.action, config.canaries.patience)

    def learn(self, group: Group, step: int, tally: Tally) -> str | None:
        """One update on `group` (a step has one task, hence one update), whose metrics `tally`
        keeps; why to stop, or None."""
        config = self._config
        contexts = self._builder.contexts([group], seed=derive(self._seed, "context", step))
        samples = self._builder.samples(
            group, contexts[0], seed=derive(self._seed, "samples", step)
        )
        spec = objective_spec(
            config.objective,
            step=step,
            temperature=config.rollout.temperature,
            max_completion_tokens=config.rollout.max_completion_tokens,
            trust=self._schedule.trust,
        )
        try:
            result = self._updater.step([samples], spec, where=f"step {step + 1}")
        except NonFiniteLossError as error:
            return str(error)
        model = self._sampler.policy.model
        self._sampler.collector.engine.load_weights(model, self._updater.optimizer.num_updates)
        metrics = rollout_metrics([group], contexts)
        metrics.merge(result.metrics)
        logprobs = [p for rollout in group.rollouts for p in rollout.sampler_logprobs]
        metrics.add("policy/entropy", Mean(-sum(logprobs), len(logprobs)))
        row = metrics.reduce()
        tally.updates.append(row)
        self._schedule.after_step(
            step,
            model,
            mean_reward=row["train/reward"],
            length_p90=row["rollouts/length_p90"],
        )
        alerts = self._canaries.observe(step + 1, row)
        # There is nothing to roll back to but the start, so `rollback` ends the search too.
        serious = [alert for alert in alerts if alert.action != "warn"]
        return "; ".join(f"{a.canary}: {a.message}" for a in serious) or None
