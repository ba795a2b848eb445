"""`judge_program` and `judge_file`: the judge without training."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from code_rows import DIVIDE, ECHO, block

from sdpo.envs.code.judge import CodeJudge
from sdpo.envs.code.offline import judge_program
from sdpo.envs.code.tasks import CodeReference, CodeTest
from sdpo.errors import ConfigError, SdpoError, TaskError
from sdpo.rollouts.responses import judge_file
from sdpo.sandbox import Sandbox


@pytest.fixture(scope="module")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (DIVIDE, ECHO)))
    return str(path)


def test_judge_program(sandbox: Sandbox) -> None:
    good = judge_program(DIVIDE, "def divide(a, b):\n    return a // b\n", sandbox=sandbox)
    assert good.solved
    bad = judge_program(DIVIDE, "def divide(a, b):\n    return 7\n", sandbox=sandbox)
    assert bad.feedback == "Wrong Answer\n0 of 2 tests passed."
    shown = judge_program(
        DIVIDE, "def divide(a, b):\n    return 7\n", sandbox=sandbox, split="public"
    )
    assert shown.feedback.startswith("Test Case 1: Wrong Answer")
    with pytest.raises(TaskError, match=r"task:1: kind: missing"):
        judge_program({"id": "x", "prompt": "y"}, "", sandbox=sandbox)
    with pytest.raises(ConfigError, match="choose public or private"):
        judge_program(DIVIDE, "", sandbox=sandbox, split="hidden")


def code(tasks: str) -> tuple[str, str]:
    return "env.type=code", f"env.tasks={json.dumps(tasks)}"


def responses(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_judge_file(tasks_file: str, tmp_path: Path) -> None:
    rows = [
        {"id": "divide", "response": block("def divide(a, b):\n    return a // b\n")},
        {"id": "echo", "response": block("print(input())\n")},
        {"id": "divide", "response": "```python\nde", "truncated": True},
    ]
    out = tmp_path / "verdicts.jsonl"
    verdicts = judge_file(
        *code(tasks_file), responses=responses(tmp_path, *rows), split="public", out=out
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["divide", "echo", "divide"]
    assert [line["category"] for line in lines] == ["accepted", "wrong_answer", "truncated"]
    assert [line["solved"] for line in lines] == [verdict.solved for verdict in verdicts]
    assert set(lines[0]) == {"id", "reward", "solved", "category", "feedback", "metrics", "sandbox"}


def test_judge_file_writes_to_standard_output(
    tasks_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge_file(*code(tasks_file), responses=responses(tmp_path, {"id": "echo", "response": ""}))
    assert json.loads(capsys.readouterr().out)["category"] == "incorrect_format"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "nobody", "response": ""}, 'id: "nobody" is not the id of a task'),
        ({"response": ""}, "id: null is not the id of a task"),
        ({"id": "echo"}, "response: missing"),
        ({"id": "echo", "response": 3}, "response: missing, or not a string"),
        ({"id": "echo", "response": "", "truncated": 1}, "truncated: expected true or false"),
        ({"id": "echo", "response": "", "text": ""}, "text: unknown key"),
    ],
)
def test_a_wrong_response_is_named(
    tasks_file: str, tmp_path: Path, row: object, message: str
) -> None:
    path = responses(tmp_path, {"id": "echo", "response": ""}, row)
    with pytest.raises(TaskError) as caught:
        judge_file(*code(tasks_file), responses=path)
    assert f"{path}:2: {message}" in str(caught.value)


def test_an_output_that_cannot_be_written(tasks_file: str, tmp_path: Path) -> None:
    path = responses(tmp_path, {"id": "echo", "response": ""})
    with pytest.raises(SdpoError, match="cannot write"):
        judge_file(*code(tasks_file), responses=path, out=tmp_path / "none" / "v.jsonl")


def test_a_test_that_cannot_run_stops_with_the_reason(judge: CodeJudge) -> None:
    tests = (CodeTest(input="assert f(1) == missing_helper(2)"),)
    reference = CodeReference(kind="asserts", entry_point="f", public=tests, private=tests)
    with pytest.raises(TaskError, match=r"own code fails .*NameError.*reference_solution"):
        judge.verdict(reference, "def f(n):\n    return 0\n")


def test_each_verdict_line_names_the_sandbox(
    tasks_file: str, tmp_path: Path, sandbox: Sandbox
) -> None:
    out = tmp_path / "verdicts.jsonl"
    given = responses(tmp_path, {"id": "echo", "response": ""})
    judge_file(*code(tasks_file), responses=given, out=out)
    assert json.loads(out.read_text())["sandbox"] == sandbox.level


def test_a_killed_judge_leaves_every_verdict_it_knew(tasks_file: str, tmp_path: Path) -> None:
    """Before: the file was written 8 KB at a time."""
    good = {"id": "divide", "response": block("def divide(a, b):\n    return a // b\n")}
    slow = {"id": "echo", "response": block("import time\ntime.sleep(30)\n")}
    out = tmp_path / "verdicts.jsonl"
    command = [
        sys.executable, "-m", "sdpo", "judge", "--tasks", tasks_file, "--out", str(out),
        "--responses", str(responses(tmp_path, good, *[slow] * 8)), "--split", "public",
    ]  # fmt: skip
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.read_text().endswith("\n")):
        assert time.monotonic() < deadline, "the first verdict was never written"
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert json.loads(out.read_text().splitlines()[0])["solved"]


def test_a_task_id_with_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(json.dumps({**ECHO, "id": "a\ud800"}) + "\n")
    out = tmp_path / "verdicts.jsonl"
    given = responses(tmp_path, {"id": "a\ud800", "response": "no code"})
    judge_file(*code(str(tasks)), responses=given, out=out)
    assert json.loads(out.read_text())["id"] == "a\ud800"
