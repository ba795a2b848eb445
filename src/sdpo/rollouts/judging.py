"""Calls of an environment's own code, and attempts to verdicts: all of a step at once, each with
retries and a time limit.

Three things can come of a call: a verdict; "not now" (`Unjudged`, a timeout, HTTP 429 or 503),
which is tried again and then leaves the attempt without a verdict; or any other exception, which is
a bug of the environment and stops the run. An exception is never a verdict.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
import subprocess
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Generic, TypeVar

from sdpo.config.environments import JudgingConfig
from sdpo.envs.base import Computing, Env
from sdpo.envs.verdicts import as_verdict
from sdpo.errors import JudgeError, Unjudged, first_line
from sdpo.progress import tell
from sdpo.records import Rollout, Task, Verdict
from sdpo.rollouts.judge_loop import call_in_thread, run_on_loop
from sdpo.seeds import derive

T = TypeVar("T")

FIRST_PAUSE_S = 1.0
"""Before the first retry; each further pause is twice as long."""
LONGEST_PAUSE_S = 30.0
BUSY = (429, 503)
"""HTTP statuses that mean "not now"."""

_OURS = str(Path(__file__).parents[1])
JUDGING = "judging"
"""What is asked of an attempt at its end."""
DEFAULTS = JudgingConfig()
"""How judges are called where no recipe says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What came of a number of attempts: all of a step, or one process's share of them.

    Example:
        Judged(verdicts=(verdict, None), first="task 'a', attempt 1: Unjudged: busy")
    """

    verdicts: tuple[Verdict | None, ...] = ()
    """None where the judge said "not now" to the last retry."""
    first: str = ""
    """The first attempt without a verdict and what its judge said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Generic[T]):
    """One call of the user's code about one attempt.

    Example:
        Ask(task=task, index=3, what="judging", function=env.judge, arguments=(task, rollout),
            read=as_verdict)
    """

    task: Task
    index: int
    what: str
    """In messages, before the task's name: `judging`, `opening`, `a step of`, `closing`."""
    function: Callable[..., Any]
    """Plain or async; plain ones are called in threads."""
    arguments: tuple[Any, ...] = ()
    read: Callable[[Any, Task], T]
    """What the answer stands for. Raises `JudgeError` where it stands for nothing."""
    has_state: bool = False
    """Whether two calls at once would disturb each other: a plain function that takes too long
    runs on in its thread, and is then not called again."""


def judge_all(
    env: Env, attempts: Sequence[tuple[Task, Rollout]], settings: JudgingConfig = DEFAULTS
) -> list[Verdict | None]:
    """As `judge_share`, for all attempts there are: raises `JudgeError` also when more than
    `settings.max_unjudged` of them have no verdict."""
    judged = judge_share(env, attempts, settings)
    check_unjudged([judged], settings.max_unjudged)
    return list(judged.verdicts)


def check_unjudged(shares: Sequence[Judged], max_unjudged: float) -> None:
    """Raises `JudgeError` when more than `max_unjudged` of the attempts of all `shares` together
    have no verdict."""
    verdicts = [verdict for share in shares for verdict in share.verdicts]
    if verdicts.count(None) > max_unjudged * len(verdicts):
        raise JudgeError(
            f"{verdicts.count(None)} of {len(verdicts)} attempts could not be judged, more than "
            f"env.max_unjudged = {max_unjudged:g} allows; the first is "
            f"{next(share.first for share in shares if share.first)}. See to the judge's service, "
            "or raise env.retries, env.timeout_s or env.max_unjudged"
        )


def judge_share(
    env: Env, attempts: Sequence[tuple[Task, Rollout]], settings: JudgingConfig = DEFAULTS
) -> Judged:
    """Verdicts in the order of `attempts`, judged concurrently: threads for plain judges, one event
    loop for async ones.

    Raises `JudgeError` with the task's id, the attempt and the judge's own frames when a judge
    raises anything but "not now".
    """
    asks = [
        Ask(
            task=task,
            index=rollout.index,
            what=JUDGING,
            function=env.judge,
            arguments=(task, rollout),
            read=checked_verdict,
        )
        for task, rollout in attempts
    ]
    return settled(asks, ask_all(env, asks, settings))


