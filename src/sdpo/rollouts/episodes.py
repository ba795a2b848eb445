"""Plays attempts: all of them one turn at a time, the environment's side of every turn at once.

    open -> [sample -> step]* -> verdict -> close      of each attempt; close comes always

One way for every environment: without episodes there is nothing to open or close, and without
replies there is one turn. What the environment's code raises is sorted as for judges
(`judging.py`). All tokens after the first prompt, sampled or replied, share one budget.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sdpo.chat import Chat
from sdpo.config.environments import JudgingConfig
from sdpo.engines.base import Completion, Engine, GenerationRequest, Sampling
from sdpo.envs.base import Env
from sdpo.envs.episodes import Episode, Opening, Replying, as_reply
from sdpo.errors import JudgeError
from sdpo.records import Reply, Rollout, Task, Turn, Verdict
from sdpo.rollouts.judging import JUDGING, Ask, Judged, ask_all, checked_verdict, settled, tell_all
from sdpo.rollouts.recorded import as_completion


@dataclass(slots=True, kw_only=True, eq=False)
class Attempt:
    """One attempt while it is played.

    Example:
        Attempt(task=task, index=3, prompt_ids=(1, 5), read_ids=(1, 5))
    """

    task: Task
    index: int
    prompt_ids: tuple[int, ...]
    """The task's own prompt, after which the attempt is judged and trained on."""
    read_ids: tuple[int, ...]
    """What is sampled after: `prompt_ids`, or a teacher's context in its place."""
    recorded_ids: tuple[int, ...] | None = None
    """Its completion, where that is written down already; None: it is sampled."""
    played_ids: tuple[int, ...] = ()
    """Everything after the prompt so far: completions and replies."""
    turns: list[Turn] = field(default_factory=list)
    ran_out: bool = False
    """A reply left no room for another completion."""
    failure: Exception | None = None
    """The "not now" that ended the attempt before it could be judged."""
    episode: Episode | None = None
    _is_over: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, episode: Episode) -> Episode:
        """Keep the episode until `release`. One that a slow `open` hands over too late is closed
        at once."""
        with self._lock:
            if not self._is_over:
                self.episode = episode
                return episode
        closing: Any = episode.close()
        if inspect.isawaitable(closing):
            asyncio.run(_wait_for(closing))
        return episode

    def release(self) -> Episode | None:
        """The episode, to be closed; once."""
        with self._lock:
            self._is_over = True
            episode, self.episode = self.episode, None
            return episode

    def rollout(self, *, policy_version: int, has_turns: bool) -> Rollout:
        """The attempt as far as it came."""
        last = self.turns[-1]
        return Rollout(
            task_id=self.task.id,
            index=self.index,
            prompt_ids=last.prompt_ids,
            completion_ids=last.completion_ids,
            sampler_logprobs=last.sampler_logprobs,
            text=last.text,
            truncated=last.truncated or self.ran_out,
            policy_version=policy_version,
            turns=tuple(self.turns) if has_turns else (),
        )


