"""What can be optimised: divergences, policy-gradient surrogates, token weightings and the named
objectives.

A named objective is a class that lists the parts it combines; `objectives.py` turns it
into the specs of `sdpo.losses`. Nothing here computes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sdpo.config.base import Config
from sdpo.config.custom import CustomConfig

NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _SupportConfig(Config):
    top_k: PositiveInt | Literal["all"] = 100
    """How many tokens are compared one by one, or `all` for the whole vocabulary. Paper: 100
    without rich feedback, 20 with it."""
    support: Literal["student", "teacher", "union"] = "student"
    """Whose top-K: the student's, the teacher's, or every token that is in either (up to twice
    top_k). A token that the student does not propose is never in its own top-K, and in the
    teacher's when the feedback asks for it. Paper: student."""
    tail: bool = True
    """Whether the mass outside the top-K is compared too, as one more entry (Eq. 11); false
    renormalises the top-K. Paper: true."""

    @model_validator(mode="after")
    def _whole_vocabulary_has_no_tail(self) -> Self:
        if self.top_k == "all" and not self.tail:
            raise ValueError(
                "tail = false renormalises a top-K, and top_k = 'all' leaves nothing out: "
                "give top_k a number, or leave tail at true"
            )
        return self

    @model_validator(mode="after")
    def _whole_vocabulary_has_no_chooser(self) -> Self:
        if self.top_k == "all" and self.support != "student":
            raise ValueError(
                f"support = {self.support!r} chooses a top-K, and top_k = 'all' leaves nothing to "
                "choose: give top_k a number, or leave support at 'student'"
            )
        return self


class ReverseKLConfig(_SupportConfig):
    type: Literal["reverse_kl"] = "reverse_kl"
    """KL(student | teacher). Its gradient on a token is proportional to the student's probability
    of it. Paper: with rich feedback and at test time."""


class ForwardKLConfig(_SupportConfig):
    type: Literal["forward_kl"] = "forward_kl"
    """KL(teacher | student). With top_k = 'all', or the support of teacher or union, it raises what
    the teacher wants and the student does not propose (gradient p - q); the other divergences do
    not."""


class ForwardCEConfig(_SupportConfig):
    type: Literal["forward_ce"] = "forward_ce"
    """Cross-entropy of the student under the teacher (2606.05152): forward KL's gradient and reach,
    another value."""


class JSDConfig(_SupportConfig):
    type: Literal["jsd"] = "jsd"
    """Jensen-Shannon divergence. Its gradient on a token is proportional to the student's
    probability of it. Paper: without rich feedback."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher in the mixture m = (1-beta) p + beta q. Paper: 0.5."""


class CustomDivergenceConfig(_SupportConfig, CustomConfig):
    type: Literal["custom"] = "custom"
    """`function(log_p, log_q, **options)`: log-masses [R, K] of student and teacher over the
    support; returns D per token [R], or D and p dD/dp [R, K]. Checked against finite differences
    before the first step."""


DivergenceConfig = Annotated[
    ReverseKLConfig | ForwardKLConfig | ForwardCEConfig | JSDConfig | CustomDivergenceConfig,
    Field(discriminator="type"),
]


class NoWeightingConfig(Config):
    type: Literal["none"] = "none"
    """Every token counts the same."""


class PositionWeightingConfig(Config):
    type: Literal["position"] = "position"
    """w_t = w_min + (1-w_min) sigmoid((t/T - tau)/s) (2605.21606)."""
    w_min: Fraction = 0.25
    """Weight of the earliest tokens, relative to the last."""
    tau: Fraction = 0.30
    """Relative position where the weight has risen half way."""
    s: PositiveFloat = 0.10
    """Width of the rise, in relative positions."""


class EntropyWeightingConfig(Config):
    type: Literal["entropy"] = "entropy"
    """w = exp(-beta H(teacher)) over its mean in the whole batch (SRPO, 2604.02288)."""
    beta: NonNegative = 1.0
    """Strength per nat of the teacher's entropy. SRPO: 1."""


