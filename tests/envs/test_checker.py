"""Several right answers: the task's checker decides, jailed and away from the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdpo.envs.code import judge_program
from sdpo.envs.code.judge import CodeJudge
from sdpo.errors import TaskError
from sdpo.records import Verdict

NOT_SUM = """
def check(input, output, expected):
    a, b = map(int, input.split())
    answer = int(output)
    if not 0 <= answer <= 9:
        return f"{answer} is not a digit"
    return answer != a + b
"""


def stdio(checker: str = NOT_SUM, **fields: Any) -> dict[str, Any]:
    """AtCoder abc343_a, LiveCodeBench#106: print any digit that is not A + B."""
    tests = {"public": [{"input": "2 5\n", "output": "2\n"}, {"input": "0 0\n"}]}
    return {"id": "a", "prompt": "p", "kind": "stdio", "tests": tests, "checker": checker, **fields}


def judged(judge: CodeJudge, row: dict[str, Any], program: str) -> Verdict:
    return judge_program(row, program, sandbox=judge.sandbox, split="public")


@pytest.mark.parametrize(
    "program",
    ["print(9)", "a, b = map(int, input().split())\nprint((a + b + 1) % 10)", "print('  9  ')"],
)
def test_every_right_answer_is_accepted(judge: CodeJudge, program: str) -> None:
    assert judged(judge, stdio(), program).solved


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print(7)", "Expected\nan answer that the checker of this task accepts"),
        ("print(12)", "Expected\n12 is not a digit"),
        ("print('nine')", "accepts (ValueError: invalid literal for int()"),
        ("pass", "accepts (ValueError"),
    ],
)
def test_wrong_answers_are_not_and_the_checker_may_say_why(
    judge: CodeJudge, program: str, said: str
) -> None:
    verdict = judged(judge, stdio(), program)
    assert verdict.info["category"] == "wrong_answer"
    assert said in verdict.feedback


def test_a_function_with_several_right_answers(judge: CodeJudge) -> None:
    row = {
        "id": "two_sum",
        "prompt": "p",
        "kind": "function",
        "entry_point": "f",
        "checker": "def check(input, output, expected):\n    xs, total = input\n    i, j = output\n"
        "    return i != j and xs[i] + xs[j] == total",
        "tests": {"public": [{"input": [[1, 2, 3, 2], 4]}]},
    }
    for answer in ("[0, 2]", "(1, 3)", "[2, 0]"):
        assert judged(judge, row, f"def f(xs, total):\n    return {answer}\n").solved
    for answer in ("[0, 0]", "None", "object()", "[9, 9]", "(x for x in [0, 2])"):
        verdict = judged(judge, row, f"def f(xs, total):\n    return {answer}\n")
        assert verdict.info["category"] == "wrong_answer", answer


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.modules['__main__'].check = lambda *a: True\nprint(7)",
        "class int(int):\n    def __eq__(self, other): return True\nprint(int(7))",
        "def check(*a): return True\nprint(7)",
        "print(True)",
    ],
)
def test_no_program_reaches_the_checker(judge: CodeJudge, program: str) -> None:
    assert not judged(judge, stdio(), program).solved


def test_only_true_is_right(judge: CodeJudge) -> None:
    for answer in ("1", "'yes'", "[True]", "None"):
        row = stdio(f"def check(input, output, expected):\n    return {answer}")
        assert not judged(judge, row, "print(9)").solved


def test_an_endless_checker_accepts_nothing(
    judge: CodeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo.envs.code.assert_runs._TRUSTED_TIME_S", 0.3)
    row = stdio("def check(input, output, expected):\n    while True: pass")
    assert judged(judge, row, "print(9)").info["category"] == "wrong_answer"


@pytest.mark.parametrize(
    ("checker", "message"),
    [
        ("def check(a, b): return True", r"define check\(input, output, expected\)"),
        ("def chek(a, b, c): return True", "define check"),
        ("def check(a, b, c:", "not Python"),
        ("import numpy\ndef check(a, b, c): return True", "numpy is not defined"),
        ("def check(a, b, c): return right(b)", "right is not defined"),
        ("gone.py", "cannot read .*gone.py"),
    ],
)
def test_a_checker_that_cannot_run_is_refused_when_it_is_loaded(checker: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        judge_program(stdio(checker), "print(9)")


def test_an_assert_needs_no_checker_and_a_test_without_one_needs_an_output() -> None:
    row = stdio()
    with pytest.raises(TaskError, match="an assert decides itself"):
        judge_program({**row, "kind": "asserts", "tests": {"public": ["assert f(1)"]}}, "")
    del row["checker"]
    with pytest.raises(TaskError, match=r"public\[1\].output: missing"):
        judge_program(row, "")


def test_a_checker_in_a_file(judge: CodeJudge, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "digit.py").write_text(NOT_SUM)
    monkeypatch.chdir(tmp_path)
    assert judged(judge, stdio("digit.py"), "print(9)").solved


def test_a_checker_at_fault_is_not_a_verdict(judge: CodeJudge) -> None:
    row = stdio("from math import *\ndef check(input, output, expected):\n    return gone(output)")
    with pytest.raises(TaskError, match="the checker fails: NameError"):
        judged(judge, row, "print(9)")
