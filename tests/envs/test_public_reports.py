"""Answers that other judges misjudged, as their users reported them: each with its source and the
right verdict.

The inputs are reduced; what matters in each is kept. Reports that need a data set's own rows are in
`test_evalplus.py`, `test_live_code_bench.py` and `test_checker.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from code_rows import block

from sdpo.config import schema
from sdpo.envs.code import CodeEnv
from sdpo.envs.code.formats import load_code_tasks
from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.rows import parse_task
from sdpo.envs.code.tasks import with_tests
from sdpo.envs.table import Line
from sdpo.sandbox import LANGUAGES, Sandbox

SOLVED, FAILED = True, False


def task(kind: str, *tests: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "t", "prompt": "p", "kind": kind, "tests": {"public": list(tests)}, **fields}


def stdio(given: str, output: str, **fields: Any) -> dict[str, Any]:
    return task("stdio", {"input": given, "output": output}, **fields)


def function(name: str, given: list[Any], output: Any) -> dict[str, Any]:
    return task("function", {"input": given, "output": output}, entry_point=name)


PREFIX = function("filter_by_prefix", [["abc", "bcd", "array"], "a"], ["abc", "array"])
SUM = stdio("1 2\n3\n", "6\n")
ADD = function("add", [1, 2], 3)
RIGHT_ADD = block("def add(a, b):\n    return a + b\n")
PATH = """
def check(input, output, expected):
    edges = {("1", "2"), ("1", "3"), ("2", "4"), ("3", "4")}
    path = output.split()
    if path[:1] != ["1"] or path[-1:] != ["4"]:
        return "a path leads from 1 to 4"
    return len(path) == len(expected.split()) and all(e in edges for e in zip(path, path[1:]))
"""
ODD = """
def check(input, output, expected):
    a, b = map(int, input.split())
    return int(output) % 2 == 1 and a <= int(output) <= b
