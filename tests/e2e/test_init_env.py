"""`sdpo init env`: what it writes passes its own test, is checked and trains, by the commands that
it names."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib

import pytest

from sdpo.cli import run
from sdpo.models.quiet import quiet
from sdpo.testing import byte_tokenizer, tiny_model


def call(folder, *command, status=0):
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_the_written_environment_passes_its_test_and_trains(tmp_path):
    with quiet():
        tiny_model().save_pretrained(tmp_path / "tiny")
        byte_tokenizer().save_pretrained(tmp_path / "tiny")
    shown = call(tmp_path, "sdpo", "init", "env", "shout")
    for command in ("pytest test_shout.py", "sdpo check quickstart shout.toml"):
        assert command in shown
    assert "sdpo train quickstart shout.toml" in shown
    lines = (tmp_path / "shout.py").read_text().count("\n")
    assert 25 <= lines <= 35
    assert "16 passed" in call(tmp_path, "pytest", "-q", "test_shout.py")
    tiny = [f"model.name={tmp_path / 'tiny'}", "rollout.max_prompt_tokens=200", "steps=1"]
    small = ["rollout.tasks_per_step=2", "rollout.group_size=2", "eval.samples=1"]
    said = call(tmp_path, "sdpo", "check", "quickstart", "shout.toml", *tiny)
    assert "14 tasks, 0 failures, 0 without a reference" in said
    call(tmp_path, "sdpo", "train", "quickstart", "shout.toml", *tiny, *small)
    assert (tmp_path / "runs" / "shout" / "metrics.jsonl").read_text().count("\n") == 2


def test_the_written_settings_learn_from_feedback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["init", "env", "shout"]) == 0
    assert tomllib.loads((tmp_path / "shout.toml").read_text())["objective"]["type"] == "hybrid"
    ast.parse((tmp_path / "test_shout.py").read_text())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-env", "such as my_env"),
        ("3d", "such as d"),
        ("class", "such as class_env"),
        ("json", "such as json_env"),
        ("there", "exists; take another name"),
    ],
)
def test_a_name_that_cannot_be_used_names_one_that_can(name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("")
    assert run(["init", "env", name]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]
