"""Runs the tests of one code task on one program and decides which of them pass.

Every status is decided here or in the sandbox, never by the program, whose process gets inputs and
returns values, printed text and errors. `judge.py` makes a verdict of the results;
`assert_forms.py` and `assert_runs.py` turn an assert into calls and a condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sdpo.envs.code.assert_runs import AssertTests, Decision, Prepared, is_answer
from sdpo.envs.code.checker import complaint
from sdpo.envs.code.compare import outputs_match, values_match
from sdpo.envs.code.tasks import CodeReference, CodeTest
from sdpo.envs.text import safe, show
from sdpo.sandbox import Limits, Outcome, Program, Sandbox

Status = Literal[
    "passed",
    "wrong_answer",
    "runtime_error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "not_run",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """The result of one test.

    Example:
        TestResult(status="wrong_answer", given="f(2)", output="3", expected="4")
    """

    __test__ = False  # This is not a test class, whatever pytest thinks of its name.

    status: Status
    given: str = ""
    """The input, as feedback shows it."""
    stdout: str = ""
    """What a `function` or `asserts` test printed besides its answer."""
    output: str = ""
    """This and the others are cut to what feedback shows; whole, they would be kept until the last
    test is done."""
    expected: str = ""
    outcome: Outcome | None = None
    """For the input on which the program failed; None if no single input is to blame."""


_NAMES = "from typing import *\nfrom sys import exit\nquit = exit\n"
"""Runs before every program. Tasks on the web write `List[int]` in signatures without an import;
`exit` is missing only because the interpreter starts without `site`."""

MIN_TOTAL_CPU_S = 30.0
MAX_SLOW_TESTS = 20
"""In how many tests an attempt may use its whole time limit before it counts as too slow."""

PASSED = TestResult(status="passed")
NOT_RUN = TestResult(status="not_run")
_DECIDED = Outcome(status="value")
"""Stands for the outcomes of decided tests."""
MAX_HELD_BYTES = 8 << 20
"""Encoded values of an attempt's undecided tests; in memory they may take 20 times as much."""


