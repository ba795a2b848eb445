"""Who samples what where several processes make one run: whole groups while there are as many as
ranks, since a group's prompt is computed once; else single attempts, so that no rank is idle.

What an attempt is does not depend on it: random numbers come from task and attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdpo.parallel import Parallel
from sdpo.records import Group, Task


def share_attempts(
    tasks: Sequence[Task], group_size: int, parallel: Parallel
) -> list[tuple[Task, range]]:
    """This rank's tasks with the attempts to make at each; with fewer tasks than ranks all tasks,
    at some of which no attempt may be left to make."""
    if _has_enough(len(tasks), parallel):
        return [(task, range(group_size)) for task in parallel.share(tasks)]
    return [
        (task, range(first, group_size, parallel.world_size))
        for place, task in enumerate(tasks)
        # Attempts are dealt out one by one, over the ends of groups.
        for first in [(parallel.rank - place * group_size) % parallel.world_size]
    ]


def share_groups(groups: Sequence[Group], parallel: Parallel) -> list[Group]:
    """This rank's part of judged groups: some of them, or some rollouts of each."""
    if _has_enough(len(groups), parallel):
        return parallel.share(groups)
    before = [sum(len(g.rollouts) for g in groups[:place]) for place in range(len(groups))]
    return [
        _part(
            group,
            range(
                (parallel.rank - start) % parallel.world_size,
                len(group.rollouts),
                parallel.world_size,
            ),
        )
        for start, group in zip(before, groups, strict=True)
    ]


def gather_groups(groups: Sequence[Group], parallel: Parallel, *, count: int) -> list[Group]:
    """The `count` groups of all ranks in the order in which they were shared out, from this rank's
    part."""
    if _has_enough(count, parallel):
        return parallel.gather_shares(groups)
    return [_joined(parts) for parts in zip(*parallel.gather(list(groups)), strict=True)]


def _has_enough(count: int, parallel: Parallel) -> bool:
    return count >= parallel.world_size


def _part(group: Group, places: range) -> Group:
    return replace(
        group,
        rollouts=tuple(group.rollouts[i] for i in places),
        verdicts=tuple(group.verdicts[i] for i in places),
        contexts=tuple(group.contexts[i] for i in places) if group.contexts else (),
    )


def _joined(parts: Sequence[Group]) -> Group:
    """One group of the rollouts of all `parts`, in index order."""
    rows = [
        (rollout, verdict, part.contexts[i] if part.contexts else None)
        for part in parts
        for i, (rollout, verdict) in enumerate(zip(part.rollouts, part.verdicts, strict=True))
    ]
    rows.sort(key=lambda row: row[0].index)
    return replace(
        parts[0],
        rollouts=tuple(rollout for rollout, _, _ in rows),
        verdicts=tuple(verdict for _, verdict, _ in rows),
        contexts=tuple(context for _, _, context in rows if context is not None),
    )
