"""Runs against runs: held-out means with intervals, paired differences, attempts to reach a level.

An arm is one or more runs of the same settings under several seeds. Every number comes from the
evaluations recorded in the run directories, so a comparison can be repeated from them. Intervals
resample tasks and, where an arm has several seeds, seeds too: three seeds of one lucky setting do
not look like certainty. Arms with the same seeds are paired by seed, and always by task.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sdpo.errors import ConfigError
from sdpo.evaluation import Interval
from sdpo.metrics import names
from sdpo.metrics.jsonl import read_rows
from sdpo.metrics.writer import METRICS, run_folders
from sdpo.rollouts.record import LEFT_OUT, ROLLOUTS, TRAINED, read_rollouts

RESAMPLES = 10_000
"""Bootstrap draws; the Monte Carlo error of a 90% bound is about a hundredth of its width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScores:
    """The evaluations of one run.

    Example:
        RunScores(path=Path("runs/a/seed-0"), seed=0, attempts={0: 0, 10: 320},
        solved={0: {"clamp": 0.0}, 10: {"clamp": 0.75}})
    """

    path: Path
    seed: int | None
    """None for a file of per-task counts, which does not know its seed."""
    attempts: Mapping[int, int]
    """Training attempts so far, by evaluated step."""
    solved: Mapping[int, Mapping[str, float]]
    """Share of solved attempts by evaluated step and task."""
    holdout: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)
    """The same of each set of `eval.holdout`, by its name."""

    @property
    def last(self) -> int:
        return max(self.solved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The runs of one side of a comparison.

    Example:
        Arm(name="runs/sdpo", runs=(run_0, run_1, run_2))
    """

    name: str
    runs: tuple[RunScores, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an arm's training left of its rate on tasks from elsewhere.

    Example:
        Kept(name="mbpp", num_tasks=120, mean=interval, change=interval)
    """

    name: str
    num_tasks: int
    mean: Interval
    """After the last step."""
    change: Interval
    """Over the same runs' first evaluation; below zero where something was forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm's held-out results.

    Example:
        ArmResult(name="runs/sdpo", num_runs=3, num_tasks=56, mean=interval, gain=interval,
        attempts=(1024, 1024, 1024), reached=(256, 384, None))
    """

    name: str
    num_runs: int
    num_tasks: int
    mean: Interval
    """Held-out mean at the compared step."""
    gain: Interval | None
    """Over the same runs' first evaluation; None when there is only one evaluation."""
    attempts: tuple[int, ...]
    """Training attempts of each run up to the compared step."""
    reached: tuple[int | None, ...]
    """Training attempts after which each run was first evaluated at the level or above."""
    holdout: tuple[Kept, ...] = ()
    """Sets of `eval.holdout` that every run of the arm was evaluated on before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An arm minus the first arm, paired by task and, with equal seeds, by seed.

    Example:
        Difference(name="runs/sdpo", baseline="runs/grpo", gap=interval, wins=31, losses=4, ties=21,
        is_paired_by_seed=True)
    """

    name: str
    baseline: str
    gap: Interval
    wins: int
    """Tasks on which this arm's mean is higher."""
    losses: int
    ties: int
    is_paired_by_seed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `sdpo compare` prints.

    Example:
        compare([["runs/grpo"], ["runs/sdpo"]]).differences[0].gap
    """

    level: float
    """Held-out mean that `reached` is about."""
    arms: tuple[ArmResult, ...]
    differences: tuple[Difference, ...]


def compare(
    arms: Sequence[Sequence[str | Path]],
    *,
    step: int | None = None,
    reach: float | None = None,
    confidence: float = 0.9,
) -> Comparison:
    """Compare the arms at `step` (default: each run's last evaluation) on the tasks all runs share.

    A path is a run, a folder of runs of several seeds, or a file that `sdpo eval --out` wrote. The
    first arm is the baseline. `reach` defaults to the lowest arm's mean, so that the others say how
    much sooner they got there. Raises `ConfigError` when a path holds no evaluation or the arms
    share no task.
    """
    loaded = [load_arm(paths) for paths in arms]
    tasks = _shared_tasks(loaded, step)
    finals = [_matrix(arm, tasks, step) for arm in loaded]
    level = min(float(values.mean()) for values in finals) if reach is None else reach
    results = tuple(
        _arm_result(arm, values, tasks, step, level, confidence)
        for arm, values in zip(loaded, finals, strict=True)
    )
    differences = tuple(
        _difference(loaded[0], arm, finals[0], values, confidence)
        for arm, values in zip(loaded[1:], finals[1:], strict=True)
    )
    return Comparison(level=level, arms=results, differences=differences)


def load_arm(paths: Sequence[str | Path]) -> Arm:
    """The runs that `paths` name. Raises `ConfigError` for one without an evaluation."""
    runs = [run for path in paths for run in run_folders(Path(path))]
    if not runs:
        raise ConfigError("an arm of a comparison needs at least one run")
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} (+{len(runs) - 1})"
    return Arm(name=name, runs=tuple(_load(path) for path in runs))


def _load(path: Path) -> RunScores:
    if path.is_file():
        return _load_counts(path)
    if not (path / METRICS).exists():
        raise ConfigError(
            f"{path} is not a run: it has no {METRICS}; give the folder that `run` named, "
            "or a file that `sdpo eval --out` wrote"
        )
    attempts = {
        row["step"]: int(row.get(names.ROLLOUTS_TOTAL) or 0) for row in read_rows(path / METRICS)
    }
    counts: dict[str, dict[int, dict[str, list[bool]]]] = {"eval": {}}
    try:
        for row in read_rollouts(path):
            if row["split"] not in (TRAINED, LEFT_OUT):
                steps = counts.setdefault(row["split"], {})
                steps.setdefault(row["step"], {}).setdefault(row["task"], []).append(row["solved"])
    except KeyError as error:
        raise ConfigError(
            f"{path / ROLLOUTS}: a row has no {error}; a comparison needs step, split, task, index "
            "and solved of each attempt, as training writes them"
        ) from error
    rates = {
        split.removeprefix(names.HOLDOUT): {
            step: {task: statistics.fmean(solved) for task, solved in tasks.items()}
            for step, tasks in steps.items()
        }
        for split, steps in counts.items()
    }
    own = rates.pop("eval")
    if not own:
        raise ConfigError(
            f"{path}: {ROLLOUTS} holds no evaluation; comparisons need `eval.every` or a "
            "finished run, which is evaluated before and after"
        )
    recorded = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return RunScores(
        path=path,
        seed=recorded["config"]["seed"],
        attempts=attempts,
        solved=own,
        holdout=rates,
    )


def _load_counts(path: Path) -> RunScores:
    try:
        solved = {row["id"]: row["solved"] / row["samples"] for row in read_rows(path)}
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{path}: expected lines {{id, samples, solved}} as `sdpo eval --out` writes them"
        ) from error
    if not solved:
        raise ConfigError(f"{path} has no line; `sdpo eval --out` writes one for each task")
    return RunScores(path=path, seed=None, attempts={0: 0}, solved={0: solved})


def _shared_tasks(arms: Sequence[Arm], step: int | None) -> list[str]:
    shared: set[str] | None = None
    for run in (run for arm in arms for run in arm.runs):
        chosen = run.last if step is None else step
        if chosen not in run.solved:
            evaluated = ", ".join(map(str, sorted(run.solved)))
            raise ConfigError(f"{run.path} was not evaluated at step {step}; it was at {evaluated}")
        tasks = set(run.solved[chosen])
        shared = tasks if shared is None else shared & tasks
    if not shared:
        raise ConfigError(
            "the runs share no held-out task; compare runs of the same environment and split"
        )
    return sorted(shared)


def _matrix(arm: Arm, tasks: Sequence[str], step: int | None) -> np.ndarray:
    """[runs, tasks] solved shares at `step`."""
    return np.array(
        [
            [run.solved[run.last if step is None else step][task] for task in tasks]
            for run in arm.runs
        ]
    )


def _arm_result(
    arm: Arm,
    values: np.ndarray,
    tasks: Sequence[str],
    step: int | None,
    level: float,
    confidence: float,
) -> ArmResult:
    firsts = [min(run.solved) for run in arm.runs]
    chosen = [run.last if step is None else step for run in arm.runs]
    gain = None
    if all(first < last for first, last in zip(firsts, chosen, strict=True)):
        start = np.array(
            [
                [run.solved[first].get(task, np.nan) for task in tasks]
                for run, first in zip(arm.runs, firsts, strict=True)
            ]
        )
        if not np.isnan(start).any():
            gain = _interval(values - start, confidence)
    return ArmResult(
        name=arm.name,
        num_runs=len(arm.runs),
        num_tasks=len(tasks),
        mean=_interval(values, confidence),
        gain=gain,
        attempts=tuple(
            run.attempts.get(last, 0) for run, last in zip(arm.runs, chosen, strict=True)
        ),
        reached=tuple(_reached(run, tasks, level) for run in arm.runs),
        holdout=tuple(_kept(arm, confidence)),
    )


def _kept(arm: Arm, confidence: float) -> Iterator[Kept]:
    """Each set that all runs of `arm` were evaluated on twice, on the tasks they share."""
    for name in sorted(set.intersection(*(set(run.holdout) for run in arm.runs))):
        sets = [run.holdout[name] for run in arm.runs]
        ends = [(steps[min(steps)], steps[max(steps)]) for steps in sets]
        tasks = sorted(set.intersection(*(set(rates) for pair in ends for rates in pair)))
        if not tasks or any(len(steps) < 2 for steps in sets):
            continue
        before, after = (
            np.array([[pair[place][task] for task in tasks] for pair in ends]) for place in (0, 1)
        )
        yield Kept(
            name=name,
            num_tasks=len(tasks),
            mean=_interval(after, confidence),
            change=_interval(after - before, confidence),
        )


def _reached(run: RunScores, tasks: Sequence[str], level: float) -> int | None:
    for step in sorted(run.solved):
        solved = [run.solved[step][task] for task in tasks if task in run.solved[step]]
        # A tolerance for the mean's own rounding: a run reaches its own mean.
        if solved and statistics.fmean(solved) >= level - 1e-9:
            return run.attempts.get(step, 0)
    return None


def _difference(
    baseline: Arm, arm: Arm, base: np.ndarray, values: np.ndarray, confidence: float
) -> Difference:
    seeds = [run.seed for run in arm.runs]
    is_paired = (
        None not in seeds
        and len(set(seeds)) == len(seeds)
        and sorted(seeds, key=str) == sorted((run.seed for run in baseline.runs), key=str)
    )
    if is_paired:
        order = [seeds.index(run.seed) for run in baseline.runs]
        gap = _interval(values[order] - base, confidence)
    else:
        gap = _unpaired(values, base, confidence)
    per_task = np.sign(np.round(values.mean(axis=0) - base.mean(axis=0), 12))
    return Difference(
        name=arm.name,
        baseline=baseline.name,
        gap=gap,
        wins=int((per_task > 0).sum()),
        losses=int((per_task < 0).sum()),
        ties=int((per_task == 0).sum()),
        is_paired_by_seed=is_paired,
    )


def _draws(values: np.ndarray, rng: np.random.Generator, tasks_BT: np.ndarray) -> np.ndarray:
    """[B] means of `values` [runs, tasks] with runs redrawn and the given tasks."""
    runs = rng.integers(0, len(values), size=(len(tasks_BT), len(values)))
    # Per draw the mean over redrawn runs is a weighting of runs: [B, runs] @ [runs, tasks].
    weights = np.zeros((len(tasks_BT), len(values)))
    np.add.at(weights, (np.arange(len(tasks_BT))[:, None], runs), 1.0 / len(values))
    return np.take_along_axis(weights @ values, tasks_BT, axis=1).mean(axis=1)


def _interval(values: np.ndarray, confidence: float) -> Interval:
    rng = np.random.default_rng(0)
    tasks = rng.integers(0, values.shape[1], size=(RESAMPLES, values.shape[1]))
    return _bounds(float(values.mean()), _draws(values, rng, tasks), confidence)


def _unpaired(values: np.ndarray, base: np.ndarray, confidence: float) -> Interval:
    """Seeds of either arm are redrawn on their own, tasks together."""
    rng = np.random.default_rng(0)
    tasks = rng.integers(0, values.shape[1], size=(RESAMPLES, values.shape[1]))
    draws = _draws(values, rng, tasks) - _draws(base, rng, tasks)
    return _bounds(float(values.mean() - base.mean()), draws, confidence)


def _bounds(mean: float, draws: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean=mean, low=float(low), high=float(high), level=confidence)
