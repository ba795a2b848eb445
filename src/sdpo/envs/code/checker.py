"""Checkers: `check(input, output, expected)` of a task decides where several answers are right.

It runs jailed, in a process that never sees the program, on plain data: the test's input (the list
of arguments for a function), what the program returned or printed, and the expected output, None if
the test has none. True means right; a string says what is wrong and becomes feedback.
"""

from __future__ import annotations

import ast
from typing import Any

from sdpo.envs.code.assert_names import missing_names, parse_python
from sdpo.envs.code.assert_runs import trusted_limits
from sdpo.envs.code.tasks import CodeReference
from sdpo.errors import TaskError
from sdpo.sandbox import Program, Sandbox

NAME = "check"
NOT_ACCEPTED = "an answer that the checker of this task accepts"
_AT_FAULT = ("NameError", "ImportError", "ModuleNotFoundError", "SyntaxError")
"""Errors that no output causes."""


def checker_problem(source: str) -> str | None:
    """Why `source` cannot be a checker, or None."""
    try:
        tree = parse_python(source)
    except (SyntaxError, ValueError) as error:
        return f"not Python: {error}"
    found = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == NAME), None)
    if found is None or len(found.args.args) != 3:
        return "define check(input, output, expected)"
    missing = missing_names([source], [])
    if missing:
        return f"{', '.join(missing)} is not defined; a checker has the standard library only"
    return None


def complaint(
    sandbox: Sandbox, reference: CodeReference, given: Any, answer: Any, expected: Any
) -> str | None:
    """What the task's checker has against an answer; None if it is right. Raises `TaskError` if the
    checker itself is at fault."""
    program = Program(source=reference.checker, mode="function", entry_point=NAME)
    try:
        (outcome,) = sandbox.run(program, [[given, answer, expected]], trusted_limits(reference))
    except (TypeError, ValueError):
        return "plain data"
    if outcome.status == "value" and outcome.value is True:
        return None
    failure = outcome.failure
    if failure is not None and (failure.at_load or failure.kind in _AT_FAULT):
        raise TaskError(f"the checker fails: {failure.kind}: {failure.message}")
    if failure is not None:
        # A checker that expects a number fails on a word: the answer is not of its form.
        return f"{NOT_ACCEPTED} ({failure.kind}: {failure.message})"
    return outcome.value if isinstance(outcome.value, str) else NOT_ACCEPTED
