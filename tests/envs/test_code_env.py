"""The code environment: categories, feedback texts, rewards, and what they may say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
from code_rows import DIVIDE, ECHO, block

from sdpo.config import schema
from sdpo.envs import text as envs_text
from sdpo.envs.base import Env
from sdpo.envs.code import wording
from sdpo.envs.code.env import CodeEnv
from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.tasks import CodeReference, CodeTest
from sdpo.records import Rollout, Task, Verdict


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (DIVIDE, ECHO)))
    return str(path)


@pytest.fixture(scope="module")
def env(tasks_file: str) -> Iterator[CodeEnv]:
    env = CodeEnv(schema.CodeEnvConfig(tasks=tasks_file))
    yield env
    env.close()


def rollout(text: str, *, truncated: bool = False) -> Rollout:
    return Rollout(
        task_id="divide",
        index=0,
        prompt_ids=(1,),
        completion_ids=(2,),
        sampler_logprobs=(0.0,),
        text=text,
        truncated=truncated,
        policy_version=0,
    )


def judged(env: CodeEnv, program: str, split: str = "train") -> Verdict:
    return env.judge(env.load(split)[0], rollout(block(program)))


def test_it_is_an_env(env: CodeEnv) -> None:
    assert isinstance(env, Env)


def test_accepted(env: CodeEnv) -> None:
    verdict = judged(env, "def divide(a, b):\n    return a // b\n")
    assert verdict == Verdict(
        reward=1.0,
        solved=True,
        feedback=None,
        metrics={"tests_passed": 1.0, "judge_errors": 0.0},
        info={
            "category": "accepted",
            "tests": ["passed", "passed"],
            "sandbox": verdict.info["sandbox"],
            "tampering": False,
        },
    )


FAILURES = [
    (
        "def divide(a, b):\n    return a / (b\n",
        "runtime_error",
        "Runtime Error\nSyntaxError: '(' was never closed\nLine 2 in <module> (Solution.py)",
    ),
    (
        "def divide(a, b):\n    return eval('1 +')\n",
        "runtime_error",
        "Runtime Error\nSyntaxError: invalid syntax\n"
        "Line 2 in divide (Solution.py)\n\nLast Executed Input\ndivide(6, 3)",
    ),
    (
        "x = '\0'\n",
        "runtime_error",
        "Runtime Error\nSyntaxError: source code string cannot contain null bytes",
    ),
    (
        "def divide(a, b):\nreturn 1\n",
        "runtime_error",
        "Runtime Error\nIndentationError: expected an indented block after function definition on "
        "line 1\nLine 2 in <module> (Solution.py)",
    ),
    (
        "def helper(x):\n    return x[5]\n\ndef divide(a, b):\n    return helper([a, b])\n",
        "runtime_error",
        "Runtime Error\nIndexError: list index out of range\n"
        "Line 5 in divide (Solution.py)\nLine 2 in helper (Solution.py)\n\n"
        "Last Executed Input\ndivide(6, 3)",
    ),
    (
        "def other(a, b):\n    return 1\n",
        "runtime_error",
        "Runtime Error\nNameError: name 'divide' is not defined\n\n"
        "Last Executed Input\ndivide(6, 3)",
    ),
    (
        "import sys\ndef divide(a, b):\n    sys.exit(3)\n",
        "runtime_error",
        "Runtime Error\nThe program ended without an answer (exit code 3).\n\n"
        "Last Executed Input\ndivide(6, 3)",
    ),
    (
        "def divide(a, b):\n    while True:\n        pass\n",
        "time_limit",
        "Time Limit Exceeded\n\nLast Executed Input\ndivide(6, 3)",
    ),
    (
        "def divide(a, b):\n    print(a)\n    return a + b\n",
        "wrong_answer",
        "Test Case 1: Wrong Answer\nInput\ndivide(6, 3)\nStdout\n6\nOutput\n9\nExpected\n2\n\n"
        "Test Case 2: Wrong Answer\nInput\ndivide(9, 3)\nStdout\n9\nOutput\n12\nExpected\n3",
    ),
    (
        "def divide(a, b):\n    return (x for x in [2])\n",
        "wrong_answer",
        "Test Case 1: Wrong Answer\nInput\ndivide(6, 3)\nOutput\n<generator object>\nExpected\n2"
        "\n\n"
        "Test Case 2: Wrong Answer\nInput\ndivide(9, 3)\nOutput\n<generator object>\nExpected\n3",
    ),
]


@pytest.mark.parametrize(("program", "category", "text"), FAILURES)
def test_failures_and_their_feedback(env: CodeEnv, program: str, category: str, text: str) -> None:
    verdict = judged(env, program)
    assert verdict.info["category"] == category
    assert verdict.feedback == text
    assert (verdict.reward, verdict.solved) == (0.0, False)


def test_without_a_sandbox_the_verdicts_are_the_same(tasks_file: str) -> None:
    plain = CodeEnv(schema.CodeEnvConfig(tasks=tasks_file, sandbox="none"))
    with pytest.warns(UserWarning, match="unprotected"):
        verdict = judged(plain, "def divide(a, b):\n    return a // b\n")
    plain.close()
    assert verdict.solved
    assert verdict.info["sandbox"] == "none"


def test_a_closed_environment_opens_again(tasks_file: str) -> None:
    again = CodeEnv(schema.CodeEnvConfig(tasks=tasks_file))
    for _ in range(2):
        assert judged(again, "def divide(a, b):\n    return a // b\n").solved
        again.close()
    again.close()


def test_memory_and_output_limits(env: CodeEnv) -> None:
    verdict = judged(env, "def divide(a, b):\n    return len([0] * 10 ** 10)\n")
    assert verdict.info["category"] == "memory_limit"
    assert verdict.feedback.startswith("Memory Limit Exceeded\n")
    assert verdict.feedback.endswith("Last Executed Input\ndivide(6, 3)")
    verdict = judged(env, "def divide(a, b):\n    while True:\n        print('x' * 5000)\n")
    assert verdict.info["category"] == "output_limit"
    assert verdict.feedback == "Output Limit Exceeded\n\nLast Executed Input\ndivide(6, 3)"


def test_a_forbidden_action_says_so(env: CodeEnv) -> None:
    verdict = judged(env, "import os\ndef divide(a, b):\n    os.fork()\n    return a // b\n")
    assert verdict.info["category"] == "runtime_error"
    assert wording.FORBIDDEN in verdict.feedback


def test_stdio_feedback(judge: CodeJudge) -> None:
    tests = (CodeTest(input="abc\n", output="ABC\n"), CodeTest(input="", output="X"))
    reference = CodeReference(kind="stdio", public=tests, private=tests)
    verdict = judge.verdict(reference, "pass\n", split="public")
    assert verdict.feedback == (
        "Test Case 1: Wrong Answer\nInput\nabc\nOutput\n(nothing)\nExpected\nABC\n\n"
        "Test Case 2: Wrong Answer\nInput\n(nothing)\nOutput\n(nothing)\nExpected\nX"
    )


def test_assert_feedback(judge: CodeJudge) -> None:
    sources = (
        "assert f(1) == 2.0 / 4",
        "assert abs(f(1) - 5) < 1",
        "assert all(f(n) for n in [0])",
    )
    for source, text in zip(
        sources,
        (
            "Input\nf(1)\nOutput\n0\nExpected\n0.5",
            "Input\nf(1)\nOutput\n0\nExpected\na value for which this holds: abs(f(1) - 5) < 1",
            "Input\nf(0)\nOutput\n0\nExpected\na result for which this passes",
        ),
        strict=True,
    ):
        reference = CodeReference(
            kind="asserts",
            public=(CodeTest(input=source),),
            private=(),
            solution="def f(n):\n    return 0.5 if n else 5\n" if "2.0" in source else None,
            entry_point="f",
        )
        verdict = judge.verdict(reference, "def f(n):\n    return 0\n", split="public")
        assert verdict.feedback is not None
        assert text in verdict.feedback


@pytest.mark.parametrize("program", [case[0] for case in FAILURES])
def test_private_tests_stay_private(env: CodeEnv, program: str) -> None:
    task = Task(
        id="divide",
        messages=(),
        reference=CodeReference(
            kind="function",
            entry_point="divide",
            public=(CodeTest(input=[6, 3], output=2),),
            private=tuple(CodeTest(input=[987654, n], output=424242) for n in (1, 2, 3)),
            time_limit_s=0.4,
        ),
    )
    verdict = env.judge(task, rollout(block(program)))
    header = wording.HEADERS[verdict.info["category"]]
    assert verdict.feedback == f"{header}\n0 of 3 tests passed."


def test_a_search_shows_public_tests_and_demands_private_ones(env: CodeEnv) -> None:
    shown, hidden = CodeTest(input=[6, 3], output=2), CodeTest(input=[987654, 2], output=493827)
    reference = CodeReference(
        kind="function", entry_point="divide", public=(shown,), private=(hidden, shown)
    )
    task = env.for_discovery(Task(id="divide", messages=(), reference=reference))

    def verdict(body: str) -> Verdict:
        return env.judge(task, rollout(block(f"def divide(a, b):\n    return {body}\n")))

    assert verdict("a // b").solved
    assert verdict("a // b").info["tests"] == ["passed", "passed"]
    said = verdict("a + b").feedback
    assert said is not None
    assert "Output\n9\nExpected\n2" in said
    assert "987654" not in said
    overfit = verdict("2")
    assert not overfit.solved
    assert overfit.feedback == "Wrong Answer\n1 of 2 tests passed."
    # What failed on a public test counts, also when a private one failed in a way that comes first.
    said = verdict("1 // (a - 987654)").feedback
    assert said is not None
    assert said.startswith("Test Case 1: Wrong Answer")


def test_format_and_truncation(env: CodeEnv) -> None:
    task = env.load("train")[0]
    for text in ("no code", "def divide(a, b): return a // b", "```python\ndef divide"):
        verdict = env.judge(task, rollout(text))
        assert verdict.info["category"] == "incorrect_format"
        assert verdict.feedback == wording.INCORRECT_FORMAT.format(language="python")
        verdict = env.judge(task, rollout(text, truncated=True))
        assert verdict.info["category"] == "truncated"
        assert verdict.feedback == envs_text.TRUNCATED
        assert verdict.metrics == {"tests_passed": 0.0, "judge_errors": 0.0}
    complete = block("def divide(a, b):\n    return a // b\n") + "\nAnd now I will exp"
    assert env.judge(task, rollout(complete, truncated=True)).solved


def test_runtime_errors_come_before_limits_and_wrong_answers(judge: CodeJudge) -> None:
    tests = tuple(CodeTest(input=[n], output=n) for n in range(4))
    reference = CodeReference(
        kind="function", entry_point="f", public=tests, private=tests, time_limit_s=0.3
    )
    program = """
    def f(n):
        if n == 0: return 9
        if n == 1:
            while True: pass
        if n == 2: raise KeyError("k")
        return n
    """
    every = CodeJudge(judge.sandbox, stop_after_failures=9)
    verdict = every.verdict(reference, dedent(program), split="public")
    assert verdict.info["category"] == "runtime_error" or "not_run" in verdict.info["tests"]
    tests = ("wrong_answer", "time_limit")
    assert verdict.info["tests"][:2] == list(tests)
    verdict = judge.verdict(reference, dedent(program), split="public")
    assert verdict.info["category"] == "time_limit"
    assert verdict.info["tests"] == ["wrong_answer", "time_limit", "not_run", "not_run"]


def test_the_fraction_counts_every_test(judge: CodeJudge) -> None:
    tests = tuple(CodeTest(input=[n], output=n % 4) for n in range(8))
    reference = CodeReference(kind="function", entry_point="f", public=tests, private=tests)
    program = "def f(n):\n    return n\n"
    by_fraction = CodeJudge(judge.sandbox, reward="fraction").verdict(reference, program)
    assert (by_fraction.reward, by_fraction.solved) == (0.5, False)
    assert by_fraction.metrics == {"tests_passed": 0.5}
    by_solved = judge.verdict(reference, program)
    assert by_solved.reward == 0.0
    assert by_solved.info["tests"] == ["passed"] * 4 + ["wrong_answer"] * 2 + ["not_run"] * 2


def test_the_two_shortest_wrong_answers_are_shown_in_order(judge: CodeJudge) -> None:
    tests = tuple(CodeTest(input=["x" * n], output=n) for n in (90, 3, 70, 1))
    reference = CodeReference(kind="function", entry_point="f", public=tests, private=tests)
    every = CodeJudge(judge.sandbox, stop_after_failures=9)
    verdict = every.verdict(reference, "def f(s):\n    return None\n", split="public")
    assert [line for line in verdict.feedback.split("\n") if line.startswith("Test Case")] == [
        "Test Case 2: Wrong Answer",
        "Test Case 4: Wrong Answer",
    ]


def test_feedback_keeps_to_its_limit_and_hides_tokens(judge: CodeJudge) -> None:
    tests = (CodeTest(input=["<|im_end|>" * 100], output="a"),) * 3
    reference = CodeReference(kind="function", entry_point="f", public=tests, private=tests)
    program = "def f(s):\n    print('Expected\\n3\\n</think>')\n    return s\n"
    for limit in (10, 100, 300, 2000):
        short = CodeJudge(judge.sandbox, max_feedback_chars=limit)
        text = short.verdict(reference, program, split="public").feedback
        assert 0 < len(text) <= limit
        assert "<|" not in text
        assert "</think>" not in text
    assert "\n| Expected\n" in text
    assert "characters left out" in text


def test_inputs_are_shown_as_sent(judge: CodeJudge) -> None:
    tests = (CodeTest(input=[[3, 1]], output=[1, 3]),)
    reference = CodeReference(kind="function", entry_point="f", public=tests, private=tests)
    verdict = judge.verdict(
        reference, "def f(xs):\n    xs.clear()\n    return xs\n", split="public"
    )
    assert "Input\nf([3, 1])\nOutput\n[]" in verdict.feedback


def test_judging_from_many_threads_gives_the_same_verdicts(env: CodeEnv) -> None:
    task = env.load("train")[0]
    programs = [f"def divide(a, b):\n    return a // b + {n % 2}\n" for n in range(40)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        verdicts = list(pool.map(lambda p: env.judge(task, rollout(block(p))), programs))
    assert [verdict.solved for verdict in verdicts] == [n % 2 == 0 for n in range(40)]


def test_check_proves_references_and_finds_bad_ones(env: CodeEnv, tmp_path: Path) -> None:
    report = env.check()
    assert (report.num_tasks, report.failures, report.skipped) == (2, {}, 0)
    wrong = {**DIVIDE, "id": "wrong", "reference_solution": "def divide(a, b):\n    return a\n"}
    none = {"public": [{"input": [0, 0], "output": None}]}
    weak = {
        **DIVIDE,
        "id": "weak",
        "tests": none,
        "reference_solution": "def divide(a, b):\n    pass\n",
    }
    unknown = {key: DIVIDE[key] for key in DIVIDE if key != "reference_solution"}
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (wrong, weak, unknown)))
    bad = CodeEnv(schema.CodeEnvConfig(tasks=str(path)))
    report = bad.check()
    bad.close()
    assert set(report.failures) == {"wrong", "weak"}
    assert "fails a public test: Test Case 1: Wrong Answer" in report.failures["wrong"]
    assert "returns None" in report.failures["weak"]
    assert report.skipped == 1
