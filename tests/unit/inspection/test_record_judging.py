"""How programs are judged is said once at the start, and kept in config.json."""

from __future__ import annotations

import json
from pathlib import Path

import sdpo
from sdpo.inspection.conditions import record_judging


class Judge:
    def __init__(self, level: str) -> None:
        self.level = level

    def load(self, split: str) -> list[sdpo.Task]:
        return []

    def judge(self, task: sdpo.Task, rollout: sdpo.Rollout) -> sdpo.Verdict:
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        return {"sandbox": self.level}


def test_the_level_is_said_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": {"steps": 1}, "command": []}))
    assert record_judging(tmp_path, Judge("landlock+seccomp")) == (
        "judging: sandbox = landlock+seccomp"
    )
    record = json.loads(path.read_text())
    assert record["judging"] == {"sandbox": "landlock+seccomp"}
    assert record["config"] == {"steps": 1}


def test_a_run_continued_at_another_level_says_both(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": {}, "judging": {"sandbox": "landlock+seccomp"}}))
    said = record_judging(tmp_path, Judge("no file access+seccomp"))
    assert said is not None
    assert said.startswith("judging: sandbox = no file access+seccomp")
    assert "began with sandbox = landlock+seccomp" in said
    assert json.loads(path.read_text())["judging"] == {"sandbox": "landlock+seccomp"}


def test_an_environment_without_facts_says_nothing(tmp_path: Path) -> None:
    env = sdpo.env(["question"], lambda task, rollout: 1.0)
    assert record_judging(tmp_path, env) is None
