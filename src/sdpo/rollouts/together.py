"""What the processes of a run do together where each does its share: all of them hear of it when
one fails or is interrupted, and the step is judged by what came of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from sdpo.errors import JudgeError
from sdpo.parallel import Parallel
from sdpo.rollouts.collect import Collected
from sdpo.rollouts.judging import Judged, check_unjudged
from sdpo.rollouts.shares import gather_groups
from sdpo.signals import Signals

T = TypeVar("T")


def collect_together(
    parallel: Parallel,
    signals: Signals,
    collect: Callable[[], Collected],
    *,
    count: int,
    max_unjudged: float,
) -> Collected:
    """What all ranks have collected at `count` tasks; `collect` makes this rank's share. Raises
    `JudgeError` on every rank, also when more than `max_unjudged` of all attempts have no
    verdict."""
    own = on_all_ranks(parallel, signals, collect)
    shares = parallel.gather(own.judged)
    check_unjudged(shares, max_unjudged)
    return replace(
        own,
        groups=gather_groups(own.groups, parallel, count=count),
        judged=Judged(verdicts=tuple(v for share in shares for v in share.verdicts)),
    )


def on_all_ranks(parallel: Parallel, signals: Signals, work: Callable[[], T]) -> T:
    """What `work`, which no other rank waits for, returns here. A `JudgeError` or an interrupt of
    any rank is raised on all of them."""

    def divisible() -> T:
        with signals.divisible():
            return work()

    return parallel.agreed(divisible, (JudgeError, KeyboardInterrupt))
