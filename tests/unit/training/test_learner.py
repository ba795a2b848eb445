"""The learner's clock and how it shares work."""

from __future__ import annotations

import json
import math

import pytest
import torch

import sdpo
from sdpo.config.load import load_config
from sdpo.parallel import Parallel
from sdpo.rollouts.record import read_rollouts
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.loop import train_steps
from sdpo.training.opening import open_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


class Judge:
    """Rewards that differ within a group in the first `spread` steps and are flat afterwards."""

    def __init__(self, attempts_of_spread):
        self.left = attempts_of_spread

    def __call__(self, task, rollout):
        self.left -= 1
        reward = float(rollout.index % 2) if self.left >= 0 else 0.0
        return sdpo.Verdict(reward=reward, solved=False, feedback="no")


@pytest.fixture
def opened(model, tmp_path):
    """Opens a run of a few tiny steps."""

    def make(*overrides, judge):
        config = load_config(
            [
                f"run={tmp_path / 'run'}", f"model.name={model}", "model.dtype=float32", "steps=3",
                "rollout.tasks_per_step=4", "rollout.group_size=4", "optim.lr=1e-3",
                "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200",
                "eval.every=0", "eval.samples=1", "eval.max_tasks=1", "checkpoint.every=0",
                *overrides,
            ]
        )  # fmt: skip
        tasks = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(4)]
        eval_tasks = [{"id": "e", "prompt": "say e"}]
        env = sdpo.env(tasks, judge, eval_tasks=eval_tasks)
        return open_run(config, env, is_quiet=True)

    return make


def weights_of(run):
    return {name: w.detach().clone() for name, w in run.learner.optimizer.masters.items()}


def test_the_teacher_follows_once_a_step_however_many_updates_it_has(opened):
    """With rate 0.01 and 32 updates a step it moved by 27.5 %, nearly `live`."""
    settings = ("objective.type=sdpo", "optim.updates_per_step=4", "teacher.schedule.rate=0.25")
    with opened(*settings, judge=Judge(0)) as run:
        initial = weights_of(run)
        rows = train_steps(run)
        next(rows)
        next(rows)
        assert run.learner.optimizer.num_updates == 4
        teacher = run.learner.schedule.weights
        for name, final in weights_of(run).items():
            expected = initial[name].lerp(final, 0.25)
            torch.testing.assert_close(teacher[name], expected, rtol=1e-6, atol=1e-8)


def test_a_step_without_a_gradient_leaves_weights_and_teacher_as_they_are(opened):
    with opened(
        "objective.type=hybrid", "teacher.context.feedback=never", judge=Judge(16 + 1)
    ) as run:
        rows = train_steps(run)
        next(rows)
        assert next(rows)["optim/grad_norm"] > 0
        before = weights_of(run)
        teacher = {name: w.clone() for name, w in run.learner.schedule.weights.items()}
        assert next(rows)["optim/grad_norm"] == 0
        after = weights_of(run)
        assert all(torch.equal(before[name], after[name]) for name in before)
        kept = run.learner.schedule.weights
        assert all(torch.equal(teacher[name], kept[name]) for name in teacher)
        assert run.learner.optimizer.num_updates == 1
        assert run.learner.optimizer.num_steps == 2


def odd_fails(task, rollout):
    is_even = rollout.completion_ids[0] % 2 == 0
    return sdpo.Verdict(reward=float(is_even), solved=is_even, feedback="odd")


