"""Attempts of the self-teacher itself: what the off-policy baseline of Table 5 (`sft`) trains on.

The self-teacher answers once in every teacher context; the environment judges the answer as it
judges any attempt; solved ones are learnt by likelihood after the task's own prompt, which is all
the policy will see. The policy's own attempts only make the contexts. They alone are recorded and
counted in `rollouts_total`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdpo.config.objective import SftConfig
from sdpo.config.schema import RunConfig
from sdpo.config.teacher import TrustRegionConfig
from sdpo.engines.base import Sampling
from sdpo.errors import ConfigError
from sdpo.metrics.values import Mean
from sdpo.models.weights import applied
from sdpo.parallel import Parallel
from sdpo.records import Group
from sdpo.rollouts.sampler import Sampler
from sdpo.teacher.schedule import TeacherSchedule
from sdpo.training.samples import without_teacher


def check_can_sample(config: RunConfig) -> None:
    """Raises `ConfigError` when the objective needs samples of a self-teacher that has none."""
    if not isinstance(config.objective, SftConfig):
        return
    if isinstance(config.teacher.schedule, TrustRegionConfig):
        raise ConfigError(
            "objective.type = 'sft' samples from the self-teacher, and the geometric mean of "
            "teacher.schedule.type = 'trust_region' is no model to sample from; "
            "take 'ema' or 'live'"
        )
    if config.rollout.max_turns > 1:
        raise ConfigError(
            "objective.type = 'sft' samples one turn from the self-teacher: "
            "set rollout.max_turns = 1"
        )


def solved_by_self_teacher(
    sampler: Sampler,
    schedule: TeacherSchedule,
    parallel: Parallel,
    groups: Sequence[Group],
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[list[Group], Mean]:
    """The self-teacher's solved attempts, one at most per teacher context, of all ranks in the
    groups' order, and which share of its attempts was solved.

    Groups without any are left out. The engine is left with the self-teacher's weights: publish
    the policy's before it samples again.
    """
    model, engine = sampler.policy.model, sampler.collector.engine
    with applied(model, schedule.weights):
        if schedule.weights is not None:
            engine.load_weights(model, engine.policy_version)
        own = sampler.collector.collect_in_contexts(
            parallel.share(groups), sampling=sampling, seed=seed
        )
    judged = parallel.gather_shares(own)
    share = Mean.of(verdict.solved for group in judged for verdict in group.verdicts)
    return [solved for group in judged if (solved := _solved(group)).rollouts], share


def _solved(group: Group) -> Group:
    """`group` without attempts that failed."""
    kept = [index for index, verdict in enumerate(group.verdicts) if verdict.solved]
    return without_teacher(
        replace(
            group,
            rollouts=tuple(group.rollouts[index] for index in kept),
            verdicts=tuple(group.verdicts[index] for index in kept),
        )
    )
