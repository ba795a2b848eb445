"""What the README shows works: its environment, its commands."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

import sdpo
from sdpo.cli import main
from sdpo.config.load import load_config
from sdpo.records import Rollout

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_environment_of_the_readme_judges(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") < 20
    seen = {}
    monkeypatch.setattr(
        sdpo, "train", lambda *arguments, env: seen.update(a=arguments, e=env), raising=False
    )
    namespace = {}
    exec(code, namespace)
    load_config(seen["a"])
    task = seen["e"].load("train")[0]
    rollout = Rollout(
        task_id=task.id, index=0, prompt_ids=(), completion_ids=(), sampler_logprobs=(),
        text=" 4 ", truncated=False, policy_version=0,
    )  # fmt: skip
    assert namespace["judge"](task, rollout).solved


def test_every_command_of_the_readme_exists():
    named = set(re.findall(r"^sdpo (\w+)", README, re.MULTILINE))
    assert named == set(main.commands)
    assert CliRunner().invoke(main, ["config", "list"]).exit_code == 0