class SignWeightingConfig(Config):
    type: Literal["sign"] = "sign"
    """By whether the teacher moves a token as the verdict would: log teacher - log student above 0
    in a solved attempt, below 0 in a failed one (SG-OPD, 2606.09304)."""
    agree: NonNegative = 1.8
    """Factor where it does. SG-OPD: 1.8; OPDVR, RG-OPD: 1."""
    differ: NonNegative = 1.0
    """Factor where it does not. SG-OPD: 1; OPDVR (2608.24696), RG-OPD: 0."""
    per: Literal["token", "rollout"] = "token"
    """Whether each token is compared, or the sum over the attempt (RG-OPD, 2607.04037)."""


class CustomWeightingConfig(CustomConfig):
    type: Literal["custom"] = "custom"
    """`function(tokens, **options)`: one distilled rollout (`sdpo.losses.weighting.TaughtTokens`);
    returns a weight of each of its trained tokens [T], none of them negative."""
    relative: bool = True
    """Whether weights are divided by their mean over the whole batch, so that the learning rate
    keeps its meaning."""


WeightingConfig = Annotated[
    NoWeightingConfig
    | PositionWeightingConfig
    | EntropyWeightingConfig
    | SignWeightingConfig
    | CustomWeightingConfig,
    Field(discriminator="type"),
]


class _SurrogateConfig(Config):
    ratio_cap: PositiveFloat = 2.0
    """Cap rho of the truncated importance weight old / sampler. Paper: 2."""
    normalization: Literal["token", "sequence", "fixed"] = "token"
    """Denominator, of a distillation component too: trained tokens of the whole batch, mean per
    rollout, or rollouts x max_completion_tokens (Dr.GRPO)."""
    std: bool = False
    """Whether advantages are divided by the group's standard deviation. Paper: false."""
    flat_groups: Literal["counted", "excluded"] = "counted"
    """Whether attempts whose group has equal rewards, and which nothing but the reward could teach,
    count in the denominator. Counted, the many flat groups of hard tasks shrink the gradient of the
    others. Paper's code: counted."""


class GrpoSurrogateConfig(_SurrogateConfig):
    type: Literal["grpo"] = "grpo"
    """A clipped ratio per token (Eq. 12)."""
    eps_low: NonNegative = 0.2
    """Ratios below 1 - eps_low are clipped."""
    eps_high: NonNegative = 0.28
    """Ratios above 1 + eps_high are clipped. Paper: 0.28."""


class GspoSurrogateConfig(_SurrogateConfig):
    type: Literal["gspo"] = "gspo"
    """A clipped ratio per rollout, the geometric mean of its tokens' (2507.18071)."""
    eps_low: NonNegative = 3e-4
    """Ratios below 1 - eps_low are clipped. A mean over a rollout hardly leaves 1, so the range is
    a thousandth of GRPO's. GSPO: 3e-4."""
    eps_high: NonNegative = 4e-4
    """Ratios above 1 + eps_high are clipped. GSPO: 4e-4."""
    normalization: Literal["token", "sequence", "fixed"] = "sequence"
    """As in `grpo`. GSPO: sequence, every rollout weighs the same."""
    std: bool = True
    """As in `grpo`. GSPO: true."""


class CispoSurrogateConfig(_SurrogateConfig):
    type: Literal["cispo"] = "cispo"
    """log p with a clipped ratio as a constant factor: no token loses its gradient (2506.13585)."""
    eps_low: NonNegative | Literal["off"] = "off"
    """Ratios below 1 - eps_low are raised to it. CISPO: off, no lower bound."""
    eps_high: NonNegative = 0.28
    """Ratios above 1 + eps_high are lowered to it. CISPO names no value; this is GRPO's."""
    std: bool = True
    """As in `grpo`. CISPO: true."""


SurrogateConfig = Annotated[
    GrpoSurrogateConfig | GspoSurrogateConfig | CispoSurrogateConfig, Field(discriminator="type")
]


class _ObjectiveConfig(Config):
    kl_coefficient: NonNegative = 0.0
    """Weight of KL(student | initial model) per trained token, over the whole vocabulary. Paper:
    0."""


class RewardedConfig(_ObjectiveConfig):
    policy_gradient: SurrogateConfig = GrpoSurrogateConfig()
    """The reward component (Eq. 12): surrogate, clipping, denominator."""