def settled(asks: Sequence[Ask[Verdict]], found: Sequence[Verdict | Exception]) -> Judged:
    """What was `found`, with None for the verdicts that could not be had."""
    first = next(
        (
            f"task {ask.task.id!r}, attempt {ask.index}: {type(outcome).__name__}: "
            f"{first_line(outcome)}"
            for ask, outcome in zip(asks, found, strict=True)
            if isinstance(outcome, Exception)
        ),
        "",
    )
    verdicts = [None if isinstance(outcome, Exception) else outcome for outcome in found]
    if any(verdict is not None and not 0 <= verdict.reward <= 1 for verdict in verdicts):
        # The text is always the same, so that Python shows it once.
        warnings.warn(
            "the judge returns rewards outside [0, 1]; objectives that compare a reward with 0.5 "
            "(srpo) and the report's curves expect shares: scale them, and say with "
            "sdpo.env(..., solved_at=...) from which reward on a task is solved",
            stacklevel=2,
        )
    return Judged(verdicts=tuple(verdicts), first=first)


def ask_all(env: Env, asks: Sequence[Ask[T]], settings: JudgingConfig) -> list[T | Exception]:
    """What every call gives, in order; where it said "not now" to the last retry, what it raised
    then. Raises `JudgeError` when a call raises anything else."""
    return run_on_loop(_ask_all(env, asks, settings)) if asks else []


def tell_all(env: Env, asks: Sequence[Ask[Any]], settings: JudgingConfig) -> list[JudgeError]:
    """Make every call once, whatever comes of the others; what they raised, "not now" left out."""
    return run_on_loop(_tell_all(env, asks, settings)) if asks else []


async def _tell_all(
    env: Env, asks: Sequence[Ask[Any]], settings: JudgingConfig
) -> list[JudgeError]:
    slots = _slots(env, settings)

    async def told(ask: Ask[Any]) -> JudgeError | None:
        async with slots:
            try:
                await _call(ask, settings.timeout_s)
            except Exception as error:  # noqa: BLE001 - whatever a user's code raises
                return None if _means_not_now(error) else _as_judge_error(error, ask)
        return None

    found = await asyncio.gather(*map(told, asks))
    return [error for error in found if error is not None]


def _slots(env: Env, settings: JudgingConfig) -> asyncio.Semaphore:
    at_once = settings.concurrency
    if isinstance(env, Computing):
        at_once = min(at_once, env.judges_at_once)
    return asyncio.Semaphore(at_once)


async def _ask_all(
    env: Env, asks: Sequence[Ask[T]], settings: JudgingConfig
) -> list[T | Exception]:
    slots = _slots(env, settings)
    calls = [asyncio.create_task(_outcome(ask, settings, slots)) for ask in asks]
    if asks[0].what == JUDGING:
        tell("judge", 0, len(calls))
        judged = itertools.count(1)
        for call in calls:
            call.add_done_callback(lambda _: tell("judge", next(judged), len(calls)))
    try:
        await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        for call in calls:
            if call.done() and (error := call.exception()) is not None:
                raise error
        return [call.result() for call in calls]
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def _outcome(ask: Ask[T], settings: JudgingConfig, slots: asyncio.Semaphore) -> T | Exception:
    """What the answer stands for, or what was raised instead of one at the last retry."""
    for number in range(settings.retries + 1):
        async with slots:
            try:
                return ask.read(await _call(ask, settings.timeout_s), ask.task)
            except JudgeError:
                raise
            except BaseException as error:
                current = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and current and current.cancelling():
                    raise
                if not isinstance(error, Exception) or not _means_not_now(error):
                    raise _as_judge_error(error, ask) from error
                last = error
        if number == settings.retries or isinstance(last, _RunsOn):
            return last
        await asyncio.sleep(_pause_s(ask, number))
    raise AssertionError("range(retries + 1) is never empty")


