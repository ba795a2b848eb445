"""Every name in metrics.jsonl: trainer, canaries and report take them from here.

Names are `stage/what/stat`. A family, whose last part depends on the run, is a function or a prefix
that ends in `/`. What a metric means stands in its panel (`report/panels.py`), from which the
documents are made; tests hold all three against the file of a real run.
"""

from __future__ import annotations

from typing import Literal

STEP = "step"
ROLLOUTS_TOTAL = "rollouts_total"
TOKENS_TOTAL = "tokens_total"

EVAL_SOLVED = "eval/solved"
EVAL_COMPLETION_TOKENS = "eval/completion_tokens"
EVAL_UNJUDGED = "eval/unjudged"
EVAL_PASS_AT = "eval/pass@"
"""Then the number of attempts."""
HOLDOUT = "holdout/"
"""Then the name of the task set, also as the split of its rollouts."""

TRAIN_SOLVED = "train/solved"
TRAIN_REWARD = "train/reward"
TRAIN_TRUNCATED = "train/truncated"
TRAIN_COMPLETION_TOKENS = "train/completion_tokens"

ROLLOUTS_FLAT_GROUPS = "rollouts/flat_groups"
ROLLOUTS_FLAT_FAILED = "rollouts/flat_failed"
ROLLOUTS_GROUPS_SOLVED = "rollouts/groups_solved"
ROLLOUTS_REDRAWN = "rollouts/redrawn"
ROLLOUTS_STALENESS = "rollouts/staleness"
ROLLOUTS_FORMAT_ERRORS = "rollouts/format_errors"
ROLLOUTS_REPEATED_NGRAMS = "rollouts/repeated_ngrams"
ROLLOUTS_TURNS = "rollouts/turns"
ROLLOUTS_HEDGING_WORDS = "rollouts/hedging_words"
ROLLOUTS_MENDED = "rollouts/mended"

POLICY_ENTROPY = "policy/entropy"
POLICY_ENTROPY_TRAINED = "policy/entropy_trained"
POLICY_INITIAL_KL = "policy/initial_kl"
POLICY_TEACHER_JS = "policy/teacher_js"
POLICY_SAMPLER_GAP = "policy/sampler_gap"
POLICY_SAMPLER_GAP_P99 = "policy/sampler_gap_p99"
POLICY_SAMPLER_GAP_MAX = "policy/sampler_gap_max"
POLICY_RATIO_CAPPED = "policy/ratio_capped"

TEACHER_CONTEXT_FRACTION = "teacher/context_fraction"
TEACHER_DEMONSTRATION_FRACTION = "teacher/demonstration_fraction"
TEACHER_FEEDBACK_FRACTION = "teacher/feedback_fraction"
TEACHER_CUT_FRACTION = "teacher/cut_fraction"
TEACHER_ENTROPY = "teacher/entropy"
TEACHER_GAP = "teacher/gap"
TEACHER_GAP_ABOVE_AVERAGE = "teacher/gap_above_average"
TEACHER_REFRESHED = "teacher/refreshed"
TEACHER_SOLVED = "teacher/solved"
TEACHER_GATED = "teacher/gated"

PROBE_FAILED = "probe/failed"

LOSS_TOTAL = "loss/total"
OPTIM_GRAD_NORM = "optim/grad_norm"
OPTIM_LR = "optim/lr"

TIME_STEP_S = "time/step_s"
TIME_GENERATE_S = "time/generate_s"
TIME_JUDGE_S = "time/judge_s"
TIME_TEACHER_S = "time/teacher_s"
TIME_UPDATE_S = "time/update_s"

ENV = "env/"
"""Then a key of `Verdict.metrics`."""
ENV_UNJUDGED = "env/unjudged"

Outcome = Literal["", "_solved", "_failed", "_demonstration"]
"""Of which attempts; all of them without a word."""


def low(name: str) -> str:
    """The lower end of a metric's 90% interval."""
    return f"{name}_low"


def high(name: str) -> str:
    """The upper end of a metric's 90% interval."""
    return f"{name}_high"


def rollouts_length(percentile: Literal[50, 90], outcome: Outcome) -> str:
    """Completion length, tokens."""
    return f"rollouts/length_p{percentile}{outcome}"


def loss(component: str) -> str:
    """A summand of the objective: `distill`, `pg` or `kl`."""
    return f"loss/{component}"


def probe_gain(kind: str) -> str:
    """What reading a context of `kind` (`inspection/probe.py`) adds to the solved rate."""
    return f"probe/gain_{kind}"


def time_s(part: str) -> str:
    """Seconds of one part of a step."""
    return f"time/{part}_s"
