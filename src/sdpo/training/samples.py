"""Groups to samples: teacher contexts, then token ids for student and teacher, credit and routing.
The last file before tensors."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from sdpo.chat import Chat
from sdpo.config.objective import DistillingConfig, ObjectiveConfig, RlcsdConfig
from sdpo.config.teacher import AnyContextConfig, ContextConfig
from sdpo.losses.advantages import group_advantages
from sdpo.losses.routing import Rule, route
from sdpo.objectives import divides_by_std, reads_contexts
from sdpo.records import (
    Component,
    Group,
    Key,
    Rollout,
    Sample,
    Task,
    TeacherContext,
    Turn,
    Verdict,
)
from sdpo.rollouts.episodes import flatten_turns
from sdpo.seeds import derive
from sdpo.teacher.context import Reading, teacher_contexts

NOT_USED = "not_distilled"
"""Reason of a context that could be built and that the objective does not read: what is recorded
is what the loss used."""

NO_CONTEXT = TeacherContext(messages=None, reason="no_teacher")
"""The context of a rollout that no teacher reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleBuilder:
    """How groups become contexts and samples.

    Example:
        SampleBuilder(chat=chat, rules=config.teacher.context, objective=config.objective,
        rule=rule, reference_answer=reference_answers(env))
    """

    chat: Chat
    rules: AnyContextConfig
    objective: ObjectiveConfig
    rule: Rule
    reference_answer: Callable[[Task], str | None]
    """The task's own solution where the environment has one (`Solving`)."""

    def with_contexts(self, groups: Sequence[Group], *, seed: int) -> list[Group]:
        """`groups` with what the teacher reads for every rollout; `NO_CONTEXT` for all of them
        when the objective has no teacher. A context that the objective does not read is left out,
        with `NOT_USED` as its reason."""
        if not reads_contexts(self.objective):
            return [without_teacher(group) for group in groups]
        made = [
            replace(
                group,
                contexts=tuple(
                    teacher_contexts(
                        group,
                        self.rules,
                        random.Random(derive(seed, group.task.id)),
                        Reading.of(self.chat),
                        others=groups,
                        reference=self.reference_answer(group.task),
                    )
                ),
            )
            for group in groups
        ]
        if not isinstance(self.objective, DistillingConfig):
            return made  # token credit and `sft` read every context
        return [self._used_only(group) for group in made]

    def _used_only(self, group: Group) -> Group:
        unused = TeacherContext(messages=None, reason=NOT_USED)
        return replace(
            group,
            contexts=tuple(
                unused if context.messages is not None and "distill" not in fed else context
                for context, fed in zip(group.contexts, route(group, self.rule), strict=True)
            ),
        )

    def samples(self, group: Group, *, seed: int) -> list[Sample]:
        """One `Sample` per rollout of a group that has its contexts, in order."""
        advantages = group_advantages(group.rewards, divide_by_std=divides_by_std(self.objective))
        routes = route(group, self.rule)
        rng = random.Random(derive(seed, group.task.id))
        negatives = self._negative_contexts(group, rng)
        return [
            replace(
                _sample(rollout, context, self.chat, advantage, weights, wrong),
                is_solved=verdict.solved,
                solved_rate=group.solved_rate,
                is_flat=len(set(group.rewards)) == 1,
            )
            for rollout, verdict, context, advantage, weights, wrong in zip(
                group.rollouts,
                group.verdicts,
                group.contexts,
                advantages,
                routes,
                negatives,
                strict=True,
            )
        ]

    def _negative_contexts(self, group: Group, rng: random.Random) -> list[list[TeacherContext]]:
        """For RLCSD: per rollout up to `num_negatives` contexts that show a failed sibling as if it
        were right."""
        if not isinstance(self.objective, RlcsdConfig):
            return [[] for _ in group.rollouts]
        failed = [i for i, verdict in enumerate(group.verdicts) if not verdict.solved]
        rng.shuffle(failed)
        return [
            [
                self._pretend_solved(group, index, wrong)
                for wrong in islice((i for i in failed if i != index), self.objective.num_negatives)
            ]
            for index in range(len(group.rollouts))
        ]

    def _pretend_solved(self, group: Group, index: int, wrong: int) -> TeacherContext:
        """Context of rollout `index` with the failed rollout `wrong` in the place of a
        demonstration."""
        pair = Group(
            task=group.task,
            rollouts=(group.rollouts[index], group.rollouts[wrong]),
            verdicts=(Verdict(reward=0.0, solved=False), Verdict(reward=1.0, solved=True)),
        )
        rules = self.rules
        if isinstance(rules, ContextConfig):
            rules = rules.model_copy(update={"demonstration": "random", "control": "none"})
        return teacher_contexts(pair, rules, random.Random(0), Reading.of(self.chat))[0]


