"""Dynamic sampling: tasks whose attempts all got the same reward are replaced by others, so that
rewards have something to compare (DAPO, 2503.14476).

What is left out is not trained on, and is still recorded and counted: it was paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from sdpo.records import Group, Task
from sdpo.rollouts.collect import Collected
from sdpo.rollouts.judging import Judged


def collect_varied(
    collect: Callable[[Sequence[Task]], Collected],
    tasks: Sequence[Task],
    others: Sequence[Task],
    *,
    rounds: int,
) -> Collected:
    """What `collect` returns for `tasks`, of which flat groups are replaced by those of `others`,
    in order, in up to `rounds` rounds. Groups that are still flat then, or that nothing is left to
    replace, are kept."""
    found = collect(tasks)
    left = list(others)
    for _ in range(rounds):
        num_flat = sum(map(_is_flat, found.groups))
        fresh, left = left[:num_flat], left[num_flat:]
        if not fresh:
            break
        found = _replaced(found, collect(fresh))
    return found


def _is_flat(group: Group) -> bool:
    return len(set(group.rewards)) == 1


def _replaced(found: Collected, more: Collected) -> Collected:
    """`found` with its first flat groups replaced by the groups of `more`."""
    fresh = iter(more.groups)
    groups, left_out = [], list(found.left_out)
    for group in found.groups:
        if _is_flat(group) and (other := next(fresh, None)) is not None:
            left_out.append(group)
            group = other
        groups.append(group)
    return replace(
        found,
        groups=groups,
        left_out=left_out,
        judged=Judged(
            verdicts=found.judged.verdicts + more.judged.verdicts,
            first=found.judged.first or more.judged.first,
        ),
        generate_s=found.generate_s + more.generate_s,
        judge_s=found.judge_s + more.judge_s,
    )
