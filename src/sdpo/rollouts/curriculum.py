"""Which tasks a step trains on: epochs of one seeded order, without replacement."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sdpo.records import Task
from sdpo.seeds import derive


def tasks_of_step(tasks: Sequence[Task], *, step: int, count: int, seed: int) -> list[Task]:
    """The `count` tasks of `step` (0-based): consecutive slices of seeded permutations, a new one
    each epoch.

    A pure function of its arguments, so a resumed run continues the same order. A slice that
    crosses the end of an epoch takes the rest from the next; within one step a task occurs at most
    once, unless there are fewer than `count` tasks, when all are taken once.
    """
    count = min(count, len(tasks))
    if not count:
        return []
    epoch, offset = divmod(step * count, len(tasks))
    order: list[int] = []
    for number in range(epoch + 1):
        order = _order_of_epoch(order, number, size=len(tasks), count=count, seed=seed)
    chosen = order[offset : offset + count]
    if len(chosen) < count:
        following = _order_of_epoch(order, epoch + 1, size=len(tasks), count=count, seed=seed)
        chosen += following[: count - len(chosen)]
    return [tasks[index] for index in chosen]


def other_tasks(
    tasks: Sequence[Task], taken: Sequence[Task], *, step: int, seed: int
) -> list[Task]:
    """All tasks but those `taken` in `step`, in an order of that step's own. The order of the
    epochs does not notice them: a task drawn here comes again in its turn."""
    ids = {task.id for task in taken}
    others = [task for task in tasks if task.id not in ids]
    random.Random(derive(seed, "redraw", step)).shuffle(others)
    return others


def _order_of_epoch(
    previous: Sequence[int], epoch: int, *, size: int, count: int, seed: int
) -> list[int]:
    """A permutation whose beginning avoids the tasks that the step it shares with the `previous`
    epoch already has; they come later in this epoch instead of being left out."""
    order = list(range(size))
    random.Random(derive(seed, "task_order", epoch)).shuffle(order)
    shared = epoch * size % count
    if not shared:
        return order
    taken = set(previous[size - shared :])
    first = [index for index in order if index not in taken][: count - shared]
    return first + [index for index in order if index not in set(first)]
