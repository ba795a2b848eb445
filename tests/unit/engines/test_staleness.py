"""`rollout.staleness = 1`: servers sample the next step's attempts while a step trains, with the
weights before it; deterministic, and exact when it continues."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from stub_vllm import serving

import sdpo
from sdpo.config.load import load_config
from sdpo.errors import ConfigError, JudgeError
from sdpo.metrics.jsonl import read_rows
from sdpo.testing import byte_tokenizer, tiny_model

STEPS = 4
TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(6)]


class Judge:
    """Can fail at an attempt."""

    def __init__(self, failing_at: int = 10**9) -> None:
        self.count, self.failing_at = 0, failing_at

    def __call__(self, task, rollout):
        self.count += 1
        if self.count == self.failing_at:
            raise RuntimeError("told to fail")
        hits = sum(character in "abcdefgh" for character in rollout.text)
        said = None if hits else "no letter from a to h"
        return sdpo.Verdict(
            reward=float(hits > 0), solved=hits > 0, feedback=said, info={"odd": {1, 2}}
        )


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains a run, or goes on with it, with two servers that every run has in turn; returns its
    result, and the paths that the first server was asked for."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model(num_layers=1).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    with serving(*(tiny_model(num_layers=1, seed=seed) for seed in (3, 4))) as servers:
        common = [
            f"model.name={folder / 'model'}", "model.device=cpu", "model.dtype=float32",
            f"steps={STEPS}", "rollout.tasks_per_step=3", "rollout.group_size=4",
            "rollout.max_completion_tokens=6", "rollout.max_prompt_tokens=200", "optim.lr=1e-2",
            "eval.samples=1", "eval.max_tasks=1", "eval.every=2", "checkpoint.every=1",
            "checkpoint.keep=9", "teacher.context.max_tokens=400", "discover.window_tokens=400",
            f"rollout.engine.weights.path={folder / 'weights'}", "rollout.engine.type=server",
            f"rollout.engine.urls={json.dumps([server.url for server in servers])}",
            "rollout.staleness=1",
        ]  # fmt: skip

        def train_once(run: Path, *overrides: str, judge=None, on_step=None):
            servers[0].requests.clear()
            config = load_config([f"run={run}", *common, *overrides])
            result = sdpo.train(config, env=sdpo.env(TASKS, judge or Judge()), on_step=on_step)
            return result, servers[0].paths(without="")

        yield train_once


def rows(run: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")}
        for row in read_rows(run / "metrics.jsonl")
    ]


def assert_same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    first, second = (
        load_file(run / "checkpoints" / f"step-{STEPS}" / "model.safetensors")
        for run in (one, other)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train):
    """A run that nothing happens to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    _, paths = train(run)
    return run, paths


def test_attempts_are_one_update_old(whole):
    steps = [row for row in rows(whole[0]) if "rollouts/staleness" in row]
    assert [row["rollouts/staleness"] for row in steps] == [0, 1, 1, 1]
    # Sampler and trainer differ by the update in between.
    assert steps[0]["policy/sampler_gap_max"] < 1e-4
    assert all(row["policy/sampler_gap_max"] > 1e-3 for row in steps[1:])


def test_weights_are_sent_when_nobody_samples_with_the_old_ones(whole):
    """Two steps' attempts before the first update is sent, none after the last but one."""
    paths = [p for p in whole[1] if p in ("/inference/v1/generate", "/update_weight_version")]
    text = "".join("g" if path.endswith("generate") else "U" for path in paths)
    counts = [len(part) for part in text.split("U")][1:]
    # One server has two of three prompts: 8 attempts a step, and an evaluation's single one. The
    # first to be sent are a trial of the options, the evaluation, and two steps.
    assert [count // 8 for count in counts] == [2, 1, 1, 0, 0]


def test_the_same_seed_trains_the_same(whole, train, tmp_path):
    train(tmp_path / "run")
    assert_same(whole[0], tmp_path / "run")


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_run_goes_on_to_the_same_end(whole, train, tmp_path, step):
    """From the checkpoint of any step, with the attempts that were sampled before it."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    config = run / "config.json"
    config.write_text(config.read_text().replace(json.dumps(str(whole[0])), json.dumps(str(run))))
    state = torch.load(run / "checkpoints" / f"step-{step}" / "state.pt", weights_only=True)
    assert state["ahead"]
    _, paths = train(run)
    # What has been sampled is not sampled again.
    assert rows(run)[-1]["step"] == STEPS
    assert paths.count("/inference/v1/generate") <= 8 * (STEPS - step) + 4
    assert_same(whole[0], run)


def test_an_interrupted_run_goes_on_to_the_same_end(whole, train, tmp_path):
    def interrupt(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    result, _ = train(tmp_path / "run", "checkpoint.every=0", on_step=interrupt)
    assert not result.finished
    train(tmp_path / "run", "checkpoint.every=0")
    assert_same(whole[0], tmp_path / "run")


def test_a_judge_that_fails_ahead_ends_the_step_it_belongs_to(whole, train, tmp_path):
    """The step that trains meanwhile is finished and saved."""
    judge = Judge(failing_at=1 + 12 + 12 + 1)
    with pytest.raises(JudgeError, match="told to fail"):
        train(tmp_path / "run", "checkpoint.every=0", judge=judge)
    assert rows(tmp_path / "run")[-1] == rows(whole[0])[2]
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.engine.type=local"], "engine.type = 'local' needs.*set engine.type = 'server'"),
        (["rollout.engine.type=vllm"], "engine.type = 'vllm' needs.*set engine.type = 'server'"),
        (["objective.type=sft"], "set rollout.staleness = 0"),
        (["teacher.gate.type=probe"], "set rollout.staleness = 0"),
        (
            ["objective.importance=logit", "objective.divergence.type=reverse_kl"],
            "does not know who sampled",
        ),
    ],
)
def test_what_cannot_be_stale_is_refused(overrides, said):
    settings = ["rollout.staleness=1", "rollout.engine.type=server", "objective.type=sdpo"]
    with pytest.raises(ConfigError, match=said):
        load_config([*settings, *overrides])