"""

REPORTS: list[tuple[str, dict[str, Any], str, bool]] = [
    (
        "FastEval/FastEval#24",
        PREFIX,
        block(
            "from typing import List\n\ndef filter_by_prefix(strings: List[str], prefix: str)"
            " -> List[str]:\n    return [s for s in strings if s.startswith(prefix)]\n"
        ),
        SOLVED,
    ),
    (
        "openai/human-eval#60",
        task(
            "asserts",
            'assert candidate("AsDf") == "aSdF"',
            'assert candidate("1234") == "4321"',
            entry_point="solve",
        ),
        block("def solve(s):\n    return s.swapcase() if s.swapcase() != s else s[::-1]\n"),
        SOLVED,
    ),
    (
        "confident-ai/deepeval#1102",
        task(
            "asserts",
            "assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True",
            "assert candidate([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.05) == False",
            entry_point="close",
        ),
        block(
            "def close(numbers, threshold):\n    for i in range(len(numbers) - 1):\n"
            "        if numbers[i] - numbers[i + 1] < threshold:\n            return True\n"
            "    return False\n"
        ),
        FAILED,
    ),
    (
        "NVIDIA-NeMo/Gym#820",
        ADD,
        RIGHT_ADD + "\n\nTest it:\n\n" + block("s = add(1, 2)\nprint(s)\n"),
        SOLVED,
    ),
    (
        "LiveCodeBench/LiveCodeBench#118",
        ADD,
        f"{RIGHT_ADD}\n\nSummary:\n\n```\nThe function adds two numbers.\n```",
        SOLVED,
    ),
    ("UKGovernmentBEIS/inspect_ai#581", ADD, RIGHT_ADD.replace("python", ""), SOLVED),
    (
        "Kaggle/kaggle-benchmarks#24",
        ADD,
        "First:\n" + block("def add(a, b):\n    return a - b\n") + "\nFixed:\n" + RIGHT_ADD,
        SOLVED,
    ),
    ("bigcode-project/bigcode-evaluation-harness#125", ADD, f"{RIGHT_ADD}\n```\n", SOLVED),
    ("bigcode-project/bigcode-evaluation-harness#311", ADD, f"{RIGHT_ADD}<|endoftext|>", SOLVED),
    ("bigcode-project/bigcode-evaluation-harness#311", ADD, f"{RIGHT_ADD}\n<|endoftext|>", SOLVED),
    (
        "huggingface/lighteval#1255",
        SUM,
        block("import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))\n"),
        SOLVED,
    ),
    (
        "NVIDIA-NeMo/Gym#2824",
        SUM,
        block(
            "import sys\nfirst = sys.stdin.buffer.readline()\nrest = sys.stdin.buffer.readlines()\n"
            "print(sum(map(int, first.split())) + sum(map(int, rest)))\n"
        ),
        SOLVED,
    ),
    (
        "modelscope/evalscope#1434",
        SUM,
        block("import sys\nfor line in sys.stdin.buffer:\n    x = line\nprint(3 + int(x))\n"),
        SOLVED,
    ),
    (
        "AISBench/benchmark#518",
        SUM,
        block(
            "import sys\na, b = map(int, input().split())\n"
            "sys.stdout.buffer.write(b'%d\\n' % (a + b + int(sys.stdin.read())))\n"
        ),
        SOLVED,
    ),
    (
        "google-deepmind/code_contests#19",
        SUM,
        block(
            "import sys\ninput = sys.stdin.readline\na, b = map(int, input().split())\n"
            "print(a + b + int(input()))\n"
        ),
        SOLVED,
    ),
    (
        "hendrycks/apps#27",
        stdio("", "YES\nNO\nYES\n"),
        block("print('NO\\nYES\\nYES')\n"),
        FAILED,
    ),
    (
        "allenai/olmo-eval#354",
        stdio("4\n", "16\n"),
        block("def main():\n    print(int(input())**2)\nif __name__ == '__main__':\n    main()\n"),
        SOLVED,
    ),
    (
        "allenai/olmo-eval#354",
        function("pair", [1], [1, 2]),
        block("def pair(x):\n    return x, x + 1\n"),
        SOLVED,
    ),
    (
        "codewars/codewars.com#1970",
        function("best", [1, 2, [3]], 7),
        block(
            "class MyClass:\n    def __call__(self, *x):\n        return self\n"
            "    def __eq__(self, x):\n        return True\nbest = MyClass()\n"
        ),
        FAILED,
    ),
    (
        "codewars/codewars.com#3083",
        task("asserts", "assert solution(1, 2) == 3", entry_point="solution"),
        block(
            "class TrueEq:\n    def __eq__(self, b):\n        return True\n"
            "def solution(a, b):\n    return TrueEq()\n"
        ),
        FAILED,
    ),
    (
        "codewars/codewars.com#2179",
        task("asserts", "assert f(1) == 2", entry_point="f"),
        block("import sys\nsys.exit(0)\ndef f(x): pass\n"),
        FAILED,
    ),
    (
        "PrimeIntellect-ai/prime-envs#692",
        ADD,
        block("import os\ndef add(a, b):\n    os._exit(0)\n"),
        FAILED,
    ),
    (
        "SWE-bench/SWE-bench#620",
        task("asserts", "assert f(1) == 2", entry_point="f"),
        block("print('PASSED test_f')\nprint('1 passed in 0.01s')\ndef f(x):\n    return 0\n"),
        FAILED,
    ),
    (
        "skypilot-org/skypilot#9836",
        stdio("1\n", "2\n"),
        block("raise SystemExit(0)\n"),
        FAILED,
    ),
    ("dchinmay2/cphelper.nvim#22", stdio("", "3\n"), block("print(3, end='')\n"), SOLVED),
    ("dchinmay2/cphelper.nvim#25", stdio("", "1 2 3\n"), block("print('1 2 3 ')\n"), SOLVED),
    ("Jatana/FastOlympicCoding#60", stdio("", "1\n2\n"), block("print('1 \\n2 ')\n"), SOLVED),
    ("JZJisawesome/ece250-testcases#17", stdio("", "3"), block("print('3\\n')\n"), SOLVED),
    ("code-golf/code-golf#89", stdio("", "a\nb\n"), block("print('a\\r\\nb\\r')\n"), SOLVED),
    (
        "LiveCodeBench/LiveCodeBench#129",
        stdio("", "0.333333333333\n"),
        block("print(1 / 3)\n"),
        SOLVED,
    ),
    ("LiveCodeBench/LiveCodeBench#133", stdio("", "1e-05 0\n"), block("print(0.00001, -0.0)\n"),
     SOLVED),
    ("LiveCodeBench/LiveCodeBench#133", stdio("", "5\n"), block("print(4.9999999999)\n"), FAILED),
    ("NVIDIA-NeMo/Gym#2956", function("f", [], [0.1, 0.2]),
     block("def f():\n    return [0.1, 0.30000000000000004 - 0.1]\n"), SOLVED),
    ("evalplus/evalplus#85", function("check", [2], 4), block("def check(n):\n    return 2 * n\n"),
     SOLVED),
    ("judge0/judge0#32", stdio("", "1 2 4\n", checker=PATH), block("print('1 3 4')\n"), SOLVED),
    ("judge0/judge0#32", stdio("", "1 2 4\n", checker=PATH), block("print('1 4')\n"), FAILED),
    ("xeluxee/competitest.nvim#23", stdio("", "1 2 4\n", checker=PATH),
     block("print('2 4')\n"), FAILED),
    ("code100x/algorithmic-arena#79", stdio("2 9\n", "3\n", checker=ODD), block("print(7)\n"),
     SOLVED),
    ("code100x/algorithmic-arena#79", stdio("2 9\n", "3\n", checker=ODD), block("print(11)\n"),
     FAILED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "row", "answer", "solved"), REPORTS, ids=[report[0] for report in REPORTS]
)
def test_what_others_misjudged(
    judge: CodeJudge, source: str, row: dict[str, Any], answer: str, solved: bool
) -> None:
    _, parsed = parse_task(Line(path=source, number=1, row=row))
    verdict = judge.verdict_on_text(parsed.reference, answer, False)
    assert verdict.solved is solved, verdict.feedback
    assert solved or verdict.feedback


@pytest.fixture(scope="module")
def native(sandbox: Sandbox) -> Iterator[CodeJudge]:
    judge = CodeJudge(sandbox)
    yield judge
    judge.close_languages()


CPP_SUM = "#include <iostream>\nint main() {\n    int a, b;\n    std::cin >> a >> b;\n%s\n}\n"
OTHER_LANGUAGES = [
    ("ochko/prudge#47", "cpp", "#include <iostream>\nint main() {\n\tkjkjjkj;\n\treturn 0;\n}\n",
     "Compile Error\nline 3: 'kjkjjkj' was not declared"),
    ("BuggleInc/PLM#450", "cpp", CPP_SUM % "    std::cout << a + b",
     "Compile Error\nline 5: expected ';' before '}' token"),
    ("remoteinterview/compilebox#65", "cpp", CPP_SUM.replace("main", "mainccc") % "",
     "Compile Error\n"),
    ("NikolayIT/OpenJudgeSystem#392", "cpp", CPP_SUM % "    std::cout << a + c;",
     "Compile Error\nline 5: 'c' was not declared in this scope"),
    ("zhblue/hustoj#399", "cpp", CPP_SUM % "    std::cout << a + b;", None),
    ("NikolayIT/OpenJudgeSystem#296", "javascript",
     "const lines = require('fs').readFileSync(0, 'utf8').trim().split('\\n');\n"
     "const [a, b] = lines[0].split(' ').map(Number);\nconsole.log(a + b);\n", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "language", "program", "said"),
    OTHER_LANGUAGES,
    ids=[report[0] for report in OTHER_LANGUAGES],
)
def test_what_others_misjudged_in_other_languages(
    native: CodeJudge, source: str, language: str, program: str, said: str | None
) -> None:
    missing = LANGUAGES[language].missing()
    if missing is not None:
        pytest.skip(missing)
    row = stdio("20 22\n", "42\n", language=language)
    _, parsed = parse_task(Line(path=source, number=1, row=row))
    for _ in range(2):  # hustoj#399: the same program compiled once and not the next time
        answer = f"```{language}\n{program}```"
        verdict = native.verdict_on_text(with_tests(parsed, "public").reference, answer, False)
        assert verdict.solved is (said is None), verdict.feedback
        assert said is None or verdict.feedback.startswith(said)
    if "compilebox" in source:
        assert "undefined reference to `main'" in verdict.feedback


def test_a_prompt_of_mbpp_names_the_function(tmp_path: Path) -> None:
    """OpenCoder-llm/OpenCoder-llm#16: "name 'freq_element' is not defined"."""
    row = {
        "task_id": 40,
        "text": "Write a function to find frequency of the elements.",
        "code": "def freq_element(xs):\n  return len(xs)",
        "test_list": ["assert freq_element([1]) == 1"],
        "test_setup_code": "",
    }
    path = tmp_path / "mbpp.jsonl"
    path.write_text(json.dumps(row) + "\n")
    ((_, parsed),) = load_code_tasks(str(path))
    assert "freq_element([1])" in parsed.messages[0]["content"]


def test_contradictory_tests_are_found_before_training(tmp_path: Path) -> None:
    """openai/human-eval#44: two asserts of a task that no program satisfies."""
    row = task(
        "asserts",
        "assert candidate(3, 4, 7) == True",
        "assert candidate(3, 4, 7) == False",
        entry_point="f",
        reference_solution="def f(a, b, c):\n    return a + b == c\n",
    )
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row) + "\n")
    env = CodeEnv(schema.CodeEnvConfig(tasks=str(path)))
    try:
        failures = env.check().failures
    finally:
        env.close()
    assert "the reference solution fails a public test" in failures["t"]
