"""A bug of our own judges on one attempt costs that attempt, counted; it does not end the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from code_rows import DIVIDE, block

from sdpo.config import schema
from sdpo.envs.choice import Choice
from sdpo.envs.code import env as code_env
from sdpo.envs.code.compare import values_match
from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.offline import judge_program
from sdpo.envs.code.tasks import with_tests
from sdpo.errors import SandboxError, TaskError
from sdpo.records import Rollout, Task
from sdpo.sandbox import Sandbox


def rollout(text: str) -> Rollout:
    return Rollout(
        task_id="t", index=0, prompt_ids=(1,), completion_ids=(2,), sampler_logprobs=(0.0,),
        text=text, truncated=False, policy_version=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ((-8) ** 0.5, 10**400),
        (10**400, 1 + 2j),
        (10**400, 1.5),
        (1 + 2j, 10**400),
        ({1j}, {10**400}),
        (complex("nan"), 10**400),
    ],
)
def test_a_complex_answer_beside_a_huge_int_is_wrong_and_no_overflow(actual, expected) -> None:
    assert not values_match(actual, expected)
    assert not values_match([actual], [expected])


def test_a_complex_answer_where_a_huge_int_is_expected_is_a_wrong_answer(sandbox: Sandbox) -> None:
    task = {
        "id": "a", "prompt": "p", "kind": "function", "entry_point": "f",
        "tests": {"public": [{"input": [1], "output": 10**400}]},
    }  # fmt: skip
    verdict = judge_program(task, "def f(x):\n    return (-8) ** 0.5\n", sandbox=sandbox)
    assert verdict.info["category"] == "wrong_answer"


def make_env(tmp_path: Path) -> code_env.CodeEnv:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(DIVIDE) + "\n")
    return code_env.CodeEnv(schema.CodeEnvConfig(tasks=str(path)))


def test_a_bug_in_the_code_judge_is_an_error_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    env = make_env(tmp_path)
    task = env.load("train")[0]
    attempt = rollout(block("def divide(a, b):\n    return a // b\n"))
    try:
        assert env.judge(task, attempt).metrics["judge_errors"] == 0.0
        monkeypatch.setattr(CodeJudge, "verdict", bug)
        verdict = env.judge(task, attempt)
    finally:
        env.close()
    assert (verdict.reward, verdict.solved, verdict.feedback) == (0.0, False, None)
    assert verdict.info["category"] == "error"
    assert "ZeroDivisionError: a bug of ours" in verdict.info["error"]
    assert verdict.metrics["judge_errors"] == 1.0


@pytest.mark.parametrize("error", [SandboxError("no process"), TaskError("a wrong test")])
def test_what_is_not_about_the_attempt_still_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    env = make_env(tmp_path)
    monkeypatch.setattr(CodeJudge, "verdict", fail)
    try:
        with pytest.raises(type(error)):
            env.judge(env.load("train")[0], rollout(block("x = 1\n")))
    finally:
        env.close()


def test_a_bug_in_a_judge_of_rows_is_an_error_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Q\nA: 1\nB: 2", "answer": "A"}) + "\n")
    env = Choice(schema.ChoiceEnvConfig(tasks=str(path), eval_fraction=0))
    (task,) = env.load("train")
    text = "<answer>A</answer>"
    assert env.judge(task, rollout(text)).metrics["judge_errors"] == 0.0

    def bug(self: Choice, task: Task, text: str, *, is_truncated: bool) -> None:
        raise RecursionError("a bug of ours")

    monkeypatch.setattr(Choice, "judge_text", bug)
    verdict = env.judge(task, rollout(text))
    assert verdict.info["category"] == "error"
    assert verdict.metrics["judge_errors"] == 1.0


def test_a_bug_found_by_check_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CodeJudge, "verdict", bug)
    env = make_env(tmp_path)
    try:
        with pytest.raises(ZeroDivisionError):
            env.check()
    finally:
        env.close()


def test_tasks_name_the_tests_they_are_judged_on(tmp_path: Path) -> None:
    task = make_env(tmp_path).load("train")[0]
    assert with_tests(task, "all").reference.judged == "all"
