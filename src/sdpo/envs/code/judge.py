"""From an answer to a verdict: category, reward, feedback, and facts for the record.

An attempt that fails in several ways is reported as the first of: no code block, a program that
does not compile, runtime error, time limit, memory limit, output limit, wrong answer. Feedback on
public tests shows inputs and expected values; on private ones it gives only the kind of failure and
how many tests passed. If both are judged, it is about the public ones until they pass.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence, Set
from typing import Literal

from sdpo.envs.code import wording
from sdpo.envs.code.assert_runs import AssertTests
from sdpo.envs.code.extract import PYTHON_TAGS, extract_program
from sdpo.envs.code.tasks import CodeReference, Judged, Language
from sdpo.envs.code.test_run import TestResult, TestRun
from sdpo.envs.text import TRUNCATED, cut_middle, escape
from sdpo.records import Verdict
from sdpo.sandbox import (
    COMPILE_ERROR,
    LANGUAGES,
    Failure,
    LanguageName,
    NativeSandbox,
    Outcome,
    Sandbox,
    open_language,
)

_ORDER = ("runtime_error", "time_limit", "memory_limit", "output_limit", "wrong_answer")
"""The first of these that any test has is the category of the attempt."""


class CodeJudge:
    """Judges programs in one sandbox; thread-safe.

    Example:
        verdict = CodeJudge(open_sandbox("auto")).verdict(task.reference, "def f(): return 1")
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        reward: Literal["solved", "fraction"] = "solved",
        stop_after_failures: int = 2,
        max_feedback_chars: int = 2000,
    ) -> None:
        self.sandbox = sandbox
        self._assert_tests = AssertTests(sandbox)
        self._reward = reward
        # For a fraction, every test must run.
        self._stop_after_failures = stop_after_failures if reward == "solved" else None
        self._max_feedback_chars = max_feedback_chars
        self._languages: dict[LanguageName, NativeSandbox] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End every process, those of the sandbox it was given too."""
        self.close_languages()
        self.sandbox.close()

    def close_languages(self) -> None:
        """End the processes that were started here."""
        with self._lock:
            opened, self._languages = list(self._languages.values()), {}
        for sandbox in opened:
            sandbox.close()

    def _runner(self, language: Language) -> Sandbox:
        """Where programs in `language` run; opened for the first of them. Raises `SandboxError` if
        it is not installed."""
        if language == "python":
            return self.sandbox
        with self._lock:
            if language not in self._languages:
                self._languages[language] = open_language(language, width=self.sandbox.width)
            return self._languages[language]

    def verdict_on_text(self, reference: CodeReference, text: str, is_truncated: bool) -> Verdict:
        """The verdict on an answer, by the tests that `reference.judged` names."""
        found = extract_program(text, tags_of(reference.language), reference.names)
        if found.program is not None:
            return self.verdict(reference, found.program, note=wording.which_block(found))
        category = "truncated" if is_truncated else "incorrect_format"
        wanted = wording.INCORRECT_FORMAT.format(language=reference.language)
        feedback = TRUNCATED if is_truncated else wanted
        return Verdict(
            reward=0.0,
            solved=False,
            feedback=cut_middle(feedback, self._max_feedback_chars),
            metrics={"tests_passed": 0.0},
            info={
                "category": category,
                "tests": [],
                "sandbox": self.sandbox.level,
                "tampering": False,
            },
        )

    def verdict(
        self,
        reference: CodeReference,
        program: str,
        *,
        split: Judged | None = None,
        shows_private: bool = False,
        note: str | None = None,
    ) -> Verdict:
        """The verdict on a program; `shows_private` lets feedback show private tests too, and
        `note` ends it."""
        split = split or reference.judged
        runner = self._runner(reference.language)
        results = TestRun(
            runner,
            self._assert_tests,
            reference,
            reference.tests(split),
            program,
            self._stop_after_failures,
        ).results()
        is_tampered = any(
            result.outcome is not None and result.outcome.status == "tampering"
            for result in results
        )
        num_passed = sum(result.status == "passed" for result in results)
        fraction = num_passed / len(results)
        category = category_of(results)
        solved = category == "accepted"
        reward = fraction if self._reward == "fraction" and not is_tampered else float(solved)
        text = None
        if not solved:
            num_shown = 0 if split == "private" else len(reference.public)
            num_shown = len(results) if shows_private else num_shown
            parts = feedback_parts(results, num_shown, reference.language)
            text = wording.fit([*parts, *([note] if note else [])], self._max_feedback_chars)
        return Verdict(
            reward=reward,
            solved=solved,
            feedback=text,
            metrics={"tests_passed": fraction},
            info={
                "category": category,
                "tests": [result.status for result in results],
                "sandbox": runner.level,
                "tampering": is_tampered,
            },
        )


def tags_of(language: Language) -> Set[str]:
    """Tags of the blocks of an answer that hold the program."""
    return PYTHON_TAGS if language == "python" else LANGUAGES[language].tags


def category_of(results: Sequence[TestResult]) -> str:
    """`accepted` if every test passed, else the kind of failure to report."""
    found = {result.status for result in results}
    if found == {"passed"}:
        return "accepted"
    category = next((status for status in _ORDER if status in found), None)
    assert category is not None, f"tests ended as {sorted(found)} without a failure"
    return category


def feedback_parts(results: Sequence[TestResult], num_shown: int, language: Language) -> list[str]:
    """Feedback on a failed attempt in parts, most useful first, for the caller to fit to its limit.

    They describe failures among the first `num_shown` tests. If none of those failed, they reveal
    only how many tests passed.
    """
    shown = results[:num_shown]
    if all(result.status in ("passed", "not_run") for result in shown):
        num_passed = sum(result.status == "passed" for result in results)
        header = wording.HEADERS[category_of(results)]
        return [wording.counts(header, num_passed, len(results))]
    category = category_of(shown)
    failed = [
        (number, result)
        for number, result in enumerate(shown, start=1)
        if result.status == category
    ]
    if category == "wrong_answer":
        # Short tests say most per token.
        shortest = sorted(failed, key=lambda pair: len(pair[1].given) + len(pair[1].output))
        return [
            wording.wrong_answer(
                number, result.given, result.stdout, result.output, result.expected
            )
            for number, result in sorted(shortest[: wording.MAX_WRONG_ANSWERS])
        ]
    _, first = failed[0]
    return ["\n".join(_failure_lines(category, first, language))]


def _failure_lines(category: str, result: TestResult, language: Language) -> list[str]:
    lines = [wording.HEADERS[category]]
    outcome = result.outcome
    failure = outcome.failure if outcome is not None else None
    if failure is not None and failure.kind == COMPILE_ERROR:
        return [wording.COMPILE_ERROR, escape(failure.message)]
    if category == "runtime_error":
        assert outcome is not None, "a runtime error without an outcome"
        lines.append(_reason(outcome))
        if outcome.status == "tampering":
            return lines
    if failure is not None:
        frames = [(frame.line, frame.function) for frame in failure.frames]
        file = "Solution.py" if language == "python" else LANGUAGES[language].source
        lines += wording.frame_lines(frames, file)
        if _is_compile_error(failure):
            return lines
    return lines + wording.last_input(result.given)


def _reason(outcome: Outcome) -> str:
    """The line under `Runtime Error`."""
    match outcome.status:
        case "tampering":
            return wording.TAMPERING
        case "signal":
            return wording.signal_name(outcome.signal)
        case "exit":
            return wording.EXIT.format(code=outcome.exit_code)
    assert outcome.failure is not None, "an exception without a description"
    return wording.exception_line(outcome.failure.kind, outcome.failure.message)


def _is_compile_error(failure: Failure) -> bool:
    """Whether the program never started: a syntax error outside of any function."""
    is_syntax = failure.kind in ("SyntaxError", "IndentationError", "TabError")
    return is_syntax and [frame.function for frame in failure.frames] in ([], ["<module>"])
