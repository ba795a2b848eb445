"""What an objective is made of, as frozen records: the arguments of `objective_loss`. Nothing here
computes, or loads torch: `sdpo config show` describes an objective without it.

`objectives.py` builds them from the config, which has the defaults: here every setting is
given, and a part that is not used is None. Impossible combinations raise and say what to change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdpo.records import Sample

if TYPE_CHECKING:
    from torch import Tensor

DivergenceKind = Literal["reverse_kl", "forward_kl", "jsd", "forward_ce"]
DivergenceFunction = Callable[["Tensor", "Tensor"], "Tensor | tuple[Tensor, Tensor]"]
"""(log p, log q), [R, K] each, to D per token [R], which autograd differentiates, or to D and the
p_k g_k [R, K]. Neither argument may be overwritten. Entries with log-masses of -1e30 on both sides
are not there and must add nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomDivergence:
    """A divergence of the user's own.

    Example:
        CustomDivergence(function=lambda log_p, log_q: (log_p - log_q).square().sum(-1), name="L2")
    """

    function: DivergenceFunction
    name: str
    """For people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Which distance, with its parameters.

    Example:
        Divergence(kind="reverse_kl", clip=5.0)
    """

    kind: DivergenceKind | CustomDivergence
    beta: float | None = None
    """Weight of the teacher in the Jensen-Shannon mixture, strictly between 0 and 1; for `jsd`
    only."""
    clip: float | None = None
    """Bound on |log q_k - log p_k|, the advantage of a logit, before it becomes credit (Table 12,
    test time: 5). None: off."""

    def __post_init__(self) -> None:
        if isinstance(self.kind, CustomDivergence):
            if self.clip is not None:
                raise ValueError(
                    "advantage clip bounds the log-ratio of a divergence that has a name: leave it "
                    "None, and bound log q - log p in the function"
                )
        elif self.kind not in ("reverse_kl", "forward_kl", "jsd", "forward_ce"):
            raise ValueError(
                f"divergence {self.kind!r} is none of reverse_kl, forward_kl, jsd, forward_ce"
            )
        if self.kind == "jsd" and (self.beta is None or not 0.0 < self.beta < 1.0):
            raise ValueError(
                f"jsd needs 0 < beta < 1, got {self.beta}; its limits are reverse_kl, forward_kl"
            )
        if self.kind != "jsd" and self.beta is not None:
            raise ValueError(
                f"beta is the teacher's weight in jsd's mixture: leave it None with {self.kind}"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"advantage clip must be positive, got {self.clip}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignGate:
    """Factors of the distillation of a token (SG-OPD 2606.09304, OPDVR 2608.24696) or of a rollout
    (RG-OPD 2607.04037) whose gap has the verdict's sign, or has not.

    Example:
        SignGate(agree=1.8, differ=1.0, per="token")      # SG-OPD; agree=1, differ=0 is OPDVR
    """

    agree: float
    differ: float
    per: Literal["token", "rollout"]
    """Whose gap: log q(y_t) - log p(y_t) of each token, or their sum over the rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSpec:
    """The distillation component: towards what, over which support, with which credit.

    Example:
        DistillSpec(divergence="reverse_kl", support="student", top_k=20, tail=True,
                    granularity="logit", importance="token", ratio_cap=2.0, advantage_clip=5.0)
    """

    divergence: DivergenceKind | CustomDivergence
    beta: float | None = None
    """Weight of the teacher in the Jensen-Shannon mixture, for `jsd` only."""
    support: Literal["student", "teacher", "union"]
    """Whose most likely tokens have an entry of their own; `union`: those of either. With
    `importance="logit"` the student at the start of the step."""
    top_k: int | None
    """How many tokens each chooses; None: the whole vocabulary, and nobody chooses."""
    tail: bool
    """Whether the mass outside the support is one more entry (Eq. 11); False renormalises the
    support."""
    granularity: Literal["logit", "token", "sequence"]
    """Credit per logit (Eq. 1), log q - log p at the sampled token, or its mean over the completion
    (Fig. 10)."""
    advantage_clip: float | None = None
    """Bound on |log q - log p| before it becomes credit (Table 12, test time: 5). None: off."""
    trust: float | None = None
    """Exponent of the teacher in the target initial^(1-trust) teacher^trust (Eq. 10); above 1 it
    goes beyond the teacher. None: the teacher alone."""
    trust_prompt: Literal["teacher", "student"] = "teacher"
    """Whose prompt the initial model of that target reads."""
    importance: Literal["token", "logit"]
    """Off-policy correction: one truncated weight per token, or the clipped surrogate per logit
    (Eq. 13)."""
    ratio_cap: float | None
    """Cap of the weight p_student / p_sampler of a token; None: no importance weight."""
    eps_low: float | None = None
    """Eq. 13 clips ratios below 1 - eps_low; None: none. With `importance="logit"` only."""
    eps_high: float | None = None
    """Eq. 13 clips ratios above 1 + eps_high; None: none. With `importance="logit"` only."""
    sequence_estimator: float = 0.0
    """Weight of the sequence-level term sum_t D_t grad log Pi(s_t) (Eq. 8); its cross-entropy form
    with `forward_ce`."""
    sign_gate: SignGate | None = None
    """Factors for tokens or rollouts that teacher and verdict move the same way, and for others.
    None: all count the same."""

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {self.top_k}")
        if self.support not in ("student", "teacher", "union"):
            raise ValueError(f"support {self.support!r} is none of student, teacher, union")
        if self.top_k is None and self.support != "student":
            raise ValueError(
                f"support {self.support!r} chooses a top-K: give top_k a number, or leave support "
                "at 'student' with the whole vocabulary"
            )
        if self.granularity not in ("logit", "token", "sequence"):
            raise ValueError(f"granularity {self.granularity!r} is none of logit, token, sequence")
        if self.trust is not None and not self.trust >= 0.0:
            raise ValueError(f"trust must not be negative, got {self.trust}")
        self._check_importance()
        _ = self.distance  # validates divergence, beta and clip

    def _check_importance(self) -> None:
        if self.importance not in ("token", "logit"):
            raise ValueError(f"importance {self.importance!r} is none of token, logit")
        if self.importance == "token":
            if self.eps_low is not None or self.eps_high is not None:
                raise ValueError(
                    "eps_low and eps_high are the clip range of Eq. 13: leave them None, or set "
                    "importance to 'logit'"
                )
            return
        if self.top_k is None:
            raise ValueError(
                "importance 'logit' keeps the old policy's log-probs of a support: "
                "give top_k a number"
            )
        if self.support != "student":
            raise ValueError(
                "importance 'logit' keeps the log-probs of the student's own top-K from the start "
                f"of the step: support must be 'student', got {self.support!r}"
            )
        if self.granularity != "logit" or self.divergence != "reverse_kl":
            raise ValueError(
                "importance 'logit' (Eq. 13) is defined for granularity 'logit' "
                "and divergence 'reverse_kl'"
            )

    @property
    def distance(self) -> Divergence:
        """The divergence over entries of the support that these settings name."""
        return Divergence(kind=self.divergence, beta=self.beta, clip=self.advantage_clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientSpec:
    """The reward component.

    Example:
        PolicyGradientSpec(kind="grpo", eps_low=0.2, eps_high=0.28, ratio_cap=2.0,
                           normalization="fixed", fixed_length=8192)
    """

    kind: Literal["grpo", "gspo", "cispo", "sft"]
    eps_low: float | None = None
    """Ratios below 1 - eps_low are clipped; None: none are."""
    eps_high: float | None = None
    """Ratios above 1 + eps_high are clipped (clip-higher, Table 13); None: none are."""
    ratio_cap: float | None = None
    """Cap of the weight old / sampler (Eq. 12, Table 13); None: no importance weight."""
    normalization: Literal["token", "sequence", "fixed"]
    """Denominator, of distillation beside it too: routed tokens of the batch, mean per sequence
    then over sequences, or sequences x `fixed_length`."""
    fixed_length: int | None = None
    """Length constant of `normalization="fixed"`, tokens (Dr.GRPO; the paper: the maximal
    completion)."""
    counts_flat_groups: bool = True
    """Whether that denominator counts a rollout that feeds the policy gradient alone and whose
    group is flat: it has no gradient, and shrinks those of the others."""

    def __post_init__(self) -> None:
        if self.kind not in ("grpo", "gspo", "cispo", "sft"):
            raise ValueError(f"policy gradient {self.kind!r} is none of grpo, gspo, cispo, sft")
        if self.normalization not in ("token", "sequence", "fixed"):
            raise ValueError(
                f"normalization {self.normalization!r} is none of token, sequence, fixed"
            )
        if self.kind == "sft" and (self.eps_low, self.eps_high, self.ratio_cap) != (None,) * 3:
            raise ValueError(
                "sft is likelihood of tokens that nothing sampled in the student's own prompt and "
                "has no ratio: leave eps_low, eps_high and ratio_cap None"
            )
        if (self.normalization == "fixed") != (self.fixed_length is not None):
            raise ValueError("fixed_length goes with normalization 'fixed', and only with it")


@dataclass(frozen=True, slots=True, kw_only=True)
class RlsdCredit:
    """RLSD (2604.03128): A_t = A [(1-mix) + mix clip(exp(sign(A) gap_t), 1 +- clip)]; size follows
    the teacher, never sign.

    Example:
        RlsdCredit(mix=0.5, clip=0.2)
    """

    mix: float
    """lambda of the current step; it decays over training (`linear_decay`)."""
    clip: float
    """The teacher's factor stays within 1 +- clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlcsdCredit:
    """RLCSD (2606.11709): A_t = A + r_t, r from the contrast of a right against wrong
    demonstrations; A's sign is kept.

    Example:
        RlcsdCredit(scale=1.0, mix=0.5, tau=0.02)
    """

    scale: float
    """beta: size of the contrast term."""
    mix: float
    """lambda: share of the contrast term."""
    tau: float
    """Temperature of the tanh, nats."""
    bound: float = 2.0
    """|r| is held below this."""
    threshold: float = 0.02
    """Smaller |r| count as nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KlSpec:
    """KL(student | initial model) in the student's own prompt, exact over the whole vocabulary, not
    an estimator.

    Example:
        KlSpec(coefficient=1e-3)
    """

    coefficient: float
    """Factor of the mean over every trained token of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec:
    """The components of a named method; a None component is absent.

    Example:
        ObjectiveSpec(distill=distill, pg=policy_gradient)        # hybrid, Eq. 3
    """

    distill: DistillSpec | None = None
    pg: PolicyGradientSpec | None = None
    kl: KlSpec | None = None
    credit: RlsdCredit | RlcsdCredit | None = None
    """How the teacher modulates the policy gradient's advantage per token; None: not at all."""
    temperature: float = 1.0
    """Sampling temperature; student, teacher and initial model are all compared at it."""
    vocabulary: int | None = None
    """Ids below it are tokens. Rows of the head beyond belong to none and have no probability,
    neither for student nor teacher; None: all rows are tokens."""
    credit_trust: float | None = None
    """Trust-region exponent of a teacher that is used through `credit` only; a distill component
    has its own."""

    def __post_init__(self) -> None:
        if self.distill is None and self.pg is None:
            raise ValueError("an objective needs a distill or a pg component")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.vocabulary is not None and self.vocabulary < 1:
            raise ValueError(f"vocabulary must be at least 1 or None, got {self.vocabulary}")
        if self.credit is not None and self.pg is None:
            raise ValueError("token credit modulates the policy gradient: give pg a spec")
        if self.credit_trust is not None and (self.credit is None or self.distill is not None):
            raise ValueError("credit_trust is for credit without a distill component")

    @property
    def trust(self) -> float | None:
        """Exponent of the teacher in the trust-region target; None: no trust region."""
        return self.credit_trust if self.distill is None else self.distill.trust

    @property
    def trust_prompt(self) -> Literal["teacher", "student"]:
        """Whose prompt the initial model of that target reads."""
        return "teacher" if self.distill is None else self.distill.trust_prompt

    @property
    def needs_initial(self) -> bool:
        """Whether hidden states of the initial model in the student's prompt are needed."""
        return self.kl is not None

    def trains(self, sample: Sample) -> bool:
        """Whether any component has a gradient for `sample`. Others are counted but not computed:
        in a flat group every advantage is 0, and so is the policy gradient."""
        if not any(sample.loss_mask):
            return False
        if self.kl is not None or (self.distill is not None and sample.is_distilled):
            return True
        if self.pg is None or not sample.is_rewarded:
            return False
        return sample.advantage != 0 or self.pg.kind == "sft"

    def is_taught(self, sample: Sample) -> bool:
        """Whether `sample` trains and its loss reads the teacher, by distillation or by the token
        credit of its policy gradient. A teacher context alone is not enough: SRPO distils only
        some of the samples that have one."""
        if sample.teacher_prompt_ids is None or not self.trains(sample):
            return False
        is_distilled = self.distill is not None and sample.is_distilled
        return is_distilled or (self.credit is not None and sample.is_rewarded)

    def reads_old(self, sample: Sample) -> bool:
        """Whether the loss of `sample` reads the log-probs of older weights that are not the
        sampler's: the ratio of the policy gradient does. Distillation weighs a token by student /
        sampler, and likelihood by nothing."""
        if self.pg is None or self.pg.kind == "sft":
            return False
        return sample.is_rewarded and self.trains(sample)

    @property
    def needs_old_support(self) -> bool:
        """Whether distillation compares over the old policy's support (Eq. 13)."""
        return self.distill is not None and self.distill.importance == "logit"
