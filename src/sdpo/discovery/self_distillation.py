"""Train on one task alone until it is solved: the feedback on its failures is the only signal.

A search learns with the same learner as a training run. It starts from the initial weights, and
they are put back when it ends.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from sdpo.config.schema import RunConfig
from sdpo.discovery.log import Tally
from sdpo.errors import CanaryStop, NonFiniteLossError
from sdpo.metrics.canaries import Alert, Canaries
from sdpo.metrics.rollout_stats import rollout_metrics
from sdpo.models.device import give_back_freed_memory
from sdpo.records import Group, Task
from sdpo.rollouts.sampler import Sampler
from sdpo.rollouts.together import Together
from sdpo.seeds import derive
from sdpo.training.learner import Learner


def self_distillation(
    sampler: Sampler,
    config: RunConfig,
    task: Task,
    *,
    seed: int,
    tally: Tally,
    initial: Mapping[str, torch.Tensor],
    watch: Callable[[Tally], None] = lambda tally: None,
    together: Together,
) -> str | None:
    """Alternate batches of attempts and updates until the task is solved, the budget is spent, or
    training degenerates; the last is what is returned, in words. `watch` sees the tally after each
    batch and each update.

    A stage starts from the initial weights with a new self-teacher and optimizer. It ends with the
    search, after the attempts that follow `discover.restart_every` updates, or where a canary asks
    for a rollback. The initial weights are the only checkpoint of a search, so a rollback starts a
    new stage; from then on the teacher is frozen and the learning rate halved, as in training.

    `sampler` must hold the weights `initial`, and holds them again afterwards.
    """
    search = _Search(sampler, config, task, seed, tally, watch, together)
    rollbacks = 0
    for number in itertools.count(1):
        if not tally.left or tally.solved:
            break
        try:
            # Nothing here may hold on to the stage's learner: the next one needs its memory.
            rollbacks += search.stage(number, rollbacks, initial)
        except (CanaryStop, NonFiniteLossError) as error:
            return str(error)
        finally:
            # Gaps between the freed tensors would add up from stage to stage.
            give_back_freed_memory()
    return None


class _Search:
    """The attempts and the stages of one search."""

    def __init__(
        self,
        sampler: Sampler,
        config: RunConfig,
        task: Task,
        seed: int,
        tally: Tally,
        watch: Callable[[Tally], None],
        together: Together,
    ) -> None:
        self._sampler = sampler
        self._config = config
        self._task = task
        self._seed = seed
        self._tally = tally
        self._watch = watch
        self._together = together
        self._start = time.perf_counter()

    def stage(self, number: int, rollbacks: int, initial: Mapping[str, torch.Tensor]) -> bool:
        """Learn from the weights `initial` until the stage or the search ends, and put them back;
        whether a canary asks for a rollback. Raises `CanaryStop` and `NonFiniteLossError`."""
        config, tally = self._config, self._tally
        learner = Learner(
            self._sampler,
            config,
            seed=self._seed,
            step=len(tally.updates),
            parallel=self._together.parallel,
        )
        learner.slow_down(rollbacks)
        try:
            asks_for_rollback = self._learn(learner, number)
        except BaseException:
            learner.restore(initial)
            raise
        self._together.parallel.agreed(lambda: learner.restore(initial))
        return asks_for_rollback

    def _learn(self, learner: Learner, stage: int) -> bool:
        """As `stage`, which is the number of that, without putting the weights back."""
        config, tally = self._config, self._tally
        canaries = Canaries(config.canaries.action, config.canaries.patience)
        most_updates = config.discover.restart_every or math.inf
        num_updates = 0
        while True:
            group = self._attempts()
            if tally.solved or not tally.left or num_updates == most_updates:
                return False
            metrics = _update(learner, group)
            num_updates += 1
            tally.updates.append({"stage": stage, **metrics})
            self._watch(tally)
            learner.follow(metrics)
            if _asks_for_rollback(canaries.observe(num_updates, metrics)):
                return True

    def _attempts(self) -> Group:
        """The next batch of judged attempts, counted in the tally."""
        config, tally = self._config, self._tally
        batch = config.discover.batch
        count = min(batch, tally.left)
        collected = self._together.collect(
            self._sampler.collector,
            [self._task],
            group_size=count,
            sampling=self._sampler.sampling(config, temperature=config.rollout.temperature),
            seed=derive(self._seed, "rollout", tally.num_sampled // batch),
        )
        group, seconds = collected.groups[0], time.perf_counter() - self._start
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            tally.add(rollout, verdict, seconds=seconds)
        tally.num_unjudged += count - len(group.rollouts)
        self._watch(tally)
        return group


def _update(learner: Learner, group: Group) -> dict[str, float]:
    """One update on `group`; its metrics. A step of a search has one task, hence one update."""
    groups = learner.with_contexts([group])
    losses = learner.update(learner.samples(groups))
    learner.publish()
    metrics = rollout_metrics(groups)
    metrics.merge(losses.metrics)
    return metrics.reduce()


def _asks_for_rollback(alerts: Sequence[Alert]) -> bool:
    """Whether one of `alerts` asks for a rollback. Raises `CanaryStop` where one asks for a
    stop."""
    if any(alert.action == "stop" for alert in alerts):
        raise CanaryStop("; ".join(f"{a.canary}: {a.message}" for a in alerts))
    return any(alert.action == "rollback" for alert in alerts)
