"""Environments behind OpenEnv servers as episodes: one session of the server for each attempt.

An observation becomes what the model reads, its answer becomes an action, `done` ends the attempt,
and the rewards of its steps add up. A server lets as many sessions in as its `max_concurrent_envs`
says; an attempt that finds none free, or loses its connection, counts as "not now".

All attempts at a task share its prompt, so a reset with the same arguments must observe the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sdpo.envs.base import FunctionEnv
from sdpo.envs.episodes import MAX_TURNS
from sdpo.errors import ConfigError, JudgeError, TaskError, Unjudged
from sdpo.records import Reply, Task, Turn, Verdict

Connect = Callable[[], Any]
"""Makes a client that is not yet connected, such as `lambda: EchoEnv(base_url=url)`."""
WriteFeedback = Callable[[Task, Sequence[Any], float], str | None]
"""(task, what every step returned, the sum of their rewards) to feedback, or None."""


def from_openenv(
    server: str | Connect,
    resets: Iterable[Mapping[str, Any]],
    *,
    act: str | Callable[[str], Any],
    show: str | Callable[[Any], str] | None = None,
    prompt: str = "",
    eval_resets: Iterable[Mapping[str, Any]] | None = None,
    solved_at: float = 1.0,
    feedback: WriteFeedback | None = None,
    max_turns: int = MAX_TURNS,
) -> FunctionEnv:
    """An environment on an OpenEnv server: its address, or a function that makes a client (then
    actions and observations are the client's own classes instead of dicts).

    Each of `resets` is a task: the arguments of `reset`. Its prompt is `prompt`, then the first
    observation. `show` makes text of an observation and `act` an action of the model's text; a
    string names the one field that is meant. Without `show`, the model reads JSON. What `act`
    raises as `ValueError`, and actions that the server finds invalid, are told to the model. The
    reward is the sum over the steps; from `solved_at` up the attempt is solved. Raises `TaskError`
    for what the server cannot give.

    Example:
        env = from_openenv("http://localhost:8000", [{"seed": i} for i in range(100)],
                           act="message", show="echoed_message")
    """
    world = _World(_connector(server), act, show, prompt)

    async def episode(task: Task, attempt: int) -> _OpenEnvEpisode:
        made = _OpenEnvEpisode(world, task, solved_at, feedback)
        await made.begin()
        return made

    return FunctionEnv(
        world.tasks(resets),
        eval_tasks=None if eval_resets is None else world.tasks(eval_resets),
        episode=episode,
        max_turns=max_turns,
    )


def _connector(server: str | Connect) -> Connect:
    if callable(server):
        return server
    try:
        from openenv.core import GenericEnvClient  # ty: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(
            f"from_openenv({server!r}) needs the package openenv: pip install openenv"
        ) from error
    return lambda: GenericEnvClient(base_url=server)


class _World:
    """How all attempts reach the server, and what text stands for."""

    def __init__(
        self,
        connect: Connect,
        act: str | Callable[[str], Any],
        show: str | Callable[[Any], str] | None,
        prompt: str,
    ) -> None:
        self.connect = connect
        self._act, self._show, self._prompt = act, show, prompt

    def action(self, text: str) -> Any:
        """The action that the model's text stands for."""
        return {self._act: text} if isinstance(self._act, str) else self._act(text)

    def text(self, observation: Any) -> str:
        """What the model reads of an observation."""
        if self._show is not None and not isinstance(self._show, str):
            return self._show(observation)
        fields = observation if isinstance(observation, Mapping) else observation.model_dump()
        if self._show is None:
            unsaid = ("done", "reward", "metadata")
            return json.dumps({k: v for k, v in fields.items() if k not in unsaid}, default=str)
        if self._show not in fields:
            raise TaskError(
                f"from_openenv(show={self._show!r}): the observation has {', '.join(fields)}"
            )
        return str(fields[self._show])

    def first(self, observation: Any) -> str:
        """The prompt that a first observation makes."""
        return "\n\n".join(part for part in (self._prompt, self.text(observation)) if part)

    def tasks(self, resets: Iterable[Mapping[str, Any]]) -> list[Task]:
        """A task for each reset, made one after the other in one session."""
        with ThreadPoolExecutor(1) as thread:  # the caller may be inside a running loop
            return thread.submit(lambda: asyncio.run(self._tasks(resets))).result()

    async def _tasks(self, resets: Iterable[Mapping[str, Any]]) -> list[Task]:
        client = self.connect()
        tasks = []
        try:
            await client.connect()
            for number, arguments in enumerate(resets):
                found = await client.reset(**arguments)
                message = {"role": "user", "content": self.first(found.observation)}
                tasks.append(Task(id=str(number), messages=(message,), reference=dict(arguments)))
        except (OSError, RuntimeError) as error:
            raise TaskError(
                f"from_openenv: reset {len(tasks)} failed: {error}; see whether the server runs "
                "and has a session free"
            ) from error
        finally:
            await client.close()
        return tasks


class _OpenEnvEpisode:
    """One attempt with a session of its own."""

    def __init__(
        self, world: _World, task: Task, solved_at: float, feedback: WriteFeedback | None
    ) -> None:
        self._world, self._task = world, task
        self._solved_at, self._feedback = solved_at, feedback
        self._client = world.connect()
        self._results: list[Any] = []
        self._num_refused = 0
        self._lost: str | None = None

    async def begin(self) -> None:
        """Connect and reset. Closes what it opened if that fails."""
        try:
            await self._asked(self._client.connect)
            found = await self._asked(lambda: self._client.reset(**self._task.reference))
            observed = self._world.first(found.observation)
        except BaseException:
            await self._client.close()
            raise
        if observed != self._task.messages[-1]["content"]:
            await self._client.close()
            raise JudgeError(
                f"OpenEnv's reset({self._task.reference}) of task {self._task.id!r} now observes "
                f"{observed!r:.200}, another than when the tasks were made; all attempts at a task "
                "share its prompt: give a seed that the server obeys, or show less of it"
            )

    async def step(self, turn: Turn) -> Reply | str | None:
        """What the server observes of the model's action."""
        if turn.truncated:
            return None
        try:
            action = self._world.action(turn.text)
        except ValueError as error:
            self._num_refused += 1
            return f"That is not an action: {error}"
        try:
            found = await self._asked(lambda: self._client.step(action))
        except _InvalidActionError as error:
            self._num_refused += 1
            return f"That is not an action: {error}"
        self._results.append(found)
        reward = None if found.reward is None else float(found.reward)
        said = () if found.done else (self._world.text(found.observation),)
        return Reply(messages=said, reward=reward)  # ty: ignore[invalid-argument-type]

    async def _asked(self, call: Callable[[], Any]) -> Any:
        """What the server answers. A session that is lost is not taken up again: another one would
        begin anew."""
        if self._lost is not None:
            raise Unjudged(self._lost)
        try:
            return await call()
        except RuntimeError as error:  # what the client makes of every error of the server
            if "VALIDATION_ERROR" in str(error):
                raise _InvalidActionError(str(error)) from error
            if "CAPACITY_REACHED" not in str(error):
                raise
            problem = f"{error}; start it with a max_concurrent_envs of all attempts of a step"
        except Exception as error:
            is_lost = isinstance(error, OSError) or "ConnectionClosed" in type(error).__name__
            if not is_lost:
                raise
            problem = f"the connection to the OpenEnv server was lost: {error}"
        self._lost = problem
        raise Unjudged(problem)

    async def verdict(self) -> Verdict:
        """The sum of the rewards, and whether it is enough."""
        total = sum(float(found.reward or 0.0) for found in self._results)
        write = self._feedback
        return Verdict(
            reward=total,
            solved=total >= self._solved_at - 1e-9,
            feedback=None if write is None else write(self._task, self._results, total),
            metrics={"refused_actions": float(self._num_refused)},
        )

    async def close(self) -> None:
        """End the session."""
        await self._client.close()


class _InvalidActionError(Exception):
    """The server cannot read the action as one of its own."""