@pytest.mark.parametrize("kind", ["sdpo", "hybrid", "sdpg", "sft"])
def test_single_attempts_are_learnt_from_and_failures_too(opened, kind):
    settings = (f"objective.type={kind}", "rollout.group_size=1", "optim.updates_per_step=2")
    with opened(*settings, "teacher.context.max_tokens=400", judge=odd_fails) as run:
        before = weights_of(run)
        rows = train_steps(run)
        next(rows)
        steps = list(rows)
        after = weights_of(run)
    assert any(row["optim/grad_norm"] > 0 for row in steps)
    for row in steps:
        assert row["teacher/context_fraction"] == pytest.approx(1 - row["train/solved"])
        assert math.isnan(row["rollouts/flat_groups"]), "one attempt compares with nothing"
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_flat_groups_make_room_for_others_and_are_still_counted(opened, tmp_path):
    """Half of the tasks have nothing to compare."""

    def only_the_last_two_differ(task, rollout):
        return float(task.id in ("t2", "t3") and rollout.index % 2)

    settings = ("objective.type=grpo", "rollout.tasks_per_step=2", "rollout.redraws=3")
    with opened(*settings, judge=only_the_last_two_differ) as run:
        rows = [dict(row) for row in train_steps(run)][1:]
    assert [row["rollouts_total"] for row in rows] == sorted(row["rollouts_total"] for row in rows)
    recorded = list(read_rollouts(tmp_path / "run"))
    for row in rows:
        split = {
            name: {r["task"] for r in recorded if (r["step"], r["split"]) == (row["step"], name)}
            for name in ("train", "redrawn")
        }
        assert split["train"] == {"t2", "t3"}
        assert split["redrawn"] <= {"t0", "t1"}
        drawn = 2 + len(split["redrawn"])
        assert row["rollouts/redrawn"] == len(split["redrawn"]) / drawn
        assert row["rollouts/flat_groups"] == pytest.approx(len(split["redrawn"]) / drawn)
        assert row["train/reward"] == pytest.approx(0.5 * 2 / drawn), "of everything drawn"
        assert row["optim/grad_norm"] > 0
    assert sum(row["rollouts/redrawn"] > 0 for row in rows) > 0


@pytest.mark.parametrize("updates", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_no_rank_is_idle_while_there_are_rollouts(opened, updates, world_size):
    """With as many updates as tasks a step every update lay on rank 0."""
    settings = ("objective.type=sdpo", f"optim.updates_per_step={updates}")
    with opened(*settings, judge=Judge(0)) as run:
        learner = run.learner
        groups = learner.with_contexts(run.collect(run.env.load("train")).groups)
        shares = []
        for rank in range(world_size):
            learner._parallel = Parallel(rank=rank, world_size=world_size)
            shares.append(learner._shares(groups))
        learner._parallel = Parallel()
        whole = learner.samples(groups).updates
    for number in range(updates):
        parts = [share[number] for share in shares]
        assert all(parts) or world_size * updates > 16
        keys = sorted(sample.key for part in parts for sample in part)
        assert keys == sorted(sample.key for sample in whole[number])


def test_feedback_that_no_teacher_reads_is_said_once_and_not_recorded_as_read(opened, capsys):
    """Under srpo the quickstart's report showed "own feedback" for 96 of 128 attempts; none of it
    entered the loss."""
    with opened("objective.type=srpo", judge=Judge(0)) as run:
        rows = list(train_steps(run))
    assert capsys.readouterr().out.count("no teacher reads what the judge wrote to 16") == 1
    assert [row["teacher/feedback_fraction"] for row in rows[1:]] == [0.0] * 3
    with opened("objective.type=sdpo", f"run={run.dir}-sdpo", judge=Judge(0)) as run:
        rows = list(train_steps(run))
    assert "no teacher reads" not in capsys.readouterr().out
    assert rows[1]["teacher/feedback_fraction"] == 1.0


def test_a_run_that_cannot_learn_is_warned_about_and_goes_on(opened):
    settings = ("objective.type=grpo", "canaries.action=stop", "canaries.patience=2", "steps=4")
    with opened(*settings, judge=Judge(0)) as run:
        rows = list(train_steps(run))
    assert rows[-1]["step"] == 4
    (line,) = (run.dir / "alerts.jsonl").read_text().splitlines()
    alert = json.loads(line)
    assert (alert["canary"], alert["action"], alert["step"]) == ("nothing_learnt", "warn", 2)
    assert "objective.type=sdpo or hybrid" in alert["message"]


def test_every_step_says_how_far_sampler_and_trainer_are_apart(opened):
    with opened("objective.type=sdpo", "optim.updates_per_step=2", judge=Judge(0)) as run:
        rows = list(train_steps(run))
    for row in rows[1:]:
        assert 0 <= row["policy/sampler_gap"] <= row["policy/sampler_gap_max"] < 1e-3
        assert row["policy/ratio_capped"] == 0
