"""What users said after recorded answers teaches the policy, without an attempt of its own."""

from __future__ import annotations

import json
import math
import random

import pytest
from toy_runs import NUM_TASKS, code_nats

import sdpo
from sdpo.config.load import load_config
from sdpo.envs.follow_ups import from_follow_ups
from sdpo.errors import ConfigError, TaskError
from sdpo.metrics.jsonl import read_rows
from sdpo.records import Rollout
from sdpo.testing import toy_env
from sdpo.testing.toy_world import feedback_text, random_code

ANSWERS = 16
"""Recorded answers to each question, all wrong."""


def chats(reveal, seed=0):
    """Rows of a log: questions, wrong answers, and what was said of them."""
    rng = random.Random(seed)
    return [
        {
            "prompt": task.messages[-1]["content"],
            "answer": (wrong := random_code(rng)),
            "follow_up": feedback_text(wrong, task.reference, reveal),
            "id": f"{task.id}-{number}",
        }
        for task in toy_env(NUM_TASKS).load("train")
        for number in range(ANSWERS)
    ]


def learnt(reader, run, reveal, *overrides):
    """Steps of metrics.jsonl and the mean log-prob of the right codes before and after."""
    world = toy_env(NUM_TASKS)
    config = load_config(
        [
            f"run={run}", f"model.name={reader}", "model.device=cpu", "model.dtype=float32",
            "steps=40", "rollout.tasks_per_step=32", "rollout.group_size=1",
            "rollout.max_completion_tokens=4", "rollout.max_prompt_tokens=100", "optim.lr=4e-3",
            "teacher.schedule.rate=0.01", "eval.every=0", "eval.samples=8",
            "eval.temperature=1.0", "eval.top_p=1.0", "checkpoint.every=0", *overrides,
        ]
    )  # fmt: skip
    env = from_follow_ups(chats(reveal), eval_tasks=list(world.load("eval")), judge=world.judge)
    result = sdpo.train(config, env=env)
    after = code_nats(run / "checkpoints" / f"step-{result.step}", world)
    rows = list(read_rows(run / "metrics.jsonl"))
    print(f"LEARNT {reveal}: {rows[-1]['eval/solved']:.2f}, {code_nats(reader, world)} {after}")
    return rows, code_nats(reader, world), after


def test_follow_ups_teach_what_they_say(reader, tmp_path):
    rows, before, after = learnt(reader, tmp_path / "run", "all")
    steps = [row for row in rows if row["step"] > 0]
    assert (rows[0]["eval/solved"], before < -6) == (0.0, True)
    assert steps[-1]["loss/distill"] < steps[0]["loss/distill"] / 2
    assert after > -2
    assert rows[-1]["eval/solved"] >= 0.4
    # Nothing was sampled, and nobody claims to know how likely the answers were.
    written = list(read_rows(tmp_path / "run" / "rollouts.jsonl"))
    said = {row["text"] for row in written if row["split"] == "train"}
    assert said <= {row["answer"] for row in chats("all")}
    assert "policy/sampler_gap" not in steps[0] or steps[0]["policy/sampler_gap"] is None
    assert all(math.isfinite(row["loss/total"]) for row in steps)


def test_follow_ups_that_say_nothing_of_the_code_teach_none(reader, tmp_path):
    rows, before, after = learnt(reader, tmp_path / "run", "none")
    assert rows[-1]["eval/solved"] <= 0.05
    assert after < before + 2


def test_several_attempts_at_a_recorded_one_are_refused(reader, tmp_path):
    with pytest.raises(ConfigError, match=r"recorded, and 4 are asked .* rollout.group_size = 1"):
        learnt(reader, tmp_path / "run", "all", "rollout.group_size=4")
    with pytest.raises(TaskError, match=r"3 tokens, more than rollout.max_completion_tokens = 2"):
        learnt(reader, tmp_path / "two", "all", "rollout.max_completion_tokens=2")


def test_a_file_is_read_and_its_mistakes_are_named(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chats("all")))
    env = from_follow_ups(path)
    task = env.load("train")[0]
    verdict = env.judge(task, Rollout.written(task, env.recorded(task)))
    assert verdict.feedback == chats("all")[0]["follow_up"]
    # Without eval_tasks the same prompts are answered anew.
    again = env.load("eval")[0]
    assert (again.messages, env.recorded(again)) == (task.messages, None)
    assert env.judge(again, Rollout.written(again, "?")).feedback is None
    bad = {**chats("all")[0], "follow_up": " "}
    with pytest.raises(TaskError, match="rows:1: follow_up: expected a non-empty string"):
        from_follow_ups([bad])
    with pytest.raises(TaskError, match="eval_tasks need a judge"):
        from_follow_ups(path, eval_tasks=["What?"])