class _RunsOn(Unjudged):
    """A plain function with state was given up and may still change it."""


async def _call(ask: Ask[Any], timeout_s: float) -> Any:
    limit = asyncio.timeout(timeout_s)
    in_thread = False
    try:
        async with limit:
            if inspect.iscoroutinefunction(ask.function):
                return await ask.function(*ask.arguments)
            # In a thread: a judge that waits for a service must not hold up the others.
            in_thread = ask.has_state
            found = await call_in_thread(ask.function, *ask.arguments)
            in_thread = False
            return await found if inspect.isawaitable(found) else found
    except TimeoutError as error:
        if limit.expired():
            kind = _RunsOn if in_thread else Unjudged
            raise kind(f"no answer within env.timeout_s = {timeout_s:g} s") from error
        raise


def _pause_s(ask: Ask[Any], number: int) -> float:
    """Seconds before retry `number` + 1, spread over attempts so that they do not all return to a
    busy service at once; the same in every run."""
    spread = 0.5 + derive(number, ask.task.id, ask.index) % 1000 / 2000
    return min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) * spread


def _means_not_now(error: Exception) -> bool:
    """Whether a later call may succeed."""
    if isinstance(error, Unjudged | TimeoutError):
        return True
    response = getattr(error, "response", None)
    statuses = [getattr(error, name, None) for name in ("status_code", "code", "status")]
    statuses += [getattr(response, name, None) for name in ("status_code", "status")]
    if any(isinstance(status, int) and status in BUSY for status in statuses):
        return True
    # Clients have their own classes: requests.Timeout, httpx.ReadTimeout, openai.APITimeoutError.
    # A subprocess that takes too long would do so again.
    is_timeout = any("Timeout" in cls.__name__ for cls in type(error).__mro__)
    return is_timeout and not isinstance(error, subprocess.SubprocessError)


def _as_judge_error(error: BaseException, ask: Ask[Any]) -> JudgeError:
    """What was raised and where, without the frames between the user's code and ours."""
    shown = traceback.TracebackException.from_exception(error)
    _keep_theirs(shown)
    return JudgeError(
        f"{ask.what} task {ask.task.id!r}, attempt {ask.index} raised "
        f"{type(error).__name__}: {error}\n" + "".join(shown.format())
    )


def _keep_theirs(shown: traceback.TracebackException | None) -> None:
    """Drop our frames, except from an error that arose in our own judges."""
    while shown is not None:
        theirs = [frame for frame in shown.stack if not frame.filename.startswith(_OURS)]
        if theirs:
            shown.stack = traceback.StackSummary.from_list(theirs)
        shown = shown.__cause__ or shown.__context__


def checked_verdict(found: Any, task: Task) -> Verdict:
    """The verdict that `found` stands for. Raises `JudgeError` naming a field that would break the
    run."""
    verdict = as_verdict(found, task)
    reward, feedback = verdict.reward, verdict.feedback
    wrong = None
    if not isinstance(reward, Real) or not math.isfinite(reward):
        wrong = f"reward = {reward!r}, which must be a finite number"
    elif verdict.solved not in (True, False):
        wrong = f"solved = {verdict.solved!r}, which must be true or false"
    elif feedback is not None and not isinstance(feedback, str):
        wrong = f"feedback = {feedback!r}, which must be a string or None"
    elif bad := [name for name, value in verdict.metrics.items() if not isinstance(value, Real)]:
        wrong = f"metrics[{bad[0]!r}] = {verdict.metrics[bad[0]]!r}, which must be a number"
    if wrong:
        raise JudgeError(f"judging task {task.id!r} returned a Verdict with {wrong}")
    if feedback is not None and not feedback.strip():
        return replace(verdict, feedback=None)
    return verdict
