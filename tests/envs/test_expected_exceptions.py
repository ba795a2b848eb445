"""Asserts that expect an exception, and tests that no process of ours can run."""

from __future__ import annotations

import pytest

from sdpo.envs.code import judge_program
from sdpo.envs.code.judge import CodeJudge
from sdpo.errors import TaskError

RIGHT = "def f(x):\n    if x < 0:\n        raise ValueError('x is negative')\n    return x\n"
OTHER = RIGHT.replace("ValueError", "KeyError")
LAX = "def f(x):\n    return x\n"
OWN = (
    f"class Negative(ValueError):\n    pass\n{RIGHT.replace('raise ValueError', 'raise Negative')}"
)

FORMS = [
    "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass",
    "ok = False\ntry:\n    f(-1)\nexcept ValueError:\n    ok = True\nassert ok",
    "try:\n    f(-1)\nexcept ValueError as error:\n    assert 'negative' in str(error)\n"
    "else:\n    assert False, 'no error'",
    "import contextlib\nwith contextlib.suppress(ValueError):\n    f(-1)\n    assert False",
    "import unittest\nwith unittest.TestCase().assertRaises(ValueError):\n    f(-1)",
    "import unittest\nunittest.TestCase().assertRaises(ValueError, f, -1)",
    "import pytest\nwith pytest.raises(ValueError, match='neg'):\n    f(-1)",
    "import pytest\npytest.raises(ValueError, f, -1)",
    "import pytest\nwith pytest.raises(ValueError) as caught:\n    f(-1)\n"
    "assert 'negative' in str(caught.value)\nassert f(2) == pytest.approx(2.0)",
    "def fails(x):\n    try:\n        f(x)\n    except ValueError:\n        return True\n"
    "    return False\nassert [fails(x) for x in (-1, 0, -2)] == [True, False, True]",
]


def row(*sources: str, **fields: object) -> dict[str, object]:
    tests = {"public": list(sources)}
    return {
        "id": "t", "prompt": "p", "kind": "asserts", "entry_point": "f", "tests": tests, **fields
    }  # fmt: skip


@pytest.mark.parametrize("solution", [None, RIGHT], ids=["no reference", "reference"])
@pytest.mark.parametrize("source", FORMS)
def test_a_right_program_that_raises_what_is_asked_passes(
    judge: CodeJudge, source: str, solution: str | None
) -> None:
    fields = {} if solution is None else {"reference_solution": solution}
    task = row(source, **fields)
    for program in (RIGHT, OWN):
        verdict = judge_program(task, program, sandbox=judge.sandbox, split="public")
        assert verdict.solved, verdict.feedback
    for program in (LAX, OTHER):
        verdict = judge_program(task, program, sandbox=judge.sandbox, split="public")
        assert not verdict.solved
        assert verdict.info["category"] == "wrong_answer"
        assert source.splitlines()[0] in verdict.feedback
    assert "KeyError: " in verdict.feedback


@pytest.mark.parametrize(
    "program",
    [
        "def f(x:\n    raise ValueError\n",
        "def g(x):\n    raise ValueError\n",
        "raise ValueError\n",
        "def f(x):\n    import os\n    os._exit(0)\n",
        "def f(x):\n    raise SystemExit\n",
        "def f(x):\n    while True: pass\n",
    ],
)
def test_what_is_not_an_exception_of_the_function_satisfies_nothing(
    judge: CodeJudge, program: str
) -> None:
    source = "try:\n    f(-1)\nexcept BaseException:\n    pass\nelse:\n    assert False"
    fields = {"time_limit_s": 0.3}
    verdict = judge_program(row(source, **fields), program, sandbox=judge.sandbox, split="public")
    assert not verdict.solved
    assert verdict.info["category"] in ("runtime_error", "time_limit")


def test_catching_everything_does_not_catch_the_judges_own_signals(judge: CodeJudge) -> None:
    source = (
        "got = []\nfor x in (1, -1, 2):\n    try:\n        got.append(f(x))\n"
        "    except BaseException:\n        got.append(None)\nassert got == [1, None, 2]"
    )
    task = row(source)
    assert judge_program(task, RIGHT, sandbox=judge.sandbox, split="public").solved
    assert not judge_program(task, LAX, sandbox=judge.sandbox, split="public").solved


def test_an_exception_that_no_test_expects_stays_a_runtime_error(judge: CodeJudge) -> None:
    task = row("for x in (1, -1):\n    assert f(x) == x")
    verdict = judge_program(task, RIGHT, sandbox=judge.sandbox, split="public")
    assert verdict.feedback.startswith("Runtime Error\nValueError: x is negative\nLine 3 in f")
    assert verdict.feedback.endswith("Last Executed Input\nf(-1)")


def test_a_loop_without_an_entry_point_finds_the_function(judge: CodeJudge) -> None:
    task = row("for i in range(3):\n    assert f(i) == i + 1")
    del task["entry_point"]
    verdict = judge_program(task, "def f(a): return a + 1", sandbox=judge.sandbox, split="public")
    assert verdict.solved


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("assert abs(f(1) - math.pi) < 1", "math is not defined"),
        ("for x in [1]:\n    assert f(x) == double(x)", "double is not defined"),
        ("assert f(1) == expected", "expected is not defined"),
        ("import numpy as np\nassert np.allclose(f(1), 1)", "numpy is not defined"),
        ("from sklearn import svm\nfor x in [1]:\n    assert svm.SVC(f(x))", "sklearn is not"),
        ("for x in [1]:\n    assert True", "calls nothing of the program"),
    ],
)
def test_a_test_that_the_judge_cannot_run_is_refused_when_it_is_loaded(
    source: str, missing: str
) -> None:
    with pytest.raises(TaskError, match=missing) as refused:
        judge_program(row("assert f(1) == 1", source), LAX)
    assert "tests.public[1]" in str(refused.value)


def test_two_functions_without_an_entry_point_are_refused() -> None:
    task = row("for x in [1]:\n    assert f(x) == g(x)")
    del task["entry_point"]
    with pytest.raises(TaskError, match="which of f, g is the program's function"):
        judge_program(task, LAX)


def test_a_try_around_an_object_needs_a_reference_because_it_would_fail_every_program() -> None:
    task = row("s = Pile()\ntry:\n    s.pop()\n    assert False\nexcept IndexError:\n    pass")
    del task["entry_point"]
    with pytest.raises(TaskError, match=r"of the class Pile .* need a reference_solution"):
        judge_program(task, "class Pile: pass")
    solution = "class Pile:\n    def pop(self): raise IndexError"
    assert judge_program({**task, "reference_solution": solution}, solution).solved


def test_what_only_shows_when_it_runs_is_the_tests_fault_too(judge: CodeJudge) -> None:
    task = row("from math import *\nfor x in [1]:\n    assert f(x) == gone(x)")
    with pytest.raises(TaskError, match="cannot be judged: NameError: name 'gone'"):
        judge_program(task, LAX, sandbox=judge.sandbox, split="public")
    helper = row(
        "for x in [1]:\n    assert f(x) == twice(x)",
        setup="import math\ndef twice(x): return 2 * x",
    )
    twice = "def f(x): return 2 * x"
    assert judge_program(helper, twice, sandbox=judge.sandbox, split="public").solved
