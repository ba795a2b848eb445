"""Groups of a step to the metrics that need no model: outcomes, lengths,
repetition, form, contexts.

Pure. Results are mergeable `Metrics`, so every process of a run reports its own groups and the
merge is the whole step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sdpo.metrics import names
from sdpo.metrics.values import Mean, Metrics, Percentile
from sdpo.printable import mend
from sdpo.records import GATED, Group, Rollout, TeacherContext, Verdict

NGRAM = 6
"""Tokens. Shorter n-grams repeat in any code (`for i in range(`); longer ones miss loops over a few
words."""
HEDGES = (
    "wait", "hmm", "maybe", "perhaps", "actually", "alternatively", "not sure", "i think",
    "probably", "let me",
)  # fmt: skip
"""Words of doubt: their count rises when a model learns to ramble instead of to answer."""
FORMAT_ERROR = "incorrect_format"
"""Verdict category of an attempt that could not be judged."""

_HEDGE = re.compile(r"\b(?:" + "|".join(HEDGES) + r")\b", re.IGNORECASE)


def rollout_metrics(groups: Sequence[Group]) -> Metrics:
    """`train/*`, `rollouts/*`, `teacher/*`, `env/*` and `policy/entropy` of a step's groups, which
    have their contexts."""
    metrics = Metrics()
    for group in groups:
        # One attempt compares with nothing: its group is neither flat nor not.
        compares = float(len(group.rollouts) > 1)
        is_flat = compares * (len(set(group.rewards)) == 1)
        metrics.add(names.ROLLOUTS_FLAT_GROUPS, Mean(is_flat, compares))
        metrics.add(names.ROLLOUTS_FLAT_FAILED, Mean(is_flat * (group.solved_rate == 0), compares))
        metrics.add(names.ROLLOUTS_GROUPS_SOLVED, float(group.solved_rate > 0))
        is_gated = any(context.reason == GATED for context in group.contexts)
        metrics.add(names.TEACHER_GATED, float(is_gated))
        for rollout, verdict, context in zip(
            group.rollouts, group.verdicts, group.contexts, strict=True
        ):
            _add_outcome(metrics, rollout, verdict)
            _add_lengths(metrics, rollout, verdict, context)
            _add_context(metrics, context)
    # An unbiased estimate over every sampled token, at no cost.
    logprobs = [
        p
        for group in groups
        for rollout in group.rollouts
        for part in rollout.turns or (rollout,)
        for p in part.sampler_logprobs
        if not math.isnan(p)  # what was not sampled here says nothing
    ]
    metrics.add(names.POLICY_ENTROPY, Mean(-sum(logprobs), len(logprobs)))
    return metrics


def _add_outcome(metrics: Metrics, rollout: Rollout, verdict: Verdict) -> None:
    texts = [turn.text for turn in rollout.turns] or [rollout.text]
    metrics.add(names.TRAIN_SOLVED, float(verdict.solved))
    metrics.add(names.TRAIN_REWARD, verdict.reward)
    metrics.add(names.TRAIN_TRUNCATED, float(rollout.truncated))
    metrics.add(names.ROLLOUTS_FORMAT_ERRORS, float(verdict.info.get("category") == FORMAT_ERROR))
    metrics.add(names.ROLLOUTS_REPEATED_NGRAMS, repeated_ngrams(rollout))
    metrics.add(names.ROLLOUTS_TURNS, float(len(texts)))
    metrics.add(names.ROLLOUTS_HEDGING_WORDS, float(sum(count_hedges(text) for text in texts)))
    said = [verdict.feedback, *(turn.feedback for turn in rollout.turns)]
    said += [message["content"] for turn in rollout.turns for message in turn.reply]
    metrics.add(names.ROLLOUTS_MENDED, float(any(mend(text) != text for text in said if text)))
    for name, value in verdict.metrics.items():
        metrics.add(f"{names.ENV}{name}", float(value))


def _add_lengths(
    metrics: Metrics, rollout: Rollout, verdict: Verdict, context: TeacherContext
) -> None:
    length = float(num_completion_tokens(rollout))
    metrics.add(names.TRAIN_COMPLETION_TOKENS, length)
    demonstrated = context.demonstration is not None
    # Every key is present in every step; a split without attempts is NaN instead of missing.
    outcomes: dict[names.Outcome, bool] = {
        "": True,
        "_solved": verdict.solved,
        "_failed": not verdict.solved,
        "_demonstration": demonstrated,
    }
    for outcome, belongs in outcomes.items():
        pool = (length,) if belongs else ()
        metrics.add(names.rollouts_length(50, outcome), Percentile(50.0, pool))
        metrics.add(names.rollouts_length(90, outcome), Percentile(90.0, pool))


def _add_context(metrics: Metrics, context: TeacherContext) -> None:
    exists = context.messages is not None
    metrics.add(names.TEACHER_CONTEXT_FRACTION, float(exists))
    metrics.add(
        names.TEACHER_DEMONSTRATION_FRACTION, float(exists and context.demonstration is not None)
    )
    metrics.add(names.TEACHER_FEEDBACK_FRACTION, float(exists and context.feedback_used))
    was_cut = exists and context.reason is not None and context.reason.startswith("cut")
    metrics.add(names.TEACHER_CUT_FRACTION, Mean(float(was_cut), float(exists)))


def num_completion_tokens(rollout: Rollout) -> int:
    """Tokens the policy sampled over all turns."""
    if rollout.turns:
        return sum(len(turn.completion_ids) for turn in rollout.turns)
    return len(rollout.completion_ids)


def repeated_ngrams(rollout: Rollout) -> float:
    """Share of token n-grams that occurred before in the attempt; 0 for attempts shorter than two
    n-grams."""
    ids: Sequence[int] = rollout.completion_ids
    if rollout.turns:
        ids = [token for turn in rollout.turns for token in turn.completion_ids]
    total = len(ids) - NGRAM + 1
    if total < 2:
        return 0.0
    distinct = len({tuple(ids[i : i + NGRAM]) for i in range(total)})
    return 1.0 - distinct / total


def count_hedges(text: str) -> int:
    """Words of doubt in `text`."""
    return len(_HEDGE.findall(text))
