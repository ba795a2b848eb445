"""rollouts.jsonl.gz: every rollout of a run with its verdict and what its teacher read, one a line.

    step, split       step it was sampled for; "train", "eval", "holdout/NAME", or "redrawn"
                      for what other tasks have replaced in a step
    task, index       task id and place in the group
    prompt            messages the policy saw; on later rollouts of a group the index that has them
    text              the completion; in a conversation the last one, and all of them in `turns`:
                      [{text, reply: messages, reward, feedback}]
    reward, solved, category, feedback, metrics     the verdict
    teacher           messages the teacher reads; the index of an earlier rollout of the group that
                      has the same ones; null without a teacher
    before_turns      what the teacher reads at the end of the reply before each turn; absent
                      where it reads nothing there
    demonstration, feedback_used, sources, reason   how that context came about
    prompt_tokens, completion_tokens, teacher_prompt_tokens, truncated, policy_version

(step, split, task, index) is unique. What stands elsewhere in the group is named, not repeated: a
prompt or context by the index that has it, and inside a context's content, which is then a list of
parts, a prompt by ["prompt", place of the message], and an attempt or its feedback by
["text", index] and ["feedback", index]. `read_rollouts` resolves all of these. Where `log.rollouts`
keeps less than everything, the others have null for `prompt`, `text`, `feedback` and `teacher`:
every verdict and number is there always. Token ids and log-probs are not here; credit.py has those
of a few rollouts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, assert_never

from sdpo.metrics.jsonl import CompressedLines, JsonLines, read_rows
from sdpo.metrics.rollout_stats import num_completion_tokens
from sdpo.records import Group, Key, Message, Rollout, TeacherContext, Verdict
from sdpo.rollouts.credit import CREDIT, TokenCredit

ROLLOUTS = "rollouts.jsonl"
TRAINED = "train"
LEFT_OUT = "redrawn"
"""Splits of the rollouts of a step; the others are evaluations."""
SAMPLED_GROUPS = 4
"""Groups of a step, and of an evaluation, whose texts `log.rollouts = "sample"` keeps: the first,
since the tasks of a step come in random order."""
MIN_REFERRED = 80
"""Characters; a shorter passage is repeated rather than named."""

Kept = Literal["all", "sample", "failures"]
Row = dict[str, Any]


class RolloutRecorder:
    """Writes rollouts.jsonl.gz and credit.jsonl of a run; one process of a run has one.

    Example:
        recorder = RolloutRecorder(run_dir)
        recorder.resume_at(12)
        recorder.write(13, groups)
    """

    def __init__(self, run_dir: Path, *, kept: Kept = "all") -> None:
        """`kept`: of which attempts the texts are."""
        self._kept: Kept = kept
        self._rollouts = CompressedLines(
            run_dir / ROLLOUTS, unit=lambda row: (row["step"], row["split"], row["task"])
        )
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

    def write(
        self,
        step: int,
        groups: Sequence[Group],
        *,
        split: str = TRAINED,
        teacher_prompt_tokens: Mapping[Key, int] | None = None,
    ) -> list[Row]:
        """Append the rows of `rollout_rows` and return them. Raises `SdpoError` when that fails."""
        rows = rollout_rows(
            step,
            groups,
            split=split,
            teacher_prompt_tokens=teacher_prompt_tokens,
            kept=self._kept,
        )
        self._rollouts.append(rows)
        return rows

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
    kept: Kept = "all",
) -> list[Row]:
    """The lines of `groups` as plain data.

    A group without contexts has no teacher (evaluation). `teacher_prompt_tokens` are the lengths of
    the teacher's prompts. `kept` says of which attempts the texts are.
    """
    lengths = teacher_prompt_tokens or {}
    rows = []
    for number, group in enumerate(groups):
        part = _group_rows(group, [_is_kept(kept, number, v.solved) for v in group.verdicts])
        for row in part:
            tokens = lengths.get((group.task.id, row["index"]))
            facts = {"step": step, "split": split, "teacher_prompt_tokens": tokens}
            rows.append(facts | row)
    return rows


def _is_kept(kept: Kept, number: int, solved: bool) -> bool:
    """Whether the texts of an attempt are, in the group `number` of its step."""
    match kept:
        case "all":
            return True
        case "sample":
            return number < SAMPLED_GROUPS
        case "failures":
            return not solved
        case _:
            assert_never(kept)


def _group_rows(group: Group, keeps: Sequence[bool]) -> list[Row]:
    none = TeacherContext(messages=None)
    contexts = group.contexts or (none,) * len(group.rollouts)
    kept = [r for r, keep in zip(group.rollouts, keeps, strict=True) if keep]
    seen: dict[str, int] = {}
    rows = []
    for rollout, verdict, context, keep in zip(
        group.rollouts, group.verdicts, contexts, keeps, strict=True
    ):
        row: Row = {"task": group.task.id, "index": rollout.index}
        row |= _attempt(rollout) | _judgement(verdict)
        # Attempts that could not be judged leave gaps: a place is not an index.
        shown = None if context.demonstration is None else group.rollouts[context.demonstration]
        row |= {
            "demonstration": None if shown is None else shown.index,
            "feedback_used": context.feedback_used,
            "sources": list(context.sources),
            "reason": context.reason,
        }
        if keep:
            first = kept[0].index
            row["prompt"] = _plain(group.task.messages) if rollout.index == first else first
            known = {("feedback", rollout.index): verdict.feedback or ""}
            if shown is not None and shown in kept:
                known["text", shown.index] = shown.text
            known |= {("prompt", i): m["content"] for i, m in enumerate(group.task.messages)}
            row["teacher"] = _teacher(context, rollout.index, seen, known)
            if context.before_turns:
                row["before_turns"] = list(context.before_turns)
        else:
            row |= dict.fromkeys(("prompt", "text", "feedback", "teacher"))
            row.pop("turns", None)
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
    if rollout.turns:
        row["turns"] = [
            {
                "text": turn.text,
                "reply": _plain(turn.reply),
                "reward": turn.reward,
                "feedback": turn.feedback,
            }
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


def _teacher(
    context: TeacherContext, index: int, seen: dict[str, int], known: Mapping[tuple[str, int], str]
) -> list[Row] | int | None:
    """The messages the teacher reads; `seen` maps the contexts of the group so far to the index
    that has them, `known` names the texts that stand elsewhere in it."""
    if context.messages is None:
        return None
    plain = _plain(context.messages)
    first = seen.setdefault(repr(plain), index)
    if first != index:
        return first
    for message in plain:
        if isinstance(message.get("content"), str):
            message["content"] = _referring(message["content"], known)
    return plain


def _referring(content: str, known: Mapping[tuple[str, int], str]) -> str | list[Any]:
    """`content` with what is `known` named; itself where nothing is."""
    parts: list[Any] = [content]
    for name, passage in known.items():
        if len(passage) < MIN_REFERRED:
            continue
        parts = [
            piece
            for part in parts
            for piece in (_divided(part, passage, list(name)) if isinstance(part, str) else [part])
        ]
    return content if len(parts) == 1 and parts[0] is content else parts


def _divided(text: str, passage: str, name: list[Any]) -> list[Any]:
    before, found, after = text.partition(passage)
    return [part for part in (before, name, after) if part] if found else [text]


def _plain(messages: Sequence[Message]) -> list[Row]:
    return [dict(message) for message in messages]


def read_rollouts(run_dir: Path) -> Iterator[Row]:
    """The rows of a run's rollouts in order, with `prompt` and `teacher` always as messages (or
    null)."""
    rows = read_rows(run_dir / ROLLOUTS)
    for _, rollouts in itertools.groupby(
        rows, key=lambda row: (row["step"], row["split"], row["task"])
    ):
        group = list(rollouts)
        for row in group:
            # Records cut down to what is counted lack the texts.
            row.setdefault("prompt", None)
            row.setdefault("teacher", None)
        with_contexts(group)
        for column in ("prompt", "teacher"):
            shared = {row["index"]: row[column] for row in group}
            for row in group:
                if isinstance(row[column], int):
                    row[column] = shared[row[column]]
        yield from group


def with_contexts(group: Sequence[Row]) -> None:
    """Puts the texts that the contexts of a group name into them, in place."""
    rows = {row["index"]: row for row in group}
    prompt = next((row["prompt"] for row in group if isinstance(row["prompt"], list)), [])
    for row in group:
        for message in row["teacher"] if isinstance(row.get("teacher"), list) else ():
            if isinstance(message.get("content"), list):
                message["content"] = "".join(
                    part
                    if isinstance(part, str)
                    else prompt[part[1]]["content"]
                    if part[0] == "prompt"
                    else rows[part[1]][part[0]]
                    for part in message["content"]
                )
