"""Which rollout feeds what, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdpo.errors import ConfigError
from sdpo.losses import routing
from sdpo.losses.routing import hybrid, route, sdpg
from sdpo.records import Group, Rollout, Task, TeacherContext, Verdict

CONTEXT = TeacherContext(messages=({"role": "user", "content": "again"},))
NONE = TeacherContext(messages=None, reason="nothing_to_say")


def group(*rewards: float, contexts: tuple[TeacherContext, ...] = ()) -> Group:
    rollouts = tuple(
        Rollout(
            task_id="t",
            index=i,
            prompt_ids=(1,),
            completion_ids=(2,),
            sampler_logprobs=(-0.1,),
            text="",
            truncated=False,
            policy_version=0,
        )
        for i in range(len(rewards))
    )
    verdicts = tuple(Verdict(reward=r, solved=r >= 1.0) for r in rewards)
    return Group(
        task=Task(id="t", messages=()),
        rollouts=rollouts,
        verdicts=verdicts,
        contexts=contexts or (CONTEXT,) * len(rewards),
    )


MIXED = group(1.0, 0.0, 0.6, 0.0, contexts=(NONE, CONTEXT, CONTEXT, NONE))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (routing.sdpo, [{}, {"distill": 1.0}, {"distill": 1.0}, {}]),
        (routing.sc_sdpo, [{}, {"distill": 1.0}, {"distill": 1.0}, {}]),
        (routing.grpo, [{"pg": 1.0}] * 4),
        (routing.rlsd, [{"pg": 1.0}] * 4),
        (routing.rlcsd, [{"pg": 1.0}] * 4),
        (
            hybrid(0.75),
            [
                {"pg": 0.75},
                {"pg": 0.75, "distill": 0.25},
                {"pg": 0.75, "distill": 0.25},
                {"pg": 0.75},
            ],
        ),
        (hybrid(1.0), [{"pg": 1.0}] * 4),
        (hybrid(0.0), [{}, {"distill": 1.0}, {"distill": 1.0}, {}]),
        # Failed means reward below 0.5 and a solved sibling; without a context there is no teacher.
        (routing.srpo, [{"pg": 1.0}, {"distill": 1.0}, {"pg": 1.0}, {"pg": 1.0}]),
        (
            sdpg(1e-3),
            [
                {"pg": 1.0},
                {"pg": 1.0, "distill": 1e-3},
                {"pg": 1.0, "distill": 1e-3},
                {"pg": 1.0},
            ],
        ),
        (routing.failed_only(routing.sdpo), [{}, {"distill": 1.0}, {"distill": 1.0}, {}]),
        (routing.sft, [{"pg": 1.0}, {}, {}, {}]),
    ],
)
def test_routes(rule, expected):
    assert route(MIXED, rule) == expected


def test_failed_only_keeps_the_rewards_of_solved_rollouts():
    solved = group(1.0, 0.0, 1.0)
    assert route(solved, routing.failed_only(hybrid(0.75))) == [
        {"pg": 0.75},
        {"pg": 0.75, "distill": 0.25},
        {"pg": 0.75},
    ]


def test_srpo_needs_another_solved_attempt():
    assert route(group(0.0, 0.0, 0.0), routing.srpo) == [{"pg": 1.0}] * 3
    assert route(group(1.0, 0.0, 0.0), routing.srpo) == [
        {"pg": 1.0},
        {"distill": 1.0},
        {"distill": 1.0},
    ]


def test_srpo_does_not_count_an_attempt_as_its_own_sibling():
    """Solved is the environment's word, reward a number: a solved attempt may have a low one."""
    alone = group(0.2, 0.0)
    solved = replace(
        alone,
        verdicts=(Verdict(reward=0.2, solved=True), Verdict(reward=0.0, solved=False)),
    )
    assert route(solved, routing.srpo) == [{"pg": 1.0}, {"distill": 1.0}]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"kl": 1.0}, "unknown component"),
        ({"pg": -1.0}, "factor"),
        ({"pg": float("nan")}, "factor"),
        ({"distill": 1.0}, "no teacher context"),
        (1.0, "for instance"),
    ],
)
def test_a_wrong_rule_is_noticed(factors, message):
    with pytest.raises(ConfigError, match=message):
        route(MIXED, lambda group, index, has_context: factors)


def test_hybrid_mix_must_be_a_share():
    with pytest.raises(ValueError, match="mix"):
        hybrid(1.5)
