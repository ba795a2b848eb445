"""Programs in C++ and JavaScript: same sandbox, limits and verdicts as Python's."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdpo.config import schema
from sdpo.envs.code import CodeEnv
from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.rows import parse_task
from sdpo.envs.table import Line
from sdpo.errors import SandboxError, TaskError
from sdpo.records import Verdict
from sdpo.sandbox import LANGUAGES, Limits, Program, Sandbox, open_language

TESTS = [{"input": "1 2\n", "output": "3\n"}, {"input": "20 22\n", "output": "42\n"}]
CPP = """#include <iostream>
using namespace std;
int main() {
    long long a, b;
    cin >> a >> b;
    cout << a + b << endl;
}
"""
JAVASCRIPT = """const text = require("fs").readFileSync("/dev/stdin", "utf8");
const [a, b] = text.split(" ").map(Number);
console.log(a + b);
"""
RIGHT = {"cpp": CPP, "javascript": JAVASCRIPT}


def installed(name: str) -> bool:
    return LANGUAGES[name].missing() is None


needs_cpp = pytest.mark.skipif(not installed("cpp"), reason="no C++ compiler")
needs_node = pytest.mark.skipif(not installed("javascript"), reason="no node")
EACH = [
    pytest.param("cpp", marks=needs_cpp),
    pytest.param("javascript", marks=needs_node),
]


@pytest.fixture(scope="module")
def native(sandbox: Sandbox) -> Iterator[CodeJudge]:
    judge = CodeJudge(sandbox)
    yield judge
    judge.close_languages()


def row(language: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": "sum",
        "prompt": "Print the sum.",
        "kind": "stdio",
        "language": language,
        "tests": {"public": TESTS},
    } | fields


def judged(judge: CodeJudge, language: str, program: str, **fields: Any) -> Verdict:
    _, task = parse_task(Line(path="x", number=1, row=row(language, **fields)))
    return judge.verdict(task.reference, program, split="public")


@pytest.mark.parametrize("language", EACH)
def test_right_and_wrong_programs(native: CodeJudge, language: str) -> None:
    assert judged(native, language, RIGHT[language]).solved
    wrong = judged(native, language, RIGHT[language].replace("a + b", "a - b"))
    assert wrong.info["category"] == "wrong_answer"
    assert wrong.feedback.startswith(
        "Test Case 1: Wrong Answer\nInput\n1 2\nOutput\n-1\nExpected\n3"
    )


CASES = [
    pytest.param(
        "cpp",
        "#include <iostream>\nint main() {\n    std::vector<int> values;\n    retrun 0;\n}\n",
        "runtime_error",
        "Compile Error\nline 3: 'vector' is not a member of 'std'",
        marks=needs_cpp,
    ),
    pytest.param("cpp", "int main() { return 3; }", "runtime_error",
                 "Runtime Error\nThe program ended without an answer (exit code 3).",
                 marks=needs_cpp),
    pytest.param("cpp", "#include <vector>\nint main() { std::vector<int>(2).at(5); }",
                 "runtime_error",
                 "Runtime Error\nstd::out_of_range: vector::_M_range_check", marks=needs_cpp),
    pytest.param("cpp", "int f(int n) { volatile int x[999]; x[n % 9] = n;\n"
                 "return f(n + 1) + x[3]; }\nint main() { return f(0); }", "runtime_error",
                 "Runtime Error\nSegmentation fault", marks=needs_cpp),
    pytest.param("cpp", "int main() { int *p = nullptr; *(volatile int *)p = 1; }", "runtime_error",
                 "Runtime Error\nSegmentation fault", marks=needs_cpp),
    pytest.param("cpp", "#include <cstdlib>\nint main() { abort(); }", "runtime_error",
                 "Runtime Error\nAborted", marks=needs_cpp),
    pytest.param("cpp", "int main() { for (volatile int i = 0;; i = i + 1) {} }", "time_limit",
                 "Time Limit Exceeded", marks=needs_cpp),
    pytest.param("cpp", "#include <vector>\nint main() { std::vector<std::vector<char>> all;\n"
                 "while (true) all.emplace_back(1 << 20, 'x'); }", "memory_limit",
                 "Memory Limit Exceeded", marks=needs_cpp),
    pytest.param("cpp", "#include <cstdio>\nint main() { while (true) puts(\"xxxxxxxxxxxxxxx\"); }",
                 "output_limit", "Output Limit Exceeded", marks=needs_cpp),
    pytest.param("cpp", "#include \"/etc/passwd\"\nint main() {}", "runtime_error",
                 "Compile Error", marks=needs_cpp),
    pytest.param("javascript", "const a = 1;\nlet b = ;\n", "runtime_error",
                 "Compile Error\nline 2: SyntaxError: Unexpected token ';'", marks=needs_node),
    pytest.param("javascript", "function f(x) {\n  return x.y.z;\n}\nf({});\n", "runtime_error",
                 "Runtime Error\nTypeError: Cannot read properties of undefined (reading 'z')\n"
                 "Line 4 in <module> (solution.js)\nLine 2 in f (solution.js)\n\nLast",
                 marks=needs_node),
    pytest.param("javascript", "throw new RangeError('too far')", "runtime_error",
                 "Runtime Error\nRangeError: too far", marks=needs_node),
    pytest.param("javascript", "process.exit(4)", "runtime_error",
                 "Runtime Error\nThe program ended without an answer (exit code 4).",
                 marks=needs_node),
    pytest.param("javascript", "while (true) {}", "time_limit", "Time Limit Exceeded",
                 marks=needs_node),
    pytest.param("javascript", "const all = [];\nwhile (true) all.push(new Array(9999).fill(1.5));",
                 "memory_limit", "Memory Limit Exceeded", marks=needs_node),
    pytest.param("javascript", "while (true) console.log('x'.repeat(20000));",
                 "output_limit", "Output Limit Exceeded", marks=needs_node),
]  # fmt: skip


@pytest.mark.parametrize(("language", "program", "category", "said"), CASES)
def test_every_failure_has_its_verdict(
    native: CodeJudge, language: str, program: str, category: str, said: str
) -> None:
    seconds = 0.3 if category == "time_limit" else 4.0
    verdict = judged(native, language, program, memory_mb=512, time_limit_s=seconds)
    assert verdict.info["category"] == category, verdict.feedback
    assert verdict.feedback.startswith(said), verdict.feedback
    assert "root:" not in verdict.feedback


@needs_node
def test_nothing_printed_is_lost_when_a_program_exits_by_itself(native: CodeJudge) -> None:
    lines = 20_000
    program = f"for (let i = 0; i < {lines}; i++) console.log('x'.repeat(40)); process.exit();"
    fields = row("javascript") | {
        "tests": {"public": [{"input": "", "output": f"{'x' * 40}\n" * lines}]}
    }
    _, task = parse_task(Line(path="x", number=1, row=fields))
    verdict = native.verdict(task.reference, program, split="public")
    assert verdict.solved, verdict.feedback[:200]


@needs_cpp
def test_compiler_errors_are_quoted_without_the_line(native: CodeJudge) -> None:
    program = "#include <string>\nint main() {\n    std::string text;\n    text.lenght();\n}\n"
    verdict = judged(native, "cpp", program)
    assert "line 4: " in verdict.feedback
    assert "did you mean 'length'?" in verdict.feedback
    assert "text.lenght" not in verdict.feedback


@needs_node
@pytest.mark.parametrize(
    "program",
    [
        "const lines = [];\nrequire('readline').createInterface({input: process.stdin})\n"
        "  .on('line', line => lines.push(line))\n  .on('close', () => {\n"
        "    const [a, b] = lines[0].split(' ').map(Number);\n    console.log(a + b);\n  });",
        "let text = '';\nprocess.stdin.on('data', part => text += part);\n"
        "process.stdin.on('end', () => console.log(eval(text.trim().replace(' ', '+'))));",
        "const f = n => n ? 1 + f(n - 1) : 0;\nif (f(50000) != 50000) throw 1;\n" + JAVASCRIPT,
        "(async () => { await null; " + JAVASCRIPT + " })();",
    ],
    ids=["readline", "stdin events", "deep recursion", "async"],
)
def test_ways_to_read_and_compute_in_javascript(native: CodeJudge, program: str) -> None:
    verdict = judged(native, "javascript", program)
    assert verdict.solved, verdict.feedback


@needs_cpp
def test_deep_recursion_and_much_memory_in_cpp(native: CodeJudge) -> None:
    deep = "#include <bits/stdc++.h>\n" + CPP.replace(
        "int main", "int f(int n) { return n ? 1 + f(n - 1) : 0; }\nint main"
    )
    deep = deep.replace("cin >> a", "vector<int> big(60 << 20, 1);\n    if (f(1000000) != 1000000 "
                        "|| big[9] != 1) return 1;\n    cin >> a")  # fmt: skip
    verdict = judged(native, "cpp", deep)
    assert verdict.solved, verdict.feedback


@pytest.mark.parametrize("language", EACH)
def test_nothing_of_a_program_is_left_for_the_next(native: CodeJudge, language: str) -> None:
    assert judged(native, language, RIGHT[language]).solved
    broken = judged(native, language, "int main( {" if language == "cpp" else "let = ;;(")
    assert broken.feedback.startswith("Compile Error")


@pytest.mark.parametrize("language", EACH)
@pytest.mark.parametrize("has_namespaces", [True, False])
def test_the_jail_holds_with_and_without_namespaces(language: str, has_namespaces: bool) -> None:
    """The trial program tries to fork, connect, read, write and signal."""
    from sdpo.sandbox.languages import readable_paths
    from sdpo.sandbox.native_run import NativeSandbox
    from sdpo.sandbox.worker import Settings

    known = LANGUAGES[language]
    building, running = readable_paths(known)
    settings = Settings(
        jailed=True, namespaces=has_namespaces, landlock=True, native=True,
        packages=tuple(building), runs=tuple(running),
    )  # fmt: skip
    with NativeSandbox(known, settings, 1) as opened:
        program = Program(source=known.self_test, mode="stdio")
        limits = Limits(cpu_s=5.0, memory_mb=256)
        (outcome,) = opened.run(program, [""], limits)
        assert outcome.stdout == "held\n", outcome
        assert opened.level.startswith("namespaces") is has_namespaces


@pytest.mark.parametrize("language", EACH)
def test_the_whole_way_from_an_answer(tmp_path: Path, language: str) -> None:
    import json

    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row(language, reference_solution=RIGHT[language])) + "\n")
    env = CodeEnv(schema.CodeEnvConfig(tasks=str(path), worked_example=True))
    try:
        report = env.check()
        assert not report.failures
        (task,) = env.load("train")
        assert f"Put your code in a ```{language} block." in task.messages[-1]["content"]
        example = task.messages[1]["content"]
        judge = env._open()
        assert judge.verdict_on_text(task.reference, env.reference_answer(task), False).solved
        shown = judge.verdict_on_text(task.reference, example, False)
        assert shown.info["category"] == "wrong_answer"
        python = judge.verdict_on_text(task.reference, "```python\nprint(3)\n```", False)
        assert f"```{language} ... ```" in python.feedback
    finally:
        env.close()


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import json

    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match=r"C\+\+: none of g\+\+, clang\+\+, c\+\+ is installed"):
        open_language("cpp")
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(row("javascript", reference_solution=JAVASCRIPT)) + "\n")
    env = CodeEnv(schema.CodeEnvConfig(tasks=str(path)))
    try:
        failures = env.check().failures
    finally:
        env.close()
    assert failures == {"sum": "JavaScript: none of node, nodejs is installed; install one"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"language": "cobol"}, "choose one of python, cpp, javascript"),
        ({"language": "cpp", "kind": "function", "entry_point": "f",
          "tests": {"public": [{"input": [], "output": 1}]}}, "kind 'stdio' only"),
        ({"language": "cpp", "library": "x.py"}, "a library is Python"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        parse_task(Line(path="x", number=1, row=row("python") | fields))


@needs_cpp
def test_no_process_of_a_compiler_is_left(native: CodeJudge) -> None:
    bomb = "template <int n> struct A { A<n + 1> a; A<n + 2> b; };\nA<0> a;\nint main() {}\n"
    verdict = judged(native, "cpp", bomb)
    assert verdict.info["category"] in ("runtime_error", "time_limit")
    left = subprocess.run(["pgrep", "-x", "cc1plus"], capture_output=True, check=False)
    assert not left.stdout


@needs_cpp
def test_a_flood_of_errors_and_a_forged_greeting_harm_nobody(native: CodeJudge) -> None:
    forged = r'fwrite("\0\0\0\x0c{\"hello\": 1}\0\0\0\x08{\"n\": 0, \"v\": null}", 1, 32, stderr);'
    flood = 'for (int i = 0; i < 200000; i++) fputs("xxxxxxxxxxxxxxxxxxxx\\n", stderr);'
    program = f"#include <cstdio>\n{CPP.replace('long long', forged + flood + ' long long')}"
    assert judged(native, "cpp", program).solved
    assert not judged(native, "cpp", program.replace("a + b", "a - b")).solved
