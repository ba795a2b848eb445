"""Which component each rollout of a group feeds, and with what factor.

A rule looks at one rollout of a judged group and says {"distill": factor, "pg": factor}; absent
means it does not feed it. A rule never sees tokens or other groups. Factors that need the whole
batch (success-rate weights, entropy weights) are `weighting.py`. A rule of the user's own
comes with `objective.type = "custom"`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import get_args

from sdpo.errors import ConfigError
from sdpo.records import Component, Group

Rule = Callable[[Group, int, bool], Mapping[Component, float]]
"""(group, index of the rollout, whether it has a teacher context) -> factor per component."""

FAILED_BELOW = 0.5
"""SRPO distils rollouts whose reward is below this (2604.02288)."""


def route(group: Group, rule: Rule) -> list[dict[Component, float]]:
    """Factors per rollout of a group that has its contexts, in order; zero factors are dropped so
    that they do not count in a denominator.

    Raises `ConfigError` when a rule names an unknown component, gives a negative or non-finite
    factor, or distils a rollout that has no teacher context.
    """
    routes: list[dict[Component, float]] = []
    for index, (_, context) in enumerate(zip(group.rollouts, group.contexts, strict=True)):
        has_context = context.messages is not None
        factors = rule(group, index, has_context)
        where = f"the routing rule, for attempt {index} of task {group.task.id!r},"
        if not isinstance(factors, Mapping):
            raise ConfigError(
                f"{where} gave {factors!r}; return a factor for each component that it feeds, "
                "for instance {'distill': 1.0}"
            )
        for component, factor in factors.items():
            if component not in get_args(Component):
                raise ConfigError(
                    f"{where} fed {component!r}, an unknown component; choose of "
                    f"{', '.join(get_args(Component))}"
                )
            if not (math.isfinite(factor) and factor >= 0.0):
                raise ConfigError(
                    f"{where} gave {component!r} the factor {factor}; factors are finite, from 0 on"
                )
            if component == "distill" and factor and not has_context:
                raise ConfigError(
                    f"{where} feeds distillation, but the attempt has no teacher context; look at "
                    "has_context"
                )
        routes.append({component: factor for component, factor in factors.items() if factor})
    return routes


def sdpo(group: Group, index: int, has_context: bool) -> Mapping[Component, float]:
    """Distillation wherever there is a teacher context (Eq. 1). SC-SDPO and SDPO differ in
    weighting only."""
    return {"distill": 1.0} if has_context else {}


sc_sdpo = sdpo


def grpo(group: Group, index: int, has_context: bool) -> Mapping[Component, float]:
    """Policy gradient for every rollout. RLSD and RLCSD differ in token credit only."""
    return {"pg": 1.0}


rlsd = grpo
rlcsd = grpo


def hybrid(mix: float) -> Rule:
    """mix x policy gradient + (1 - mix) x distillation (Eq. 3): 1 is GRPO, 0 is SDPO."""
    if not 0.0 <= mix <= 1.0:
        raise ValueError(f"mix must lie in [0, 1], got {mix}")

    def rule(group: Group, index: int, has_context: bool) -> Mapping[Component, float]:
        return {"pg": mix, "distill": 1.0 - mix} if has_context else {"pg": mix}

    return rule


def srpo(group: Group, index: int, has_context: bool) -> Mapping[Component, float]:
    """A failed rollout with a solved sibling is distilled, every other one gets the policy gradient
    (2604.02288)."""
    sibling_solved = any(v.solved for i, v in enumerate(group.verdicts) if i != index)
    is_failed = group.verdicts[index].reward < FAILED_BELOW
    if is_failed and sibling_solved and has_context:
        return {"distill": 1.0}
    return {"pg": 1.0}


def sdpg(coefficient: float) -> Rule:
    """Policy gradient plus `coefficient` x distillation (2606.04036)."""

    def rule(group: Group, index: int, has_context: bool) -> Mapping[Component, float]:
        return {"pg": 1.0, "distill": coefficient} if has_context else {"pg": 1.0}

    return rule


def failed_only(rule: Rule) -> Rule:
    """`rule`, except that it distils no solved rollout."""

    def failed(group: Group, index: int, has_context: bool) -> Mapping[Component, float]:
        return rule(group, index, has_context and not group.verdicts[index].solved)

    return failed


def sft(group: Group, index: int, has_context: bool) -> Mapping[Component, float]:
    """Solved rollouts only, for likelihood on the self-teacher's samples (Table 5):
    `PolicyGradientSpec(kind="sft")`."""
    return {"pg": 1.0} if group.verdicts[index].solved else {}
