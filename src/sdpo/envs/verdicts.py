"""What may stand for a verdict, verdicts that our environments have in common, and what becomes of
a bug in a judge."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

from sdpo.errors import JudgeError, SdpoError
from sdpo.records import Task, Verdict

Judgement = Verdict | float | tuple[float, str | None] | Mapping[str, Any]
"""What a judging function may return: a verdict, a reward, reward and feedback, or a mapping with
fields of a verdict."""

ERROR = "error"
"""Category of an attempt on which the judge itself failed."""
JUDGE_ERRORS = "judge_errors"
"""Metric of such attempts; their share of a step is `env/judge_errors`."""


def accepted(**metrics: float) -> Verdict:
    """A verdict of reward 1."""
    return Verdict(reward=1.0, solved=True, metrics=metrics, info={"category": "accepted"})


def failed(category: str, feedback: str | None, **metrics: float) -> Verdict:
    """A verdict of reward 0."""
    return Verdict(
        reward=0.0,
        solved=False,
        feedback=feedback,
        metrics=metrics,
        info={"category": category},
    )


def naming(verdict: Verdict, answer: str) -> Verdict:
    """`verdict` with the answer that the attempt gives, right or wrong, which
    `teacher.context.demonstration = "majority"` counts."""
    return replace(verdict, info={**verdict.info, "answer": answer})


def guarded(judge: Callable[[], Verdict]) -> Verdict:
    """The verdict of `judge`, or an `error` verdict with the traceback if it has a bug.

    Sampling is seeded, so an attempt that raises would end a resumed run at the same step again.
    An `SdpoError` is not about the attempt (the sandbox failed, a task is wrong) and is raised.
    """
    try:
        verdict = judge()
    except SdpoError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a bug raises
        verdict = failed(ERROR, None, **{JUDGE_ERRORS: 1.0})
        text = "".join(traceback.format_exception(error))
        return replace(verdict, info={**verdict.info, "error": text})
    return replace(verdict, metrics={**verdict.metrics, JUDGE_ERRORS: 0.0})


def as_verdict(found: Any, task: Task, *, solved_at: float = 1.0) -> Verdict:
    """The verdict that a judge's answer stands for: a `Verdict`, a number or bool r (numpy's too;
    solved from `solved_at` up), `(r, feedback)`, or a mapping with fields of a verdict, of which
    `solved` may be missing. Raises `JudgeError` for anything else."""
    if isinstance(found, Verdict):
        return found
    fields: dict[str, Any] = {"reward": found}
    if isinstance(found, Mapping):
        fields = {str(name): value for name, value in found.items()}
    elif isinstance(found, tuple | list) and len(found) == 2:
        fields = {"reward": found[0], "feedback": found[1]}
    if hasattr(fields.get("reward"), "item"):
        # An array of several numbers has no item and is refused below.
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            fields["reward"] = fields["reward"].item()
    unknown = fields.keys() - set(Verdict.__slots__)
    if unknown or not isinstance(fields.get("reward"), Real):
        what = f"a mapping with {sorted(map(str, found))}" if isinstance(found, Mapping) else ""
        raise JudgeError(
            f"judging task {task.id!r} returned {what or shown(found)}; return a Verdict, a "
            "number, (reward, feedback), or a mapping with reward and, if wanted, solved, feedback,"
            " metrics, info"
        )
    fields["reward"] = float(fields["reward"])
    solved = fields.setdefault("solved", fields["reward"] >= solved_at)
    if hasattr(solved, "item"):
        fields["solved"] = bool(solved)
    return Verdict(**fields)


def shown(found: object) -> str:
    """Type and beginning of a value, for a message."""
    text = repr(found)
    return f"{type(found).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
