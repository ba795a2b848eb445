"""Reward functions of TRL and verl as environments.

TRL calls `reward(prompts=[...], completions=[...], **columns) -> list[float]`; verl calls
`compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict`. Both say how
good an attempt was but not why, so both adapters take `feedback(task, text, reward)`, which writes
the text that the self-teacher reads. Attempts are passed one at a time: a function that compares
the attempts of a group with each other cannot be used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sdpo.envs.adapters.datasets import as_messages, tasks_from_rows
from sdpo.envs.base import FunctionEnv
from sdpo.errors import TaskError
from sdpo.records import Rollout, Task, Verdict

Rows = Iterable[Mapping[str, Any]]
WriteFeedback = Callable[[Task, str, float], str | None]
"""(task, attempt's text, its reward) to feedback, or None."""


def from_trl(
    reward: Callable[..., Any],
    rows: Rows,
    *,
    eval_rows: Rows | None = None,
    solved_at: float = 1.0,
    feedback: WriteFeedback | None = None,
) -> FunctionEnv:
    """An environment from a TRL reward function, which may be `async`, and its dataset (column
    `prompt`, and whatever columns the function takes). An attempt with a reward of at least
    `solved_at` is solved.

    If a prompt is a list of messages, completions are lists of one message, as in TRL. None (in
    TRL: "this function does not apply") is an error, because the attempt would have no reward.

    Example:
        env = from_trl(accuracy_reward, dataset, feedback=lambda task, text, reward: ...)
    """

    async def judge(task: Task, rollout: Rollout) -> Verdict:
        row = task.reference
        is_chat = not isinstance(row["prompt"], str)
        message = [{"role": "assistant", "content": rollout.text}]
        values = {key: [value] for key, value in row.items()}
        values["completions"] = [message if is_chat else rollout.text]
        values["completion_ids"] = [list(rollout.completion_ids)]
        values["prompts"] = values.pop("prompt")
        rewards = reward(**_accepted(reward, values))
        if inspect.isawaitable(rewards):
            rewards = await rewards
        if not isinstance(rewards, Sequence) or len(rewards) != 1 or rewards[0] is None:
            raise TypeError(f"the reward function returned {rewards!r:.80} for one completion")
        return _verdict(task, rollout.text, float(rewards[0]), {}, solved_at, feedback)

    return FunctionEnv(
        tasks_from_rows(rows, reference=None),
        judge,
        eval_tasks=None if eval_rows is None else tasks_from_rows(eval_rows, reference=None),
    )


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
    `env/NAME` metrics. An attempt with a score of at least `solved_at` is solved.

    Example:
        env = from_verl(compute_score, pandas.read_parquet("train.parquet").to_dict("records"))
    """

    async def judge(task: Task, rollout: Rollout) -> Verdict:
        row = task.reference
        score = compute_score(
            data_source=row.get("data_source", "unknown"),
            solution_str=rollout.text,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row.get("extra_info"),
        )
        if inspect.isawaitable(score):
            score = await score
        details: Mapping[str, Any] = score if isinstance(score, Mapping) else {"score": score}
        if "score" not in details:
            raise TypeError(f"the score function returned no key 'score': {details!r:.80}")
        return _verdict(task, rollout.text, float(details["score"]), details, solved_at, feedback)

    return FunctionEnv(
        _verl_tasks(rows),
        judge,
        eval_tasks=None if eval_rows is None else _verl_tasks(eval_rows),
    )


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


def _verdict(
    task: Task,
    text: str,
    reward: float,
    details: Mapping[str, Any],
    solved_at: float,
    feedback: WriteFeedback | None,
) -> Verdict:
    written = details.get("feedback") if feedback is None else feedback(task, text, reward)
    numbers = {
        key: float(value)
        for key, value in details.items()
        if key != "score" and isinstance(value, (bool, int, float))
    }
    return Verdict(
        reward=reward,
        solved=reward >= solved_at,
        feedback=None if written is None else str(written),
        metrics=numbers,
    )