class DistillingConfig(_ObjectiveConfig):
    divergence: DivergenceConfig = JSDConfig()
    """Distance between student and self-teacher."""
    teacher_exponent: NonNegative = 1.0
    """lambda of the target initial^(1-lambda) teacher^lambda, the initial model in the student's
    own prompt: above 1 it goes beyond the teacher (ExOPD, 2602.12125), below 1 it stays nearer to
    where training began (beta-OPSD, 2607.28582). Other than 1: a copy of the weights and a pass
    more."""
    granularity: Literal["logit", "token", "sequence"] = "logit"
    """Credit per logit, per sampled token, or one mean per rollout (Fig. 10). Paper: logit."""
    advantage_clip: PositiveFloat | Literal["off"] = "off"
    """Bound on |log teacher - log student| before it becomes credit. Paper: 5 at test time."""
    importance: Literal["token", "logit"] = "token"
    """Off-policy correction per sampled token, or per logit with a clipped surrogate (Eq. 13).
    Paper: token."""
    ratio_cap: PositiveFloat = 2.0
    """With importance = 'token', cap of the weight student / sampler of a token. Paper: 2."""
    importance_eps_low: NonNegative = 0.2
    """With importance = 'logit', ratios to the old policy below 1 - importance_eps_low are
    clipped."""
    importance_eps_high: NonNegative = 0.28
    """With importance = 'logit', ratios above 1 + importance_eps_high are clipped."""
    sequence_estimator: NonNegative = 0.0
    """Weight of the sequence-level term of Eq. 8. Paper: 0, no gain measured."""
    weighting: WeightingConfig = NoWeightingConfig()
    """How strongly each distilled token counts."""

    @model_validator(mode="after")
    def _eq13_is_reverse_kl_per_logit(self) -> Self:
        is_defined = (
            self.granularity == "logit"
            and self.divergence.type == "reverse_kl"
            and self.divergence.top_k != "all"
        )
        if self.importance == "logit" and not is_defined:
            raise ValueError(
                "importance = 'logit' (Eq. 13) needs granularity = 'logit', "
                "divergence.type = 'reverse_kl' and a number for divergence.top_k; "
                "set these, or importance = 'token'"
            )
        return self

    @model_validator(mode="after")
    def _a_custom_divergence_clips_itself(self) -> Self:
        is_clipped = self.advantage_clip != "off" and self.granularity == "logit"
        if is_clipped and self.divergence.type == "custom":
            raise ValueError(
                f"advantage_clip = {self.advantage_clip} bounds the log-ratio inside a built-in "
                "divergence: leave it 'off' and bound log_q - log_p in your function"
            )
        return self

    @model_validator(mode="after")
    def _the_other_correction_is_untouched(self) -> Self:
        unread = {
            "token": ("importance_eps_low", "importance_eps_high"),
            # Samplers report the drawn token only: there is no old / sampler of a logit to cap.
            "logit": ("ratio_cap",),
        }[self.importance]
        other = "logit" if self.importance == "token" else "token"
        for name in unread:
            default = type(self).model_fields[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} = {getattr(self, name)} has no effect with importance = "
                    f"{self.importance!r}: leave it at {default:g}, or set objective.importance = "
                    f"{other!r}"
                )
        return self

    @model_validator(mode="after")
    def _somebody_reads_the_support(self) -> Self:
        chooser = self.divergence.support
        if chooser == "student":
            return self
        if self.importance == "logit":
            raise ValueError(
                f"divergence.support = {chooser!r} is chosen anew at every update, and "
                "importance = 'logit' (Eq. 13) keeps the student's own top-K from the start of the "
                "step: set divergence.support = 'student', or importance = 'token'"
            )
        if self.granularity != "logit" and not self.sequence_estimator:
            raise ValueError(
                f"granularity = {self.granularity!r} looks at the sampled token only, so "
                f"divergence.support = {chooser!r} would change nothing: set granularity = "
                "'logit', or leave divergence.support at 'student'"
            )
        return self


class ContextDistillingConfig(DistillingConfig):
    distilled: Literal["all", "failed"] = "all"
    """Which attempts with a teacher context: all, or those that are not solved. Paper: all."""


