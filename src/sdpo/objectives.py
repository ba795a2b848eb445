"""Named objectives to the specs of `sdpo.losses`: the one `match` over methods."""

from __future__ import annotations

from typing import assert_never

from sdpo.config.objective import (
    ContextDistillingConfig,
    CustomDivergenceConfig,
    CustomObjectiveConfig,
    DistillingConfig,
    GrpoConfig,
    HybridConfig,
    JSDConfig,
    ObjectiveConfig,
    RewardedConfig,
    RlcsdConfig,
    RlsdConfig,
    ScSdpoConfig,
    SdpgConfig,
    SdpoConfig,
    SftConfig,
    SignWeightingConfig,
    SrpoConfig,
)
from sdpo.config.schema import RunConfig
from sdpo.config.teacher import ContextConfig, ProbeGateConfig, TrustRegionConfig
from sdpo.custom import load_function
from sdpo.errors import ConfigError
from sdpo.losses import routing
from sdpo.losses.specs import (
    CustomDivergence,
    DistillSpec,
    DivergenceKind,
    KlSpec,
    ObjectiveSpec,
    PolicyGradientSpec,
    RlcsdCredit,
    RlsdCredit,
    SignGate,
)


def reads_contexts(objective: ObjectiveConfig) -> bool:
    """Whether a teacher reads anything: the loss compares with it (distillation, token credit), or
    its own attempts are learnt (`sft`)."""
    return not isinstance(objective, GrpoConfig)


def check_objective(config: RunConfig) -> None:
    """Raises `ConfigError` where the objective of `config` cannot work under its other settings: a
    self-teacher that cannot be sampled, or groups of one attempt whose only signal is how it
    compares with others."""
    objective, kind = config.objective, config.objective.type
    schedule = config.teacher.schedule
    if isinstance(objective, SftConfig) and isinstance(schedule, TrustRegionConfig):
        raise ConfigError(
            "objective.type = 'sft' samples from the self-teacher, but the geometric mean of "
            "teacher.schedule.type = 'trust_region' is not a model and cannot be sampled; "
            "use 'ema' or 'live'"
        )
    if isinstance(config.teacher.gate, ProbeGateConfig):
        _check_gate(config)
    compares = GrpoConfig | RlsdConfig | RlcsdConfig | SrpoConfig | ScSdpoConfig
    if config.rollout.group_size == 1 and isinstance(objective, compares):
        raise ConfigError(
            f"objective.type = {kind!r} learns from how the attempts of a group differ, and "
            "rollout.group_size = 1 leaves nothing to compare; make it at least 2, or take 'sdpo', "
            "'hybrid', 'sdpg' or 'sft', which distil a single attempt"
        )
    if config.rollout.group_size == 1 and config.rollout.redraws:
        raise ConfigError(
            f"rollout.redraws = {config.rollout.redraws} replaces groups without a difference, and "
            "with rollout.group_size = 1 no group has one; leave it at 0"
        )
    context = config.teacher.context
    reads_only_siblings = (
        isinstance(context, ContextConfig)
        and context.feedback == "never"
        and context.control == "none"
        and not context.own_demonstration
        and context.demonstration in ("random", "majority", "none")
    )
    if config.rollout.group_size == 1 and reads_only_siblings:
        raise ConfigError(
            "rollout.group_size = 1 has no siblings to demonstrate and "
            "teacher.context.feedback = 'never' shows nothing else; show feedback, or "
            "teacher.context.demonstration = 'reference'"
        )


def _check_gate(config: RunConfig) -> None:
    """Raises `ConfigError` where a probe could not be made, or would decide nothing."""
    kind = config.objective.type
    if isinstance(config.objective, GrpoConfig | SftConfig):
        raise ConfigError(
            f"teacher.gate.type = 'probe' decides which tasks are distilled, and objective.type = "
            f"{kind!r} distils nothing; set teacher.gate.type = 'none'"
        )
    if isinstance(config.teacher.schedule, TrustRegionConfig):
        raise ConfigError(
            "teacher.gate.type = 'probe' samples from the self-teacher, but the geometric mean of "
            "teacher.schedule.type = 'trust_region' is not a model and cannot be sampled; "
            "use 'ema' or 'live'"
        )


def mixes_with_initial(objective: ObjectiveConfig) -> bool:
    """Whether the target is the teacher's with the initial model's in the student's prompt."""
    return isinstance(objective, DistillingConfig) and objective.teacher_exponent != 1.0


def divides_by_std(objective: ObjectiveConfig) -> bool:
    """Whether advantages are divided by the group's standard deviation."""
    return isinstance(objective, RewardedConfig) and objective.policy_gradient.std


