"""Which curves the page draws and which parts a step's time has: every metric's place and meaning.

Plain data that travels to the page with the run. Names are those of metrics.jsonl; a test holds
them against the file of a real run, so that a panel nobody writes for cannot stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sdpo.metrics import names

SHARE = (0.0, 1.0)
"""Bounds of a rate; intervals of a mean are cut to them."""
POSITIVE = (0.0, None)
"""Bounds of what cannot be negative."""
DIFFERENCE = (-1.0, 1.0)
"""Bounds of a difference of two rates."""
OBSERVED = "observed"
"""Whether it is a rate is up to the environment: bounded as one where every value is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One chart.

    Example:
        Panel(group="Outcome", title="Reward, training", keys={"train/reward": "reward"},
              axis="mean reward", meaning="Mean reward of the attempts of a step.")
    """

    group: str
    """Heading it stands under."""
    title: str
    """A `*` becomes what the key's `*` stands for, or `k` where that is several things."""
    keys: Mapping[str, str]
    """Metric to label. A trailing `*` takes every metric that starts so and labels it with its last
    part."""
    axis: str
    """Title of the vertical axis: what is counted, in which unit."""
    meaning: str
    """What the curve says, which values are good and which are a warning, in a sentence or two."""
    bounds: tuple[float | None, float | None] | Literal["observed"] = (None, None)
    """Values that cannot be left; bands are cut there. `SHARE` also asks for an axis from 0 to
    1."""
    sparse: bool = False
    """Written at evaluations only: drawn with markers and never smoothed."""
    exact: bool = False
    """A setting and not a measurement: never smoothed."""
    canaries: tuple[str, ...] = ()
    """Canaries that watch it; their alerts are marked in the chart."""

    def row(self) -> dict[str, Any]:
        """The panel as the page reads it; its keys are pairs, because their order counts."""
        return {**asdict(self), "keys": list(self.keys.items())}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePart:
    """One part of a step's seconds.

    Example:
        TimePart(name="update", metric="time/update_s", without=("time/teacher_s",))
    """

    name: str
    metric: str
    without: tuple[str, ...] = ()
    """Metrics that are measured inside this one and are parts of their own."""

    def row(self) -> dict[str, Any]:
        """The part as the page reads it."""
        return asdict(self)


STEP_SECONDS = names.TIME_STEP_S
"""Seconds of a whole step; what its parts leave over is shown as `other`."""
TIME_PARTS = (
    TimePart(name="sample", metric=names.TIME_GENERATE_S),
    TimePart(name="judge", metric=names.TIME_JUDGE_S),
    TimePart(name="teacher", metric=names.TIME_TEACHER_S),
    TimePart(name="update", metric=names.TIME_UPDATE_S, without=(names.TIME_TEACHER_S,)),
)

UNDRAWN = (names.STEP, names.ROLLOUTS_TOTAL, names.TOKENS_TOTAL)
"""Horizontal axes and counters. `time/*` is the cost section's; `*_low` and `*_high` are bands."""


def _by_outcome(percentile: Literal[50, 90]) -> dict[str, str]:
    labels: dict[names.Outcome, str] = {
        "": "all", "_solved": "solved", "_failed": "failed", "_demonstration": "with demonstration",
    }  # fmt: skip
    return {names.rollouts_length(percentile, which): label for which, label in labels.items()}


_ATTEMPTS = "share of attempts"
_NATS = "nats per token"

