"""Checkpoints that are written while the run goes on (`checkpoint.background`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import sdpo
from sdpo import files
from sdpo.config.load import load_config
from sdpo.errors import CheckpointError
from sdpo.run_folder import checkpoint_steps
from sdpo.testing import byte_tokenizer, tiny_model
from sdpo.training.loop import train
from sdpo.training.optim import Optimizer
from sdpo.training.run import Run

TASKS = [{"id": f"t{i}", "prompt": f"say {i}"} for i in range(6)]


def judge(task, rollout):
    hits = sum(character in "abcdefgh" for character in rollout.text)
    said = None if hits else "not one of the letters from a to h"
    return sdpo.Verdict(reward=float(hits > 0), solved=hits > 0, feedback=said)


ENV = sdpo.env(TASKS, judge)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(num_layers=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def settings(model, run, *overrides):
    return [
        f"run={run}", f"model.name={model}", "model.device=cpu", "model.dtype=bfloat16", "steps=4",
        "rollout.tasks_per_step=2", "rollout.group_size=3", "rollout.max_completion_tokens=6",
        "rollout.max_prompt_tokens=200", "optim.lr=1e-3", "eval.samples=1", "eval.every=0",
        "eval.max_tasks=1", "checkpoint.every=1", "checkpoint.keep=2", "checkpoint.background=true",
        *overrides,
    ]  # fmt: skip


def config(model, run, *overrides):
    return load_config(settings(model, run, *overrides))


def rows(run):
    found = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in found]


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def test_it_is_the_checkpoint_of_a_run_that_waits(model, tmp_path):
    """The weights move on while it is written: with `canaries.action = "rollback"` the two
    newest and that of step 0."""
    for name, value in (("waits", "false"), ("goes-on", "true")):
        train(
            config(
                model, tmp_path / name, f"checkpoint.background={value}", "canaries.action=rollback"
            ),
            env=ENV,
        )
    for step in checkpoint_steps(tmp_path / "waits" / "checkpoints"):
        one, other = (tmp_path / n / "checkpoints" / f"step-{step}" for n in ("waits", "goes-on"))
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
        assert_equal(*(torch.load(p / "state.pt", weights_only=True) for p in (one, other)))
        weights = [(p / "model.safetensors").read_bytes() for p in (one, other)]
        assert weights[0] == weights[1]
        sizes = [(p / "state.pt").stat().st_size for p in (one, other)]
        assert sizes[1] <= sizes[0] * 1.01, "tensors that were one are written twice"
    assert rows(tmp_path / "waits") == rows(tmp_path / "goes-on")


def test_the_run_goes_on_and_only_the_next_save_waits(model, tmp_path, monkeypatch):
    may_write, seen = threading.Event(), []
    write, collect = torch.save, Run.collect

    def slow(*arguments):
        assert may_write.wait(60)
        write(*arguments)

    def watched(self, tasks):
        seen.append((self.step, checkpoint_steps(tmp_path / "run" / "checkpoints")))
        if self.step == 1:
            may_write.set()
        return collect(self, tasks)

    monkeypatch.setattr(torch, "save", slow)
    monkeypatch.setattr(Run, "collect", watched)
    train(config(model, tmp_path / "run", "checkpoint.every=1", "steps=3"), env=ENV)
    assert seen[:2] == [(0, []), (1, [])], "step 2 began before the checkpoint of step 1 stood"
    assert 1 in seen[2][1], "the checkpoint of step 2 waited for that of step 1"
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2, 3]


def test_a_full_disk_ends_the_run_at_the_next_save_and_costs_nothing_older(
    model, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    sync = files._sync

    def full(path):
        if "step-3" in str(path):
            raise OSError(28, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "_sync", full)
    with pytest.raises(CheckpointError, match=r"step-3: .*No space left"):
        train(config(model, run), env=ENV)
    assert checkpoint_steps(run / "checkpoints") == [1, 2]
    assert not list((run / "checkpoints").glob(".partial-*"))
    monkeypatch.undo()
    assert train(config(model, run), env=ENV).finished
    train(config(model, tmp_path / "whole"), env=ENV)
    assert rows(run) == rows(tmp_path / "whole")


KILLED = """
import os, signal, sys, threading, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_background_checkpoints as here
from sdpo.training.run import Run

write, collect = torch.save, Run.collect
def slow(state, path):
    if "step-3" in str(path):
        Path(path).write_bytes(b"half of it")
        threading.Event().wait()
    write(state, path)
torch.save = slow
def killed(self, tasks):
    if self.step == 3:
        os.kill(os.getpid(), int(sys.argv[4]))
    return collect(self, tasks)
Run.collect = killed
here.train(here.config(*sys.argv[2:4]), env=here.ENV)
"""


def test_killed_while_it_is_written_the_run_continues_from_the_one_before(model, tmp_path):
    run = tmp_path / "run"
    arguments = [sys.executable, "-c", KILLED, Path(__file__).parent, model, run]
    killed = subprocess.run([*map(str, arguments), str(int(signal.SIGKILL))], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint_steps(run / "checkpoints") == [1, 2]
    assert os.path.exists(run / "checkpoints" / ".partial-step-3")
    assert train(config(model, run), env=ENV).finished
    assert not (run / "checkpoints" / ".partial-step-3").exists()
    train(config(model, tmp_path / "whole"), env=ENV)
    assert rows(run) == rows(tmp_path / "whole")


def test_an_error_inside_an_update_waits_for_what_is_being_written(model, tmp_path, monkeypatch):
    """The update is lost, and the checkpoint before it must not be."""
    write, update = torch.save, Optimizer.update

    def slow(*arguments):
        time.sleep(0.5)
        write(*arguments)

    def broken(self, *arguments, **named):
        update(self, *arguments, **named)
        if self.num_updates == 3:
            raise ValueError("a bug")
        return 1.0

    monkeypatch.setattr(torch, "save", slow)
    monkeypatch.setattr(Optimizer, "update", broken)
    with pytest.raises(ValueError, match="a bug"):
        train(config(model, tmp_path / "run"), env=ENV)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [1, 2]


def test_an_interrupt_waits_for_what_is_being_written(model, tmp_path, monkeypatch):
    collect = Run.collect

    def interrupted(self, tasks):
        if self.step == 2:
            raise KeyboardInterrupt
        return collect(self, tasks)

    monkeypatch.setattr(Run, "collect", interrupted)
    assert train(config(model, tmp_path / "run"), env=ENV).step == 2
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [1, 2]
