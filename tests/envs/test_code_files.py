"""Files of other people: MBPP, HumanEval and LiveCodeBench, read without running them."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.code.live_code_bench import pickled_text
from sdpo.errors import TaskError

MBPP = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def twice(n):\r\n  return 2 * n",
    "test_list": ["assert twice(2) == 4", "assert twice(0) == 0", "assert twice(-1) == -2"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
HUMAN_EVAL = {
    "task_id": "HumanEval/900",
    "prompt": 'import math\n\ndef helper(x):\n    return x\n\ndef inc(x):\n    """Add one."""\n',
    "entry_point": "inc",
    "canonical_solution": "    return x + 1\n",
    "test": (
        "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1) == 2, 'one'\n"
        "    assert True\n    print\n    import string\n"
        "    for i in range(3):\n        assert candidate(i) == i + 1\n"
    ),
}


def pack(tests: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def live_code_bench(**changes: object) -> dict[str, object]:
    row = {
        "question_id": "q1",
        "question_content": "Print the sum.",
        "starter_code": "",
        "metadata": "{}",
        "public_test_cases": json.dumps([{"input": "1 2", "output": "3", "testtype": "stdin"}]),
        "private_test_cases": pack([{"input": "5 6", "output": "11", "testtype": "stdin"}]),
        "difficulty": "easy",
    }
    return {**row, **changes}


def write(path: Path, *rows: Mapping[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_mbpp_rows(tmp_path: Path) -> None:
    other = {**MBPP, "task_id": 601}
    rows = load_code_tasks(write(tmp_path / "mbpp.jsonl", MBPP, other))
    assert [(split, task.id) for split, task in rows] == [
        ("eval", "mbpp/11"),
        ("train", "mbpp/601"),
    ]
    reference = rows[0][1].reference
    assert [test.input for test in reference.private] == MBPP["test_list"]
    assert len(reference.public) == 2
    assert set(reference.public) < set(reference.private)
    prompt = rows[0][1].messages[0]["content"]
    for test in reference.private:
        assert (test.input in prompt) is (test in reference.public)
    assert "\r" not in reference.solution


def test_the_public_half_is_the_same_every_time(tmp_path: Path) -> None:
    path = write(tmp_path / "mbpp.jsonl", MBPP)
    first, second = load_code_tasks(path), load_code_tasks(path)
    assert first[0][1].reference.public == second[0][1].reference.public


def test_sanitized_mbpp_rows(tmp_path: Path) -> None:
    row = {key: value for key, value in MBPP.items() if key not in ("text", "test_setup_code")}
    row |= {"prompt": "Write a function.", "test_imports": ["import math"]}
    ((_, task),) = load_code_tasks(write(tmp_path / "s.jsonl", row))
    assert task.reference.setup == "import math"


def test_human_eval_rows(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMAN_EVAL).encode()))
    ((split, task),) = load_code_tasks(str(path))
    assert (split, task.id) == ("train", "HumanEval/900")
    alone, together = (test.input for test in task.reference.private)
    assert alone == "assert candidate(1) == 2, 'one'"
    assert together.startswith("import string\nfor i in range(3):")
    assert "def helper" in task.reference.prelude
    assert "def inc" not in task.reference.prelude


def test_a_damaged_gz_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(TaskError, match=r"cannot read .*x.jsonl.gz: Not a gzipped file"):
        load_code_tasks(str(path))


def test_live_code_bench_programs(tmp_path: Path) -> None:
    ((split, task),) = load_code_tasks(write(tmp_path / "lcb.jsonl", live_code_bench()))
    assert (split, task.id, task.reference.kind) == ("train", "lcb/q1", "stdio")
    assert [test.input for test in task.reference.public] == ["5 6"]
    assert [test.input for test in task.reference.private] == ["1 2", "5 6"]


def test_live_code_bench_functions(tmp_path: Path) -> None:
    test = {"input": '[1, 2]\n"a"', "output": "[3]", "testtype": "functional"}
    row = live_code_bench(
        metadata=json.dumps({"func_name": "solve"}),
        starter_code="class Solution:\n    def solve(self, xs, s):\n        ",
        public_test_cases=json.dumps([test]),
        private_test_cases=json.dumps([test]),
    )
    ((_, task),) = load_code_tasks(write(tmp_path / "lcb.jsonl", row))
    assert task.reference.entry_point == "solve"
    assert task.reference.public[0].input == [[1, 2], "a"]
    assert task.reference.public[0].output == [3]
    # The paper's prompt, word for word.
    assert task.messages[0]["content"] == (
        "You are a coding expert. You will be given a coding problem, and you need to write a "
        "correct Python program that matches the specification and passes all tests. The time "
        "limit is 1 second. You may start by outlining your thought process. In the end, please "
        "provide the complete code in a code block enclosed with ``` ```.\n\nPrint the sum.\n\n"
        "Your solution should have the following signature: ```python\ndef solve(xs, s):\n```"
    )


def test_without_public_tests_half_of_the_private_ones_are_shown(tmp_path: Path) -> None:
    tests = [{"input": str(n), "output": str(n), "testtype": "stdin"} for n in range(10)]
    row = live_code_bench(public_test_cases="[]", private_test_cases=pack(tests))
    ((_, task),) = load_code_tasks(write(tmp_path / "lcb.jsonl", row))
    assert len(task.reference.public) == 5
    assert len(task.reference.private) == 10


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"public_test_cases": "[", "private_test_cases": "[]"}, "public_test_cases: not JSON"),
        ({"private_test_cases": "%%%"}, "private_test_cases: neither JSON nor base64"),
        (
            {"private_test_cases": base64.b64encode(b"no zlib").decode()},
            "private_test_cases: neither JSON nor base64",
        ),
        ({"private_test_cases": pack(["x"])}, "private_test_cases[0]: expected an object"),
        (
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()},
            "only a string is allowed",
        ),
        (
            {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(["a"]))).decode()},
            "only a string is allowed",
        ),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "no test in"),
        (
            {"public_test_cases": '[{"input": "1", "output": "1", "testtype": "web"}]'},
            "'web' is neither stdin nor functional",
        ),
        (
            {"public_test_cases": '[{"input": "1", "output": "1", "testtype": "functional"}]'},
            "tests of both types",
        ),
        (
            {
                "public_test_cases": '[{"input": "1", "output": "1", "testtype": "functional"}]',
                "private_test_cases": "",
            },
            "metadata.func_name",
        ),
        ({"question_content": None}, "question_content: expected a string, got null"),
    ],
)
def test_a_wrong_live_code_bench_row_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TaskError) as caught:
        load_code_tasks(
            write(tmp_path / "lcb.jsonl", live_code_bench(), live_code_bench(**changes))
        )
    assert f"{tmp_path / 'lcb.jsonl'}:2: " in str(caught.value)
    assert message in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_text_is_read_off_every_pickle_protocol(protocol: int) -> None:
    text = "[1]\n'\u00e9\U0001f642"
    assert pickled_text(pickle.dumps(text, protocol)) == text


@pytest.mark.parametrize(
    "data", [b"", b"(lp0\n.", pickle.dumps(b"x"), pickle.dumps(1), b"\x80\x04."]
)
def test_other_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"text|pickle"):
        pickled_text(data)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (MBPP, {"task_id": "x"}, "task_id: expected int, got str"),
        (MBPP, {"test_list": []}, "test_list: expected a non-empty list"),
        (MBPP, {"test_list": ["assert f("]}, "test_list[0]: not Python"),
        (HUMAN_EVAL, {"test": "x = 1"}, "test: no function check(candidate)"),
        (HUMAN_EVAL, {"test": "def check(candidate):\n    pass"}, "no assert on candidate"),
        (HUMAN_EVAL, {"canonical_solution": "  return ("}, "canonical_solution: not Python"),
    ],
)
def test_a_wrong_foreign_row_is_named(
    tmp_path: Path, base: dict[str, object], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(TaskError) as caught:
        load_code_tasks(write(tmp_path / "rows.jsonl", {**base, **changes}))
    assert f"rows.jsonl:1: {message}" in str(caught.value) or message in str(caught.value)
