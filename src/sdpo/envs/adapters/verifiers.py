"""Environments of the verifiers library: tasksets (0.4) and single-turn environments (to 0.3).

A taskset's tasks judge themselves: an attempt is written into a trace of theirs, which their
rewards and metrics read without a runtime. Tasks that need one (a container, tools, a setup) are
refused.

Single-turn environments (`verifiers.SingleTurnEnv` and the like) need `get_dataset()` with a column
`prompt` or `question` (and `answer`, `info`, `task` if the rewards use them), and `rubric.funcs`
and `rubric.weights`, or `rubric.rubrics` for a group of rubrics. The reward functions are called
here, not by the rubric, because the rubric turns an exception into reward 0, whereas a judge that
fails must stop the run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo.envs.adapters.datasets import as_messages
from sdpo.envs.base import FunctionEnv
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Rollout, Task, Verdict

Feedback = Callable[[Task, Mapping[str, Any]], str | None]
"""(task, state after judging; of a taskset, the trace's `info`) to feedback, or None."""

_GROUP_PARAMETERS = {"prompts", "completions", "answers", "states", "tasks", "infos"}


def from_verifiers(
    environment: Any,
    *,
    eval_taskset: Any = None,
    solved_by: str | None = None,
    solved_at: float = 1.0,
    feedback: Feedback | None = None,
) -> FunctionEnv:
    """An environment around a taskset or an environment of verifiers; the reward is the weighted
    sum of its rewards, each of which becomes a metric `env/NAME`.

    An attempt is solved where the reward named `solved_by` is at least `solved_at`, or else where
    the sum is at least that share of the greatest there can be: a wrong answer in the right form is
    not solved. `feedback(task, state)` writes what the self-teacher reads; without it, what a
    reward put into `state["feedback"]` (of a taskset: `trace.info["feedback"]`) is read if it is a
    string. Raises `ConfigError` for what cannot be judged from one answer alone.

    Example:
        env = from_verifiers(MyTaskset(MyConfig()), solved_by="correct_answer")   # 0.4
        env = from_verifiers(verifiers.load_environment("gsm8k"))                 # to 0.3
    """
    if hasattr(environment, "task_type"):
        return _of_taskset(environment, eval_taskset, _Solved(solved_by, solved_at), feedback)
    return _of_environment(environment, _Solved(solved_by, solved_at), feedback)


def _of_environment(environment: Any, solved: _Solved, feedback: Feedback | None) -> FunctionEnv:
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
        greatest = sum(max(0.0, weight) for _, weight, _ in rewards)
        for function, weight, objects in rewards:
            value = _call(function, {**task.reference, **state, "state": state, **objects})
            if inspect.isawaitable(value):
                value = await value
            if isinstance(value, Mapping) and not weight:
                # Published environments log their parts so: a function without weight.
                metrics |= {str(key): float(part) for key, part in value.items()}
                continue
            metrics[_name(function)] = float(value)
            total += weight * float(value)
        written = state.get("feedback") if feedback is None else feedback(task, state)
        return Verdict(
            reward=total,
            solved=solved(metrics, total, greatest),
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


@dataclass(frozen=True)
class _Solved:
    """Whether the rewards of an attempt say that it is solved."""

    by: str | None
    at: float

    def __call__(self, rewards: Mapping[str, float], total: float, greatest: float) -> bool:
        if self.by is None:
            return total >= self.at * greatest - 1e-9
        if self.by not in rewards:
            raise ConfigError(
                f"from_verifiers(solved_by={self.by!r}): the rewards are {', '.join(rewards)}"
            )
        return rewards[self.by] >= self.at


def _of_taskset(
    taskset: Any, eval_taskset: Any, solved: _Solved, feedback: Feedback | None
) -> FunctionEnv:
    async def judge(task: Task, rollout: Rollout) -> Verdict:
        trace = _trace(task, rollout)
        await task.reference.score(trace)
        known = {name: each for name, each in trace.rewards.items() if each is not None}
        scores = {name: each.score for name, each in known.items()}
        greatest = sum(max(0.0, each.weight) for each in known.values())
        written = trace.info.get("feedback") if feedback is None else feedback(task, trace.info)
        measured = {name: float(v) for name, v in trace.metrics.items() if v is not None}
        return Verdict(
            reward=float(trace.reward),
            solved=solved(scores, trace.reward, greatest),
            feedback=written if isinstance(written, str) else None,
            metrics=scores | measured,
        )

    return FunctionEnv(
        _taskset_tasks(taskset),
        judge,
        eval_tasks=None if eval_taskset is None else _taskset_tasks(eval_taskset),
    )


def _taskset_tasks(taskset: Any) -> list[Task]:
    name = type(taskset).__name__
    if not taskset.bounded:
        raise ConfigError(f"the taskset {name} never ends; give {name}(...).take(1000)")
    tasks = []
    for number, theirs in enumerate(taskset):
        if not number:
            _refuse_runtime(theirs)
            if not theirs.hooks("reward"):
                raise ConfigError(
                    f"the task {type(theirs).__name__} of {name} has no rewards: its environment "
                    "plays and scores it, which verifiers does; only tasks that judge one answer "
                    "themselves can be adapted"
                )
        data = theirs.data
        prompt = data.prompt
        if prompt is None:
            raise ConfigError(f"task {number} of {name} has no prompt: its user begins")
        if not isinstance(prompt, str):
            prompt = [{"role": m.role, "content": m.content} for m in prompt]
        where = f"task {number} of {name}"
        messages = as_messages(prompt, system=data.system_prompt, where=where)
        if data.system_prompt and not isinstance(prompt, str):
            messages = ({"role": "system", "content": data.system_prompt}, *messages)
        tasks.append(Task(id=str(data.id or data.name or number), messages=messages,
                          reference=theirs))  # fmt: skip
    return tasks


def _refuse_runtime(task: Any) -> None:
    """Raises `ConfigError` for a task that is more than a question and rewards of an answer."""
    base = next(cls for cls in type(task).__mro__ if cls.__name__ == "Task")
    needs = [
        name
        for name in ("setup", "finalize", "toolsets")
        if getattr(type(task), name, None) is not None
        and getattr(getattr(type(task), name), "__func__", getattr(type(task), name))
        is not getattr(getattr(base, name), "__func__", getattr(base, name))
    ]
    for kind in ("reward", "metric"):
        for hook in task.hooks(kind):
            parameter = inspect.signature(hook).parameters.get("runtime")
            if parameter is not None and parameter.default is parameter.empty:
                needs.append(f"the {kind} {hook.__name__}")
    if needs:
        raise ConfigError(
            f"the task {type(task).__name__} needs a runtime ({', '.join(needs)}), which verifiers "
            "starts; only tasks whose rewards read the answer alone can be adapted"
        )


def _trace(task: Task, rollout: Rollout) -> Any:
    """What verifiers would have recorded of the attempt."""
    import verifiers.v1 as vf  # ty: ignore[import-not-found]  # an extra

    theirs = task.reference
    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    said = [(message["role"], message["content"]) for message in task.messages]
    nodes = [
        vf.MessageNode(
            parent=place - 1 if place else None,
            message=kinds[role](content=text),
            sampled=place == len(said),
        )
        for place, (role, text) in enumerate([*said, ("assistant", rollout.text)])
    ]
    return vf.Trace(
        task=vf.TraceTask(
            type=type(theirs).__name__, data=theirs.data, key=theirs.key, hash=theirs.hash
        ),
        agent=vf.AgentInfo(config=vf.AgentConfig()),
        nodes=nodes,
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
