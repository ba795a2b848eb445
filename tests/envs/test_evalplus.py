"""Rows of EvalPlus: their `test` field decides, in each of its forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdpo.config import schema
from sdpo.envs.code import CodeEnv
from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.code.judge import CodeJudge
from sdpo.errors import TaskError
from sdpo.records import Task

USUAL = """import numpy as np
from math import inf

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    return False

def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match
"""
AS_SETS = USUAL.replace("exact_match = out == exp", "out = set(out)\n    exp = set(exp)").replace(
    "exact_match", "out == exp"
)
NO_ASSERT = """
def assertion(out, exp, atol):
    if isinstance(out, bool):
        exact_match = out == exp
    else:
        exact_match = exp == (out is not None)
"""


def mbpp_plus(code: str, test: str, number: int = 17) -> dict[str, object]:
    return {
        "task_id": number,
        "code": code,
        "prompt": "Write a function.",
        "source_file": "x",
        "test_imports": [],
        "test_list": ["assert f(1) == 1"],
        "test": test,
    }


def loop(inputs: str, results: str, body: str) -> str:
    return (
        f"inputs = {inputs}\nresults = {results}\n"
        f"for i, (inp, exp) in enumerate(zip(inputs, results)):\n    {body}\n"
    )


def load(tmp_path: Path, row: dict[str, object]) -> Task:
    path = tmp_path / "plus.jsonl"
    path.write_text(json.dumps(row) + "\n")
    ((_, task),) = load_code_tasks(str(path))
    return task


def solves(judge: CodeJudge, task: Task, program: str) -> bool:
    return judge.verdict(task.reference, program).solved


def test_a_table_of_the_shown_inputs_does_not_solve_mbpp_plus(
    judge: CodeJudge, tmp_path: Path
) -> None:
    """EleutherAI/lm-evaluation-harness#4212."""
    code = "def square_perimeter(a):\n  return 4 * a"
    body = "assertion(square_perimeter(*inp), exp, 0)"
    test = USUAL + loop("[[10], [5], [4], [100], [2**0]]", "[40, 20, 16, 400, 4]", body)
    test = test.replace("2**0", "1")
    row = mbpp_plus(code, test)
    row["test_list"] = ["assert square_perimeter(10)==40"]
    task = load(tmp_path, row)
    assert task.reference.kind == "function"
    assert len(task.reference.private) == 5
    assert len(task.reference.public) == 3
    assert "square_perimeter(10)==40" in task.messages[0]["content"]
    assert solves(judge, task, code)
    assert not solves(judge, task, "def square_perimeter(a):\n    return {10:40,5:20,4:16}[a]\n")


@pytest.mark.parametrize(
    ("code", "test", "also_right", "wrong"),
    [
        (
            "def f(x):\n    return x / 3",
            USUAL
            + loop("[[1], [2.0]]", "[0.3333333333, 0.6666666667]", "assertion(f(*inp), exp, 0)"),
            "def f(x):\n    return x * (1 / 3)",
            "def f(x):\n    return round(x / 3, 3)",
        ),
        (
            "def f(x):\n    return x",
            USUAL
            + loop(
                "[[inf], [(1, 2)], [set()], [{1: 'a'}], [-inf]]",
                "[inf, (1, 2), set(), {1: 'a'}, -inf]",
                "assertion(f(*inp), exp, 0)",
            ),
            "def f(x):\n    return type(x)(x)",
            "def f(x):\n    return abs(x)",
        ),
        (
            "def f(a, b):\n    return tuple(set(a) & set(b))",
            AS_SETS + loop("[[(1, 2), (2, 3)]] * 1", "[(2,)]", "assertion(f(*inp), exp, 0)"),
            "def f(a, b):\n    return [x for x in a if x in b] * 2",
            "def f(a, b):\n    return a",
        ),
        (
            "import re\ndef f(s):\n    return re.match('a', s)",
            NO_ASSERT + loop("[['abc'], ['bc']]", "[True, False]", "assertion(f(*inp), exp, 0)"),
            "def f(s):\n    return s[:1] == 'a'",
            "def f(s):\n    return True",
        ),
        (
            "def f(x):\n    return x",
            "def _other(x):\n    return -x\ndef assertion(out, exp_0, exp_1, atol):\n"
            "    assert abs(out - exp_0) <= atol or abs(out - exp_1) <= atol\n"
            + loop("[[1], [2]]", "[1, 2]", "assertion(f(*inp), exp, _other(*inp), 0)"),
            "def f(x):\n    return -x",
            "def f(x):\n    return 2 * x",
        ),
        (
            "def f(x):\n    return [x] * x",
            USUAL
            + "def ref_func(x):\n    return [x] * x\ninputs = [[3], [0]]\n"
            + "for i, inp in enumerate(inputs):\n    assertion(f(*inp), ref_func(*inp), 0)\n",
            "def f(x):\n    return [x for _ in range(x)]",
            "def f(x):\n    return [3] * 3",
        ),
    ],
    ids=["floats", "literals", "sets", "match", "two oracles", "reference"],
)
def test_every_form_of_mbpp_plus(
    judge: CodeJudge, tmp_path: Path, code: str, test: str, also_right: str, wrong: str
) -> None:
    test = test.replace("]] * 1", "]]")
    task = load(tmp_path, mbpp_plus(code, test))
    assert solves(judge, task, code)
    assert solves(judge, task, also_right)
    assert not solves(judge, task, wrong)


