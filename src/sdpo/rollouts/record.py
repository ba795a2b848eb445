"""rollouts.jsonl: every rollout of a run with its verdict and what its teacher read, one a line.

    step, split       step it was sampled for; "train", "eval", "holdout/NAME", or "redrawn"
                      for what other tasks have replaced in a step
    task, index       task id and place in the group
    prompt            messages the policy saw; on later rollouts of a group the index that has them
    text              the completion; also `turns` [{text, reply}] when there was more than one
    reward, solved, category, feedback, metrics     the verdict
    teacher           messages the teacher reads; the index of an earlier rollout of the group that
                      has the same ones; null without a teacher
    demonstration, feedback_used, sources, reason   how that context came about
    prompt_tokens, completion_tokens, teacher_prompt_tokens, truncated, policy_version

(step, split, task, index) is unique. Prompts and contexts repeat within a group and would be most
of the file; an index costs nothing and `read_rollouts` resolves it. Token ids and log-probs are not
here; credit.py has those of a few rollouts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo.metrics.jsonl import JsonLines, read_rows
from sdpo.metrics.rollout_stats import num_completion_tokens
from sdpo.records import Group, Key, Message, Rollout, TeacherContext, Verdict
from sdpo.rollouts.credit import CREDIT, TokenCredit

ROLLOUTS = "rollouts.jsonl"
TRAINED = "train"
LEFT_OUT = "redrawn"
"""Splits of the rollouts of a step; the others are evaluations."""

Row = dict[str, Any]


class RolloutRecorder:
    """Writes rollouts.jsonl and credit.jsonl of a run; one process of a run has one.

    Example:
        recorder = RolloutRecorder(run_dir)
        recorder.resume_at(12)
        recorder.write(rollout_rows(13, groups))
    """

    def __init__(self, run_dir: Path) -> None:
        self._rollouts = JsonLines(run_dir / ROLLOUTS)
        self._credit = JsonLines(run_dir / CREDIT)

    def __enter__(self) -> RolloutRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume_at(self, step: int, *, is_evaluated: bool = True) -> None:
        """Forget every rollout and credit of a later step than `step`. Unless
        `is_evaluated` the evaluation of `step` itself is forgotten too."""
        self._rollouts.resume_at(
            step,
            drops=lambda row: (
                not is_evaluated and row["step"] == step and row["split"] not in (TRAINED, LEFT_OUT)
            ),
        )
        self._credit.resume_at(step)

    def begin_anew(self) -> None:
        """Start with empty files; the earlier ones are kept as `.bak`."""
        self._rollouts.begin_anew()
        self._credit.begin_anew()

    def write(self, rows: Iterable[Row]) -> None:
        """Append the rows of `rollout_rows`. Raises `SdpoError` when that fails."""
        self._rollouts.append(rows)

    def record_credit(self, credits: Iterable[TokenCredit]) -> None:
        """Append token credit. Raises `SdpoError` when that fails."""
        self._credit.append(credit.row() for credit in credits)

    def close(self) -> None:
        """Close both files."""
        self._rollouts.close()
        self._credit.close()


def rollout_rows(
    step: int,
    groups: Sequence[Group],
    *,
    split: str = TRAINED,
    teacher_prompt_tokens: Mapping[Key, int] | None = None,
) -> list[Row]:
    """The lines of `groups` as plain data.

    A group without contexts has no teacher (evaluation). `teacher_prompt_tokens` are the lengths of
    the teacher's prompts.
    """
    lengths = teacher_prompt_tokens or {}
    none = TeacherContext(messages=None)
    rows = []
    for group in groups:
        contexts = group.contexts or (none,) * len(group.rollouts)
        seen: dict[str, int] = {}
        for rollout, verdict, context in zip(group.rollouts, group.verdicts, contexts, strict=True):
            row: Row = {"step": step, "split": split, "task": group.task.id}
            row["index"] = rollout.index
            first = group.rollouts[0].index
            row["prompt"] = _plain(group.task.messages) if rollout.index == first else first
            row |= _attempt(rollout) | _judgement(verdict) | _teacher(context, rollout.index, seen)
            if context.demonstration is not None:
                # Attempts that could not be judged leave gaps: a place is not an index.
                row["demonstration"] = group.rollouts[context.demonstration].index
            row["teacher_prompt_tokens"] = lengths.get((rollout.task_id, rollout.index))
            rows.append(row)
    return rows


def write_attempts(path: Path, groups: Sequence[Group], split: str) -> None:
    """Write the attempts of an evaluation outside of a run as a file of their own, step 0."""
    file = JsonLines(path)
    try:
        path.unlink(missing_ok=True)
        file.append(rollout_rows(0, groups, split=split))
    finally:
        file.close()


def _attempt(rollout: Rollout) -> Row:
    row: Row = {
        "text": rollout.text,
        "truncated": rollout.truncated,
        "policy_version": rollout.policy_version,
        "prompt_tokens": len((rollout.turns or (rollout,))[0].prompt_ids),
        "completion_tokens": num_completion_tokens(rollout),
    }
    if len(rollout.turns) > 1:
        row["turns"] = [
            {"text": turn.text, "reply": None if turn.reply is None else dict(turn.reply)}
            for turn in rollout.turns
        ]
    return row


def _judgement(verdict: Verdict) -> Row:
    return {
        "reward": verdict.reward,
        "solved": verdict.solved,
        "category": verdict.info.get("category"),
        "feedback": verdict.feedback,
        "metrics": dict(verdict.metrics),
    }


def _teacher(context: TeacherContext, index: int, seen: dict[str, int]) -> Row:
    """The context's columns; `seen` maps the contexts of the group so far to the index that has
    them."""
    messages: list[Row] | int | None = None
    if context.messages is not None:
        plain = _plain(context.messages)
        first = seen.setdefault(repr(plain), index)
        messages = plain if first == index else first
    return {
        "teacher": messages,
        "demonstration": context.demonstration,
        "feedback_used": context.feedback_used,
        "sources": list(context.sources),
        "reason": context.reason,
    }


def _plain(messages: Sequence[Message]) -> list[Row]:
    return [dict(message) for message in messages]


def read_rollouts(run_dir: Path) -> Iterator[Row]:
    """The rows of rollouts.jsonl in order, with `prompt` and `teacher` always as messages (or
    null)."""
    rows = read_rows(run_dir / ROLLOUTS)
    for _, group in itertools.groupby(
        rows, key=lambda row: (row["step"], row["split"], row["task"])
    ):
        prompts: dict[int, list[Row]] = {}
        teachers: dict[int, list[Row]] = {}
        for row in group:
            for shared, column in ((prompts, "prompt"), (teachers, "teacher")):
                if isinstance(row[column], int):
                    row[column] = shared[row[column]]
                elif row[column] is not None:
                    shared[row["index"]] = row[column]
            yield row
