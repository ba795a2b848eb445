"""LiveCodeBench as the paper trains on it; programs as the benchmark's own runner takes them."""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo.config import schema
from sdpo.envs.code import CodeEnv, judge_program
from sdpo.envs.code.live_code_bench import live_code_bench_task
from sdpo.envs.code.tasks import PackedTests
from sdpo.envs.table import Line
from sdpo.errors import ConfigError, TaskError
from sdpo.records import Task
from sdpo.sandbox import Sandbox, open_sandbox

SAMPLE = [{"input": "1\n", "output": "YES\n", "testtype": "stdin"}]
HIDDEN = [
    {"input": f"{n}\n", "output": "YES\n" if n % 2 else "NO\n", "testtype": "stdin"}
    for n in range(2, 12)
]


def row(**changes: object) -> dict[str, object]:
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(HIDDEN)))).decode()
    fields = {
        "question_id": "1873_A",
        "question_content": "Is it odd?",
        "starter_code": "",
        "contest_date": "2025-02-08T00:00:00",
        "metadata": "{}",
        "public_test_cases": json.dumps(SAMPLE),
        "private_test_cases": packed,
    }
    return {**fields, **changes}


def task(**changes: object) -> Task:
    return live_code_bench_task(Line(path="x", number=1, row=row(**changes)))[1]


def function(name: str, output: str, *inputs: str) -> Task:
    test = {"input": "\n".join(inputs), "output": output, "testtype": "functional"}
    return task(
        metadata=json.dumps({"func_name": name}),
        starter_code=f"class Solution:\n    def {name}(self, x: int) -> int:\n        ",
        public_test_cases="[]",
        private_test_cases=json.dumps([test]),
    )


@pytest.fixture(scope="module")
def with_packages() -> Iterator[Sandbox]:
    with open_sandbox("auto", width=1, preload=("numpy", "sortedcontainers")) as opened:
        yield opened


def test_printing_the_statements_sample_is_not_solved() -> None:
    verdict = judge_program(task(), "input(); print('YES')", split="public")
    assert not verdict.solved
    assert "Expected\nNO" in verdict.feedback
    right = "print('YES' if int(input()) % 2 else 'NO')"
    assert judge_program(task(), right, split="public").solved
    assert judge_program(task(), right, split="private").solved


def test_hidden_tests_packed_as_the_published_files_pack_them() -> None:
    """Instructions of row 1873_A, with its columns; its samples come as text and, on the hub's
    page, as a list."""
    published = row(
        question_title="Odd", platform="codeforces", contest_id="1873", difficulty="easy"
    )  # fmt: skip
    inside = zlib.decompress(base64.b64decode(str(published["private_test_cases"])))
    opcodes = [(code.name, argument) for code, argument, _ in pickletools.genops(inside)]
    assert [name for name, _ in opcodes] == ["PROTO", "FRAME", "BINUNICODE", "MEMOIZE", "STOP"]
    assert opcodes[0] == ("PROTO", 4)
    for samples in (json.dumps(SAMPLE), SAMPLE):
        found = task(**{**published, "public_test_cases": samples}).reference
        assert (len(found.private), len(found.public)) == (11, 5)
        assert [test.input for test in found.private][1:] == [each["input"] for each in HIDDEN]


def test_training_is_on_half_of_the_hidden_tests_and_evaluation_on_all() -> None:
    reference = task().reference
    assert len(reference.public) == 5
    assert len(reference.private) == 11
    assert SAMPLE[0]["input"] not in [test.input for test in reference.public]
    assert [test.input for test in reference.public] == [t.input for t in task().reference.public]
    whole = reference.tests("all")
    assert len(whole) == 11
    assert [test.input for test in whole[:5]] == [test.input for test in reference.public]


def test_tests_stay_packed_until_they_are_judged() -> None:
    big = [{"input": "7 " * 100_000, "output": "1", "testtype": "stdin"}] * 20
    reference = task(private_test_cases=json.dumps(big)).reference
    assert isinstance(reference.private, PackedTests)
    assert len(pickle.dumps(reference)) < 200_000
    assert reference.private[-1].input == big[0]["input"]


