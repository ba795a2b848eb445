"""Named objectives to the specs of `sdpo.losses`: the one `match` over methods."""

from __future__ import annotations

from sdpo.config.objective import (
    JSD,
    Grpo,
    Hybrid,
    Objective,
    PolicyGradient,
    Rlcsd,
    Rlsd,
    ScSdpo,
    Sdpg,
    Sdpo,
    Sft,
    Srpo,
)
from sdpo.losses import routing
from sdpo.losses.advantages import RlcsdCredit, RlsdCredit, linear_decay
from sdpo.losses.policy_gradient import PolicyGradientSpec
from sdpo.losses.specs import DistillSpec, KlSpec, ObjectiveSpec

Distilling = Sdpo | Hybrid | Srpo | ScSdpo | Sdpg


def routing_rule(objective: Objective) -> routing.Rule:
    """Which component each rollout feeds."""
    match objective:
        case Sdpo():
            return routing.sdpo
        case ScSdpo():
            return routing.sc_sdpo
        case Grpo():
            return routing.grpo
        case Hybrid(mix=mix):
            return routing.hybrid(mix)
        case Srpo():
            return routing.srpo
        case Rlsd():
            return routing.rlsd
        case Rlcsd():
            return routing.rlcsd
        case Sdpg(coefficient=coefficient):
            return routing.sdpg(coefficient)
        case Sft():
            return routing.sft


def objective_spec(
    objective: Objective,
    *,
    step: int,
    temperature: float,
    max_completion_tokens: int,
    trust: float | None,
) -> ObjectiveSpec:
    """The parts of `objective` at `step` (0-based; RLSD's mix decays). `trust` comes from the
    teacher's schedule."""
    distills = isinstance(objective, Distilling)
    credit = None
    match objective:
        case Rlsd(mix=mix, decay_steps=decay_steps, clip=clip):
            credit = RlsdCredit(mix=linear_decay(mix, step, decay_steps), clip=clip)
        case Rlcsd(scale=scale, mix=mix, tau=tau):
            credit = RlcsdCredit(scale=scale, mix=mix, tau=tau)
    kl = objective.kl_coefficient
    return ObjectiveSpec(
        distill=_distill(objective, trust) if distills else None,
        pg=_policy_gradient(objective, max_completion_tokens),
        kl=KlSpec(coefficient=kl) if kl else None,
        credit=credit,
        temperature=temperature,
        credit_trust=trust if credit is not None else None,
        joint_count=isinstance(objective, Srpo),
    )


def _distill(objective: Distilling, trust: float | None) -> DistillSpec:
    divergence = objective.divergence
    clip = objective.advantage_clip
    return DistillSpec(
        divergence=divergence.type,
        beta=divergence.beta if isinstance(divergence, JSD) else 0.5,
        top_k=None if divergence.top_k == "all" else divergence.top_k,
        tail=divergence.tail,
        granularity=objective.granularity,
        advantage_clip=None if clip == "off" else clip,
        trust=trust,
        ratio_cap=objective.ratio_cap,
        importance=objective.importance,
        sequence_estimator=objective.sequence_estimator,
    )


def _policy_gradient(objective: Objective, max_completion_tokens: int) -> PolicyGradientSpec | None:
    match objective:
        case Sft():
            return PolicyGradientSpec(kind="sft")
        case Sdpo() | ScSdpo():
            return None
    config: PolicyGradient = objective.policy_gradient
    return PolicyGradientSpec(
        kind=config.kind,
        eps_low=config.eps_low,
        eps_high=config.eps_high,
        ratio_cap=config.ratio_cap,
        normalization=config.normalization,
        fixed_length=max_completion_tokens if config.normalization == "fixed" else None,
    )
