"""Decides assert tests: prepares what does not depend on the program, then judges its answers.

Two kinds of jailed process, never the same one: the program's, which gets probes and calls, and the
trusted one, which runs the task's own code (reference solution, setup, tests) and never the
program. A test that is more than `call == value` is decided in the trusted process, on the plain
values that the program returned, so no method of the program's objects runs next to what is
expected.

A loop is *replayed*. The trusted process runs the test with a stand-in for the function; at a call
whose answer it does not have, it stops and returns the arguments. With a reference solution, one
run reveals all calls, and they are made together with those of other tests. Without one, or if an
answer changes the calls that follow, calls are made one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo.envs.code.assert_forms import Compiled, as_source, compile_test, literal
from sdpo.envs.code.assert_names import CANDIDATE
from sdpo.envs.code.assert_objects import (
    MAX_OPERATIONS,
    OBJECTS,
    answers_of,
    failure_of,
    script,
)
from sdpo.envs.code.assert_source import DECIDE, PYTEST, REPLAY
from sdpo.envs.code.compare import values_match
from sdpo.envs.code.tasks import CodeReference
from sdpo.envs.text import show
from sdpo.errors import TaskError
from sdpo.sandbox import Limits, Outcome, Program, Sandbox

MAX_CALLS = 1000
"""Most calls of a replayed test; HumanEval's longest loop makes 100."""

_TRUSTED_TIME_S = 10.0
_TRUSTED_MEMORY_MB = 1024

Call = list[Any]
"""[arguments, named arguments] of one call of the function under test."""

Ask = Callable[[str], Outcome]
"""Evaluates one more expression in the program's process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether an assert holds, and what feedback says if not.

    Example:
        Decision(holds=False, given="f(2)", output="3", expected="4")
    """

    holds: bool
    given: str = ""
    output: str = ""
    expected: str = ""
    outcome: Outcome | None = None
    """For a call that was made after the others, and failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One assert and all that can be computed without the program.

    Example:
        Prepared(compiled=compiled, probes=("f(2)",), value=4)
    """

    compiled: Compiled
    probes: tuple[str, ...]
    """Expressions for the program's process; for a replay, the calls that the reference gets."""
    value: Any = None
    """`equals` and `is`: the expected value."""
    calls: tuple[Call, ...] = ()
    """Replay: each call in `probes`. Objects: what the test does to the reference's objects."""
    kinds: tuple[str, ...] = ()
    """Objects: what the reference answers to each: `value`, `object` or `error`."""


