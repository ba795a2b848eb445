"""Attempts that are written down already, as the tokens that the policy would have sampled.

Nobody knows the probabilities with which they were drawn (NaN), so the loss corrects nothing for
them: the teacher's distribution is learnt after prefixes that are not the policy's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sdpo.chat import Chat
from sdpo.engines.base import Completion, Sampling
from sdpo.envs.base import Env, Recorded
from sdpo.envs.episodes import Opening, Replying
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Task


def recorded_ids(
    env: Env, chat: Chat, tasks: Sequence[Task], group_size: int, sampling: Sampling
) -> dict[str, tuple[int, ...]]:
    """Task id to the tokens of its recorded attempt, the end of turn included, for those of `tasks`
    that have one. Raises `ConfigError` for groups of several, and `TaskError` for an attempt that
    is longer than a sampled one could be."""
    if not isinstance(env, Recorded):
        return {}
    assert not isinstance(env, Opening | Replying), "a conversation cannot be recorded as one text"
    found = {}
    for task in tasks:
        text = env.recorded(task)
        if text is None:
            continue
        # Special tokens in it would end the turn where its writer did not.
        ids = (*chat.text_ids(chat.inert(text)), chat.end_of_turn_id)
        if len(ids) > sampling.max_new_tokens:
            raise TaskError(
                f"task {task.id!r}: its recorded attempt has {len(ids)} tokens, more than "
                f"rollout.max_completion_tokens = {sampling.max_new_tokens}; raise it, or leave "
                "the row out"
            )
        found[task.id] = ids
    if found and group_size != 1:
        raise ConfigError(
            f"task {next(iter(found))!r} has one attempt, which is recorded, and {group_size} are "
            "asked for: set rollout.group_size = 1"
        )
    return found


def as_completion(token_ids: tuple[int, ...]) -> Completion:
    """A completion of which it is not known how likely it was."""
    return Completion(token_ids=token_ids, logprobs=(math.nan,) * len(token_ids), truncated=False)
