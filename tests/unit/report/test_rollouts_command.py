import json

import pytest
from synthetic_run import make_run

from sdpo.cli import run as cli
from sdpo.metrics.jsonl import JsonLines, read_rows


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=3)


def lines_of(capsys, *arguments):
    assert cli(["rollouts", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_attempts_are_chosen_by_step_task_and_outcome(recorded, capsys):
    rows = [json.loads(line) for line in lines_of(capsys, recorded, "--json")]
    assert len(rows) == len(list(read_rows(recorded / "rollouts.jsonl")))
    assert all(isinstance(row["prompt"], list) for row in rows)
    task = next(row["task"] for row in rows if row["step"] == 2 and row["split"] == "train")
    for choice, fits in (
        (("--step", 2), lambda row: row["step"] == 2),
        (("--task", task), lambda row: row["task"] == task),
        (("--solved",), lambda row: row["solved"]),
        (("--failed", "--step", 1), lambda row: not row["solved"] and row["step"] == 1),
    ):
        found = [json.loads(line) for line in lines_of(capsys, recorded, *choice, "--json")]
        assert found == [row for row in rows if fits(row)]
        assert found


def test_an_attempt_is_printed_with_its_verdict_and_feedback(recorded, capsys):
    lines = lines_of(capsys, recorded, "--step", 1, "--failed")
    assert lines[0].startswith("--- step 1, train, ")
    assert "[feedback]" in lines
    assert lines[-1].endswith("attempts read")


def test_old_plain_records_and_hostile_texts_are_printed(tmp_path, capsys):
    row = {
        "step": 1, "split": "train", "task": "t", "index": 0, "prompt": [], "teacher": None,
        "text": "\x1b]0;owned\x07", "reward": 0.0, "solved": False, "category": None,
        "feedback": None, "completion_tokens": 1, "truncated": True, "sources": [],
    }  # fmt: skip
    file = JsonLines(tmp_path / "rollouts.jsonl")
    file.append([row])
    file.close()
    assert "\x1b" not in "\n".join(lines_of(capsys, tmp_path))
    assert "\x1b" not in "\n".join(lines_of(capsys, tmp_path, "--json"))


def test_a_folder_without_attempts_is_said_with_the_cure(recorded, tmp_path, capsys):
    assert cli(["rollouts", str(tmp_path)]) == 2
    assert "give the folder that `run` named" in capsys.readouterr().err
