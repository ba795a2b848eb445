"""Attempts that are conversations: what an environment offers for them, and what it may answer.

    open(task, attempt) -> Episode      one object per attempt, with the attempt's own state
    reply(task, turns)  -> messages     the stateless form: the next messages from all turns so far

`rollouts/episodes.py` plays both. Nothing here samples; a reply is checked like a verdict.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from sdpo.envs.verdicts import Judgement, as_verdict, shown
from sdpo.errors import JudgeError
from sdpo.records import Message, Reply, Rollout, Task, Turn, Verdict

MAX_TURNS = 8
"""Completions of an attempt at most, where `sdpo.env` is not told another number."""
ROLES = ("user", "tool")
"""Whom an environment may speak as."""
_TEXTS = ("content", "name", "tool_call_id")
"""Keys of a message besides its role, all strings."""

Answer = Reply | Message | str | Sequence[Message | str] | None
"""What a step may return: a `Reply`, a message, its text (said by the user), several of them, or
None to end the conversation."""


class Episode(Protocol):
    """One attempt's side of the conversation. Methods may be plain functions instead: those are
    called in threads, different ones, but never two at once."""

    async def step(self, turn: Turn) -> Answer:
        """The answer to the policy's `turn`; None, or a `Reply` without messages, ends the attempt.

        Every turn comes here, the last one and one that was cut off (`turn.truncated`) too; what
        the policy cannot answer any more is dropped. `Unjudged` means "not now": the same turn
        comes again, `env.retries` times at most.
        """
        ...

    async def verdict(self) -> Judgement:
        """The judgement of the whole attempt, after its last step."""
        ...

    async def close(self) -> None:
        """Free what the attempt holds; always called, also after errors and interrupts."""
        ...


@runtime_checkable
class Opening(Protocol):
    """An environment whose attempts have state."""

    def open(self, task: Task, attempt: int) -> Any:
        """A new `Episode` for the attempt of this number at `task`; awaitable where `open` is
        async. Called in a thread."""
        ...


@runtime_checkable
class Replying(Protocol):
    """An environment whose attempts are conversations without state of their own."""

    def reply(self, task: Task, turns: Sequence[Turn]) -> Answer | Awaitable[Answer]:
        """The answer that continues the conversation after `turns`; None ends it."""
        ...


@runtime_checkable
class Limiting(Protocol):
    """An environment that knows how many turns an attempt needs."""

    @property
    def max_turns(self) -> int:
        """Completions of an attempt at most; `rollout.max_turns` may say another number."""
        ...


@runtime_checkable
class Equipping(Protocol):
    """An environment with tools, which the chat template shows to the model."""

    @property
    def tools(self) -> Sequence[Any]:
        """JSON schemas, or functions with type hints and a Google-style docstring."""
        ...


def as_reply(found: Any, task: Task) -> Reply | None:
    """The reply that a step's answer stands for; see `Answer`. Raises `JudgeError` naming the part
    that a model could not be shown."""
    if found is None:
        return None
    if not isinstance(found, Reply):
        found = Reply(messages=(found,) if isinstance(found, str | Mapping) else found)
    if not isinstance(found.messages, Sequence) or isinstance(found.messages, str | bytes):
        raise _refused(task, f"{shown(found.messages)} where messages belong")
    if found.reward is not None and not (
        isinstance(found.reward, Real) and math.isfinite(found.reward)
    ):
        raise _refused(task, f"reward = {found.reward!r}, which must be a finite number or None")
    if found.feedback is not None and not isinstance(found.feedback, str):
        raise _refused(task, f"feedback = {shown(found.feedback)}, which must be a string or None")
    return Reply(
        messages=tuple(_as_message(message, task) for message in found.messages),
        reward=None if found.reward is None else float(found.reward),
        feedback=found.feedback if found.feedback and found.feedback.strip() else None,
    )


def _as_message(message: Any, task: Task) -> Message:
    if isinstance(message, str):
        message = {"role": "user", "content": message}
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise _refused(task, f"{shown(message)}; a message has role {' or '.join(ROLES)}")
    unknown = message.keys() - {"role", *_TEXTS}
    if unknown:
        raise _refused(task, f"a message with {sorted(map(str, unknown))}; it has role, content")
    for key in ("content", *(key for key in _TEXTS if key in message)):
        if not isinstance(message.get(key), str):
            raise _refused(task, f"a message whose {key} is {shown(message.get(key))}, no string")
    return dict(message)


def _refused(task: Task, what: str) -> JudgeError:
    return JudgeError(
        f"replying in task {task.id!r} returned {what}; return None, a string, a message such as "
        "{'role': 'user', 'content': '...'}, a list of them, or a Reply"
    )


class GivenEpisode:
    """An episode of the user's, whose verdict may be anything that stands for one and which need
    not have `close`."""

    def __init__(self, episode: Any, task: Task, solved_at: float) -> None:
        for method in ("step", "verdict"):
            if not callable(getattr(episode, method, None)):
                raise JudgeError(
                    f"env(episode=...) made {shown(episode)} for task {task.id!r}, which has no "
                    f"{method}(); an episode has step(turn) and verdict(), and may have close()"
                )
        self.step: Callable[[Turn], Any] = episode.step
        self.close: Callable[[], Any] = getattr(episode, "close", _nothing)
        self._episode = episode
        self._task = task
        self._solved_at = solved_at

    def verdict(self) -> Verdict | Awaitable[Verdict]:
        """The episode's judgement as `as_verdict` reads it; awaitable where it is."""
        found = self._episode.verdict()
        if inspect.isawaitable(found):
            return self._awaited(found)
        return as_verdict(found, self._task, solved_at=self._solved_at)

    async def _awaited(self, found: Awaitable[Any]) -> Verdict:
        return as_verdict(await found, self._task, solved_at=self._solved_at)


async def _nothing() -> None:
    """The `close` of an episode that holds nothing."""


async def replay(env: Opening, task: Task, rollout: Rollout) -> Verdict:
    """The verdict of a new episode that is told the turns of `rollout`: how an environment of
    episodes judges an attempt that is already written down. What it answers is not used."""
    episode = await _called(env.open, task, rollout.index)
    try:
        for turn in turns_of(rollout):
            await _called(episode.step, turn)
        return as_verdict(await _called(episode.verdict), task)
    finally:
        await _called(episode.close)


def turns_of(rollout: Rollout) -> tuple[Turn, ...]:
    """The turns of any attempt; the one of a single-turn attempt is made of its own fields."""
    return rollout.turns or (
        Turn(
            prompt_ids=rollout.prompt_ids,
            completion_ids=rollout.completion_ids,
            sampler_logprobs=rollout.sampler_logprobs,
            text=rollout.text,
            truncated=rollout.truncated,
        ),
    )


async def _called(function: Callable[..., Any], *arguments: object) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(*arguments)
    found = await asyncio.to_thread(function, *arguments)
    return await found if inspect.isawaitable(found) else found
