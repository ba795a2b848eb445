"""Runs that end of what is neither a judge nor a signal: an engine that cannot sample, or cannot
take the new weights, losses that are not finite, and errors of the user's own functions."""

from __future__ import annotations

import pytest
import torch
from test_runs import TASKS, config, judge, model, rows  # noqa: F401 - model is a fixture

import sdpo
from sdpo.engines.local import LocalEngine
from sdpo.errors import EngineError, NonFiniteLossError
from sdpo.training.checkpoint import Checkpoints
from sdpo.training.loop import train
from sdpo.training.optim import Optimizer

OVERRIDES = ("steps=6", "checkpoint.every=0", "eval.every=3", "eval.probe_tasks=2")
ENV = sdpo.env(TASKS, judge)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):  # noqa: F811
    run = tmp_path_factory.mktemp("whole")
    train(config(model, run, *OVERRIDES), env=ENV)
    return rows(run)


def fails_at(monkeypatch, owner, name, error, count):
    """The `count`-th call of a method raises `error`, the ones after it work again."""
    work, calls = getattr(owner, name), []

    def method(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            raise error
        return work(*arguments, **options)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("owner", "method", "error", "call", "saved"),
    [
        # The evaluation after step 3 and the probe have several calls each.
        (LocalEngine, "generate", EngineError("no server answers"), 7, [2]),
        (LocalEngine, "generate", EngineError("no server answers"), 8, [3]),
        (LocalEngine, "load_weights", EngineError("no server takes them"), 5, [5]),
        (Optimizer, "update", NonFiniteLossError("the loss is nan"), 5, [4]),
    ],
    ids=["sampling", "evaluating", "publishing", "loss"],
)
def test_an_error_of_the_engine_lost_every_step_since_the_last_checkpoint(
    owner, method, error, call, saved, whole, model, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    fails_at(monkeypatch, owner, method, error, call)
    with pytest.raises(type(error), match=str(error)):
        train(config(model, tmp_path, *OVERRIDES), env=ENV)
    assert Checkpoints(tmp_path, keep=2).steps() == saved
    assert train(config(model, tmp_path, *OVERRIDES), env=ENV).finished
    assert rows(tmp_path) == whole


def test_a_step_of_which_half_is_trained_is_not_saved(model, tmp_path, monkeypatch):  # noqa: F811
    halves = (*OVERRIDES, "optim.updates_per_step=2", "checkpoint.every=2")
    fails_at(monkeypatch, Optimizer, "update", NonFiniteLossError("the loss is nan"), 8)
    with pytest.raises(NonFiniteLossError):
        train(config(model, tmp_path, *halves), env=ENV)
    assert Checkpoints(tmp_path, keep=2).steps() == [2]


def test_an_error_of_on_step_lost_every_step_since_the_last_checkpoint(
    whole, model, tmp_path  # noqa: F811
):  # fmt: skip
    def on_step(row):
        if row["step"] == 4:
            raise ZeroDivisionError("in on_step")

    with pytest.raises(ZeroDivisionError):
        train(config(model, tmp_path, *OVERRIDES), env=ENV, on_step=on_step)
    assert Checkpoints(tmp_path, keep=2).steps() == [4]
    assert train(config(model, tmp_path, *OVERRIDES), env=ENV).finished
    assert rows(tmp_path) == whole


def test_weights_of_which_an_error_left_some_moved_are_not_saved(
    model, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    fails_at(monkeypatch, torch.optim.AdamW, "step", MemoryError("none left"), 5)
    with pytest.raises(MemoryError):
        train(config(model, tmp_path, *OVERRIDES, "checkpoint.every=3"), env=ENV)
    assert Checkpoints(tmp_path, keep=2).steps() == [3]
