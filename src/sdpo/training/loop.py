"""Algorithm 1 of the paper on one screen: sample, judge, re-read knowing the verdict, distil. Read
this file first.

Every name below is one module: `collect` is rollouts/collect.py, `contexts` teacher/context.py,
`update` training/step.py. No tensors here. What a run is made of is put together in
training/run.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sdpo.config.schema import RunConfig
from sdpo.envs.base import Env
from sdpo.rollouts.curriculum import tasks_of_step
from sdpo.training.interrupt import BrokenOff, undivided
from sdpo.training.run import Run, open_run


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Example:
        TrainResult(run_dir=Path("runs/quickstart"), step=40, metrics={"eval/solved": 0.41},
        finished=True)
    """

    run_dir: Path
    step: int
    """Steps completed."""
    metrics: dict[str, float]
    """The last row of metrics.jsonl."""
    finished: bool
    """False when interrupted; the same call continues."""


def train(config: RunConfig, *, env: Env | None = None) -> TrainResult:
    """Train as `config` says and return where it ended; an existing run directory of the same
    config is resumed exactly.

    `env` replaces `config.env`. Raises `SdpoError` for anything a user can fix; Ctrl-C saves a
    checkpoint and returns; a second one during an update returns at once and leaves the last one.
    """
    with open_run(config, env) as run:
        try:
            return _train(run)
        except BrokenOff:
            run.say(
                "interrupted inside a step; the same command continues from the last checkpoint"
            )
            return _result(run, finished=False)
        except KeyboardInterrupt:
            run.save_interrupted()
            return _result(run, finished=False)


def _train(run: Run) -> TrainResult:
    config = run.config
    tasks = run.env.load("train")
    if run.start():
        metrics = run.evaluate()
        run.record(metrics, run.watch(metrics))
        run.save_start()
    while run.step < config.steps:
        start = time.perf_counter()
        step_tasks = tasks_of_step(
            tasks, step=run.step, count=config.rollout.tasks_per_step, seed=config.seed
        )
        collected = run.collect(step_tasks)
        updated = time.perf_counter()
        groups = run.with_contexts(collected.groups)
        with undivided(run.say):
            losses = run.update(groups)
            finished = time.perf_counter()
            metrics = run.finish_step(groups, losses)
            metrics |= {
                "time/generate_s": collected.generate_s,
                "time/judge_s": collected.judge_s,
                "time/update_s": finished - updated,
                "time/step_s": time.perf_counter() - start,
            }
            if run.is_due(config.eval.every):
                metrics |= run.evaluate()
            alerts = run.watch(metrics)
            run.record(metrics, alerts)
            # Before any save, so that a run killed in between is resumed before the alert and acts
            # on it again.
            run.act(alerts)
        if run.is_due(config.checkpoint.every):
            run.save()
    return _result(run, finished=True)


def _result(run: Run, *, finished: bool) -> TrainResult:
    return TrainResult(run_dir=run.dir, step=run.step, metrics=run.last_metrics, finished=finished)
