"""Algorithm 1 of the paper on one screen: sample, judge, re-read knowing the verdict, distil. Read
this file first.

`run.collect` samples and judges (rollouts/collect.py), `learner` re-reads and distils
(training/learner.py), and the rest of `run` keeps the books: evaluations, canaries, records,
checkpoints (training/run.py). No tensors here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from sdpo.config.schema import RunConfig
from sdpo.envs.base import Env
from sdpo.errors import (
    CanaryStop,
    CheckpointError,
    ConfigError,
    EngineError,
    JudgeError,
    NonFiniteLossError,
)
from sdpo.metrics.clock import Clock
from sdpo.models.policy import Policy
from sdpo.run_folder import CHECKPOINTS, checkpoint_steps
from sdpo.signals import BrokenOff, Signals, exit_status
from sdpo.training.opening import open_run
from sdpo.training.run import Run

_ON_EVERY_RANK = (JudgeError, EngineError, NonFiniteLossError)
"""What ends a run in all of its processes alike, so that they can still save it together; a single
process can after any error."""
OnStep = Callable[[Mapping[str, float]], object]
"""Receives a row of metrics.jsonl; what it returns is not looked at."""


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
    """False when interrupted; the same call continues the run."""
    seconds: float = 0.0
    """This call took, loading and evaluations included."""
    exit_status: int = 0
    """What the command exits with: 130 after Ctrl-C, 143 after SIGTERM (in every process)."""
    runs: tuple[TrainResult, ...] = ()
    """With `seeds` > 1 the result of each; the fields above are then about all of them: their
    folder, the steps of the last, means of metrics, whether all finished."""


def train(
    config: RunConfig,
    *,
    env: Env | None = None,
    policy: Policy | None = None,
    on_step: OnStep | None = None,
) -> TrainResult:
    """Train as `config` says and return where the run ended. An existing run directory of the same
    config is resumed exactly.

    `env` and `policy` replace what `config` names; the weights of `policy` are trained in place.
    `on_step` is called with every row of metrics.jsonl once it is written, the first evaluation's
    included. Ctrl-C and SIGTERM save a checkpoint and return; a second one during an update or a
    save returns at once and leaves the last checkpoint as it is. SIGUSR1 saves a checkpoint and
    goes on. Raises `SdpoError` for anything a user can fix.
    """
    if config.seeds > 1:
        if policy is not None:
            raise ConfigError(
                f"seeds = {config.seeds}: every seed begins with the same weights, and a model "
                "object is trained in place; give a model by name, or one seed"
            )
        return _train_seeds(config, env, on_step)
    start = time.perf_counter()
    found = _train_one(config, env, policy, on_step)
    return replace(found, seconds=time.perf_counter() - start)


def _train_one(
    config: RunConfig, env: Env | None, policy: Policy | None, on_step: OnStep | None
) -> TrainResult:
    with Signals() as signals:
        try:
            with open_run(config, env, policy, signals=signals) as run:
                return _train(run, on_step)
        except KeyboardInterrupt as stop:
            # Before the run stood, or while it was being closed: what is on disk is all there is.
            steps = checkpoint_steps(Path(config.run) / CHECKPOINTS)
            return TrainResult(
                run_dir=Path(config.run),
                step=steps[-1] if steps else 0,
                metrics={},
                finished=False,
                exit_status=exit_status(stop),
            )


def _train(run: Run, on_step: OnStep | None) -> TrainResult:
    try:
        try:
            for row in train_steps(run):
                if on_step is not None:
                    on_step(row)
            return _result(run)
        except (BrokenOff, CanaryStop, CheckpointError):
            raise
        except Exception as error:
            if run.is_alone or isinstance(error, _ON_EVERY_RANK):
                has_judge = isinstance(error, JudgeError)
                run.save_before_stop("a judge failed" if has_judge else "stopped")
            raise
        except KeyboardInterrupt as stop:
            run.save_interrupted()
            return _result(run, exit_status=exit_status(stop))
    except BrokenOff as stop:
        run.say("interrupted at once; the same command continues from the last checkpoint")
        return _result(run, exit_status=exit_status(stop))


def _train_seeds(config: RunConfig, env: Env | None, on_step: OnStep | None) -> TrainResult:
    """One run after the other; a finished one is not repeated, and an interrupt ends them all."""
    folder = Path(config.run)
    runs: list[TrainResult] = []
    for seed in range(config.seed, config.seed + config.seeds):
        name = f"{config.log.name or folder.name}-{seed}"
        alone = config.model_copy(
            update={
                "seeds": 1,
                "seed": seed,
                "run": str(folder / f"seed-{seed}"),
                "log": config.log.model_copy(update={"name": name}),
            }
        )
        runs.append(train(alone, env=env, on_step=on_step))
        if not runs[-1].finished:
            break
    # A metric that was not finite is written as null.
    known = [{n: v for n, v in run.metrics.items() if isinstance(v, int | float)} for run in runs]
    shared = set.intersection(*map(set, known))
    return TrainResult(
        run_dir=folder,
        step=runs[-1].step,
        metrics={name: fmean(row[name] for row in known) for name in sorted(shared)},
        finished=len(runs) == config.seeds and runs[-1].finished,
        seconds=sum(run.seconds for run in runs),
        exit_status=runs[-1].exit_status,
        runs=tuple(runs),
    )


def train_steps(run: Run) -> Generator[Mapping[str, float]]:
    """The run, a step at a time; each step's row of metrics.jsonl once it is done."""
    config, learner = run.config, run.learner
    if run.start():
        run.begin(run.evaluate())
        yield run.last_metrics
    elif run.unevaluated is not None:
        run.complete(run.unevaluated)
        run.save()
        yield run.last_metrics
    while run.step < config.steps:
        clock = Clock()
        collected = run.collect(run.tasks_of(run.step))
        with run.signals.undivided():
            with clock("update"):
                groups = learner.with_contexts(collected.groups)
                samples = learner.samples(groups)
                run.sample_ahead()
                losses = learner.update(samples)
            metrics = run.measure(groups, losses, collected.left_out)
            metrics |= learner.follow(metrics)
            run.record_rollouts(groups, losses, collected.left_out)
            metrics |= collected.metrics()
            # An engine that cannot take the weights leaves a step that has trained.
            run.unevaluated = metrics | clock.seconds()
            with clock("update"):
                run.land()
                learner.publish()
            run.complete(metrics | clock.seconds())
        run.heed()
        if run.is_due(config.checkpoint.every):
            run.save()
        yield run.last_metrics
    run.settle()


def _result(run: Run, exit_status: int = 0) -> TrainResult:
    return TrainResult(
        run_dir=run.dir,
        step=run.step,
        metrics=run.last_metrics,
        finished=exit_status == 0,
        exit_status=exit_status,
    )
