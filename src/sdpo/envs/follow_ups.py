"""What users said next: recorded answers, each with the user's following message, as feedback.

A row has `prompt` (a string or messages), `answer` (what the model wrote then) and `follow_up`
(what the user wrote next). Nothing is sampled for training: the recorded answer is the attempt, the
follow-up its feedback, and the self-teacher that reads it says how the answer should have gone on
at each of its tokens. Rewards are 0, so only objectives that distil learn from it.

The answers need not be the policy's own, and their probabilities are not known, so no importance
weight corrects for that (`rollouts/recorded.py`). What a user says after an answer may also be a
new question: rows whose follow-up is not about the answer teach nothing, and are for the user to
leave out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdpo.envs.adapters.datasets import as_messages
from sdpo.envs.base import FunctionEnv, Judge, as_task
from sdpo.envs.sources import read_sources
from sdpo.envs.table import Line, id_of, text_of
from sdpo.errors import TaskError
from sdpo.records import Rollout, Task, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """What a task of `FollowUps` refers to.

    Example:
        FollowUp(answer="Use GROUP BY.", said="That fails: name is not grouped.")
    """

    answer: str
    said: str
    """The user's next message."""


class FollowUps(FunctionEnv):
    """Recorded answers to train on, and tasks to evaluate on, which are sampled."""

    def __init__(self, tasks: Sequence[Task], eval_tasks: Sequence[Task], judge: Judge) -> None:
        super().__init__(tasks, judge, eval_tasks=eval_tasks)

    def recorded(self, task: Task) -> str | None:
        """The recorded answer of a training task."""
        return task.reference.answer if isinstance(task.reference, FollowUp) else None

    def judge(self, task: Task, rollout: Rollout) -> Verdict | Awaitable[Verdict]:
        """The follow-up as feedback; of a task for evaluation what the judge says."""
        if isinstance(task.reference, FollowUp):
            return Verdict(reward=0.0, solved=False, feedback=task.reference.said)
        return super().judge(task, rollout)


def from_follow_ups(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    eval_tasks: Sequence[Task | Mapping[str, object] | str] | None = None,
    judge: Judge | None = None,
) -> FollowUps:
    """An environment of recorded answers and what users said next: a file (or another source of
    `env.tasks`), or rows.

    `eval_tasks` are answered anew and judged by `judge`. Without both, evaluations answer the
    training prompts anew and say nothing of them (reward 0): the answers are there to be read.
    Needs `rollout.group_size = 1`. Raises `TaskError` naming the row and its key.

    Example:
        env = from_follow_ups("chats.jsonl")
        sdpo.train("quickstart", env=env, rollout={"group_size": 1})
    """
    if (eval_tasks is None) != (judge is None):
        raise TaskError("from_follow_ups: eval_tasks need a judge, and a judge needs eval_tasks")
    lines: Iterable[Line]
    if isinstance(source, str | Path):
        lines = read_sources(str(source), "", {})
    else:
        lines = (Line(path="rows", number=n, row=row) for n, row in enumerate(source, start=1))
    tasks = [_task(line) for line in lines]
    if eval_tasks is None:
        held_out = [replace(task, reference=None) for task in tasks]
    else:
        held_out = [as_task(task, place) for place, task in enumerate(eval_tasks)]
    return FollowUps(tasks, held_out, judge or _says_nothing)


def _task(line: Line) -> Task:
    prompt = line.row.get("prompt")
    if isinstance(prompt, list):
        messages = as_messages(prompt, where=f"{line.path}:{line.number}: prompt")
    else:
        messages = ({"role": "user", "content": text_of(line, "prompt")},)
    answer, said = text_of(line, "answer"), text_of(line, "follow_up")
    named = id_of(line, f"{messages} {answer} {said}")
    return Task(id=named, messages=messages, reference=FollowUp(answer=answer, said=said))


def _says_nothing(task: Task, rollout: Rollout) -> float:
    """The judgement where nobody judges."""
    return 0.0
