"""Verdicts that our environments have in common, and what becomes of a bug in a judge."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace

from sdpo.errors import SdpoError
from sdpo.records import Verdict

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