async def _wait_for(closing: Any) -> None:
    await closing


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of attempts, in order.

    Example:
        Played(judged=judged, results=[(rollout, verdict)], generate_s=3.1)
    """

    judged: Judged
    results: list[tuple[Rollout, Verdict] | None]
    """None for an attempt without a verdict."""
    generate_s: float
    """Seconds the engine took."""


SeedOf = Callable[[Attempt, int], int]
"""The seed of an attempt's turn (0-based)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """Plays attempts of one environment; holds what stays the same over a run."""

    env: Env
    engine: Engine
    chat: Chat
    max_turns: int
    judging: JudgingConfig

    def play(self, attempts: Sequence[Attempt], sampling: Sampling, seed_of: SeedOf) -> Played:
        """The attempts played to their ends and judged. Raises `JudgeError`, and whatever the
        engine raises; every episode is closed before."""
        try:
            played = self._play(attempts, sampling, seed_of)
        except BaseException as error:
            for problem in self._close(attempts):
                error.add_note(f"Then {problem}")
            raise
        problems = self._close(attempts)
        if problems:
            raise problems[0]
        return played

    def _play(self, attempts: Sequence[Attempt], sampling: Sampling, seed_of: SeedOf) -> Played:
        self._open(attempts)
        generate_s = 0.0
        active = [attempt for attempt in attempts if attempt.failure is None]
        for number in range(self.max_turns):
            if not active:
                break
            start = time.perf_counter()
            self._sample(active, sampling, lambda attempt, n=number: seed_of(attempt, n))
            generate_s += time.perf_counter() - start
            active = self._step(active, sampling, is_last=number + 1 == self.max_turns)
        judged, results = self._judge(attempts)
        return Played(judged=judged, results=results, generate_s=generate_s)

    def _open(self, attempts: Sequence[Attempt]) -> None:
        env = self.env
        if not isinstance(env, Opening):
            return

        def opener(attempt: Attempt) -> Callable[[], Any]:
            def open_one() -> Any:
                found = env.open(attempt.task, attempt.index)
                return found if inspect.isawaitable(found) else attempt.hold(found)

            return open_one

        asks = [
            _ask(attempt, "opening an episode of", opener(attempt), read=_holder(attempt))
            for attempt in attempts
        ]
        self._answers(attempts, asks)

    def _sample(
        self, active: Sequence[Attempt], sampling: Sampling, seed_of: Callable[[Attempt], int]
    ) -> None:
        """One more completion of every attempt."""

        def prompt(attempt: Attempt) -> tuple[int, tuple[int, ...], int]:
            room = sampling.max_new_tokens - len(attempt.played_ids)
            # A task that was drawn twice makes two requests, as other tasks do.
            return id(attempt.task), attempt.read_ids + attempt.played_ids, room

        for attempt in active:
            if attempt.recorded_ids is not None:
                self._take(attempt, as_completion(attempt.recorded_ids))
        sampled = [attempt for attempt in active if attempt.recorded_ids is None]
        groups = [(key, list(group)) for key, group in itertools.groupby(sampled, prompt)]
        requests = [
            GenerationRequest(prompt_ids=ids, seeds=tuple(map(seed_of, group)), max_new_tokens=room)
            for (_, ids, room), group in groups
        ]
        found = self.engine.generate(requests, sampling) if requests else []
        for (_, group), completions in zip(groups, found, strict=True):
            for attempt, completion in zip(group, completions, strict=True):
                self._take(attempt, completion)

    def _take(self, attempt: Attempt, completion: Completion) -> None:
        attempt.turns.append(self._turn(attempt, completion))
        attempt.played_ids += completion.token_ids

    def _turn(self, attempt: Attempt, completion: Completion) -> Turn:
        return Turn(
            prompt_ids=attempt.prompt_ids + attempt.played_ids,
            completion_ids=completion.token_ids,
            sampler_logprobs=completion.logprobs,
            text=self.chat.decode(completion.token_ids),
            truncated=completion.truncated,
        )

    def _step(
        self, active: Sequence[Attempt], sampling: Sampling, *, is_last: bool
    ) -> list[Attempt]:
        """The environment's answers to the last turns; the attempts that go on."""
        asked = [(attempt, self._step_ask(attempt, is_last=is_last)) for attempt in active]
        told = [(attempt, ask) for attempt, ask in asked if ask is not None]
        replies = self._answers([a for a, _ in told], [ask for _, ask in told])
        going_on = []
        for (attempt, _), reply in zip(told, replies, strict=True):
            if reply is None:
                continue
            turn = replace(attempt.turns[-1], reward=reply.reward, feedback=reply.feedback)
            attempt.turns[-1] = turn
            if is_last or turn.truncated or not reply.messages:
                continue
            ended = turn.completion_ids[-1] in self.chat.stop_ids
            played = attempt.played_ids + self.chat.reply_ids(reply.messages, ended=ended)
            if len(played) >= sampling.max_new_tokens:
                attempt.ran_out = True
                continue
            attempt.turns[-1] = replace(turn, reply=reply.messages)
            attempt.played_ids = played
            going_on.append(attempt)
        return going_on

    def _step_ask(self, attempt: Attempt, *, is_last: bool) -> Ask[Reply | None] | None:
        """The question to the environment; None where it need not be asked."""
        turn = attempt.turns[-1]
        if attempt.episode is not None:
            return _ask(attempt, "a step of", attempt.episode.step, turn, read=as_reply)
        if isinstance(self.env, Replying) and not is_last and not turn.truncated:
            arguments = (attempt.task, tuple(attempt.turns))
            return _ask(attempt, "replying in", self.env.reply, *arguments, read=as_reply)
        return None

    def _judge(
        self, attempts: Sequence[Attempt]
    ) -> tuple[Judged, list[tuple[Rollout, Verdict] | None]]:
        rollouts = {
            id(attempt): attempt.rollout(
                policy_version=self.engine.policy_version, has_turns=self._has_turns
            )
            for attempt in attempts
            if attempt.failure is None
        }
        asks = [
            _ask(attempt, JUDGING, attempt.episode.verdict, read=checked_verdict)
            if attempt.episode is not None
            else _ask(
                attempt,
                JUDGING,
                self.env.judge,
                attempt.task,
                rollouts.get(id(attempt)),
                read=checked_verdict,
                has_state=False,
            )
            for attempt in attempts
        ]
        played = [ask for a, ask in zip(attempts, asks, strict=True) if a.failure is None]
        found = iter(ask_all(self.env, played, self.judging))
        outcomes = [next(found) if a.failure is None else a.failure for a in attempts]
        judged = settled(asks, outcomes)
        return judged, [
            None if verdict is None else (rollouts[id(attempt)], verdict)
            for attempt, verdict in zip(attempts, judged.verdicts, strict=True)
        ]

    @property
    def _has_turns(self) -> bool:
        """Whether attempts are conversations, even if one of them ends after its first turn."""
        is_replying = self.max_turns > 1 and isinstance(self.env, Replying)
        return is_replying or isinstance(self.env, Opening)

    def _answers(self, attempts: Iterable[Attempt], asks: Sequence[Ask[Any]]) -> list[Any]:
        """What the calls give; None for an attempt that "not now" ends, which is noted there."""
        answers = []
        for attempt, found in zip(attempts, ask_all(self.env, asks, self.judging), strict=True):
            if isinstance(found, Exception):
                attempt.failure, found = found, None
            answers.append(found)
        return answers

    def _close(self, attempts: Sequence[Attempt]) -> list[JudgeError]:
        """Close every episode once, whatever comes of the others; what went wrong."""
        held = [(attempt, attempt.release()) for attempt in attempts]
        asks = [
            _ask(attempt, "closing the episode of", episode.close, read=lambda found, task: None)
            for attempt, episode in held
            if episode is not None
        ]
        return tell_all(self.env, asks, self.judging)


def _ask(
    attempt: Attempt,
    what: str,
    function: Callable[..., Any],
    *arguments: Any,
    read: Callable[[Any, Task], Any],
    has_state: bool = True,
) -> Ask[Any]:
    return Ask(
        task=attempt.task,
        index=attempt.index,
        what=what,
        function=function,
        arguments=arguments,
        read=read,
        has_state=has_state,
    )


def _holder(attempt: Attempt) -> Callable[[Any, Task], Episode]:
    """Keeps an episode as soon as it is there: the opening of another attempt may fail."""

    def read(episode: Any, task: Task) -> Episode:
        return episode if episode is attempt.episode else attempt.hold(episode)

    return read


def flatten_turns(
    rollout: Rollout,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...], tuple[float, ...]]:
    """First prompt, everything after it, which of that was sampled, and the sampler's log-probs (0
    where not sampled).

    The environment's tokens between turns are part of the completion, seen by attention and never
    trained on.
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