HUMAN_EVAL = {
    "task_id": "HumanEval/32",
    "prompt": "def find_zero(xs: list):\n    '''A root.'''\n",
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
}


def test_roots_of_human_eval_plus(judge: CodeJudge, tmp_path: Path) -> None:
    check = loop("[[[1, 2]], [[-6, 3]]]", "[-0.5, 2.0]", "assert _poly(*inp, out) <= 0.0001")
    check = check.replace("assert _poly", "assert abs(_poly").replace(
        "inp, out)", "inp, candidate(*inp)))"
    )
    test = (
        "import math\n\ndef _poly(xs: list, x: float):\n"
        "    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])\n"
        "\ndef check(candidate):\n" + "".join(f"    {line}\n" for line in check.splitlines())
    )
    task = load(tmp_path, {**HUMAN_EVAL, "test": test})
    assert task.reference.kind == "asserts"
    assert solves(judge, task, "def find_zero(xs):\n    return -xs[0] / xs[1] + 1e-6\n")
    assert not solves(judge, task, "def find_zero(xs):\n    return 2.0\n")


def test_human_eval_plus_is_a_function_task(judge: CodeJudge, tmp_path: Path) -> None:
    """evalplus/humanevalplus rows ended the run: "name 'assertion' is not defined"."""
    check = loop("[[[1, 2]], [[-6, 3]]]", "[-0.5, 2.0]", "assertion(candidate(*inp), exp, 0)")
    test = f"{USUAL}\ndef check(candidate):\n" + "".join(
        f"    {line}\n" for line in check.splitlines()
    )
    task = load(tmp_path, {**HUMAN_EVAL, "test": test})
    assert (task.reference.kind, task.reference.entry_point) == ("function", "find_zero")
    assert task.reference.private[1].input == [[-6, 3]]
    assert solves(judge, task, task.reference.solution)
    assert not solves(judge, task, "def find_zero(xs):\n    return 2.0\n")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("def check(): pass", "expected a list `inputs` and one loop"),
        (USUAL + loop("[[1]]", "[1, 2]", "assertion(f(*inp), exp, 0)"), "1 inputs and 2 results"),
        (USUAL + loop("[[f]]", "[1]", "assertion(f(*inp), exp, 0)"), "f is not a literal"),
        (USUAL + loop("[[1]]", "[1]", "print(exp)"), "calls no function on an input"),
    ],
)
def test_a_test_field_of_another_form_is_refused(tmp_path: Path, test: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as refused:
        load(tmp_path, mbpp_plus("def f(x):\n    return x", test))
    assert "plus.jsonl:1: test" in str(refused.value)


def test_inputs_without_results_are_refused_with_a_way_out(tmp_path: Path) -> None:
    row = {**HUMAN_EVAL, "base_input": [[[1, 2]]], "plus_input": [], "atol": 0}
    with pytest.raises(TaskError, match="use evalplus/humanevalplus or evalplus/mbppplus"):
        load(tmp_path, row)


def test_the_challenge_tests_of_mbpp_count(judge: CodeJudge, tmp_path: Path) -> None:
    row = {
        "task_id": 600,
        "text": "Double it.",
        "code": "def f(x):\n  return 2 * x",
        "test_list": ["assert f(1) == 2"],
        "test_setup_code": "",
        "challenge_test_list": ["assert f(-3) == -6"],
    }
    task = load(tmp_path, row)
    assert not solves(judge, task, "def f(x):\n    return 2 * abs(x)\n")
    assert solves(judge, task, row["code"])


def test_check_names_the_known_wrong_rows_of_mbpp(tmp_path: Path) -> None:
    """evalplus/evalplus#147: mbpp/229 asks for one order and tests another."""
    rows = [
        {"task_id": number, "text": "t", "code": "def f(x):\n  return x", "test_setup_code": "",
         "test_list": ["assert f(1) == 1"], "challenge_test_list": []}
        for number in (228, 229, 461)
    ]  # fmt: skip
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = CodeEnv(schema.CodeEnvConfig(tasks=str(path)))
    try:
        (note,) = env.check().notes
    finally:
        env.close()
    assert note == (
        "2 tasks have tests that contradict their text (evalplus/evalplus#147): mbpp/229, mbpp/461"
    )
