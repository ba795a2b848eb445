"""What fails on one of several processes must fail on all: `one_fails_worker.py FOLDER MODEL`.

Every case makes one rank raise between two points where all ranks wait for each other. What each
heard goes to `FOLDER/RANK.json`; a rank that another leaves waiting is what the test's time limit
is for.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sharing_worker import ENV, TASKS, settings

import sdpo
from sdpo.config.schema import RunConfig
from sdpo.discovery.run import discover_tasks
from sdpo.engines.local import LocalEngine
from sdpo.errors import CheckpointError, ConfigError, EngineError, TaskError
from sdpo.inspection import reach
from sdpo.rollouts.collect import Collector
from sdpo.rollouts.record import RolloutRecorder
from sdpo.training import checkpoint
from sdpo.training.checkpoint import Checkpoints
from sdpo.training.samples import SampleBuilder

RANK = int(os.environ["RANK"])


@contextmanager
def failing(owner: Any, name: str, error: Exception, *, rank: int = 1) -> Generator[None]:
    """`owner.name` raises on one rank, at its first call."""
    original = getattr(owner, name)

    def failed(*arguments: Any, **named: Any) -> Any:
        if rank == RANK:
            raise error
        return original(*arguments, **named)

    setattr(owner, name, failed)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def in_place_of(*paths: Path) -> Generator[None]:
    """A folder stands where a file is to be written, so that it cannot be."""
    for path in paths:
        if RANK == 0:
            path.unlink(missing_ok=True)
            path.mkdir(parents=True)
    yield


def judging(*, rank: int, says: Exception) -> sdpo.Env:
    """An environment whose judge fails on one rank."""

    def judge(task: sdpo.Task, rollout: sdpo.Rollout) -> Any:
        if rank == RANK:
            raise says
        return 0.0, "no"

    return sdpo.env(TASKS, judge)


teacher_calls: list[int] | None = None
"""Calls of the judge about the teacher's attempts; None while it makes none."""


@contextmanager
def reading_teacher() -> Generator[None]:
    """`teacher_calls` knows when the self-teacher's attempts are judged."""
    original = Collector.collect_in_contexts

    def noted(*arguments: Any, **named: Any) -> Any:
        global teacher_calls
        teacher_calls = []
        try:
            return original(*arguments, **named)
        finally:
            teacher_calls = None

    Collector.collect_in_contexts = noted  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        Collector.collect_in_contexts = original


def shy_judge(task: sdpo.Task, rollout: sdpo.Rollout) -> Any:
    """Has no verdict on the first of this rank's attempts by the teacher."""
    if RANK == 1 and teacher_calls is not None:
        teacher_calls.append(rollout.index)
        if len(teacher_calls) == 1:
            raise sdpo.Unjudged("busy")
    return 0.0, "no"


def main(folder: Path, model: Path) -> None:
    torch.set_num_threads(1)
    shy = sdpo.env(TASKS, shy_judge)
    bug = judging(rank=1, says=ValueError("a bug of the judge's"))

    def run(name: str, *more: str) -> RunConfig:
        return settings(
            model, f"run={folder}/{name}", "steps=1", "rollout.tasks_per_step=2",
            "rollout.group_size=2", "eval.samples=1", "discover.budget=9", *more,
        )  # fmt: skip

    def train(name: str, *more: str, env: sdpo.Env = ENV) -> Any:
        return sdpo.train(run(name, *more), env=env)

    def begun(name: str, then: Callable[[], Any]) -> Any:
        train(name)
        return then()

    cases: dict[str, tuple[Any, Callable[[], Any]]] = {
        "evaluate: judge": (None, lambda: sdpo.evaluate(run("-"), env=bug)),
        "evaluate: tasks": (
            failing(type(ENV), "load", TaskError("t.jsonl is missing")),
            lambda: sdpo.evaluate(run("-"), env=ENV),
        ),
        "probe: judge": (None, lambda: sdpo.probe(run("-"), env=bug)),
        "probe: teacher": (
            failing(Collector, "answer", EngineError("the engine fails")),
            lambda: sdpo.probe(run("-"), env=ENV),
        ),
        "probe: reach": (
            failing(reach, "token_outputs", EngineError("the engine fails")),
            lambda: sdpo.probe(run("-"), env=ENV),
        ),
        "check": (
            failing(LocalEngine, "generate", EngineError("the engine fails"), rank=0),
            lambda: sdpo.check(run("-"), env=ENV),
        ),
        "discover: judge": (None, lambda: discover_tasks(run("judge"), bug)),
        "discover: engine": (
            failing(LocalEngine, "load_weights", EngineError("the engine fails")),
            lambda: discover_tasks(run("engine"), ENV),
        ),
        "discover: weights put back": (
            failing(LocalEngine, "load_weights", EngineError("the engine fails")),
            lambda: discover_tasks(run("back", "discover.budget=4"), ENV),
        ),
        "discover: disk": (
            in_place_of(folder / "disk" / "attempts.jsonl"),
            lambda: discover_tasks(run("disk"), ENV),
        ),
        "train: tasks": (
            failing(type(ENV), "load", TaskError("t.jsonl is missing")),
            lambda: train("tasks"),
        ),
        "train: judge": (None, lambda: train("train-judge", env=bug)),
        "train: teacher's attempts": (
            failing(Collector, "collect_in_contexts", EngineError("the engine fails")),
            lambda: train("sft", "objective.type=sft"),
        ),
        # One of this rank's two, but of four in all: fewer than the settings allow.
        "train: teacher's attempts that are not judged": (
            reading_teacher(),
            lambda: train(
                "unjudged", "objective.type=sft", "env.retries=0", "env.max_unjudged=0.4", env=shy
            ),
        ),
        "train: samples": (
            failing(SampleBuilder, "samples", ConfigError("routing fails")),
            lambda: train("samples"),
        ),
        "train: publish": (
            failing(LocalEngine, "load_weights", EngineError("the engine fails")),
            lambda: train("publish"),
        ),
        "train: other settings": (
            None,
            lambda: begun("other", lambda: train("other", "optim.lr=3e-3")),
        ),
        "train: first row": (
            in_place_of(folder / "first-row" / "metrics.jsonl"),
            lambda: train("first-row"),
        ),
        "train: rollouts": (
            failing(RolloutRecorder, "record_credit", sdpo.SdpoError("cannot write"), rank=0),
            lambda: train("rollouts"),
        ),
        "train: save": (
            failing(checkpoint, "save_model", OSError(28, "cannot write"), rank=0),
            lambda: train("save"),
        ),
        "train: resume": (
            failing(Checkpoints, "load", CheckpointError("is damaged")),
            lambda: begun("resume", lambda: train("resume", "steps=2")),
        ),
    }  # fmt: skip
    heard = {}
    for name, (setting, work) in cases.items():
        print(name, file=sys.stderr, flush=True)
        try:
            if setting is None:
                work()
            else:
                with setting:
                    work()
            heard[name] = "nothing"
        except sdpo.SdpoError as error:
            heard[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    (folder / f"{RANK}.json").write_text(json.dumps(heard))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
