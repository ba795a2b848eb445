"""What happened in a run, in the sentences a report begins with: the gain on held-out tasks with
its interval, or that nothing was learnt and why.

Pure: rows of metrics.jsonl, settings, alerts and the counts of held-out attempts in, text out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sdpo.evaluation import Interval, bootstrap
from sdpo.metrics import names

Row = Mapping[str, Any]
HeldOut = Mapping[int, Mapping[str, Sequence[int]]]
"""Step of an evaluation to its tasks to [solved attempts, attempts]."""

REWARD_OBJECTIVES = ("grpo", "rlsd", "rlcsd")
"""Objectives without gradient where all rewards of a group are equal, whatever a teacher says."""
FEW_TASKS = 8
"""Below, a bootstrap over tasks is far too sure of itself: three tasks that improve once each give
an interval above zero."""
MANY_STEPS = 10
"""Steps from which the first and the last tenth of a noisy rate can be told apart."""
BACKSLIDE = 0.02
"""How far the last evaluation must lie below the best one to be worth a sentence."""
TOLERANCE = 1e-6
"""Between the rates of rollouts.jsonl and of metrics.jsonl; more means that attempts are missing
from the former."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a report says first.

    Example:
        Outcome(headline="Held-out attempts solved rose from 0.06 to 0.31 ...", tone="good",
                details=("12 of 40 steps are done.",))
    """

    headline: str
    tone: Literal["good", "bad", "neutral"]
    details: tuple[str, ...] = ()
    """Sentences after the first: why, and what to do about it."""

    def row(self) -> dict[str, Any]:
        """As the page reads it."""
        return asdict(self)


def describe_outcome(
    rows: Sequence[Row], config: Row, alerts: Sequence[Row], held_out: HeldOut
) -> Outcome:
    """The first sentences of a report on the run with these rows of metrics.jsonl, of which there
    is at least one; `config` has dotted keys and may be empty."""
    steps = [row for row in rows if names.LOSS_TOTAL in row]
    idle = [row for row in steps if not row.get(names.OPTIM_GRAD_NORM)]
    result = _result(rows, held_out)
    progress = (*_forgotten(rows), *_progress(rows, config, alerts))
    if steps and len(idle) == len(steps):
        count = "the only step had" if len(steps) == 1 else f"none of the {len(steps)} steps had"
        return Outcome(
            headline=f"Nothing was learnt: {count} a gradient.",
            tone="bad",
            details=(*_reasons(steps, config), result.headline, *result.details, *progress),
        )
    details = [*result.details, *progress]
    if 2 * len(idle) > len(steps):
        details.append(f"{len(idle)} of {len(steps)} steps had no gradient.")
        details += _reasons(idle, config)
    elif unread := _unread_feedback(steps, config):
        details.append(unread)
    return Outcome(headline=result.headline, tone=result.tone, details=tuple(details))


def _forgotten(rows: Sequence[Row]) -> list[str]:
    """What became of the rates on tasks from elsewhere (`eval.holdout`)."""
    others = [n for row in rows[:1] for n in row if n.startswith(names.HOLDOUT)]
    said = []
    for name in others:
        rates = [row[name] for row in rows if row.get(name) is not None]
        if len(rates) > 1 and not name.endswith(("_low", "_high")):
            said.append(
                f"Of the attempts at {name.removeprefix(names.HOLDOUT)}, which it does not train "
                f"on, {rates[0]:.2f} were solved before and {rates[-1]:.2f} after "
                f"({rates[-1] - rates[0]:+.2f})."
            )
    return said


def _result(rows: Sequence[Row], held_out: HeldOut) -> Outcome:
    """What the evaluations say, or without two of them what training says."""
    evaluations = [row for row in rows if row.get(names.EVAL_SOLVED) is not None]
    if len(evaluations) < 2:
        return _unevaluated(rows, evaluations)
    first, last = evaluations[0], evaluations[-1]
    before, after = first[names.EVAL_SOLVED], last[names.EVAL_SOLVED]
    best = max(evaluations, key=lambda row: row[names.EVAL_SOLVED])
    details = ()
    if best[names.EVAL_SOLVED] > max(before, after + BACKSLIDE):
        details = (
            f"The best evaluation was {best[names.EVAL_SOLVED]:.2f} at step {best['step']}.",
        )
    if max(before, after) == 0:
        headline = f"No held-out attempt was solved, neither before nor after step {last['step']}."
        return Outcome(headline=headline, tone="bad", details=details)
    gain, num_tasks = _gain(first, last, held_out)
    if gain is None:
        headline = (
            f"Held-out attempts solved went from {before:.2f} to {after:.2f} "
            f"({after - before:+.2f}; rollouts.jsonl lacks what an interval needs)."
        )
        return Outcome(headline=headline, tone="neutral", details=details)
    interval = (
        f"{gain.mean:+.2f}, {gain.level:.0%} interval {gain.low:+.2f} to {gain.high:+.2f} "
        f"over {num_tasks} {'task' if num_tasks == 1 else 'tasks'}"
    )
    if num_tasks < FEW_TASKS:
        return Outcome(
            headline=f"Held-out attempts solved went from {before:.2f} to {after:.2f} "
            f"({interval}).",
            tone="neutral",
            details=(f"{num_tasks} tasks are too few to tell a change from chance.", *details)
            if num_tasks > 1
            else ("One task is too few to tell a change from chance.", *details),
        )
    if gain.low > 0 or gain.high < 0:
        verb = "rose" if gain.low > 0 else "fell"
        headline = f"Held-out attempts solved {verb} from {before:.2f} to {after:.2f} ({interval})."
        tone = "good" if gain.low > 0 else "bad"
        return Outcome(headline=headline, tone=tone, details=details)
    headline = (
        f"No change on held-out tasks that can be told from chance: {before:.2f} before, "
        f"{after:.2f} after ({interval})."
    )
    return Outcome(headline=headline, tone="neutral", details=details)


def _unevaluated(rows: Sequence[Row], evaluations: Sequence[Row]) -> Outcome:
    solved = [row[names.TRAIN_SOLVED] for row in rows if row.get(names.TRAIN_SOLVED) is not None]
    once = (
        f"held-out attempts solved were {evaluations[0][names.EVAL_SOLVED]:.2f} at step "
        f"{evaluations[0]['step']}, and there is no later evaluation yet"
        if evaluations
        else "there is no evaluation yet"
    )
    if not solved:
        return Outcome(headline=f"No step is done: {once}.", tone="neutral")
    if len(solved) < MANY_STEPS:
        said = f"{_mean(solved):.2f} in {len(solved)} {'step' if len(solved) == 1 else 'steps'}"
    else:
        tenth = round(len(solved) / 10)
        said = f"{_mean(solved[:tenth]):.2f} in the first tenth of the steps, "
        said += f"{_mean(solved[-tenth:]):.2f} in the last"
    return Outcome(headline=f"Training attempts solved: {said}; {once}.", tone="neutral")


def _gain(first: Row, last: Row, held_out: HeldOut) -> tuple[Interval | None, int]:
    """Rise of the solved rate from one evaluation to another, task by task, and the number of
    tasks; None when rollouts.jsonl does not have all attempts of both."""
    before, after = (
        {task: solved / count for task, (solved, count) in held_out.get(row["step"], {}).items()}
        for row in (first, last)
    )
    for rates, row in ((before, first), (after, last)):
        if not rates or abs(_mean(list(rates.values())) - row[names.EVAL_SOLVED]) > TOLERANCE:
            return None, 0
    if before.keys() != after.keys():
        return None, 0
    return bootstrap([after[task] - before[task] for task in sorted(before)]), len(before)


def _progress(rows: Sequence[Row], config: Row, alerts: Sequence[Row]) -> list[str]:
    step, steps = rows[-1]["step"], config.get("steps")
    stops = [alert["canary"].replace("_", " ") for alert in alerts if alert["action"] == "stop"]
    if stops:
        return [f"Stopped at step {step} by a canary: {', '.join(stops)}."]
    return [f"{step} of {steps} steps are done."] if steps is not None and step < steps else []


def _reasons(idle: Sequence[Row], config: Row) -> list[str]:
    """Why steps without a gradient had none, and what would have one."""
    objective = config.get("objective.type")
    solved, flat, contexts, teacher_solved, gated = (
        _mean([row[name] for row in idle if row.get(name) is not None])
        for name in (
            names.TRAIN_SOLVED,
            names.ROLLOUTS_FLAT_GROUPS,
            names.TEACHER_CONTEXT_FRACTION,
            names.TEACHER_SOLVED,
            names.TEACHER_GATED,
        )
    )
    if solved == 1:
        return ["Every attempt was solved: take harder tasks."]
    found = []
    if flat == 1:
        none = " and none was solved" if solved == 0 else ""
        found.append(
            f"In every group all rewards were equal{none}, so rewards had nothing to compare: take "
            "easier tasks, larger groups or rewards in between."
        )
    if objective in REWARD_OBJECTIVES:
        found.append(
            f"objective.type = {objective} learns from differences of rewards only; sdpo and "
            "hybrid also learn from feedback and from solved siblings."
        )
    elif objective == "sft":
        if teacher_solved == 0:
            found.append("The self-teacher solved no attempt, and only solved ones are imitated.")
    elif contexts == 0 and gated:
        found.append(
            "Of the tasks that could be distilled none was: the self-teacher solved too little of "
            "them (teacher.gate)."
        )
    elif contexts == 0:
        found.append(
            "The teacher had nothing to read: no sibling was solved and there was no feedback."
        )
    elif objective == "srpo":
        found.append(
            f"The teacher could read something about {contexts:.0%} of the attempts, but srpo "
            "distils only failed attempts with a solved sibling; sdpo and hybrid also learn from "
            "feedback alone."
        )
    return found


def _unread_feedback(steps: Sequence[Row], config: Row) -> str | None:
    """What srpo leaves aside: its other attempts are learnt from by their rewards."""
    if (config.get("objective.type"), config.get("teacher.context.feedback")) != (
        "srpo",
        "without_demonstration",
    ):
        return None
    share = _mean([row[names.TEACHER_FEEDBACK_FRACTION] for row in steps])
    if not share:
        return None
    return (
        f"For {share:.0%} of the attempts there was feedback and no solved sibling; srpo does not "
        "distil those."
    )


def _mean(values: Sequence[float]) -> float:
    """0 without values."""
    return sum(values) / len(values) if values else 0.0
