"""Task order: epochs without replacement, a pure function of seed and step."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sdpo.records import Task
from sdpo.rollouts.curriculum import tasks_of_step

TASKS = [Task(id=f"t{i}", messages=()) for i in range(10)]


def ids(step, count, seed=0):
    return [task.id for task in tasks_of_step(TASKS, step=step, count=count, seed=seed)]


@given(st.integers(1, 12), st.integers(0, 50), st.integers(0, 3))
def test_no_task_twice_in_a_step(count, step, seed):
    chosen = ids(step, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, 10)


def test_an_epoch_sees_every_task_once():
    assert sorted(i for step in range(5) for i in ids(step, 2)) == sorted(t.id for t in TASKS)


@given(size=st.integers(1, 40), count=st.integers(1, 50), seed=st.integers(0, 99))
def test_after_whole_epochs_all_tasks_were_seen_equally_often(size, count, seed):
    tasks, taken = [replace(TASKS[0], id=str(i)) for i in range(size)], Counter()
    for step in range(size):
        chosen = tasks_of_step(tasks, step=step, count=count, seed=seed)
        taken.update(task.id for task in chosen)
    assert set(taken.values()) == {min(count, size)}


def test_order_depends_on_seed_and_epoch():
    assert ids(0, 5, seed=0) != ids(0, 5, seed=1)
    assert [ids(s, 5) for s in (0, 1)] != [ids(s, 5) for s in (2, 3)]
    assert ids(3, 4) == ids(3, 4)
