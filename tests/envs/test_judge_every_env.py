"""`sdpo judge` asks the judge of any environment; `sdpo eval --attempts` writes what it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sdpo
from sdpo.cli import run
from sdpo.errors import TaskError
from sdpo.models.quiet import quiet
from sdpo.rollouts.responses import judge_file
from sdpo.testing import byte_tokenizer, tiny_model

CHOICE = [
    {"idx": i, "prompt": f"What is {i}?\n\nA: 1 kg\nB: 2 kg", "answer": "B"} for i in range(4)
]
MATH = [{"id": "m", "problem": "What is 1/2?", "answer": "0.5"}]
TOOLS = [
    {"idx": "t", "prompt": "Tools:\nfind: finds\nParameters: {}\nFind it.",
     "answer": [{"Action": "find", "Action_Input": "{}"}]}
]  # fmt: skip
OWN = """
import sdpo

asked = []


async def judge(task, rollout):
    if "later" in rollout.text:
        raise sdpo.Unjudged("busy")
    return sdpo.Verdict(reward=0.5, solved=False, feedback=f"{task.id}: {rollout.truncated}")


env = sdpo.env([{"id": "a", "prompt": "say a"}], judge)
"""


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def judged(folder: Path, *arguments: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = folder / "verdicts.jsonl"
    given = write(folder / "responses.jsonl", rows)
    assert run(["judge", *arguments, "--responses", given, "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    ("kind", "rows", "right", "wrong"),
    [
        ("choice", CHOICE, "<answer>B</answer>", "<answer>A</answer>"),
        ("math", MATH, "\\boxed{\\frac{1}{2}}", "\\boxed{2}"),
        ("tools", TOOLS, "Thought: x\nAction: find\nAction Input: {}", "Action: lose"),
    ],
)
def test_every_environment_judges_a_file(
    tmp_path: Path, kind: str, rows: list[dict[str, Any]], right: str, wrong: str
) -> None:
    """Before: "idx: unknown key; a code task has id, ..."."""
    tasks = write(tmp_path / "tasks.jsonl", rows)
    name = str(rows[0].get("id", rows[0].get("idx")))
    answers = [{"id": name, "response": right}, {"id": name, "response": wrong}]
    good, bad = judged(tmp_path, f"env.type={kind}", f"env.tasks={tasks}", rows=answers)
    assert good["solved"], good
    assert good["id"] == name
    assert not bad["solved"]
    assert bad["feedback"]
    assert "sandbox" not in bad


def test_an_environment_of_ones_own_with_a_busy_judge(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    rows = [
        {"id": "a", "response": "later"},
        {"id": "a", "response": "x", "truncated": True},
    ]
    arguments = ("env.type=custom", f"env.path={tmp_path / 'own.py'}:env", "env.retries=0")
    busy, answered = judged(tmp_path, *arguments, rows=rows)
    assert busy == {"id": "a", "category": "unjudged"}
    assert (answered["reward"], answered["feedback"]) == (0.5, "a: True")


def test_from_python_with_an_environment(tmp_path: Path) -> None:
    env = sdpo.env([{"id": "a", "prompt": "p"}], lambda task, rollout: float(rollout.text == "yes"))
    given = write(tmp_path / "r.jsonl", [{"id": "a", "response": each} for each in ("yes", "no")])
    verdicts = judge_file(responses=given, env=env, out=tmp_path / "v.jsonl")
    assert [verdict.reward for verdict in verdicts if verdict] == [1.0, 0.0]
    bad = write(tmp_path / "r.jsonl", [{"id": "b", "response": ""}])
    with pytest.raises(TaskError, match='"b" is not the id of a task'):
        judge_file(responses=bad, env=env)


def test_the_command_wants_one_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write(tmp_path / "r.jsonl", [])
    for arguments in ([], ["--tasks", "python-basics", "quickstart"]):
        assert run(["judge", *arguments, "--responses", given]) == 2
        assert "name the environment" in capsys.readouterr().err
    assert run(["judge", "quickstart", "--sandbox", "none", "--responses", given]) == 2
    assert "env.sandbox=none" in capsys.readouterr().err


def test_eval_keeps_its_attempts_and_judge_reads_them(tmp_path: Path) -> None:
    """Before: with mean@2 = 0.000 nobody could see whether answers were wrong or cut."""
    with quiet():
        tiny_model().save_pretrained(tmp_path / "tiny")
        byte_tokenizer().save_pretrained(tmp_path / "tiny")
    tasks = write(tmp_path / "choice.jsonl", CHOICE)
    env = ("env.type=choice", f"env.tasks={tasks}", "env.eval_fraction=0")
    attempts = tmp_path / "attempts.jsonl"
    attempts.write_text("an earlier evaluation\n")
    command = [
        "eval", *env, f"model.name={tmp_path / 'tiny'}", "model.dtype=float32", "eval.samples=2",
        "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200",
        "--attempts", str(attempts),
    ]  # fmt: skip
    assert run(command) == 0
    rows = [json.loads(line) for line in attempts.read_text().splitlines()]
    assert len(rows) == 8
    assert {"task", "text", "category", "feedback", "truncated", "solved"} <= rows[0].keys()
    verdicts = judged(tmp_path, *env, rows=rows)
    assert [row["category"] for row in verdicts] == [row["category"] for row in rows]
    assert run([*command[:-1], str(tmp_path / "none" / "a.jsonl")]) == 2
