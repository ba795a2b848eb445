"""Flat groups are replaced by other tasks' groups, a bounded number of times."""

from __future__ import annotations

import pytest

from sdpo.records import Group, Rollout, Task, Verdict
from sdpo.rollouts.collect import Collected
from sdpo.rollouts.curriculum import other_tasks
from sdpo.rollouts.judging import Judged
from sdpo.rollouts.redraw import collect_varied


def task(name):
    return Task(id=name, messages=())


def group(name):
    """Flat in lower case, of different rewards in upper case."""
    rewards = (0.0, 1.0 if name.isupper() else 0.0)
    rollouts = [
        Rollout(
            task_id=name, index=i, prompt_ids=(1,), completion_ids=(2,), sampler_logprobs=(0.0,),
            text="", truncated=False, policy_version=0,
        )
        for i in range(2)
    ]  # fmt: skip
    return Group(
        task=task(name),
        rollouts=tuple(rollouts),
        verdicts=tuple(Verdict(reward=r, solved=r > 0) for r in rewards),
    )


def collect(tasks):
    """A task called "-" cannot be judged: its group is left out."""
    groups = [None if t.id == "-" else group(t.id) for t in tasks]
    verdicts = [v for g in groups for v in (g.verdicts if g is not None else (None, None))]
    return Collected(
        groups=[g for g in groups if g is not None], judged=Judged(verdicts=tuple(verdicts)),
        generate_s=1.0, judge_s=0.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("drawn", "others", "rounds", "kept", "left_out"),
    [
        ("AbC", "DE", 0, "AbC", ""),
        ("AbC", "DE", 1, "ADC", "b"),
        ("abC", "dEF", 1, "dEC", "ab"),
        ("abC", "dEF", 2, "FEC", "abd"),
        ("abC", "dEF", 9, "FEC", "abd"),
        # Nothing is left to replace the others, or what was drawn could not be judged.
        ("abc", "D", 5, "Dbc", "a"),
        ("ab", "-D", 1, "Db", "a"),
        ("AB", "D", 3, "AB", ""),
    ],
)
def test_flat_groups_are_replaced_in_order(drawn, others, rounds, kept, left_out):
    found = collect_varied(
        collect, [task(n) for n in drawn], [task(n) for n in others], rounds=rounds
    )
    assert "".join(g.task.id for g in found.groups) == kept
    assert "".join(g.task.id for g in found.left_out) == left_out
    drawn_groups = len(kept) + len(left_out)
    assert found.metrics()["rollouts/redrawn"] == len(left_out) / drawn_groups
    unjudged = 2 * others[:1].count("-") * bool(rounds)
    assert len(found.judged.verdicts) == 2 * drawn_groups + unjudged


def test_other_tasks_are_those_not_taken_in_an_order_of_the_step():
    tasks = [task(n) for n in "abcdefgh"]
    orders = [
        [t.id for t in other_tasks(tasks, tasks[:2], step=step, seed=0)] for step in (0, 0, 1)
    ]
    assert sorted(orders[0]) == list("cdefgh")
    assert orders[0] == orders[1] != orders[2]