class SdpoConfig(ContextDistillingConfig):
    type: Literal["sdpo"] = "sdpo"
    """Self-distillation alone (Eq. 1)."""


class GrpoConfig(RewardedConfig):
    type: Literal["grpo"] = "grpo"
    """Rewards alone: the paper's baseline (Eq. 12)."""


class HybridConfig(ContextDistillingConfig, RewardedConfig):
    type: Literal["hybrid"] = "hybrid"
    """mix x GRPO + (1 - mix) x SDPO per token, under one count of tokens (Eq. 3)."""
    mix: Fraction = 0.9
    """Weight of the reward component. Paper: 0.9 in Fig. 11."""


class SrpoConfig(DistillingConfig, RewardedConfig):
    type: Literal["srpo"] = "srpo"
    """Failed rollouts with a solved sibling are distilled, all others get the policy gradient
    (2604.02288). Its own teacher is SDPO's, the default of `teacher.schedule`."""
    weighting: WeightingConfig = EntropyWeightingConfig()


class ScSdpoConfig(DistillingConfig):
    type: Literal["sc_sdpo"] = "sc_sdpo"
    """SDPO with each task weighted by sqrt(p(1-p)) of its success rate (2605.27765), with SDPO's
    teacher."""


class RlsdConfig(RewardedConfig):
    type: Literal["rlsd"] = "rlsd"
    """Policy gradient whose size, never sign, follows the teacher (2604.03128). Its own teacher is
    the current policy: teacher.schedule.type = "live"."""
    policy_gradient: SurrogateConfig = GrpoSurrogateConfig(
        eps_high=0.2, normalization="sequence", std=True
    )
    mix: Fraction = 0.5
    """lambda: share of the advantage that the teacher modulates; decays to 0."""
    decay_steps: PositiveInt = 50
    """Steps over which `mix` falls linearly to 0."""
    clip: Fraction = 0.2
    """The teacher's factor stays within 1 +- clip."""


class RlcsdConfig(RewardedConfig):
    type: Literal["rlcsd"] = "rlcsd"
    """Policy gradient plus the contrast of a right against wrong demonstrations (2606.11709). Its
    own teacher is teacher.schedule.type = "snapshot"."""
    policy_gradient: SurrogateConfig = GrpoSurrogateConfig(eps_high=0.2)
    scale: PositiveFloat = 1.0
    """beta: size of the contrast term."""
    mix: Fraction = 0.5
    """lambda: share of the contrast term."""
    tau: PositiveFloat = 0.02
    """Temperature of the tanh, nats."""
    num_negatives: PositiveInt = 4
    """Wrong demonstrations averaged per rollout."""


class SdpgConfig(ContextDistillingConfig, RewardedConfig):
    type: Literal["sdpg"] = "sdpg"
    """GRPO + coefficient x full-vocabulary KL to the teacher + KL to the initial model
    (2606.04036). Its own teacher is the current policy: teacher.schedule.type = "live"."""
    divergence: DivergenceConfig = ReverseKLConfig(top_k="all")
    policy_gradient: SurrogateConfig = GrpoSurrogateConfig(std=True)
    coefficient: NonNegative = 1e-3
    """Weight of the distillation component, per token that is routed to either component."""
    kl_coefficient: NonNegative = 1e-3


class SftConfig(_ObjectiveConfig):
    type: Literal["sft"] = "sft"
    """Likelihood of the self-teacher's solved attempts after the task's own prompt: the off-policy
    baseline of Table 5."""


class CustomObjectiveConfig(DistillingConfig, RewardedConfig, CustomConfig):
    type: Literal["custom"] = "custom"
    """`function(group, index, has_context, **options)`: which component that rollout of a judged
    group feeds, as {"distill": factor, "pg": factor}; an absent one is not fed."""


ObjectiveConfig = Annotated[
    SdpoConfig
    | GrpoConfig
    | HybridConfig
    | SrpoConfig
    | ScSdpoConfig
    | RlsdConfig
    | RlcsdConfig
    | SdpgConfig
    | SftConfig
    | CustomObjectiveConfig,
    Field(discriminator="type"),
]
