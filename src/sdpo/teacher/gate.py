"""Which tasks may be distilled at all: those whose self-teacher, probed and judged, solves enough.

A teacher that is wrong is followed as readily as one that is right. So before a step distils
anything, the self-teacher answers each task a few times in the very contexts that would be
distilled, and the environment judges these answers like any attempt. Where too few are solved the
task loses its contexts, with `GATED` as the reason: what remains of it is what its objective does
with attempts that have no teacher. These answers only decide; nothing learns from them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sdpo.config.teacher import ProbeGateConfig
from sdpo.records import GATED, Group, TeacherContext
from sdpo.seeds import derive

_CLOSED = TeacherContext(messages=None, reason=GATED)


def is_open(solved: Sequence[bool], student_rate: float, gate: ProbeGateConfig) -> bool:
    """g(x) = 1[q(x) >= min_solved and q(x) - p(x) >= min_gain], with q the teacher's rate over its
    judged answers and p that of the task's own attempts; TGOPD (2609.02998) has the first condition
    only. Closed without any answer.

    Example:
        is_open([True, True, False], 0.5, ProbeGateConfig())      # 2/3 of 3, and more than half
    """
    if not solved:
        return False
    rate = sum(solved) / len(solved)
    return rate >= gate.min_solved and rate - student_rate >= gate.min_gain


def probe_rounds(groups: Sequence[Group], attempts: int, *, seed: int) -> list[list[Group]]:
    """`groups`, each time with the contexts in which the teacher answers once: `attempts` answers a
    group over all rounds, in contexts drawn at random, each again only when all had their turn.
    Groups without a context are in none."""
    rounds: list[list[Group]] = []
    for group in groups:
        places = [p for p, context in enumerate(group.contexts) if context.messages is not None]
        if not places:
            continue
        random.Random(derive(seed, group.task.id)).shuffle(places)
        for number, start in enumerate(range(0, attempts, len(places))):
            if number == len(rounds):
                rounds.append([])
            asked = set(places[: attempts - start])
            rounds[number].append(
                replace(
                    group,
                    contexts=tuple(
                        context if place in asked else _CLOSED
                        for place, context in enumerate(group.contexts)
                    ),
                )
            )
    return rounds


def keep_reliable(
    groups: Sequence[Group], solved: Mapping[str, Sequence[bool]], gate: ProbeGateConfig
) -> list[Group]:
    """`groups`, without contexts where the gate is closed. `solved` has the outcomes of the
    teacher's answers by task."""
    return [
        group
        if is_open(solved.get(group.task.id, ()), group.solved_rate, gate)
        else replace(
            group,
            contexts=tuple(
                context if context.messages is None else _CLOSED for context in group.contexts
            ),
        )
        for group in groups
    ]
