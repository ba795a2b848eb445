"""Which environment reads rows of which columns, so that a refusal can name the one that fits."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from sdpo.envs.table import Line
from sdpo.errors import TaskError

SHAPES = (
    ("code", "MBPP", ("test_list", "code")),
    ("code", "HumanEval", ("entry_point", "canonical_solution", "test")),
    ("code", "LiveCodeBench", ("public_test_cases", "private_test_cases")),
    ("code", "APPS or TACO", ("question", "input_output")),
    ("code", "open-r1's verifiable coding", ("problem", "verification_info")),
    ("code", "CodeContests", ("description", "public_tests", "private_tests")),
    ("code", "DeepCoder", ("problem", "tests")),
    ("code", "open-r1's Codeforces", ("description", "official_tests")),
    ("code", "sdpo's code tasks", ("prompt", "kind", "tests")),
    ("sql", "Spider", ("question", "query", "db_id")),
    ("sql", "BIRD", ("question", "SQL", "db_id")),
    ("choice", "GPQA", ("Question", "Correct Answer", "Incorrect Answer 1")),
    ("choice", "ARC or SciKnowEval", ("question", "choices", "answerKey")),
    ("choice", "MMLU", ("question", "choices", "answer")),
    ("choice", "MMLU-Pro", ("question", "options", "answer")),
    ("math", "MATH", ("problem", "solution")),
    ("math", "mathematics", ("problem", "answer")),
    ("math", "AIME", ("Problem", "Answer")),
    ("math", "AIME", ("Question", "Answer")),
)
"""(env.type, whose rows they are, columns), the more particular first."""


def fitting(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """(env.type, whose rows they are) for a row; None where nothing is known."""
    kind = row.get("kind")
    if kind in ("code", "mcq", "tooluse", "math") and "dataset" in row:
        types = {"mcq": "choice", "tooluse": "tools"}
        return types.get(kind, kind), "the paper's"
    for env_type, whose, columns in SHAPES:
        if all(column in row for column in columns):
            return env_type, whose
    answer = str(row.get("answer", ""))
    if "Action_Input" in answer:
        return "tools", "ToolAlpaca"
    if "reward_model" in row:
        return ("code" if row.get("ability") == "code" else "math"), "verl"
    return ("math", "GSM8K") if "question" in row and "####" in answer else None


@contextlib.contextmanager
def told_what_would_fit(lines: Sequence[Line], env_type: str) -> Generator[None]:
    """Adds to a `TaskError` about these rows which environment would read them, or else how to name
    their columns."""
    try:
        yield
    except TaskError as error:
        found = fitting(lines[0].row)
        if found is not None and found[0] != env_type:
            raise TaskError(
                f"{error}\nThese look like {found[1]} rows, which env.type = {found[0]!r} reads"
            ) from error
        if found is None and "missing" in str(error):
            columns = ", ".join(map(str, lines[0].row))
            raise TaskError(
                f"{error}\nThe columns are {columns}; "
                'env.fields = {KEY = "COLUMN"} says which is which'
            ) from error
        raise