def without_teacher(group: Group) -> Group:
    """`group` with `NO_CONTEXT` for every rollout."""
    return replace(group, contexts=(NO_CONTEXT,) * len(group.rollouts))


def unread_note(groups: Sequence[Group], objective: str) -> str | None:
    """A line about failed attempts with feedback which the objective leaves without a teacher
    although there could be one; None where there are none."""
    unread = sum(
        context.reason == NOT_USED and not verdict.solved and bool((verdict.feedback or "").strip())
        for group in groups
        for context, verdict in zip(group.contexts, group.verdicts, strict=True)
    )
    if not unread:
        return None
    return (
        f"objective.type = {objective!r} does not learn from feedback alone: no teacher reads what "
        f"the judge wrote to {unread} failed attempts; objective.type=sdpo or hybrid distils it "
        "(`sdpo check --probe` says whether that would help)"
    )


def teacher_prompt_tokens(samples: Sequence[Sequence[Sample]]) -> dict[Key, int]:
    """Length of the teacher's prompt of every sample that has one."""
    return {
        s.key: len(s.teacher_prompt_ids)
        for part in samples
        for s in part
        if s.teacher_prompt_ids is not None
    }


def _sample(
    rollout: Rollout,
    context: TeacherContext,
    chat: Chat,
    advantage: float,
    weights: Mapping[Component, float],
    negatives: Sequence[TeacherContext],
) -> Sample:
    prompt_ids, completion_ids, loss_mask, logprobs = flatten_turns(rollout)
    return Sample(
        task_id=rollout.task_id,
        index=rollout.index,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        loss_mask=loss_mask,
        sampler_logprobs=logprobs,
        teacher_prompt_ids=None if context.messages is None else chat.prompt_ids(context.messages),
        teacher_completion=_teacher_completion(rollout, context, chat),
        negative_prompt_ids=tuple(
            chat.prompt_ids(negative.messages)
            for negative in negatives
            if negative.messages is not None
        ),
        advantage=advantage,
        component_weights={str(name): factor for name, factor in weights.items()},
    )


def _teacher_completion(
    rollout: Rollout, context: TeacherContext, chat: Chat
) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
    """Everything after the first prompt, and which of that was sampled, with what the teacher reads
    between turns; None where it reads what the student read."""
    if not any(context.before_turns):
        return None
    ids: list[int] = []
    mask: list[bool] = []
    previous: Turn | None = None
    for turn, said in zip(rollout.turns, context.before_turns, strict=True):
        if previous is not None:
            read = len(previous.prompt_ids) + len(previous.completion_ids)
            between = turn.prompt_ids[read:]
            if said is not None:
                *replies, last = previous.reply
                shown = {**last, "content": f"{last['content']}\n\n{said}"}
                ended = previous.completion_ids[-1] in chat.stop_ids
                between = chat.reply_ids([*replies, shown], ended=ended)
            ids += between
            mask += [False] * len(between)
        ids += turn.completion_ids
        mask += [True] * len(turn.completion_ids)
        previous = turn
    return tuple(ids), tuple(mask)
