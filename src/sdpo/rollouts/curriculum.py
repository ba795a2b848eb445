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
    position = step * count
    chosen: list[Task] = []
    while len(chosen) < count:
        epoch, offset = divmod(position, len(tasks))
        order = list(range(len(tasks)))
        random.Random(derive(seed, "task_order", epoch)).shuffle(order)
        taken = {task.id for task in chosen}
        for index in order[offset:]:
            if len(chosen) == count:
                break
            position += 1
            if tasks[index].id not in taken:
                chosen.append(tasks[index])
    return chosen
