"""A judge that cannot prove its own tasks, tried on answers that are known: nothing at all, and the
references where those are answers."""

from __future__ import annotations

from collections.abc import Sequence

from sdpo.config.environments import JudgingConfig
from sdpo.envs.base import CheckReport, Env, reference_answers
from sdpo.records import Rollout, Task, Verdict
from sdpo.rollouts.judging import judge_all


def try_judge(env: Env, judging: JudgingConfig) -> CheckReport:
    """Judge an empty answer to every task, which must fail, and its reference, which must pass.

    A reference may be what a judge needs and no answer, such as a rubric: where none at all passes,
    the references are skipped. Raises `JudgeError` when the judge raises or returns what is not a
    verdict.
    """
    tasks = {task.id: task for split in ("train", "eval") for task in env.load(split)}
    answer = reference_answers(env)
    known = [(task, text) for task in tasks.values() if (text := answer(task)) is not None]
    empty = _judge(env, [(task, "") for task in tasks.values()], judging)
    found = _judge(env, known, judging)
    failures = {
        task.id: "the judge accepts an empty answer"
        for task, verdict in zip(tasks.values(), empty, strict=True)
        if verdict is not None and verdict.solved
    }
    passed = [verdict is not None and verdict.solved for verdict in found]
    if any(passed):
        failures |= {
            task.id: "the judge does not accept the task's reference"
            for (task, _), is_solved in zip(known, passed, strict=True)
            if not is_solved
        }
    skipped = len(tasks) - (len(known) if any(passed) else 0)
    return CheckReport(num_tasks=len(tasks), failures=failures, skipped=skipped)


def _judge(
    env: Env, answers: Sequence[tuple[Task, str]], judging: JudgingConfig
) -> list[Verdict | None]:
    attempts = [(task, Rollout.written(task, text)) for task, text in answers]
    return judge_all(env, attempts, judging) if attempts else []