_OUTCOME = (
    Panel(
        group="Outcome", title="Solved, held out", keys={names.EVAL_SOLVED: "solved"},
        axis=_ATTEMPTS, bounds=SHARE, sparse=True,
        meaning="Attempts at held-out tasks that were solved: what the run is for. The band is the "
        "90% interval over tasks.",
    ),
    Panel(
        group="Outcome", title="Solved, training", keys={names.TRAIN_SOLVED: "solved"},
        axis=_ATTEMPTS, bounds=SHARE, canaries=("solved_collapse",),
        meaning="Attempts of a step that were solved. Noisy, since every step has other tasks; a "
        "fall to zero is a collapse.",
    ),
    Panel(
        group="Outcome", title="Reward, training", keys={names.TRAIN_REWARD: "reward"},
        axis="mean reward", bounds=OBSERVED,
        meaning="Mean reward of a step's attempts; equals the solved rate where rewards are 0 or "
        "1.",
    ),
    Panel(
        group="Outcome", title="Left out, held out", keys={names.EVAL_UNJUDGED: ""},
        axis=_ATTEMPTS, bounds=SHARE, sparse=True,
        meaning="Attempts of an evaluation whose judge said \"not now\" to the last; they count "
        "nowhere.",
    ),
    Panel(
        group="Outcome", title="pass@*, held out", keys={f"{names.EVAL_PASS_AT}*": ""},
        axis="share of tasks", bounds=SHARE, sparse=True, canaries=("pass_at_k",),
        meaning="Tasks that at least one of the k attempts of an evaluation solves. Falling while "
        "the solved rate rises means that the policy gives up variety.",
    ),
    Panel(
        group="Outcome", title="Solved, other tasks", keys={f"{names.HOLDOUT}*": ""},
        axis=_ATTEMPTS, bounds=SHARE, sparse=True,
        meaning="Attempts at the tasks of eval.holdout that were solved, before the first and "
        "after the last step. A fall is what training on the run's own tasks made the policy "
        "forget.",
    ),
)  # fmt: skip

_LENGTH = (
    Panel(
        group="Length", title="Completion length, median", keys=_by_outcome(50), axis="tokens",
        bounds=POSITIVE,
        meaning="Half of a step's completions are shorter. Solved and failed attempts drifting "
        "apart shows which length is rewarded.",
    ),
    Panel(
        group="Length", title="Completion length, p90", keys=_by_outcome(90), axis="tokens",
        bounds=POSITIVE, canaries=("length_growth",),
        meaning="One completion in ten is longer. It rises first when a policy starts to ramble.",
    ),
    Panel(
        group="Length", title="Completion length, mean", axis="tokens", bounds=POSITIVE,
        keys={names.TRAIN_COMPLETION_TOKENS: "training", names.EVAL_COMPLETION_TOKENS: "held out"},
        meaning="Tokens the policy sampled per attempt, over all turns.",
    ),
    Panel(
        group="Length", title="Truncated attempts", keys={names.TRAIN_TRUNCATED: "truncated"},
        axis=_ATTEMPTS, bounds=SHARE, canaries=("truncation",),
        meaning="Attempts that hit rollout.max_completion_tokens. Above a tenth or so, the limit "
        "and not the policy decides the verdicts.",
    ),
)  # fmt: skip