def test_the_papers_window_of_dates(tmp_path: Path) -> None:
    dates = ("2025-01-31T00:00:00", "2025-02-01T00:00:00", "2025-04-30", "2025-05-01")
    rows = [row(question_id=date[:10], contest_date=date) for date in dates]
    path = tmp_path / "test6.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    window = ("2025-02-01", "2025-05-01")
    env = CodeEnv(schema.CodeEnvConfig(tasks=str(path), contest_dates=window))
    assert [each.id for each in env.load("train")] == ["lcb/2025-02-01", "lcb/2025-04-30"]
    empty = CodeEnv(schema.CodeEnvConfig(tasks=str(path), contest_dates=("2030-01-01",) * 2))
    with pytest.raises(TaskError, match=r"no task from 2030.*are from 2025-01-31 to 2025-05-01"):
        empty.load("train")
    undated = CodeEnv(schema.CodeEnvConfig(contest_dates=window))
    with pytest.raises(TaskError, match="tasks have no contest_date"):
        undated.load("train")
    with pytest.raises((ConfigError, ValueError), match="contest_dates"):
        schema.CodeEnvConfig(contest_dates=("February", "May"))


STAR_IMPORTED = [
    "return ascii_lowercase[:x]",
    "return itemgetter(0)([x])",
    "return mean([x, x])",
    "return randint(x, x)",
    "return loads(dumps(x))",
    "return len(stdin.read()) + x",
    "return pow(x, 1, 5) + abs(0)",
    "return sub('a', str(x), 'a') and x",
    "return deque([x])[0] + heappop([0]) + gcd(0, 0) + bisect_left([], 0)",
    "t: Optional[TreeNode] = TreeNode(x)\n        return t.val",
]


@pytest.mark.parametrize("body", STAR_IMPORTED)
def test_what_the_benchmarks_runner_imports_is_there(body: str) -> None:
    program = f"class Solution:\n    def f(self, x: int) -> int:\n        {body}\n"
    expected = '"abc"' if "ascii" in body else "3"
    if "sub(" in body:  # `operator.sub` comes after `re.sub`, there too
        program = program.replace("sub('a', str(x), 'a') and x", "sub(x, 0)")
    verdict = judge_program(function("f", expected, "3"), program)
    assert verdict.solved, verdict.info


def test_annotations_with_the_classes_in_comments_of_starting_code() -> None:
    program = "def f(x: Optional[ListNode]) -> Optional[TreeNode]:\n    return x\n"
    assert judge_program(function("f", "3", "3"), program).solved


def test_recursion_of_fifty_thousand() -> None:
    program = "def f(x):\n    return 0 if x == 0 else 1 + f(x - 1)\n"
    assert judge_program(function("f", "45000", "45000"), program).solved


@pytest.mark.parametrize(
    ("program", "given", "output"),
    [
        ("print(10**5000 + 7)", "", "1" + "0" * 4999 + "7"),
        ("print(int(input()) % 10)", "9" * 6000, "9"),
        ("print(len(str(10**5000)))", "", "5001"),
        ("print(int(str(10**6000)) == 10**6000)", "", "True"),
    ],
)
def test_integers_have_as_many_digits_as_they_like(program: str, given: str, output: str) -> None:
    """NVIDIA-NeMo/Gym#2956."""
    tests = json.dumps([{"input": given, "output": output, "testtype": "stdin"}])
    verdict = judge_program(task(private_test_cases=tests, public_test_cases="[]"), program)
    assert verdict.solved, verdict.info


def test_a_long_string_of_digits_is_returned() -> None:
    expected = json.dumps("1" + "0" * 5000)
    program = "def f(x):\n    return str(10**5000)\n"
    assert judge_program(function("f", expected, "1"), program).solved


@pytest.mark.parametrize(
    "body",
    [
        "import numpy as np\n    return int(np.sum(np.array([x])))",
        "import numpy\n    return int(numpy.linalg.norm([x]))",
        "from numpy.random import default_rng\n    return x + 0 * int(default_rng(0).random())",
        "from sortedcontainers import SortedList\n    return SortedList([9, x])[0]",
    ],
)
def test_numpy_and_sortedcontainers_can_be_imported(with_packages: Sandbox, body: str) -> None:
    program = f"def f(x):\n    {body}\n"
    verdict = judge_program(function("f", "3", "3"), program, sandbox=with_packages)
    assert verdict.solved, verdict.info


def test_the_environment_loads_what_its_tasks_may_import(tmp_path: Path) -> None:
    path = tmp_path / "lcb.jsonl"
    path.write_text(json.dumps(row()) + "\n")
    env = CodeEnv(schema.CodeEnvConfig(tasks=str(path)))
    try:
        assert env.facts()["packages"] == "numpy, sortedcontainers"
    finally:
        env.close()
    assert sys.get_int_max_str_digits() == 4300  # here, nothing changed
