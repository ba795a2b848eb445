"""Reward functions of TRL and verl as environments.

TRL calls `reward(prompts=[...], completions=[...], **columns) -> list[float]`; verl calls
`compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict`. Both say how
good an attempt was but not why, so both adapters take `feedback(task, text, reward)`, which writes
the text that the self-teacher reads. Attempts are passed one at a time: a function that compares
the attempts of a group with each other cannot be used.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from types import SimpleNamespace
from typing import Any

from sdpo.envs.adapters.datasets import as_messages, tasks_from_rows
from sdpo.envs.base import FunctionEnv
from sdpo.errors import TaskError, Unjudged
from sdpo.records import Rollout, Task, Verdict

Rows = Iterable[Mapping[str, Any]]
RewardFunction = Callable[..., Any]
WriteFeedback = Callable[[Task, str, float], str | None]
"""(task, attempt's text, its reward) to feedback, or None."""


def from_trl(
    reward: RewardFunction | Sequence[RewardFunction],
    rows: Rows,
    *,
    eval_rows: Rows | None = None,
    weights: Sequence[float] | None = None,
    solved_by: str | None = None,
    solved_at: float = 1.0,
    feedback: WriteFeedback | None = None,
) -> FunctionEnv:
    """An environment from TRL reward functions and their dataset (column `prompt`, and whatever
    columns they take).

    The reward is the sum over the functions, each with its weight (default 1), and each becomes a
    metric `env/NAME`. An attempt is solved where the function named `solved_by` gives at least
    `solved_at`, or else where the sum is at least that share of the weights. If a prompt is a list
    of messages, completions are lists of one message. `trainer_state.global_step` is the number of
    updates so far; what goes to `log_metric` becomes a metric, to `log_extra` the verdict's info.
    A function that returns None does not apply; if none does, the attempt is left out
    (`sdpo.Unjudged`). Functions may be `async`; others run in threads.

    Example:
        env = from_trl([accuracy_reward, think_format_reward], dataset,
                       weights=[1.0, 0.1], solved_by="accuracy_reward")
    """
    rewards = TrlRewards(
        reward, weights, solved_by=solved_by, solved_at=solved_at, where="from_trl"
    )

    def judge(task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        log = TrlLog()
        said: Any = rollout.text
        if not isinstance(task.reference["prompt"], str):
            said = [{"role": "assistant", "content": said}]
        values = trl_values(task.reference, said, rollout.completion_ids, log)
        values["trainer_state"] = SimpleNamespace(global_step=rollout.policy_version)
        write = None if feedback is None else partial(feedback, task, rollout.text)
        return rewards.judge(values, log, write)

    return FunctionEnv(
        tasks_from_rows(rows, reference=None),
        judge,
        eval_tasks=None if eval_rows is None else tasks_from_rows(eval_rows, reference=None),
    )


class TrlRewards:
    """TRL's reward functions with their weights, called for one attempt at a time."""

    def __init__(
        self,
        reward: RewardFunction | Sequence[RewardFunction],
        weights: Sequence[float] | None,
        *,
        solved_by: str | None,
        solved_at: float,
        where: str,
    ) -> None:
        """`where` is what the caller is called in messages."""
        self._functions = [reward] if callable(reward) else list(reward)
        self._weights = [1.0] * len(self._functions) if weights is None else list(weights)
        if not self._functions or len(self._weights) != len(self._functions):
            raise TaskError(
                f"{where}: {len(self._functions)} reward functions and {len(self._weights)} weights"
            )
        self._names: list[str] = []
        for function in self._functions:
            name = getattr(function, "__name__", type(function).__name__)
            taken = sum(each.partition("#")[0] == name for each in self._names)
            self._names.append(f"{name}#{taken + 1}" if taken else name)
        if solved_by is not None and solved_by not in self._names:
            raise TaskError(
                f"{where}(solved_by={solved_by!r}): the functions are {', '.join(self._names)}"
            )
        self._solved_by, self._solved_at = solved_by, solved_at

    def judge(
        self, values: dict[str, Any], log: TrlLog, write: Callable[[float], str | None] | None
    ) -> Verdict | Awaitable[Verdict]:
        """The verdict on the attempt that `values` describes, awaitable where a function is;
        `write` makes feedback of its reward."""
        found = [function(**_accepted(function, values)) for function in self._functions]
        if any(map(inspect.isawaitable, found)):
            return self._awaited(found, log, write)
        return self._verdict(found, log, write)

    async def _awaited(
        self, found: list[Any], log: TrlLog, write: Callable[[float], str | None] | None
    ) -> Verdict:
        done = iter(await asyncio.gather(*(one for one in found if inspect.isawaitable(one))))
        ready = [next(done) if inspect.isawaitable(one) else one for one in found]
        return self._verdict(ready, log, write)

    def _verdict(
        self, found: list[Any], log: TrlLog, write: Callable[[float], str | None] | None
    ) -> Verdict:
        rewards = dict(zip(self._names, map(_one_of, found), strict=True))
        known = {name: reward for name, reward in rewards.items() if reward is not None}
        if not known:
            raise Unjudged("no reward function applies to this attempt: all returned None")
        weights = dict(zip(self._names, self._weights, strict=True))
        total = sum(weights[name] * reward for name, reward in known.items())
        if self._solved_by is None:
            greatest = sum(max(0.0, weights[name]) for name in known)
            is_solved = total >= self._solved_at * greatest - 1e-9
        else:
            is_solved = known.get(self._solved_by, float("-inf")) >= self._solved_at
        return Verdict(
            reward=total,
            solved=is_solved,
            feedback=None if write is None else write(total),
            metrics=(known if len(known) > 1 else {}) | log.metrics,
            info=log.extra,
        )


class TrlLog:
    """What reward functions log about one attempt."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.extra: dict[str, Any] = {}

    def metric(self, name: str, value: Any) -> None:
        """TRL's `log_metric`."""
        self.metrics[name] = float(value)

    def column(self, name: str, values: Sequence[Any]) -> None:
        """TRL's `log_extra`, which gets a value for each attempt."""
        self.extra[name] = values[0]


def trl_values(
    row: Mapping[str, Any], completion: Any, completion_ids: Sequence[int], log: TrlLog
) -> dict[str, Any]:
    """What TRL calls a reward function with, for one attempt: `completion` is its text or its
    messages."""
    values: dict[str, Any] = {key: [value] for key, value in row.items()}
    values["completions"] = [completion]
    values["completion_ids"] = [list(completion_ids)]
    values["prompts"] = values.pop("prompt")
    return values | {"log_metric": log.metric, "log_extra": log.column}


def _one_of(rewards: Any) -> float | None:
    """The reward in a list, array or tensor of one; None where the function does not apply."""
    try:
        (reward,) = rewards
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the reward function returned {rewards!r:.80} for one completion"
        ) from error
    reward = None if reward is None else float(reward)
    return None if reward is None or math.isnan(reward) else reward


def from_verl(
    compute_score: Callable[..., Any],
    rows: Rows,
    *,
    eval_rows: Rows | None = None,
    solved_at: float = 1.0,
    feedback: WriteFeedback | None = None,
) -> FunctionEnv:
    """An environment from a verl score function and rows (`data_source`, `prompt`,
    `reward_model.ground_truth`, `extra_info`).

    A dict must have the key `score`; `feedback` becomes the verdict's, and other numbers become
    `env/NAME` metrics. An attempt with a score of at least `solved_at` is solved. The function may
    be `async`; others run in threads.

    Example:
        env = from_verl(compute_score, pandas.read_parquet("train.parquet").to_dict("records"))
    """

    def judge(task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        row = task.reference
        score = compute_score(
            data_source=row.get("data_source", "unknown"),
            solution_str=rollout.text,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row.get("extra_info"),
        )
        if inspect.isawaitable(score):
            return awaited(task, rollout, score)
        return verdict(task, rollout, score)

    async def awaited(task: Task, rollout: Rollout, score: Awaitable[Any]) -> Verdict:
        return verdict(task, rollout, await score)

    def verdict(task: Task, rollout: Rollout, score: Any) -> Verdict:
        details: Mapping[str, Any] = score if isinstance(score, Mapping) else {"score": score}
        if "score" not in details:
            raise TypeError(f"the score function returned no key 'score': {details!r:.80}")
        reward = float(details["score"])
        if feedback is None:
            written = details.get("feedback")
        else:
            written = feedback(task, rollout.text, reward)
        numbers = {
            key: float(value)
            for key, value in details.items()
            if key != "score" and _is_number(value)
        }
        return Verdict(
            reward=reward,
            solved=reward >= solved_at,
            feedback=None if written is None else str(written),
            metrics=numbers,
        )

    return FunctionEnv(
        _verl_tasks(rows),
        judge,
        eval_tasks=None if eval_rows is None else _verl_tasks(eval_rows),
    )


def _is_number(value: Any) -> bool:
    """Numpy's numbers too."""
    return isinstance(value, Real) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0)


def _verl_tasks(rows: Rows) -> list[Task]:
    tasks = []
    for number, row in enumerate(rows):
        prompt, judged = row.get("prompt"), row.get("reward_model")
        if not isinstance(judged, Mapping) or "ground_truth" not in judged:
            raise TaskError(f"row {number}: reward_model: expected {{'ground_truth': ...}}")
        # Parquet readers return arrays where verl wrote lists.
        messages = prompt if isinstance(prompt, str) else list(prompt if prompt is not None else [])
        tasks.append(
            Task(
                id=str(number),
                messages=as_messages(messages, where=f"row {number}: prompt"),
                reference=dict(row),
                metadata={"row": number},
            )
        )
    return tasks


def _accepted(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The `values` that `function` has parameters for; all of them if it takes `**kwargs`."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return values
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in values.items() if key in names}
