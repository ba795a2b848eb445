"""Runs whose judge fails now and then, for a while, or for good."""

from __future__ import annotations

import hashlib

import pytest
from test_runs import TASKS, config, judge, model, rows  # noqa: F401 - model is a fixture

import sdpo
from sdpo.errors import JudgeError
from sdpo.rollouts.record import read_rollouts
from sdpo.training.checkpoint import Checkpoints
from sdpo.training.loop import train


def is_down_for(rollout, percent):
    """Whether the service fails for this attempt; by its text, so the same in every run."""
    digest = hashlib.blake2b(f"{rollout.index} {rollout.text}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < percent


def flaky(percent):
    def flaky_judge(task, rollout):
        if is_down_for(rollout, percent):
            raise sdpo.Unjudged("the service is down")
        return judge(task, rollout)

    return sdpo.env(TASKS, flaky_judge)


FLAKY = ("env.retries=0", "env.max_unjudged=0.5", "eval.every=0", "checkpoint.every=20")


def test_one_in_fifty_calls_failing_ended_most_runs(model, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    result = train(config(model, run, "steps=60", *FLAKY), env=flaky(2))
    assert result.finished
    metrics = rows(run)[1:]
    judged = [row for row in read_rollouts(run) if row["split"] == "train"]
    assert len(metrics) == 60
    for row in metrics:
        kept = [attempt for attempt in judged if attempt["step"] == row["step"]]
        assert row["env/unjudged"] == pytest.approx(1 - len(kept) / 12)
    missing = 60 * 12 - len(judged)
    assert 0 < missing < 60
    assert result.metrics["rollouts_total"] == len(judged)


def test_groups_with_gaps_keep_their_indices_and_resume_exactly(model, tmp_path, monkeypatch):  # noqa: F811
    """A third of all calls fails: groups lose members, some lose all, and demonstrations are named
    by attempt."""
    overrides = (
        "steps=6", "env.retries=0", "env.max_unjudged=0.9", "checkpoint.every=1",
        "rollout.group_size=2", "eval.every=3", "eval.probe_tasks=6", "objective.type=sdpo",
    )  # fmt: skip
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config(model, whole, *overrides), env=flaky(35))
    seen = []

    def stop(row):
        seen.append(row)
        if len(seen) == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(config(model, broken, *overrides), env=flaky(35), on_step=stop)
    train(config(model, broken, *overrides), env=flaky(35))
    assert rows(whole) == rows(broken)
    lines = [(run / "rollouts.jsonl.gz").read_bytes() for run in (whole, broken)]
    assert lines[0] == lines[1]
    groups: dict[tuple, dict[int, dict]] = {}
    for row in read_rollouts(whole):
        groups.setdefault((row["step"], row["split"], row["task"]), {})[row["index"]] = row
    trained = [group for (_, split, _), group in groups.items() if split == "train"]
    assert len(trained) < 6 * 3, "no group lost all of its attempts"
    assert any(set(group) == {1} for group in trained), "no group lost its first attempt"
    for group in groups.values():
        for row in group.values():
            if row["demonstration"] is not None:
                assert group[row["demonstration"]]["solved"]
    for row in rows(whole):
        if "eval/unjudged" in row:
            kept = sum(len(g) for (step, split, _), g in groups.items()
                       if (step, split) == (row["step"], "eval"))  # fmt: skip
            assert row["eval/unjudged"] == pytest.approx(1 - kept / 12)


@pytest.mark.parametrize("error", [ValueError("a bug of mine"), sdpo.Unjudged("down for good")])
def test_a_failing_judge_lost_every_step_since_the_last_checkpoint(
    model,  # noqa: F811
    tmp_path,
    error,
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    overrides = ("steps=6", "checkpoint.every=0", "eval.every=0", "env.retries=0")
    train(config(model, whole, *overrides), env=sdpo.env(TASKS, judge))
    is_broken = True

    def breaks(task, rollout):
        if is_broken and rollout.policy_version == 4:
            raise error
        return judge(task, rollout)

    with pytest.raises(JudgeError, match=str(error)):
        train(config(model, run, *overrides), env=sdpo.env(TASKS, breaks))
    assert Checkpoints(run, keep=2).steps() == [5]
    is_broken = False
    # More patience with the service is another way of asking, not another run.
    again = config(model, run, *overrides, "env.timeout_s=5")
    assert train(again, env=sdpo.env(TASKS, breaks)).finished
    assert rows(run) == rows(whole)


@pytest.mark.parametrize("at", [0, 3, 6])
def test_a_judge_failing_in_an_evaluation_lost_the_step_it_came_after(model, tmp_path, at):  # noqa: F811
    whole, run = tmp_path / "whole", tmp_path / "run"
    overrides = ("steps=6", "checkpoint.every=0", "eval.every=3", "eval.probe_tasks=2")
    train(config(model, whole, *overrides), env=sdpo.env(TASKS, judge))
    step, is_broken = 0, True

    def breaks(task, rollout):
        if is_broken and step >= at - 1 and is_evaluating.get(rollout.policy_version, at == 0):
            raise ValueError("a bug of mine")
        return judge(task, rollout)

    is_evaluating: dict[int, bool] = {}
    seen = []

    def note(row):
        nonlocal step
        step = row["step"]
        seen.append(step)

    # The weights an evaluation samples from are those after its step.
    for row in read_rollouts(whole):
        if row["split"] == "eval" and row["step"] == at:
            is_evaluating[row["policy_version"]] = True
    with pytest.raises(JudgeError, match="a bug of mine"):
        train(config(model, run, *overrides), env=sdpo.env(TASKS, breaks), on_step=note)
    assert Checkpoints(run, keep=2).steps() == ([at] if at else [])
    assert seen == list(range(at))
    is_broken = False
    assert train(config(model, run, *overrides), env=sdpo.env(TASKS, breaks)).finished
    assert rows(run) == rows(whole)
    assert (run / "rollouts.jsonl.gz").read_bytes() == (whole / "rollouts.jsonl.gz").read_bytes()
