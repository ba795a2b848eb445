"""What the off-policy baseline of Table 5 (`sft`) trains on: attempts of the self-teacher itself.

The self-teacher answers once in every teacher context (`Learner.samples`) and the environment
judges the answer like any attempt. The solved ones are learnt by likelihood after the task's own
prompt, which is all the policy will see. The policy's attempts only make the contexts; they alone
are recorded and counted in `rollouts_total`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sdpo.records import Group
from sdpo.training.samples import without_teacher


def solved_only(groups: Sequence[Group]) -> list[Group]:
    """`groups` without the attempts that failed, which no teacher reads; groups without any solved
    attempt are left out."""
    kept = []
    for group in groups:
        places = [place for place, verdict in enumerate(group.verdicts) if verdict.solved]
        if places:
            solved = replace(
                group,
                rollouts=tuple(group.rollouts[place] for place in places),
                verdicts=tuple(group.verdicts[place] for place in places),
            )
            kept.append(without_teacher(solved))
    return kept
