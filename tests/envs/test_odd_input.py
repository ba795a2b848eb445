"""Odd values in task files: one clear error each, when the file is loaded."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from sdpo.envs import table
from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.code.offline import judge_program
from sdpo.errors import TaskError
from sdpo.sandbox import Sandbox

FUNCTION: dict[str, Any] = {
    "id": "f", "prompt": "p", "kind": "function", "entry_point": "f",
    "tests": {"public": [{"input": [1], "output": 1}]},
}  # fmt: skip
STDIO: dict[str, Any] = {
    "id": "s", "prompt": "p", "kind": "stdio",
    "tests": {"public": [{"input": "a\ud800b\n", "output": "3\n"}]},
}  # fmt: skip
ASSERTS: dict[str, Any] = {"id": "a", "prompt": "p", "kind": "asserts", "entry_point": "f"}


def lcb(testtype: str, given: Any, output: Any = "1") -> dict[str, Any]:
    test = {"input": given, "output": output, "testtype": testtype}
    return {
        "question_id": "q", "question_content": "p", "starter_code": "",
        "metadata": json.dumps({"func_name": "f"}), "private_test_cases": "[]",
        "public_test_cases": json.dumps([test]),
    }  # fmt: skip


MINUS = "assert f(" + "-" * 100_000 + "1) == 1"
PARENTHESES = "assert f" + "(" * 5000 + ")" * 5000 + " == 1"

ODD: dict[str, tuple[dict[str, Any], str]] = {
    "memory beyond any machine": (
        FUNCTION | {"memory_mb": 10**13},
        "memory_mb: expected a whole number from 1 to 1,048,576",
    ),
    "memory with an exponent": (FUNCTION | {"memory_mb": 1e30}, "memory_mb: expected a whole"),
    "time limit of ages": (
        FUNCTION | {"time_limit_s": 1e308},
        "time_limit_s: expected a number from 0.001 to 3,600",
    ),
    "time limit that no clock shows": (FUNCTION | {"time_limit_s": 1e-300}, "time_limit_s"),
    "tolerance above everything": (FUNCTION | {"tolerance": 1e308}, "tolerance: expected a number"),
    "a line of 100,000 minus signs": (
        ASSERTS | {"tests": {"public": [MINUS]}},
        "tests.public[0]: not Python: too deeply nested",
    ),
    "5,000 parentheses": (
        ASSERTS | {"tests": {"public": [PARENTHESES]}},
        "tests.public[0]: not Python: too",
    ),
    "setup of 100,000 minus signs": (
        ASSERTS | {"setup": "x = " + "-" * 100_000 + "1", "tests": {"public": ["assert f(1)"]}},
        "setup: not Python: too deeply nested",
    ),
    "LiveCodeBench call with a number as input": (
        lcb("functional", 5), "public_test_cases[0].input: expected a string, got a number",
    ),
    "LiveCodeBench call with a list as output": (
        lcb("functional", "5", [1]), "public_test_cases[0].output: expected a string, got a list",
    ),
    "LiveCodeBench program with a number as input": (
        lcb("stdin", 5), "public_test_cases[0].input: expected a string, got a number",
    ),
    "LiveCodeBench test of an odd type": (
        lcb("stdio", "5"), "public_test_cases[0].testtype: 'stdio' is neither stdin nor functional",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ODD))
def test_an_odd_value_is_one_error_that_names_line_and_key(tmp_path: Path, name: str) -> None:
    row, message = ODD[name]
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(TaskError) as caught:
        load_code_tasks(str(path))
    assert str(caught.value).startswith(f"{path}:1: {message}"), str(caught.value)[:300]
    assert len(str(caught.value)) < 500


def test_half_a_surrogate_pair_as_input_is_judged(sandbox: Sandbox) -> None:
    program = "print(len(input()))\n"
    assert judge_program(STDIO, program, sandbox=sandbox, split="public").solved


def test_a_small_gzip_file_of_one_huge_line_is_refused_early(tmp_path: Path) -> None:
    """512 MB from 2 MB took 2.1 GB of memory."""
    path = tmp_path / "tasks.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"id": "')
        for _ in range(300):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    with pytest.raises(TaskError, match=r"tasks.jsonl.gz:1: the line is longer than 256 MiB"):
        load_code_tasks(str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * table.MAX_LINE_BYTES


def test_rows_of_a_large_file_are_not_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    with path.open("w") as file:
        for number in range(200):
            file.write(json.dumps({"id": str(number), "padding": "x" * 100_000}) + "\n")
    tracemalloc.start()
    ids = [line.row["id"] for line in table.read_lines(path)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == 200
    assert peak < 3 << 20, "the file has 20 MB"
