"""Searches to curves: discovery@k per method with intervals, speed-up, a table per task.

The intervals resample tasks, and within each drawn task its repetitions. Best-of-k enters with the
unbiased pass@k of all its samples, the others with whether they had solved by attempt k.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sdpo.discovery.result import Discovery
from sdpo.evaluation import Interval
from sdpo.files import record_whole

RESAMPLES = 2000
"""Bootstrap resamples; all points of a curve share them."""
POINTS = 60
"""Points of a curve, spaced geometrically."""
LEVEL = 0.9
SUMMARY = "discovery.json"


def points(results: Sequence[Discovery]) -> list[int]:
    """Attempt counts k at which curves are evaluated, up to the budget."""
    budget = max(result.budget for result in results)
    return sorted({round(k) for k in np.geomspace(1, budget, POINTS)})


def curve(results: Sequence[Discovery], ks: Sequence[int]) -> list[Interval]:
    """discovery@k of one method's searches at each of `ks`."""
    values, counts = _by_task(results, ks)
    return _intervals(values.sum(axis=1) / counts[:, None], _resampled(values, counts))


def difference(left: Sequence[Discovery], right: Sequence[Discovery], k: int) -> Interval:
    """discovery@k of one method's searches minus another's on the same tasks, which are resampled
    together."""
    parts = []
    for seed, results in enumerate((left, right)):
        values, counts = _by_task(results, [k])
        mean = values.sum(axis=1) / counts[:, None]
        parts.append((mean, _resampled(values, counts, seed=seed)))
    (mean, draws), (other, other_draws) = parts
    return _intervals(mean - other, draws - other_draws)[0]


def speed_up(results: Sequence[Discovery], baseline: Sequence[Discovery]) -> dict[str, Any] | None:
    """How many times fewer attempts `results` need than `baseline`, at the highest discovery
    probability that both reach; None when one of them never solves anything."""
    ks = points([*results, *baseline])
    curves = [[interval.mean for interval in curve(part, ks)] for part in (results, baseline)]
    level = min(max(values) for values in curves)
    if level <= 0:
        return None
    fast, slow = (
        next(k for k, value in zip(ks, values, strict=True) if value >= level - 1e-9)
        for values in curves
    )
    return {
        "probability": level,
        "attempts": fast,
        "baseline_attempts": slow,
        "factor": slow / fast,
    }


def summarise_discovery(results: Sequence[Discovery]) -> dict[str, Any]:
    """The content of discovery.json: curves, differences and speed-ups of self-distillation, rows
    per task and method."""
    ks = points(results)
    methods = _methods(results)
    summary: dict[str, Any] = {
        "level": LEVEL,
        "ks": ks,
        "curves": {
            name: [{"mean": i.mean, "low": i.low, "high": i.high} for i in curve(part, ks)]
            for name, part in methods.items()
        },
        "against": {},
        "tasks": task_rows(results),
    }
    trained = methods.get("self_distillation")
    for name, part in methods.items():
        if trained is None or name == "self_distillation" or _ids(trained) != _ids(part):
            continue
        gap = difference(trained, part, ks[-1])
        summary["against"][name] = {
            "difference": {"k": ks[-1], "mean": gap.mean, "low": gap.low, "high": gap.high},
            "speed_up": speed_up(trained, part),
        }
    return summary


def task_rows(results: Sequence[Discovery]) -> list[dict[str, Any]]:
    """Per task and method: searches, how many solved, median attempts of those, seconds."""

    def key(result: Discovery) -> tuple[str, str]:
        return result.task_id, result.method

    rows = []
    for (task_id, method), searches in groupby(sorted(results, key=key), key=key):
        part = list(searches)
        first = [r.attempts_to_solve for r in part if r.attempts_to_solve is not None]
        rows.append(
            {
                "task_id": task_id,
                "method": method,
                "searches": len(part),
                "solved": len(first),
                "median_attempts": statistics.median(first) if first else None,
                "attempts": sum(r.attempts for r in part),
                "seconds": sum(r.seconds for r in part),
                "stopped": sum(r.stopped is not None for r in part),
            }
        )
    return rows


def write_summary(results: Sequence[Discovery], run_dir: Path) -> None:
    """Write discovery.json into the run directory; nothing without results."""
    if not results:
        return
    with record_whole(run_dir / SUMMARY) as partial:
        partial.write_text(
            json.dumps(summarise_discovery(results), indent=2) + "\n", encoding="utf-8"
        )


def _methods(results: Sequence[Discovery]) -> dict[str, list[Discovery]]:
    methods: dict[str, list[Discovery]] = {}
    for result in results:
        methods.setdefault(result.method, []).append(result)
    return methods


def _ids(results: Sequence[Discovery]) -> set[str]:
    return {result.task_id for result in results}


def _by_task(results: Sequence[Discovery], ks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(values_TSK, counts_T): T tasks, S repetitions (missing ones are zero rows after the counted
    ones), K attempt counts."""
    tasks: dict[str, list[Discovery]] = {}
    for result in sorted(results, key=lambda r: (r.task_id, r.seed)):
        tasks.setdefault(result.task_id, []).append(result)
    counts = np.array([len(part) for part in tasks.values()])
    values = np.zeros((len(tasks), int(counts.max()), len(ks)))
    for row, part in enumerate(tasks.values()):
        for column, result in enumerate(part):
            values[row, column] = [result.solved_after(k) for k in ks]
    return values, counts


def _resampled(values: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(draws_BK): means over tasks drawn with replacement and repetitions drawn within each. Tasks
    are the same for every `seed`, repetitions are not."""
    num_tasks, num_seeds, num_points = values.shape
    tasks = np.random.default_rng(0).integers(0, num_tasks, (RESAMPLES, num_tasks))
    drawn = counts[tasks][..., None]
    shape = (RESAMPLES, num_tasks, num_seeds)
    picks = (np.random.default_rng([1, seed]).random(shape) * drawn).astype(int)
    # A drawn task with c repetitions is its c first picks, each weighing 1 / c.
    weights = np.where(np.arange(num_seeds) < drawn, 1.0 / drawn, 0.0)
    cells = (tasks[..., None] * num_seeds + picks).reshape(RESAMPLES, -1)
    size = num_tasks * num_seeds
    cells = cells + size * np.arange(RESAMPLES)[:, None]
    share = np.bincount(cells.ravel(), weights.ravel(), minlength=RESAMPLES * size)
    return share.reshape(RESAMPLES, size) @ values.reshape(size, num_points) / num_tasks


def _intervals(means: np.ndarray, draws: np.ndarray) -> list[Interval]:
    """Intervals at each k from means_TK of the tasks and draws_BK."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [
        Interval(mean=float(mean), low=float(a), high=float(b), level=LEVEL)
        for mean, a, b in zip(means.mean(axis=0), low, high, strict=True)
    ]
