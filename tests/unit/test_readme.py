"""What the README shows works: its environment, its commands."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from sdpo.cli import main
from sdpo.metrics.jsonl import read_rows

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_environment_of_the_readme_is_learnt_from_its_feedback(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count("\n") < 25
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    before, *_ = read_rows(tmp_path / "runs/codes/metrics.jsonl")
    assert before["eval/solved"] == 0
    # One guess in 10,000 is right: whatever the rounding, this has been learnt.
    assert namespace["result"].metrics["eval/solved"] >= 0.4
    assert capsys.readouterr().out.strip().endswith(str(namespace["result"].metrics["eval/solved"]))


def test_every_command_of_the_readme_exists():
    named = set(re.findall(r"^sdpo (\w+)", README, re.MULTILINE))
    assert named == set(main.commands)
    assert CliRunner().invoke(main, ["config", "list"]).exit_code == 0
