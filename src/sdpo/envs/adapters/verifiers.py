"""Single-turn environments of the verifiers library (`verifiers.SingleTurnEnv` and the like).

They need `get_dataset()` with a column `prompt` or `question` (and `answer`, `info`, `task` if the
rewards use them), and `rubric.funcs` and `rubric.weights`, or `rubric.rubrics` for a group of
rubrics. The reward functions are called here, not by the rubric, because the rubric turns an
exception into reward 0, whereas a judge that fails must stop the run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sdpo.envs.adapters.datasets import as_messages
from sdpo.envs.base import FunctionEnv
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Rollout, Task, Verdict

Feedback = Callable[[Task, Mapping[str, Any]], str | None]
"""(task, state after judging) to feedback, or None."""

_GROUP_PARAMETERS = {"prompts", "completions", "answers", "states", "tasks", "infos"}


def from_verifiers(
    environment: Any,
    *,
    solved_at: float = 1.0,
    feedback: Feedback | None = None,
) -> FunctionEnv:
    """An environment around a verifiers one; the reward is the weighted sum of its rubric.

    The value of each reward function becomes the metric `env/NAME`. `feedback(task, state)` writes
    what the self-teacher reads; without it, `state["feedback"]` is used if a reward function put a
    string there. Raises `ConfigError` for multi-turn environments and for rewards that judge whole
    groups.

    Example:
        env = from_verifiers(verifiers.load_environment("gsm8k"))
    """
    if getattr(environment, "max_turns", 1) != 1:
        raise ConfigError(
            f"verifiers environment with max_turns = {environment.max_turns}: only single-turn "
            "ones can be adapted; write an Env with `reply` for others"
        )
    rewards = list(_rewards(environment.rubric))
    if not rewards:
        raise ConfigError("the verifiers environment's rubric has no reward function")
    for function, _, _ in rewards:
        if _GROUP_PARAMETERS & set(inspect.signature(function).parameters):
            raise ConfigError(
                f"reward function {_name(function)!r} judges groups; each attempt needs its own"
            )

    async def judge(task: Task, rollout: Rollout) -> Verdict:
        state = _state(task, rollout)
        total, metrics = 0.0, {}
        for function, weight, objects in rewards:
            value = _call(function, {**task.reference, **state, "state": state, **objects})
            if inspect.isawaitable(value):
                value = await value
            metrics[_name(function)] = float(value)
            total += weight * float(value)
        written = state.get("feedback") if feedback is None else feedback(task, state)
        return Verdict(
            reward=total,
            solved=total >= solved_at,
            feedback=written if isinstance(written, str) else None,
            metrics=metrics,
        )

    held_out = getattr(environment, "eval_dataset", None)
    return FunctionEnv(
        _tasks(environment, environment.get_dataset()),
        judge,
        eval_tasks=None
        if held_out is None
        else _tasks(environment, environment.get_eval_dataset()),
    )


def _state(task: Task, rollout: Rollout) -> dict[str, Any]:
    """What verifiers' reward functions are given about one attempt."""
    row = task.reference
    message = {"role": "assistant", "content": rollout.text}
    return {
        "prompt": row["prompt"],
        "completion": [message],
        "answer": row.get("answer", ""),
        "info": row.get("info", {}),
        "task": row.get("task", "default"),
        "trajectory": [{"prompt": row["prompt"], "completion": [message]}],
        "is_truncated": rollout.truncated,
    }


def _tasks(environment: Any, rows: Iterable[Mapping[str, Any]]) -> list[Task]:
    tasks = []
    system = getattr(environment, "system_prompt", None)
    for number, row in enumerate(rows):
        prompt = row.get("prompt") or row.get("question")
        if prompt is None:
            raise TaskError(f"row {number}: no column prompt or question")
        messages = as_messages(prompt, system=system, where=f"row {number}: prompt")
        reference = {**row, "prompt": [dict(message) for message in messages]}
        tasks.append(Task(id=str(number), messages=messages, reference=reference))
    return tasks


def _rewards(rubric: Any) -> Iterable[tuple[Callable[..., Any], float, Mapping[str, Any]]]:
    """(function, weight, objects it may take by name) of a rubric or a group of rubrics."""
    if hasattr(rubric, "rubrics"):
        for part in rubric.rubrics:
            yield from _rewards(part)
        return
    objects = getattr(rubric, "class_objects", None)
    if objects is None:
        objects = {"parser": getattr(rubric, "parser", None)}
    for function, weight in zip(rubric.funcs, rubric.weights, strict=True):
        yield function, float(weight), objects


def _call(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return function(**values)
    return function(**{p.name: values[p.name] for p in parameters if p.name in values})


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
