"""Asserts judged end to end: the forms, the trusted process, and programs that try to upset it."""

from __future__ import annotations

import dataclasses

import pytest

from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.tasks import CodeReference, CodeTest
from sdpo.errors import TaskError

SQUARE = "def f(n, k=0):\n    return n * n + k\n"
PILE = """
class Pile:
    def __init__(self):
        self.items = []
    def push(self, x):
        self.items.append(x)
        return self
    def size(self):
        return len(self.items)
"""


def reference(*sources: str, solution: str | None = SQUARE, **fields: object) -> CodeReference:
    tests = tuple(CodeTest(input=source) for source in sources)
    entry_point = None if solution == PILE else "f"
    return CodeReference(
        kind="asserts",
        entry_point=entry_point,
        public=tests,
        private=tests,
        solution=solution,
        **fields,
    )


SQUARE_TESTS = [
    "assert f(3) == 9",
    "assert 9 == f(3)",
    "assert f(3) == 3 ** 2",
    "assert f(3) == 9.0",
    "assert [f(1), f(2)] == [1, 4]",
    "assert abs(f(2) - 4.0) < 1e-6",
    "assert f(2) != 5 and f(2) > 3",
    "assert isinstance(f(2), int)",
    "assert not f(0)",
    "assert f(1)",
    "assert f(2, k=1) == f(1) + 4",
    "assert all(f(n) == n * n for n in range(5))",
    "for n in range(4):\n    assert f(n, k=n) == n * n + n",
    "import random\nfor _ in range(20):\n    n = random.randint(0, 9)\n    assert f(n) == n * n",
    "n = 2\nassert f(n) == 4\nn = 3\nassert f(n) == 9",
    "want = [0, 1, 4]\nassert [f(n) for n in range(3)] == want",
    "assert candidate(2) == f(2)",
    "n = 2\nfor _ in range(3):\n    n = f(n)\nassert n == 256",
]


@pytest.mark.parametrize("solution", [SQUARE, None], ids=["reference", "no reference"])
@pytest.mark.parametrize("source", SQUARE_TESTS)
def test_every_form_accepts_what_is_right(
    judge: CodeJudge, source: str, solution: str | None
) -> None:
    if "candidate" in source:
        solution = SQUARE  # without one, f beside candidate would have no meaning
    verdict = judge.verdict(reference(source, solution=solution), SQUARE, split="public")
    assert verdict.feedback is None
    assert verdict.solved


@pytest.mark.parametrize("source", SQUARE_TESTS)
def test_every_form_refuses_what_is_wrong(judge: CodeJudge, source: str) -> None:
    verdict = judge.verdict(reference(source), "def f(n, k=0):\n    return None\n", split="public")
    if source == "assert not f(0)":
        assert verdict.solved
        return
    assert not verdict.solved
    assert verdict.info["category"] == "wrong_answer"


def test_objects_are_built_by_lines(judge: CodeJudge) -> None:
    source = "s = Pile()\ns.push(1).push(2)\nassert s.size() == 2\nassert s.items == [1, 2]"
    task = reference(source, "assert Pile().push(3).items[0] == 3", solution=PILE)
    assert judge.verdict(task, PILE).solved
    wrong = PILE.replace("append(x)", "append(x + 1)")
    verdict = judge.verdict(task, wrong, split="public")
    assert verdict.feedback.startswith(
        "Test Case 1: Wrong Answer\nInput\ns = Pile()\ns.push(1).push(2)\ns.items\n"
        "Output\n[2, 3]\nExpected\n[1, 2]"
    )


def test_a_function_that_works_in_place(judge: CodeJudge) -> None:
    program = "def f(xs):\n    xs.sort()\n"
    task = reference("xs = [3, 1]\nf(xs)\nassert xs == [1, 3]", solution=program)
    assert judge.verdict(task, program).solved
    assert not judge.verdict(task, "def f(xs):\n    return sorted(xs)\n").solved


def test_setup_runs_after_the_program(judge: CodeJudge) -> None:
    program = "class Node:\n    value = 3\ndef f(node):\n    return node.value\n"
    task = reference("assert f(root) == 3", solution=program, setup="root = Node()")
    assert judge.verdict(task, program).solved
    nothing = reference("assert f(root) == 1 + 2", solution=None, setup="root = Node()")
    assert judge.verdict(nothing, program).solved


def test_the_prelude_is_there_and_lines_count_from_the_program(judge: CodeJudge) -> None:
    task = reference("assert f(1) == 1", prelude="import math\ndef helper(x):\n    return x\n")
    assert judge.verdict(task, "def f(n):\n    return helper(math.floor(n))\n").solved
    verdict = judge.verdict(task, "def f(n):\n    return helper()\n", split="public")
    assert "\nLine 2 in f (Solution.py)" in verdict.feedback


def test_an_error_in_a_replayed_call_is_the_programs(judge: CodeJudge) -> None:
    source = "for n in range(3):\n    assert f(n) == n * n"
    program = "def f(n):\n    return [0, 1][n]\n"
    for solution in (SQUARE, None):
        verdict = judge.verdict(reference(source, solution=solution), program, split="public")
        assert verdict.info["category"] in ("runtime_error", "wrong_answer")
        assert "f(2)" in verdict.feedback


@pytest.mark.parametrize(
    "value",
    ["10 ** 100000", "'x' * 1000000", "float('nan')", "float('inf')", "[]", "object()", "{1: {2}}"],
)
def test_no_value_upsets_the_trusted_process(
    judge: CodeJudge, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setattr("sdpo.envs.code.assert_runs._TRUSTED_TIME_S", 0.3)
    task = reference(
        "assert abs(f(1) - 5) < sum(range(f(2)))",
        "for n in range(2):\n    assert sum(range(f(n))) == 0",
    )
    verdict = judge.verdict(task, f"def f(n, k=0):\n    return {value}\n", split="public")
    assert not verdict.solved
    assert verdict.feedback


def test_an_endless_condition_does_not_hold(
    judge: CodeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo.envs.code.assert_runs._TRUSTED_TIME_S", 0.3)
    task = reference(
        "assert sum(range(f(2))) == 6", "for n in [2]:\n    assert sum(range(f(n))) == 6"
    )
    verdict = judge.verdict(task, "def f(n, k=0):\n    return 10 ** 12\n", split="public")
    assert verdict.info["tests"] == ["wrong_answer", "wrong_answer"]


def test_a_wrong_test_names_itself(judge: CodeJudge) -> None:
    with pytest.raises(TaskError, match="the reference solution fails a test"):
        judge.verdict(reference("for n in [2]:\n    assert f(n) == 5"), SQUARE)
    with pytest.raises(TaskError, match="calls nothing of the program"):
        judge.verdict(reference("assert 1 == 1"), SQUARE)
    solution = "def f(x):\n    return 1\n"
    task = reference("for n in [2]:\n    assert f(object)", solution=solution)
    with pytest.raises(TaskError, match="not plain data"):
        judge.verdict(task, SQUARE)


def test_the_solution_is_judged_not_the_example_after_it(judge: CodeJudge) -> None:
    task = reference("assert f(3) == 9", solution=None)
    for entry_point in ("f", None):
        named = dataclasses.replace(task, entry_point=entry_point, judged="public")
        text = f"```python\n{SQUARE}```\nExample:\n```python\nprint(f(3))\n```"
        assert judge.verdict_on_text(named, text, False).solved
        wrong = judge.verdict_on_text(named, text.replace("n * n", "n"), False)
        assert wrong.feedback.startswith("Test Case 1: Wrong Answer")
        assert wrong.feedback.endswith("Block 1 of the 2 code blocks in the answer was judged.")