_TEACHER = (
    Panel(
        group="Policy and teacher", title="Entropy", axis=_NATS, bounds=POSITIVE,
        keys={
            names.POLICY_ENTROPY: "student, all tokens",
            names.POLICY_ENTROPY_TRAINED: "student, trained tokens",
            names.TEACHER_ENTROPY: "teacher",
        },
        canaries=("entropy_collapse", "entropy_explosion"),
        meaning="How undecided the next token is. Falling slowly is normal; near zero every "
        "attempt is the same and there is nothing left to compare.",
    ),
    Panel(
        group="Policy and teacher", title="Sampler against trainer", axis=_NATS, bounds=POSITIVE,
        keys={
            names.POLICY_SAMPLER_GAP: "mean", names.POLICY_SAMPLER_GAP_P99: "99th percentile",
            names.POLICY_SAMPLER_GAP_MAX: "largest",
        },
        canaries=("sampler_gap",),
        meaning="How far the log-probs recorded while sampling are from those of the same weights "
        "in training. Rounding gives hundredths of a nat; tenths mean that they run another model.",
    ),
    Panel(
        group="Policy and teacher", title="Capped ratios", keys={names.POLICY_RATIO_CAPPED: ""},
        axis="share of tokens", bounds=SHARE,
        meaning="Tokens whose ratio of trainer to sampler is above ratio_cap, so that they count "
        "less than they should.",
    ),
    Panel(
        group="Policy and teacher", title="Distance of student and teacher", axis=_NATS,
        keys={names.POLICY_TEACHER_JS: "Jensen-Shannon divergence"}, bounds=POSITIVE,
        canaries=("teacher_collapse",),
        meaning="How much the teacher, knowing the verdict, would have said something else. It "
        "falls as the student learns; at zero the teacher has nothing left to say.",
    ),
    Panel(
        group="Policy and teacher", title="Gap at the sampled tokens", axis=_NATS,
        keys={
            names.TEACHER_GAP: "all attempts",
            names.TEACHER_GAP_ABOVE_AVERAGE: "better than their group",
        },
        meaning="log q - log p: negative where the teacher, knowing the verdict, finds the attempt "
        "less likely than the student did. Good attempts should lie higher.",
    ),
    Panel(
        group="Policy and teacher", title="KL to the initial model", axis=_NATS, bounds=POSITIVE,
        keys={names.POLICY_INITIAL_KL: "KL"}, canaries=("initial_kl",),
        meaning="How far the policy has moved. Healthy runs end at 0.01 to 0.3.",
    ),
    Panel(
        group="Policy and teacher", title="What the teacher could read", axis=_ATTEMPTS,
        keys={
            names.TEACHER_CONTEXT_FRACTION: "anything",
            names.TEACHER_DEMONSTRATION_FRACTION: "a solved sibling",
            names.TEACHER_FEEDBACK_FRACTION: "feedback",
            names.TEACHER_CUT_FRACTION: "cut to fit",
        },
        bounds=SHARE,
        meaning="Attempts for which a teacher context could be built, and from what. The routing "
        "decides which of them are distilled. Much cut text: raise teacher.context.max_tokens.",
    ),
    Panel(
        group="Policy and teacher", title="Feedback with broken text", axis=_ATTEMPTS,
        keys={names.ROLLOUTS_MENDED: "mended"}, bounds=SHARE,
        meaning="Attempts whose feedback or replies held bytes that are not text (halves of "
        "surrogate pairs). The model reads U+FFFD in their place: decode them in the environment.",
    ),
    Panel(
        group="Policy and teacher", title="Tasks kept from the teacher", axis="share of tasks",
        keys={names.TEACHER_GATED: "not distilled"}, bounds=SHARE,
        meaning="Tasks of the step whose self-teacher was probed and solved too little "
        "(teacher.gate), so that none of their attempts is distilled.",
    ),
    Panel(
        group="Policy and teacher", title="Teacher refreshed", axis="1 = refreshed",
        keys={names.TEACHER_REFRESHED: "refreshed"}, bounds=SHARE, exact=True,
        meaning="Steps after which a snapshot or gated teacher took over the student's weights.",
    ),
    Panel(
        group="Policy and teacher", title="Solved by the teacher", axis="share of its attempts",
        keys={names.TEACHER_SOLVED: "solved"}, bounds=SHARE,
        meaning="Attempts that the self-teacher sampled in its contexts and solved; only those are "
        "imitated.",
    ),
    Panel(
        group="Policy and teacher", title="Teacher probe, gain in solved rate",
        axis="teacher minus student", bounds=DIFFERENCE, sparse=True, canaries=("teacher_harms",),
        keys={
            names.probe_gain("recipe"): "this recipe's context",
            names.probe_gain("demonstration"): "a demonstration",
            names.probe_gain("feedback"): "feedback",
            names.probe_gain("both"): "both",
            names.probe_gain("other_task"): "another task's demonstration (control)",
            names.probe_gain("no_context"): "bare task (control)",
        },
        meaning="How much more the same weights solve after reading a context. Above zero: "
        "self-distillation has something to give. The controls should lie near zero.",
    ),
    Panel(
        group="Policy and teacher", title="Teacher probe, failed attempts", axis=_ATTEMPTS,
        keys={names.PROBE_FAILED: "failed"}, bounds=SHARE, sparse=True,
        meaning="The student's attempts that the probe's teacher then answered anew.",
    ),
)  # fmt: skip

