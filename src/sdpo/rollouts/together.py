"""What the processes of a run do together where each does its share: all of them hear of it when
one fails or is interrupted, and what came of the whole is judged, and returned to each.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from sdpo.config.schema import RunConfig
from sdpo.engines.base import Sampling
from sdpo.engines.peers import Joint
from sdpo.envs.base import Env
from sdpo.models.policy import Policy
from sdpo.parallel import Parallel, joined
from sdpo.records import Group, Rollout, Task
from sdpo.rollouts.collect import Collected, Collector, Result
from sdpo.rollouts.judging import Judged, check_unjudged
from sdpo.rollouts.sampler import Sampler, open_sampler
from sdpo.rollouts.shares import gather_groups, share_groups
from sdpo.signals import Signals

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """The processes that share attempts, one by default, and the signals that may interrupt them.
    An `SdpoError` or an interrupt of one is raised by all.

    Example:
        Together().collect(collector, tasks, group_size=8, sampling=sampling, seed=0)
    """

    parallel: Parallel = field(default_factory=Parallel)
    signals: Signals = field(default_factory=Signals)

    def collect(
        self,
        collector: Collector,
        tasks: Sequence[Task],
        *,
        group_size: int,
        sampling: Sampling,
        seed: int,
    ) -> Collected:
        """As `Collector.collect`, by all processes and for all of them."""
        own = self._each(
            lambda: collector.collect(
                tasks,
                group_size=group_size,
                sampling=sampling,
                seed=seed,
                parallel=self.parallel,
            ),
            collector,
        )
        return self.whole(own, count=len(tasks), collector=collector)

    def collect_in_contexts(
        self, collector: Collector, groups: Sequence[Group], *, sampling: Sampling, seed: int
    ) -> list[Group]:
        """As `Collector.collect_in_contexts`, by all processes and for all of them."""
        own = self._each(
            lambda: collector.collect_in_contexts(
                share_groups(groups, self.parallel), sampling=sampling, seed=seed
            ),
            collector,
        )
        return self.whole(own, count=len(groups), collector=collector).groups

    def answer(
        self,
        collector: Collector,
        questions: Sequence[tuple[Task, Rollout, tuple[int, ...]]],
        *,
        sampling: Sampling,
        seed: int,
    ) -> list[Result | None]:
        """As `Collector.answer`, by all processes and for all of them."""
        own = self._each(
            lambda: collector.answer(self.parallel.share(questions), sampling=sampling, seed=seed),
            collector,
        )
        self._judged(own.judged, collector)
        return self.parallel.gather_shares(own.results)

    def _each(self, work: Callable[[], T], collector: Collector) -> T:
        engine = collector.engine

        def own() -> T:
            if not isinstance(engine, Joint):
                with self.signals.divisible():
                    return work()
            # Undivided: one that is interrupted while all sample would leave the others waiting.
            try:
                return work()
            finally:
                engine.attend()

        return self.parallel.agreed(own)

    def whole(self, own: Collected, *, count: int, collector: Collector) -> Collected:
        """The `count` groups of which this process has made `own`."""
        judged = self._judged(own.judged, collector)
        return replace(
            own, groups=gather_groups(own.groups, self.parallel, count=count), judged=judged
        )

    def _judged(self, own: Judged, collector: Collector) -> Judged:
        """The verdicts of all processes. Raises `JudgeError` on each when too many of them are
        missing."""
        shares = self.parallel.gather(own)
        check_unjudged(shares, collector.judging.max_unjudged)
        return Judged(
            verdicts=tuple(v for share in shares for v in share.verdicts),
            first=next((share.first for share in shares if share.first), ""),
        )


@contextmanager
def open_together(
    config: RunConfig,
    env: Env | None = None,
    policy: Policy | None = None,
    *,
    signals: Signals | None = None,
) -> Generator[tuple[Sampler, Together]]:
    """What `open_sampler` opens, in each of the processes that `torchrun` has started, and how they
    share what it samples. `signals` are those that are heeded, none by default."""
    signals = signals or Signals()
    with ExitStack() as stack:
        parallel = stack.enter_context(joined())
        if parallel.world_size > 1:
            signals.hold()
        sampler = parallel.agreed(
            lambda: stack.enter_context(open_sampler(config, env, policy, parallel=parallel))
        )
        yield sampler, Together(parallel=parallel, signals=signals)
