"""The keys of metrics.jsonl that DESIGN.md promises, from a real run of the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sdpo
from sdpo.config.load import load_config
from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.loop import train

EVERY_STEP = {
    "step", "rollouts_total", "tokens_total", "train/solved", "train/reward",
    "train/completion_tokens", "train/truncated", "teacher/context_fraction",
    "teacher/demonstration_fraction", "teacher/feedback_fraction", "loss/total", "loss/distill",
    "policy/entropy", "policy/teacher_js", "optim/grad_norm", "optim/lr", "time/generate_s",
    "time/judge_s", "time/update_s", "env/unjudged", "time/step_s",
}  # fmt: skip
EVALUATION = {
    "eval/solved", "eval/solved_low", "eval/solved_high", "eval/pass@2", "eval/completion_tokens",
    "eval/unjudged",
}  # fmt: skip
PROBE = {"probe/failed"} | {
    f"probe/gain_{kind}{bound}"
    for kind in ("recipe", "demonstration", "feedback", "both", "other_task", "no_context")
    for bound in ("", "_low", "_high")
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def judge(task, rollout):
    is_even = rollout.completion_ids[0] % 2 == 0
    return sdpo.Verdict(reward=float(is_even), solved=is_even, feedback="begins with an odd token")


def test_promised_keys_are_written(model, tmp_path):
    config = load_config(
        [
            f"run={tmp_path / 'run'}", f"model.name={model}", "model.dtype=float32",
            "steps=2", "eval.every=2",
            "rollout.tasks_per_step=2", "rollout.group_size=4", "eval.samples=2",
            "rollout.max_completion_tokens=8", "rollout.max_prompt_tokens=200",
            "eval.probe_tasks=3", "seed=1",
        ]
    )  # fmt: skip
    train(config, env=sdpo.env([{"id": f"t{i}", "prompt": f"say {i}"} for i in range(3)], judge))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    start, first, last = (json.loads(line) for line in lines)
    assert set(start) == EVALUATION | PROBE | {"step"}
    assert set(first) >= EVERY_STEP
    assert not any(key.startswith(("eval/", "probe/")) for key in first)
    assert set(last) >= EVERY_STEP | EVALUATION | {"probe/failed"}
    for row in (start, last):
        assert 0 <= row["eval/solved_low"] <= row["eval/solved"] <= row["eval/solved_high"] <= 1


def test_credit_is_kept_of_attempts_that_are_distilled(model, tmp_path):
    """SRPO has a context for every failed attempt and distils only those with a solved sibling."""
    config = load_config(
        [
            f"run={tmp_path / 'run'}", f"model.name={model}", "model.dtype=float32",
            "steps=3", "objective.type=srpo",
            "rollout.tasks_per_step=3", "rollout.group_size=3", "eval.samples=1", "eval.every=0",
            "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200",
        ]
    )  # fmt: skip

    def mostly_wrong(task, rollout):
        solved = rollout.completion_ids[0] % 6 == 0
        return sdpo.Verdict(reward=float(solved), solved=solved, feedback="take another token")

    tasks = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(9)]
    train(config, env=sdpo.env(tasks, mostly_wrong))
    rows, credit = (
        list(read_rows(tmp_path / "run" / name)) for name in ("rollouts.jsonl", "credit.jsonl")
    )
    found = 0
    for step in (1, 2, 3):
        own = [row for row in rows if row["split"] == "train" and row["step"] == step]
        solved = {row["task"] for row in own if row["solved"]}
        distilled = {
            (row["task"], row["index"])
            for row in own
            if row["task"] in solved and not row["solved"]
        }
        kept = {(row["task"], row["index"]) for row in credit if row["step"] == step}
        assert kept <= distilled
        assert len(kept) == min(2, len(distilled))
        found += len(kept) and len(distilled) < len(own) - len(solved)
    assert found
