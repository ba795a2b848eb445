"""Environments of TRL (`GRPOTrainer(environment_factory=...)`) as episodes.

TRL's environment is a class whose public methods are the model's tools, with `reset(**row)`, whose
text is appended to the prompt, and perhaps `get_reward()`. Reward functions are given the objects
as `environments`. Instances are made once and reset often, as in TRL, and belong to one attempt at
a time. Tool calls are read by `tool_calls.py`.

Two things differ. All attempts at a task share its prompt, so `reset` must say the same for the
same row. And a call that cannot be read is answered with what is wrong with it, where TRL takes it
for an ordinary message that ends the attempt.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sdpo.envs.adapters.datasets import as_messages
from sdpo.envs.adapters.reward_functions import RewardFunction, TrlLog, TrlRewards, trl_values
from sdpo.envs.base import FunctionEnv
from sdpo.envs.episodes import MAX_TURNS
from sdpo.envs.tool_calls import ToolCall, tool_calls
from sdpo.errors import JudgeError, TaskError, Unjudged
from sdpo.records import Message, Task, Turn, Verdict

Rows = Iterable[Mapping[str, Any]]
WriteFeedback = Callable[[Task, Any, float], str | None]
"""(task, the attempt's environment as it is at the end, its reward) to feedback, or None."""

_RESETS_AT_ONCE = 8
_NOT_TOOLS = ("reset", "get_reward")


def from_trl_environment(
    environment_factory: Callable[[], Any],
    rows: Rows,
    reward: RewardFunction | Sequence[RewardFunction] = (),
    *,
    eval_rows: Rows | None = None,
    weights: Sequence[float] | None = None,
    tools: Sequence[Callable[..., Any]] = (),
    solved_by: str | None = None,
    solved_at: float = 1.0,
    feedback: WriteFeedback | None = None,
    max_turns: int = MAX_TURNS,
) -> FunctionEnv:
    """An environment whose episodes are objects of TRL's kind: what a `GRPOTrainer` is given as
    `environment_factory`, `train_dataset`, `reward_funcs`, `reward_weights` and `tools`.

    A row's `prompt` is a string or messages; without one, `reset` says everything. Rewards count as
    in `from_trl`, after them `get_reward` where the class has it, with weight 1 and the class's
    name. `feedback(task, environment, reward)` writes what the self-teacher reads. `max_turns` is
    TRL's `max_tool_calling_iterations` and one. Raises `TaskError` for a class without `reset`, a
    tool that has no type hints or docstring, and several environments with tools of their own.

    Example:
        env = from_trl_environment(Wordle, dataset, feedback=lambda task, game, reward: game.hint)
    """
    if isinstance(environment_factory, Mapping):
        raise TaskError(
            "from_trl_environment: give one environment, not several by name: all prompts of a run "
            "show the same tools"
        )
    pool = _Pool(environment_factory)
    probe = pool.take()
    methods = _methods(probe)
    if "reset" not in methods:
        raise TaskError(f"{type(probe).__name__} has no method reset, which TRL calls with the row")
    functions = [reward] if callable(reward) else list(reward)
    factors = [1.0] * len(functions) if weights is None else list(weights)
    if "get_reward" in methods:
        functions.append(_own_reward(type(probe)))
        factors.append(1.0)
    rewards = TrlRewards(
        functions, factors, solved_by=solved_by, solved_at=solved_at, where="from_trl_environment"
    )
    tool_names = [name for name in methods if name not in _NOT_TOOLS]
    schemas = [_schema(tool) for tool in [*tools, *(getattr(probe, n) for n in tool_names)]]
    pool.give(probe)

    def episode(task: Task, attempt: int) -> _TrlEpisode:
        return _TrlEpisode(pool, task, tools=tools, rewards=rewards, feedback=feedback)

    return FunctionEnv(
        _tasks(pool, rows),
        eval_tasks=None if eval_rows is None else _tasks(pool, eval_rows),
        episode=episode,
        max_turns=max_turns,
        tools=schemas,
    )


class _Pool:
    """Instances that no attempt uses at the moment."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._factory = factory
        self._free: list[Any] = []
        self._lock = threading.Lock()

    def take(self) -> Any:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._factory()

    def give(self, environment: Any) -> None:
        with self._lock:
            self._free.append(environment)


class _TrlEpisode:
    """One attempt with an instance of its own."""

    def __init__(
        self,
        pool: _Pool,
        task: Task,
        *,
        tools: Sequence[Callable[..., Any]],
        rewards: TrlRewards,
        feedback: WriteFeedback | None,
    ) -> None:
        self._pool, self._task, self._rewards, self._feedback = pool, task, rewards, feedback
        self._turns: list[Turn] = []
        self._messages: list[Message] = []
        self._environment = pool.take()
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        self._tools = {_name(tool): tool for tool in tools} | {
            name: getattr(self._environment, name)
            for name in _methods(self._environment)
            if name not in _NOT_TOOLS
        }

    def _begin(self) -> None:
        task = self._task
        prompt = _prompt(task.reference, self._environment.reset(**task.reference), task.id)
        if prompt != task.messages:
            raise JudgeError(
                f"{type(self._environment).__name__}.reset said something else for task "
                f"{task.id!r} than when the tasks were made: {prompt[-1]['content']!r:.200}; all "
                "attempts at a task share its prompt, so let it depend on the row alone (a column "
                "`seed`, say)"
            )

    def step(self, turn: Turn) -> list[Message] | Awaitable[list[Message]] | None:
        """The tools' results; None after a turn without calls. Awaitable where a tool is."""
        calls = tool_calls(turn.text)
        if not calls or turn.truncated:
            self._note(turn, calls, [])
            return None
        found = [self._run(call) for call in calls]
        if any(map(inspect.isawaitable, found)):
            return self._awaited(turn, calls, found)
        return self._note(turn, calls, found)

    def _run(self, call: ToolCall) -> Any:
        if call.problem is not None:
            return {"error": call.problem}
        if call.name not in self._tools:
            return {"error": f"Tool {call.name} not found."}
        try:
            return self._tools[call.name](**call.arguments)
        except Exception as error:  # noqa: BLE001 - TRL shows the model whatever a tool raises
            return _shown_error(error)

    async def _awaited(
        self, turn: Turn, calls: Sequence[ToolCall], found: list[Any]
    ) -> list[Message]:
        for place, one in enumerate(found):
            if inspect.isawaitable(one):
                try:
                    found[place] = await one
                except Exception as error:  # noqa: BLE001 - as above
                    found[place] = _shown_error(error)
        return self._note(turn, calls, found)

    def _note(self, turn: Turn, calls: Sequence[ToolCall], found: Sequence[Any]) -> list[Message]:
        """The results as messages. Remembers the turn: last of all, because it comes again if a
        tool says "not now"."""
        replies: list[Message] = [
            {"role": "tool", "name": call.name or "unknown", "content": str(result)}
            for call, result in zip(calls, found, strict=bool(found))
        ]
        self._turns.append(turn)
        self._messages += [_said(turn.text, calls), *replies]
        return replies

    def verdict(self) -> Verdict | Awaitable[Verdict]:
        """What the reward functions, and the environment itself, say of the attempt."""
        task, log = self._task, TrlLog()
        first, last = self._turns[0], self._turns[-1]
        ids = (*last.prompt_ids[len(first.prompt_ids) :], *last.completion_ids)
        # The answer to a last turn that was too many is not part of the attempt.
        while self._messages and self._messages[-1]["role"] == "tool":
            self._messages.pop()
        values = trl_values({"prompt": None, **task.reference}, self._messages, ids, log)
        values["prompts"] = [list(task.messages)]
        values["environments"] = [self._environment]
        write = None
        if self._feedback is not None:
            write = partial(self._feedback, task, self._environment)
        return self._rewards.judge(values, log, write)

    def close(self) -> None:
        """Hand the instance back."""
        self._pool.give(self._environment)


def _methods(environment: Any) -> list[str]:
    """Names of what TRL takes for the environment's methods: public functions of its class."""
    members = inspect.getmembers(type(environment), predicate=inspect.isfunction)
    return [name for name, _ in members if not name.startswith("_")]


def _own_reward(cls: type) -> RewardFunction:
    """The reward that an environment of this class gives itself, as TRL calls it."""

    def get_reward(environments: Sequence[Any]) -> Any:
        found = environments[0].get_reward()
        return _listed(found) if inspect.isawaitable(found) else [found]

    get_reward.__name__ = cls.__name__
    return get_reward


async def _listed(found: Awaitable[Any]) -> list[Any]:
    return [await found]


def _schema(tool: Callable[..., Any]) -> Any:
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(tool)
    except Exception as error:
        raise TaskError(
            f"from_trl_environment: the model cannot be shown the tool {_name(tool)}: {error}; "
            "give it type hints and a Google-style docstring, or begin its name with _"
        ) from error


def _tasks(pool: _Pool, rows: Rows) -> list[Task]:
    def task(numbered: tuple[int, Mapping[str, Any]]) -> Task:
        number, row = numbered
        environment = pool.take()
        try:
            messages = _prompt(row, environment.reset(**row), str(number))
        finally:
            pool.give(environment)
        return Task(
            id=str(number), messages=messages, reference=dict(row), metadata={"row": number}
        )

    with ThreadPoolExecutor(_RESETS_AT_ONCE) as threads:
        return list(threads.map(task, enumerate(rows)))


def _prompt(row: Mapping[str, Any], observation: Any, task_id: str) -> tuple[Message, ...]:
    """The row's prompt with what `reset` said at its end."""
    if not isinstance(observation, str | None):
        raise TaskError(
            f"row {task_id}: reset returned {type(observation).__name__}; only text can be shown"
        )
    *before, last = as_messages(row.get("prompt") or "", where=f"row {task_id}: prompt")
    return (*before, {**last, "content": last["content"] + (observation or "")})


def _said(text: str, calls: Sequence[ToolCall]) -> Message:
    """The policy's turn as TRL shows it to reward functions."""
    readable = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in calls
        if call.problem is None
    ]
    if not readable:
        return {"role": "assistant", "content": text}
    before = text.partition("<tool_call>")[0].strip()
    return {"role": "assistant", "content": before, "tool_calls": readable}


def _shown_error(error: Exception) -> dict[str, str]:
    if isinstance(error, Unjudged):
        raise error
    return {"error": str(error)}


def _name(tool: Callable[..., Any]) -> str:
    return getattr(tool, "__name__", type(tool).__name__)
