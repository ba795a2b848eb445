"""Groups and teacher contexts to samples: token ids for student and teacher, credit and routing. The last file before tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import islice

from sdpo.chat import Chat
from sdpo.config.objective import Objective, Rlcsd
from sdpo.config.schema import Context
from sdpo.losses.advantages import group_advantages
from sdpo.losses.routing import Rule, route
from sdpo.records import Group, Rollout, Sample, TeacherContext
from sdpo.teacher.context import teacher_contexts


def build_samples(
    group: Group,
    contexts: Sequence[TeacherContext],
    chat: Chat,
    rule: Rule,
    *,
    divide_by_std: bool = False,
    negatives: Sequence[Sequence[TeacherContext]] | None = None,
) -> list[Sample]:
    """One `Sample` per rollout, in order. `negatives` are contexts with wrong demonstrations per rollout (RLCSD)."""
    advantages = group_advantages(group.rewards, divide_by_std=divide_by_std)
    routes = route(group, contexts, rule)
    wrong = negatives or [()] * len(contexts)
    return [
        _sample(rollout, context, chat, advantage, weights, wrong_contexts)
        for rollout, context, advantage, weights, wrong_contexts in zip(
            group.rollouts, contexts, advantages, routes, wrong, strict=True
        )
    ]


def _sample(
    rollout: Rollout,
    context: TeacherContext,
    chat: Chat,
    advantage: float,
    weights: Mapping[str, float],
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
        negative_prompt_ids=tuple(
            chat.prompt_ids(negative.messages)
            for negative in negatives
            if negative.messages is not None
        ),
        advantage=advantage,
        component_weights=dict(weights),
    )


def flatten_turns(
    rollout: Rollout,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...], tuple[float, ...]]:
    """First prompt, everything after it, which of that was sampled, and the sampler's log-probs (0 where not sampled).

    The environment's tokens between turns are part of the completion, seen by attention and never trained on.
    """
    if not rollout.turns:
        count = len(rollout.completion_ids)
        return rollout.prompt_ids, rollout.completion_ids, (True,) * count, rollout.sampler_logprobs
    first = rollout.turns[0]
    start = len(first.prompt_ids)
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    for turn in rollout.turns:
        between = turn.prompt_ids[start + len(ids) :]
        ids += [*between, *turn.completion_ids]
        mask += [False] * len(between) + [True] * len(turn.completion_ids)
        logprobs += [0.0] * len(between) + list(turn.sampler_logprobs)
    return first.prompt_ids, tuple(ids), tuple(mask), tuple(logprobs)


def negative_contexts(
    group: Group, objective: Objective, rules: Context, rng: random.Random, chat: Chat
) -> list[list[TeacherContext]] | None:
    """For RLCSD: per rollout up to `num_negatives` contexts that show a failed sibling as if it were right; else None."""
    if not isinstance(objective, Rlcsd):
        return None
    failed = [i for i, verdict in enumerate(group.verdicts) if not verdict.solved]
    rng.shuffle(failed)
    contexts: list[list[TeacherContext]] = []
    for index in range(len(group.rollouts)):
        chosen = islice((i for i in failed if i != index), objective.num_negatives)
        contexts.append([_pretend_solved(group, index, wrong, rules, chat) for wrong in chosen])
    return contexts


def _pretend_solved(
    group: Group, index: int, wrong: int, rules: Context, chat: Chat
) -> TeacherContext:
    """Context of rollout `index` with the failed rollout `wrong` in the place of a demonstration."""
    verdict = group.verdicts[wrong]
    pair = Group(
        task=group.task,
        rollouts=(group.rollouts[index], group.rollouts[wrong]),
        verdicts=(
            type(verdict)(reward=0.0, solved=False),
            type(verdict)(reward=1.0, solved=True),
        ),
    )
    return teacher_contexts(
        pair,
        rules,
        random.Random(0),
        lambda messages: len(chat.prompt_ids(messages)),
        strip_thinking=chat.as_content,
    )[0]
