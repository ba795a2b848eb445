"""A judging function is tried before it costs anything."""

from __future__ import annotations

import pytest

import sdpo
from sdpo.errors import JudgeError
from sdpo.inspection.judge import try_judge
from sdpo.rollouts.judging import DEFAULTS

TASKS = [{"prompt": "one", "reference": "1"}, {"prompt": "two", "reference": "2"}]


def tried(judge, tasks=TASKS):
    return try_judge(sdpo.env(tasks, judge), DEFAULTS)


def test_references_pass_and_an_empty_answer_fails():
    report = tried(lambda task, rollout: float(rollout.text == task.reference))
    assert (report.num_tasks, dict(report.failures), report.skipped) == (2, {}, 0)


def test_a_judge_that_accepts_nothing_at_all_is_named():
    report = tried(lambda task, rollout: 1.0)
    assert set(report.failures.values()) == {"the judge accepts an empty answer"}


def test_one_wrong_reference_is_named_and_rubrics_are_skipped():
    report = tried(lambda task, rollout: float(rollout.text == "1"))
    assert dict(report.failures) == {"task-1": "the judge does not accept the task's reference"}
    report = tried(lambda task, rollout: float("yes" in rollout.text))
    assert (dict(report.failures), report.skipped) == ({}, 2)


def test_an_async_judge_that_raises_is_told_apart_from_a_failing_task():
    async def judge(task, rollout):
        return {"reward": "high"}

    with pytest.raises(JudgeError, match="task-0"):
        tried(judge)