class AssertTests:
    """Prepares and decides assert tests; keeps what it prepared for the next attempt."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._prepared: dict[tuple[str, ...], tuple[Prepared, ...]] = {}
        self._lock = threading.Lock()

    def prepare(self, source: str, reference: CodeReference) -> tuple[Prepared, ...]:
        """The asserts of one test. Raises `TaskError` if the test itself cannot run."""
        key = (source, reference.entry_point or "", reference.solution or "", reference.setup)
        with self._lock:
            known = self._prepared.get(key)
        if known is None:
            try:
                asserts = compile_test(
                    source, reference.entry_point, reference.solution, reference.setup
                )
            except ValueError as error:
                raise TaskError(f"a test cannot be judged: {error}") from error
            known = tuple(self._prepare(each, reference) for each in asserts)
            with self._lock:
                self._prepared[key] = known
        return known

    def _prepare(self, compiled: Compiled, reference: CodeReference) -> Prepared:
        if compiled.form == "replay":
            if reference.solution is None:
                return Prepared(compiled=compiled, probes=())
            status, calls, message = self._replay(compiled, reference, None)
            if status != "pass":
                raise TaskError(
                    f"the reference solution fails a test: {message}\n{compiled.condition}"
                )
            probes = tuple(_call_source(compiled, call) for call in calls)
            return Prepared(compiled=compiled, probes=probes, calls=tuple(calls))
        if compiled.form == "objects":
            status, calls, message, kinds = self._objects(compiled, reference, None)
            if status != "pass" or len(calls) > MAX_OPERATIONS:
                problem = message or f"it does {len(calls)} things to objects"
                raise TaskError(f"a test cannot be judged: {problem}\n{compiled.condition}")
            return Prepared(
                compiled=compiled, probes=(script(calls),), calls=tuple(calls), kinds=tuple(kinds)
            )
        if compiled.form == "trusted":
            return Prepared(compiled=compiled, probes=compiled.probes)
        is_literal, value = literal(compiled.expected)
        if not is_literal:
            value = self._own_value(compiled.expected, reference)
        return Prepared(compiled=compiled, probes=compiled.probes, value=value)

    def decide_at_once(
        self, prepared: Prepared, values: Sequence[Any], tolerance: float
    ) -> Decision | None:
        """The decision, or None if it takes another process."""
        compiled = prepared.compiled
        if compiled.form not in ("equals", "is"):
            return None
        (value,) = values
        if compiled.form == "is":
            holds = value is prepared.value
        else:
            holds = values_match(value, prepared.value, tolerance)
        if holds:
            return Decision(holds=True)
        return Decision(
            holds=False, given=compiled.shown, output=show(value), expected=show(prepared.value)
        )

    def decide(
        self, prepared: Prepared, outcomes: Sequence[Outcome], reference: CodeReference, ask: Ask
    ) -> Decision:
        """The trusted process's decision, given what came of all probes. Raises `TaskError` if the
        test itself cannot run."""
        compiled = prepared.compiled
        if compiled.form == "replay":
            return self._decide_replay(prepared, outcomes, reference, ask)
        if compiled.form == "objects":
            return self._decide_objects(prepared, outcomes[0], reference, ask)
        values = [outcome.value for outcome in outcomes]
        decision = Decision(
            holds=False,
            given=compiled.shown,
            output=", ".join(map(show, values)),
            expected=f"a value for which this holds: {compiled.claim}",
        )
        try:
            given = ", ".join(map(as_source, values))
        except TypeError:  # a value that is not plain data satisfies nothing
            return decision
        names = ", ".join(f"probe_{index}" for index in range(len(values)))
        attempt = f"_decide(lambda {names}: {compiled.condition}, [{given}])"
        outcome = self._trusted(attempt, _own_code(reference) + DECIDE, reference)
        if outcome.status == "exception":
            raise TaskError(f"a test cannot be judged: {_reason(outcome)}\n{compiled.claim}")
        # If the condition runs forever or out of memory on a value, it does not hold.
        return Decision(holds=True) if outcome.value is True else decision

    def _decide_replay(
        self,
        prepared: Prepared,
        outcomes: Sequence[Outcome],
        reference: CodeReference,
        ask: Ask,
    ) -> Decision:
        compiled = prepared.compiled
        known = list(zip(prepared.calls, outcomes, strict=True))
        while True:
            status, calls, message = self._replay(compiled, reference, known)
            if status == "pass":
                return Decision(holds=True)
            if status == "broken":
                raise TaskError(f"a test cannot be judged: {message}\n{compiled.condition}")
            if status != "need" or len(calls) > MAX_CALLS:
                break
            # The call after the last matching one is new, or differs from what the reference got.
            known = known[: len(calls) - 1]
            given = _call_source(compiled, calls[-1])
            outcome = ask(given)
            if not is_answer(outcome):
                return Decision(holds=False, given=given, outcome=outcome)
            known.append((calls[-1], outcome))
        call, asked = known[len(calls) - 1] if 0 < len(calls) <= len(known) else (None, None)
        given = compiled.condition if call is None else _call_source(compiled, call)
        if status == "raised" and not compiled.expects_errors:
            return Decision(holds=False, given=given, outcome=asked)
        output = ""
        if asked is not None:
            output = show(asked.value) if asked.failure is None else _reason(asked)
        return Decision(
            holds=False,
            given=given,
            output=output,
            expected=f"a result for which this passes ({message}):\n{compiled.condition}",
        )

    def _replay(
        self,
        compiled: Compiled,
        reference: CodeReference,
        known: Sequence[tuple[Call, Outcome]] | None,
    ) -> tuple[str, list[Call], str]:
        """(pass | fail | raised | broken | need, calls made, message); with `known` None, the
        reference answers. `raised`: by an exception of the program; `broken`: by a name or module
        that the test lacks."""
        function = compiled.function
        has_reference = reference.solution is not None
        stands_for = CANDIDATE if CANDIDATE in compiled.condition else function
        program = (
            f"{_own_code(reference)}\n_reference = {function if has_reference else 'None'}\n"
            f"_stands_for = {stands_for!r}\n{REPLAY}"
        )
        if known is None:
            return self._own_value(f"_replay({compiled.condition!r}, None)", reference, program)
        calls = [call for call, _ in known]
        try:
            answers = as_source([[call, *_answer(outcome)] for call, outcome in known])
        except TypeError:
            return "fail", calls, "an answer is not plain data"
        outcome = self._trusted(f"_replay({compiled.condition!r}, {answers})", program, reference)
        if outcome.status != "value":
            return "fail", calls, outcome.status.replace("_", " ")
        return outcome.value

    def _decide_objects(
        self, prepared: Prepared, outcome: Outcome, reference: CodeReference, ask: Ask
    ) -> Decision:
        compiled, calls = prepared.compiled, list(prepared.calls)
        of_reference = {call[0]: kind for call, kind in zip(calls, prepared.kinds, strict=True)}
        while True:
            answers = answers_of(outcome, len(calls))
            if answers is None:  # cut off, or not what our lines return
                return Decision(holds=False, given=compiled.shown, outcome=outcome)
            known = list(zip(calls, answers, strict=True))
            wrong = next(
                (answer[1] for (source,), answer in known
                 if answer[0] == "object" and of_reference.get(source) == "value"), None,
            )  # fmt: skip
            if wrong is not None:
                return _unlike(compiled, f"<{wrong} object>", "plain data where it is asked for")
            status, calls, message, _ = self._objects(compiled, reference, known)
            if status == "pass":
                return Decision(holds=True)
            if status == "broken":
                raise TaskError(f"a test cannot be judged: {message}\n{compiled.condition}")
            if status != "need" or len(calls) > MAX_OPERATIONS:
                break
            outcome = ask(script(calls))
            if outcome.status != "value":
                return Decision(holds=False, given=compiled.shown, outcome=outcome)
        last = known[len(calls) - 1][1] if 0 < len(calls) <= len(known) else [True, None]
        if status == "raised":
            return Decision(holds=False, given=compiled.shown, outcome=failure_of(last))
        output = show(last[1]) if last[0] is True else str(last[1])
        return _unlike(compiled, output, message)

    def _objects(
        self,
        compiled: Compiled,
        reference: CodeReference,
        known: Sequence[tuple[Call, list[Any]]] | None,
    ) -> tuple[str, list[Call], str, list[str]]:
        """(pass | fail | raised | broken | need, operations, message, kinds of answers); see
        `_replay`."""
        program = f"{_own_code(reference)}\n{REPLAY}\n{OBJECTS}"
        arguments = f"{compiled.condition!r}, {list(compiled.names)!r}"
        if known is None:
            return self._own_value(f"_objects({arguments}, None)", reference, program)
        calls = [call for call, _ in known]
        try:
            answers = as_source([[call, *answer] for call, answer in known])
        except TypeError:
            return "fail", calls, "an answer is not plain data", []
        outcome = self._trusted(f"_objects({arguments}, {answers})", program, reference)
        if outcome.status != "value":
            return "fail", calls, outcome.status.replace("_", " "), []
        return outcome.value

    def _own_value(
        self, expression: str, reference: CodeReference, source: str | None = None
    ) -> Any:
        """The value of an expression in the task's own code. Raises `TaskError` if it fails."""
        outcome = self._trusted(expression, source or _own_code(reference), reference)
        if outcome.status != "value":
            raise TaskError(
                f"the task's own code fails on {expression[:200]!r}: {_reason(outcome)}; "
                "a reference_solution must define every helper that its tests use"
            )
        return outcome.value

    def _trusted(self, expression: str, source: str, reference: CodeReference) -> Outcome:
        """The outcome of an expression in a jailed process with the task's code, without the
        program."""
        program = Program(source=source, mode="expressions")
        (outcome,) = self.sandbox.run(program, [expression], trusted_limits(reference))
        return outcome