_COLLAPSE = (
    Panel(
        group="Signs of collapse", title="Repeated n-grams", axis="share of 6-grams", bounds=SHARE,
        keys={names.ROLLOUTS_REPEATED_NGRAMS: "repeated"}, canaries=("repetition",),
        meaning="Six-token pieces that occurred before in the same attempt. Code repeats itself at "
        "0.05 to 0.2; loops reach 0.5 and more.",
    ),
    Panel(
        group="Signs of collapse", title="Attempts without the required form", axis=_ATTEMPTS,
        keys={names.ROLLOUTS_FORMAT_ERRORS: "not judgeable"}, bounds=SHARE,
        canaries=("format_errors",),
        meaning="Attempts that could not be judged at all (category incorrect_format).",
    ),
    Panel(
        group="Signs of collapse", title="Groups", axis="share of groups", bounds=SHARE,
        keys={
            names.ROLLOUTS_FLAT_GROUPS: "all rewards equal",
            names.ROLLOUTS_FLAT_FAILED: "all equal, none solved",
            names.ROLLOUTS_GROUPS_SOLVED: "at least one solved",
            names.ROLLOUTS_REDRAWN: "replaced by others",
        },
        canaries=("flat_groups",),
        meaning="Where all rewards of a group are equal, rewards alone teach nothing; where none "
        "is solved, nobody can be a demonstration. Both at 1: only feedback can teach.",
    ),
    Panel(
        group="Signs of collapse", title="Age of attempts", axis="updates", bounds=POSITIVE,
        keys={names.ROLLOUTS_STALENESS: "staleness"},
        meaning="Updates between the weights that sampled the attempts and those that train on "
        "them, with rollout.staleness = 1; importance weights correct for it, and the difference "
        "between sampler and trainer includes it.",
    ),
    Panel(
        group="Signs of collapse", title="Turns of a conversation", axis="turns per attempt",
        keys={names.ROLLOUTS_TURNS: "turns"}, bounds=POSITIVE,
        meaning="Completions per attempt. Where an environment replies, a policy that stops asking "
        "shows as a fall to 1, and one that never answers as rollout.max_turns.",
    ),
    Panel(
        group="Signs of collapse", title="Words of doubt", axis="words per attempt",
        keys={names.ROLLOUTS_HEDGING_WORDS: "words"}, bounds=POSITIVE,
        meaning='"wait", "maybe", "not sure" and the like. They rise when a policy learns to '
        "ramble instead of to answer, and fall to zero when it grows overconfident.",
    ),
)  # fmt: skip

_OPTIMISATION = (
    Panel(
        group="Optimisation", title="Loss", axis="loss",
        keys={
            names.LOSS_TOTAL: "total", names.loss("distill"): "distill",
            names.loss("pg"): "policy gradient", names.loss("kl"): "KL",
        },
        meaning="What the optimizer minimises. Exactly zero in every step means that nothing was "
        "learnt; its size says nothing about quality.",
    ),
    Panel(
        group="Optimisation", title="Gradient norm", axis="norm before clipping", bounds=POSITIVE,
        keys={names.OPTIM_GRAD_NORM: "norm"}, canaries=("nothing_learnt",),
        meaning="Length of the gradient before optim.grad_clip cuts it. Spikes that do not calm "
        "down come before most collapses; zero means that the step taught nothing.",
    ),
    Panel(
        group="Optimisation", title="Learning rate", axis="rate", bounds=POSITIVE, exact=True,
        keys={names.OPTIM_LR: "rate"},
        meaning="Warm-up, then constant; a canary's rollback halves it.",
    ),
)  # fmt: skip

PANELS = (*_OUTCOME, *_LENGTH, *_TEACHER, *_COLLAPSE, *_OPTIMISATION)
"""In the order of the page. `env/*` and metrics that stand nowhere above get a panel each."""