class TestRun:
    """One run of a program over tests: the inputs it is given, and the result of each test.

    The sandbox calls `_should_stop` after each outcome. Tests whose condition needs another process
    are decided in `results`, once the sandbox is free again.
    """

    __test__ = False

    def __init__(
        self,
        sandbox: Sandbox,
        assert_tests: AssertTests,
        reference: CodeReference,
        tests: Sequence[CodeTest],
        program: str,
        stop_after_failures: int | None,
    ) -> None:
        self._sandbox = sandbox
        self._assert_tests = assert_tests
        self._reference = reference
        self._tests = tests
        self._stop_after_failures = stop_after_failures
        self._program = Program(
            source=program,
            mode="expressions" if reference.kind == "asserts" else reference.kind,
            entry_point=reference.entry_point,
            setup=f"{_NAMES}{reference.prelude}",
        )
        self._prepared: list[tuple[Prepared, ...]] = []
        self._inputs: list[Any] = []
        self._ends: list[int] = []
        """The inputs of test k end before `_ends[k]`, and begin where those of test k - 1 end."""
        for test in tests:
            self._inputs += self._inputs_of(test)
            self._ends.append(len(self._inputs))
        self._limits = Limits(
            cpu_s=reference.time_limit_s,
            memory_mb=reference.memory_mb,
            total_cpu_s=max(MIN_TOTAL_CPU_S, reference.time_limit_s * MAX_SLOW_TESTS),
        )
        self._results: list[TestResult | None] = []
        """Of the tests whose inputs have all run; None where the trusted process must decide."""
        self._seen: list[Outcome] = []
        self._num_failed = 0
        self._held_bytes = 0

    def results(self) -> list[TestResult]:
        """The result of each test, in order; tests after a stop are `not_run`."""
        self._sandbox.run(
            self._program,
            self._inputs,
            self._limits,
            should_stop=self._should_stop,
            keeps_values=False,
        )
        self._advance()  # Tests without inputs of their own may come last.
        results = [
            self._decide(index) if result is None else result
            for index, result in enumerate(self._results)
        ]
        if len(results) < len(self._tests) and all(each.status == "passed" for each in results):
            # Each test kept its limit, but together they used up the attempt's CPU time.
            given = self._given(len(results), len(self._seen))
            results.append(TestResult(status="time_limit", given=given))
        return results + [NOT_RUN] * (len(self._tests) - len(results))

    def _inputs_of(self, test: CodeTest) -> list[Any]:
        if self._reference.kind != "asserts":
            return [test.input]
        prepared = self._assert_tests.prepare(test.input, self._reference)
        self._prepared.append(prepared)
        return [self._after_setup(probe) for each in prepared for probe in each.probes]

    def _after_setup(self, probe: str) -> str:
        """`probe`, evaluated after the task's setup has run in the program's namespace."""
        setup = self._reference.setup
        return f"(exec({setup!r}, globals()), {probe})[1]" if setup else probe

    def _should_stop(self, index: int, outcome: Outcome) -> bool:
        if index < len(self._seen):  # the sandbox lost a worker and starts over
            del self._seen[index:]
            self._results.clear()
            self._num_failed = self._held_bytes = 0
        self._seen.append(outcome)
        return self._advance()

    def _advance(self) -> bool:
        """Add the results of tests whose inputs have all run; whether enough tests failed."""
        while not self._has_enough() and len(self._results) < len(self._tests):
            test = len(self._results)
            own = self._seen[self._start(test) : self._ends[test]]
            failed = next(
                (k for k, each in enumerate(own) if not self._is_answer(test, k, each)), None
            )
            if failed is not None:
                given = self._given(test, self._start(test) + failed)
                result = failure_result(own[failed], given)
            elif len(own) < self._ends[test] - self._start(test):
                break
            else:
                result = self._decide_at_once(test, own) or self._hold(test, own)
            if result is not None:
                # Values go as soon as they are decided: an attempt's could fill the memory.
                self._seen[self._start(test) : self._ends[test]] = [_DECIDED] * len(own)
            self._results.append(result)
            self._num_failed += result is not None and result is not PASSED
        return self._has_enough()

    def _is_answer(self, test: int, position: int, outcome: Outcome) -> bool:
        """Whether the test can go on: to a replayed one, an exception is an answer."""
        if outcome.status != "exception" or self._reference.kind != "asserts":
            return outcome.status == "value"
        for prepared in self._prepared[test]:
            if position < len(prepared.probes):
                return prepared.compiled.form == "replay" and is_answer(outcome)
            position -= len(prepared.probes)
        raise AssertionError("an outcome without an input")

    def _hold(self, test: int, outcomes: Sequence[Outcome]) -> TestResult | None:
        """None, to keep the values of an undecided test; `output_limit` if they are too many."""
        self._held_bytes += sum(each.num_bytes + len(each.stdout) for each in outcomes)
        if self._held_bytes <= MAX_HELD_BYTES:
            return None
        return TestResult(status="output_limit", given=self._given(test, self._start(test)))

    def _has_enough(self) -> bool:
        return (
            self._stop_after_failures is not None and self._num_failed >= self._stop_after_failures
        )

    def _start(self, test: int) -> int:
        return self._ends[test - 1] if test else 0

    def _given(self, index: int, position: int) -> str:
        """The input at `position` among all inputs, as feedback shows it."""
        test = self._tests[index]
        if self._reference.kind == "stdio":
            return test.input
        if self._reference.kind == "function":
            return f"{self._reference.entry_point}({', '.join(map(show, test.input))})"
        position -= self._start(index)
        for prepared in self._prepared[index]:
            if position < len(prepared.probes):
                is_replay = prepared.compiled.form == "replay"
                return prepared.probes[position] if is_replay else prepared.compiled.shown
            position -= len(prepared.probes)
        raise AssertionError("an outcome without an input")

    def _decide_at_once(self, index: int, outcomes: Sequence[Outcome]) -> TestResult | None:
        test, tolerance = self._tests[index], self._reference.tolerance
        if self._reference.kind == "asserts":
            return self._decide_asserts(index, outcomes)
        if self._reference.checker:
            return None
        (outcome,) = outcomes
        is_text = self._reference.kind == "stdio"
        matches = outputs_match if is_text else values_match
        if matches(outcome.stdout if is_text else outcome.value, test.output, tolerance):
            return PASSED
        return self._wrong(index, outcome, test.output if is_text else show(test.output))

    def _wrong(self, index: int, outcome: Outcome, expected: str) -> TestResult:
        """The result of a `function` or `stdio` test with a wrong answer."""
        is_text = self._reference.kind == "stdio"
        return TestResult(
            status="wrong_answer",
            given=self._given(index, self._ends[index] - 1),
            stdout="" if is_text else safe(outcome.stdout),
            output=safe(outcome.stdout if is_text else show(outcome.value)),
            expected=safe(expected),
        )

    def _decide_asserts(self, index: int, outcomes: Sequence[Outcome]) -> TestResult | None:
        """The test's result if comparing values decides it; None if the trusted process must."""
        is_open = False
        start = 0
        for prepared in self._prepared[index]:
            own = outcomes[start : start + len(prepared.probes)]
            start += len(own)
            values = [outcome.value for outcome in own]
            decision = self._assert_tests.decide_at_once(
                prepared, values, self._reference.tolerance
            )
            is_open |= decision is None
            if decision is not None and not decision.holds:
                return decision_result(decision, "".join(outcome.stdout for outcome in own))
        return None if is_open else PASSED

    def _decide(self, index: int) -> TestResult:
        """The result of a test that was left open."""
        outcomes = self._seen
        if self._reference.kind != "asserts":
            outcome, test = outcomes[self._start(index)], self._tests[index]
            answer = outcome.stdout if self._reference.kind == "stdio" else outcome.value
            wrong = complaint(
                self._assert_tests.sandbox, self._reference, test.input, answer, test.output
            )
            return PASSED if wrong is None else self._wrong(index, outcome, wrong)
        start = self._start(index)
        for prepared in self._prepared[index]:
            own = outcomes[start : start + len(prepared.probes)]
            start += len(own)
            if prepared.compiled.form in ("equals", "is"):
                continue
            decision = self._assert_tests.decide(prepared, own, self._reference, self._ask)
            if not decision.holds:
                return decision_result(decision, "".join(outcome.stdout for outcome in own))
        return PASSED

    def _ask(self, expression: str) -> Outcome:
        inputs = [self._after_setup(expression)]
        (outcome,) = self._sandbox.run(self._program, inputs, self._limits)
        return outcome


def decision_result(decision: Decision, stdout: str) -> TestResult:
    """The result of a test with an assert that does not hold."""
    if decision.outcome is not None:
        return failure_result(decision.outcome, decision.given)
    return TestResult(
        status="wrong_answer",
        given=decision.given,
        stdout=safe(stdout),
        output=safe(decision.output),
        expected=decision.expected,
    )


def failure_result(outcome: Outcome, given: str) -> TestResult:
    """The result of a test on which the program failed or broke the rules."""
    return TestResult(status=_STATUS[outcome.status], given=given, outcome=outcome)


_STATUS: dict[str, Status] = {
    "exception": "runtime_error",
    "exit": "runtime_error",
    "signal": "runtime_error",
    "tampering": "runtime_error",
    "time_limit": "time_limit",
    "memory_limit": "memory_limit",
    "output_limit": "output_limit",
}
"""The sandbox's status of an input without a value, to the status of its test."""
