"""credit.jsonl: for a few rollouts a step, what student and teacher thought of every token.

One JSON object per rollout, in columns of one entry per completion token:

    step, split, task, index            as in rollouts.jsonl
    advantage                           group-relative, what GRPO would give to every token
    token_ids                           everything after the first prompt
    trained                             false for the environment's tokens, whose numbers are 0;
                                        absent when all train
    student_logprob, teacher_logprob    at the sampled token, nats; the gap is their difference
    student_entropy, teacher_entropy    nats
    student_top, teacher_top            alternatives [id, logprob, id, logprob, ...], best first
    texts                               token id -> text, for every id above

JSON lines rather than npz: a line is readable with any tool, is appended in one write and is cut
back on resume like the other files. Numbers keep `DIGITS` decimals and alternatives below
`MIN_PROBABILITY` are left out, which together make a token 60-120 bytes. Prompt, text, feedback
and the teacher's context are not repeated: rollouts.jsonl has them under the same key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Self

from sdpo.metrics.jsonl import read_rows
from sdpo.records import Message

CREDIT = "credit.jsonl"
DIGITS = 3
"""Decimals of log-probs and entropies; colours and hover texts show two."""
MIN_PROBABILITY = 1e-3
"""Alternatives less likely than this are noise to a reader and most of the bytes."""

Alternatives = tuple[tuple[int, float], ...]
"""(token id, log-prob), likeliest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCredit:
    """One attempt under the eyes of student and teacher; per-token fields have one entry per
    completion token.

    Example:
        TokenCredit(task_id="clamp", index=3, step=12, token_ids=(9, 2), student_logprobs=(-0.1,
        -2.0),
                    teacher_logprobs=(-0.1, -6.0), student_entropies=(0.2, 1.1),
                    teacher_entropies=(0.1, 0.4), student_top=(((9, -0.1),), ((4, -0.6), (2,
                    -2.0))), teacher_top=(((9, -0.1),), ((4, -0.1),)), texts={9: "return", 2: " x",
                    4: " y"}, advantage=-0.25)
    """

    task_id: str
    index: int = 0
    step: int = 0
    split: str = "train"
    token_ids: tuple[int, ...]
    student_logprobs: tuple[float, ...]
    """log p at the sampled token, nats."""
    teacher_logprobs: tuple[float, ...]
    """log q at the sampled token, nats."""
    student_entropies: tuple[float, ...]
    teacher_entropies: tuple[float, ...]
    student_top: tuple[Alternatives, ...] = ()
    """Likeliest tokens of the student per position; empty when not kept."""
    teacher_top: tuple[Alternatives, ...] = ()
    texts: Mapping[int, str]
    """Text of every token id that occurs above."""
    advantage: float | None = None
    """What GRPO would give to every token alike; None when the attempt has no group."""
    trained: tuple[bool, ...] | None = None
    """False for tokens of the environment in multi-turn attempts; None: all are the policy's."""
    prompt: tuple[Message, ...] | None = None
    """For display only, as are the next three; not written to credit.jsonl."""
    teacher: tuple[Message, ...] | None = None
    feedback: str | None = None
    solved: bool | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    """Facts a page may show (model, category); not written either."""

    @property
    def gaps(self) -> tuple[float, ...]:
        """log q - log p at the sampled tokens: positive where the teacher approves more than the
        student did."""
        return tuple(
            q - p for p, q in zip(self.student_logprobs, self.teacher_logprobs, strict=True)
        )

    def row(self) -> dict[str, Any]:
        """The attempt as one line of credit.jsonl."""
        row: dict[str, Any] = {
            "step": self.step,
            "split": self.split,
            "task": self.task_id,
            "index": self.index,
            "advantage": None if self.advantage is None else round(self.advantage, 6),
            "token_ids": list(self.token_ids),
            "student_logprob": _round(self.student_logprobs),
            "teacher_logprob": _round(self.teacher_logprobs),
            "student_entropy": _round(self.student_entropies),
            "teacher_entropy": _round(self.teacher_entropies),
            "student_top": [_flatten(top) for top in self.student_top],
            "teacher_top": [_flatten(top) for top in self.teacher_top],
        }
        if self.trained is not None and not all(self.trained):
            row["trained"] = list(self.trained)
        tops = chain(row["student_top"], row["teacher_top"])
        shown = {*self.token_ids, *chain.from_iterable(top[::2] for top in tops)}
        row["texts"] = {str(token): self.texts[token] for token in sorted(shown)}
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """The attempt that `row` was written from, up to rounding."""
        return cls(
            task_id=row["task"],
            index=row["index"],
            step=row["step"],
            split=row["split"],
            token_ids=tuple(row["token_ids"]),
            student_logprobs=_floats(row["student_logprob"]),
            teacher_logprobs=_floats(row["teacher_logprob"]),
            student_entropies=_floats(row["student_entropy"]),
            teacher_entropies=_floats(row["teacher_entropy"]),
            student_top=tuple(_pairs(top) for top in row["student_top"]),
            teacher_top=tuple(_pairs(top) for top in row["teacher_top"]),
            texts={int(token): text for token, text in row["texts"].items()},
            advantage=row["advantage"],
            trained=tuple(row["trained"]) if "trained" in row else None,
        )


def read_credit(run_dir: Path) -> Iterator[TokenCredit]:
    """The attempts of credit.jsonl, in order."""
    return map(TokenCredit.from_row, read_rows(run_dir / CREDIT))


def _round(values: tuple[float, ...]) -> list[float]:
    return [round(value, DIGITS) for value in values]


def _flatten(top: Alternatives) -> list[Any]:
    floor = math.log(MIN_PROBABILITY)
    kept = [(token, round(logprob, DIGITS)) for token, logprob in top if logprob >= floor]
    return list(chain.from_iterable(kept))


def _pairs(flat: list[float]) -> Alternatives:
    return tuple(
        (int(token), logprob) for token, logprob in zip(flat[::2], flat[1::2], strict=True)
    )


def _floats(values: list[float | None]) -> tuple[float, ...]:
    return tuple(-math.inf if value is None else value for value in values)
