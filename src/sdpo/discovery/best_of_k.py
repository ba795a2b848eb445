"""Independent samples: the baseline whose curve over attempts is pass@k.

The whole budget is spent even after a success: the unbiased estimate needs the number of successes,
not only the place of the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sdpo.config.schema import RunConfig
from sdpo.discovery.log import Tally
from sdpo.records import Task
from sdpo.rollouts.sampler import Sampler
from sdpo.rollouts.together import Together
from sdpo.seeds import derive

BATCH = 64
"""Attempts sampled at once. Not a setting, because the random numbers depend on it."""


def best_of_k(
    sampler: Sampler,
    config: RunConfig,
    task: Task,
    *,
    seed: int,
    tally: Tally,
    watch: Callable[[Tally], None] = lambda tally: None,
    together: Together,
) -> None:
    """Spend the budget on independent attempts at `task`; `watch` sees the tally after each
    batch."""
    sampling = sampler.sampling(config, temperature=config.rollout.temperature)
    start = time.perf_counter()
    while tally.left:
        count = min(BATCH, tally.left)
        collected = together.collect(
            sampler.collector,
            [task],
            group_size=count,
            sampling=sampling,
            seed=derive(seed, "batch", tally.num_sampled),
        )
        group, seconds = collected.groups[0], time.perf_counter() - start
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            tally.add(rollout, verdict, seconds=seconds)
        tally.num_unjudged += count - len(group.rollouts)
        watch(tally)