def _unlike(compiled: Compiled, output: str, message: str) -> Decision:
    expected = f"a result for which this passes ({message}):\n{compiled.condition}"
    return Decision(holds=False, given=compiled.shown, output=output, expected=expected)


def trusted_limits(reference: CodeReference) -> Limits:
    """Bounds of a process that runs the task's own code."""
    memory_mb = max(_TRUSTED_MEMORY_MB, reference.memory_mb)
    return Limits(cpu_s=_TRUSTED_TIME_S, memory_mb=memory_mb)


def is_answer(outcome: Outcome) -> bool:
    """Whether a call was answered: with a value, or an exception that the function itself raised,
    which a test may expect. A program that does not load or lacks the function answers nothing."""
    failure = outcome.failure
    if outcome.status != "exception" or failure is None:
        return outcome.status == "value"
    return not failure.at_load and (bool(failure.frames) or failure.kind != "NameError")


def _answer(outcome: Outcome) -> list[Any]:
    """An answered call for `_replay`: [is_value, value or description of the exception]."""
    failure = outcome.failure
    if failure is None:
        return [True, outcome.value]
    return [False, [failure.kind, failure.message, list(failure.bases)]]


def _reason(outcome: Outcome) -> str:
    failure = outcome.failure
    return f"{failure.kind}: {failure.message}" if failure else outcome.status


def _call_source(compiled: Compiled, call: Call) -> str:
    """A recorded call as an expression for the program's process."""
    arguments, named = call
    try:
        parts = [as_source(value) for value in arguments]
        parts += [f"{name}={as_source(value)}" for name, value in named.items()]
    except TypeError as error:
        raise TaskError(
            f"a test passes an argument that is not plain data ({error}); build it in the call\n"
            f"{compiled.condition}"
        ) from error
    return f"{compiled.function}({', '.join(parts)})"


def _own_code(reference: CodeReference) -> str:
    """The source of the trusted process: reference solution and setup, with a fixed random seed."""
    # A test that draws random arguments must draw the same ones when it is replayed.
    parts = [reference.prelude, reference.solution or "", PYTEST]
    lines = [*parts, "import random as _random", "_random.seed(0)"]
    if reference.setup and reference.solution is not None:
        lines.append(reference.setup)
    elif reference.setup:
        # Without a reference, a setup that uses the program's classes cannot work here.
        lines.append(f"try:\n    exec({reference.setup!r}, globals())\nexcept NameError:\n    pass")
    return "\n".join(lines) + "\n"