def routing_rule(objective: ObjectiveConfig) -> routing.Rule:
    """Which component each rollout feeds."""
    rule = _rule(objective)
    if isinstance(objective, ContextDistillingConfig) and objective.distilled == "failed":
        return routing.failed_only(rule)
    return rule


def _rule(objective: ObjectiveConfig) -> routing.Rule:
    match objective:
        case SdpoConfig():
            return routing.sdpo
        case ScSdpoConfig():
            return routing.sc_sdpo
        case GrpoConfig():
            return routing.grpo
        case HybridConfig(mix=mix):
            return routing.hybrid(mix)
        case SrpoConfig():
            return routing.srpo
        case RlsdConfig():
            return routing.rlsd
        case RlcsdConfig():
            return routing.rlcsd
        case SdpgConfig(coefficient=coefficient):
            return routing.sdpg(coefficient)
        case SftConfig():
            return routing.sft
        case CustomObjectiveConfig(path=path, options=options):
            arguments = ("group", "index", "has_context")
            return load_function("objective", path, options, *arguments)
        case _:
            assert_never(objective)


def objective_spec(
    objective: ObjectiveConfig,
    *,
    step: int,
    temperature: float,
    max_completion_tokens: int,
    trust: float | None,
    vocabulary: int | None = None,
) -> ObjectiveSpec:
    """The parts of `objective` at `step` (0-based; RLSD's mix decays). `trust` comes from the
    teacher's schedule; ids from `vocabulary` on are not tokens."""
    credit = None
    if isinstance(objective, RlsdConfig):
        mix = linear_decay(objective.mix, step, objective.decay_steps)
        credit = RlsdCredit(mix=mix, clip=objective.clip)
    elif isinstance(objective, RlcsdConfig):
        credit = RlcsdCredit(scale=objective.scale, mix=objective.mix, tau=objective.tau)
    kl = objective.kl_coefficient
    return ObjectiveSpec(
        distill=_distill(objective, trust) if isinstance(objective, DistillingConfig) else None,
        pg=_policy_gradient(objective, max_completion_tokens),
        kl=KlSpec(coefficient=kl) if kl else None,
        credit=credit,
        temperature=temperature,
        vocabulary=vocabulary,
        credit_trust=trust if credit is not None else None,
    )


def linear_decay(start: float, step: int, steps: int) -> float:
    """`start` at step 0, falling linearly to 0 at `steps` and staying there (RLSD's mix)."""
    return start * max(0.0, 1.0 - step / steps)


def _distill(objective: DistillingConfig, trust: float | None) -> DistillSpec:
    divergence = objective.divergence
    clip = objective.advantage_clip
    mixes = objective.teacher_exponent != 1.0
    weighting = objective.weighting
    kind: DivergenceKind | CustomDivergence
    if isinstance(divergence, CustomDivergenceConfig):
        kind = custom_divergence(divergence)
    else:
        kind = divergence.type
    return DistillSpec(
        divergence=kind,
        beta=divergence.beta if isinstance(divergence, JSDConfig) else None,
        support=divergence.support,
        top_k=None if divergence.top_k == "all" else divergence.top_k,
        tail=divergence.tail,
        granularity=objective.granularity,
        advantage_clip=None if clip == "off" else clip,
        trust=objective.teacher_exponent if mixes else trust,
        trust_prompt="student" if mixes else "teacher",
        importance=objective.importance,
        ratio_cap=objective.ratio_cap if objective.importance == "token" else None,
        eps_low=objective.importance_eps_low if objective.importance == "logit" else None,
        eps_high=objective.importance_eps_high if objective.importance == "logit" else None,
        sequence_estimator=objective.sequence_estimator,
        sign_gate=SignGate(agree=weighting.agree, differ=weighting.differ, per=weighting.per)
        if isinstance(weighting, SignWeightingConfig)
        else None,
    )


def custom_divergence(config: CustomDivergenceConfig) -> CustomDivergence:
    """The function that `config` names; `check_divergence` tries it."""
    arguments = ("log_p", "log_q")
    function = load_function("objective.divergence", config.path, config.options, *arguments)
    return CustomDivergence(function=function, name=config.path)


def _policy_gradient(
    objective: ObjectiveConfig, max_completion_tokens: int
) -> PolicyGradientSpec | None:
    if isinstance(objective, SftConfig):
        return PolicyGradientSpec(kind="sft", normalization="token")
    if not isinstance(objective, RewardedConfig):
        return None
    config = objective.policy_gradient
    return PolicyGradientSpec(
        kind=config.type,
        eps_low=None if config.eps_low == "off" else config.eps_low,
        eps_high=config.eps_high,
        ratio_cap=config.ratio_cap,
        normalization=config.normalization,
        fixed_length=max_completion_tokens if config.normalization == "fixed" else None,
        counts_flat_groups=config.flat_groups == "counted",
    )
