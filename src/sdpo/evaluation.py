"""mean@k, pass@k, discovery@k and their bootstrap intervals; same environments, same judge as
training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdpo.metrics import names
from sdpo.metrics.rollout_stats import num_completion_tokens
from sdpo.progress import phase
from sdpo.records import Group, Task
from sdpo.seeds import derive

if TYPE_CHECKING:
    # The report asks for intervals and must not wait for torch.
    from sdpo.engines.base import Sampling
    from sdpo.rollouts.collect import Collected, Collector
    from sdpo.rollouts.together import Together

BOOTSTRAP_SAMPLES = 10_000
"""Resamples; the Monte Carlo error of a 90% bound is then about a hundredth of its width."""
SLICE_VALUES = 2_000_000
"""Values drawn at once: all resamples of a few thousand tasks would take hundreds of megabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with a bootstrap interval.

    Example:
        Interval(mean=0.31, low=0.24, high=0.39, level=0.9)
    """

    mean: float
    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Attempts at every task of a split, reduced.

    Example:
        Evaluation(samples=4, num_solved={"clamp": 3}, num_judged={"clamp": 4},
        completion_tokens=41.5, groups=())
    """

    samples: int
    """Attempts per task."""
    num_solved: Mapping[str, int]
    """Solved attempts per task id."""
    num_judged: Mapping[str, int]
    """Attempts with a verdict per task id: `samples`, fewer where the judge failed."""
    completion_tokens: float
    """Mean length of a completion."""
    groups: tuple[Group, ...]
    model: str | None = None
    """Name of the weights that made the attempts; None inside a run."""
    unjudged: float = 0.0
    """Share of all attempts that could not be judged; they and tasks without any other are left
    out of every mean."""

    def mean_at_k(self, level: float = 0.9) -> Interval:
        """Mean solved rate over attempts and tasks; the interval resamples tasks."""
        return bootstrap(
            [solved / self.num_judged[task] for task, solved in self.num_solved.items()],
            level=level,
        )

    def pass_at_k(self, k: int, level: float = 0.9) -> Interval:
        """Probability that at least one of k attempts solves a task, unbiased; the interval
        resamples tasks. Of a task with fewer than k verdicts as many count as there are."""
        if k > self.samples:
            raise ValueError(f"pass@{k} needs at least {k} attempts, there are {self.samples}")
        values = [
            pass_at_k(self.num_judged[task], solved, min(k, self.num_judged[task]))
            for task, solved in self.num_solved.items()
        ]
        return bootstrap(values, level=level)

    def metrics(self) -> dict[str, float]:
        """The `eval/*` keys of metrics.jsonl; `low` and `high`: the 90% interval over tasks."""
        solved = self.mean_at_k()
        return {
            names.EVAL_SOLVED: solved.mean,
            names.low(names.EVAL_SOLVED): solved.low,
            names.high(names.EVAL_SOLVED): solved.high,
            f"{names.EVAL_PASS_AT}{self.samples}": self.pass_at_k(self.samples).mean,
            names.EVAL_COMPLETION_TOKENS: self.completion_tokens,
            names.EVAL_UNJUDGED: self.unjudged,
        }


def attempt_tasks(
    collector: Collector,
    tasks: Sequence[Task],
    *,
    samples: int,
    sampling: Sampling,
    seed: int,
    together: Together,
) -> Collected:
    """`samples` attempts at each of `tasks`, without those that could not be judged.

    The random numbers depend on `seed`, task and attempt only: evaluations of one run share them,
    which takes most sampling noise out of their differences.
    """
    with phase("evaluate"):
        return together.collect(
            collector, tasks, group_size=samples, sampling=sampling, seed=derive(seed, "eval")
        )


def summarise(groups: Sequence[Group], *, samples: int) -> Evaluation:
    """The `Evaluation` of groups of `samples` attempts each, of which some may have no verdict and
    be missing."""
    asked = samples * len(groups)
    groups = [group for group in groups if group.rollouts]
    lengths = [num_completion_tokens(r) for group in groups for r in group.rollouts]
    return Evaluation(
        samples=samples,
        num_solved={g.task.id: sum(v.solved for v in g.verdicts) for g in groups},
        num_judged={g.task.id: len(g.verdicts) for g in groups},
        unjudged=1 - len(lengths) / asked,
        completion_tokens=sum(lengths) / len(lengths),
        groups=tuple(groups),
    )


def pass_at_k(num_attempts: int, num_solved: int, k: int) -> float:
    """Unbiased estimate of pass@k from `num_solved` of `num_attempts` i.i.d. attempts: 1 - C(n-c,
    k) / C(n, k).

    Raises `ValueError` when k exceeds the attempts.
    """
    if k > num_attempts:
        raise ValueError(f"pass@{k} needs at least {k} attempts, there are {num_attempts}")
    if num_attempts - num_solved < k:
        return 1.0
    return 1.0 - math.prod(
        1.0 - k / i for i in range(num_attempts - num_solved + 1, num_attempts + 1)
    )


def discovery_at_k(first_solved: Sequence[int | None], k: int) -> float:
    """Share of searches whose first solved attempt (1-based, None: never) came at attempt k or
    earlier."""
    return sum(first is not None and first <= k for first in first_solved) / len(first_solved)


def bootstrap(values: Sequence[float], *, level: float = 0.9) -> Interval:
    """Percentile bootstrap of the mean of `values`; resampling is seeded, so equal inputs give
    equal intervals.

    With a single value the interval has no width. Raises `ValueError` for no values.
    """
    if not values:
        raise ValueError("bootstrap needs at least one value")
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    rows = max(1, SLICE_VALUES // len(data))
    slices = [min(rows, BOOTSTRAP_SAMPLES - i) for i in range(0, BOOTSTRAP_SAMPLES, rows)]
    found = np.concatenate(
        [data[rng.integers(0, len(data), size=(n, len(data)))].mean(axis=-1) for n in slices]
    )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(data.mean()), low=float(low), high=float(high), level=level)
