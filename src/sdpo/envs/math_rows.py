"""Rows of published sets of mathematics to (problem, answer).

| rows | problem | answer |
|---|---|---|
| ours, MATH-500, DeepScaleR | `problem` | `answer` |
| MATH, NuminaMath | `problem` | the last box of `solution` |
| GSM8K | `question` | what follows `####` in `answer` |
| AIME | `Problem`, `Question` or `problem` | `Answer` or `answer`, often a number |
| DAPO and other verl rows | last message of `prompt` | `reward_model.ground_truth` |
| the paper's | `prompt` | `answer` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdpo.envs.table import Line, text_of

PROBLEM_KEYS = ("problem", "question", "Problem", "Question", "prompt")
ANSWER_KEYS = ("answer", "Answer")
FINAL = "####"
DAPO_HEAD = "where $Answer is the answer to the problem."
DAPO_TAIL = "Remember to put your answer on its own line"
"""DAPO's prompts ask for the form `Answer: ...`; what stands between the two is the problem."""


def own_row(line: Line) -> Line:
    """`line` with the keys `problem` and `answer`, both strings, whoever's row it is. Raises
    `TaskError` naming the key that is missing."""
    row = line.row
    if isinstance(row.get("reward_model"), Mapping):
        found = _verl(line)
    else:
        key = next((key for key in PROBLEM_KEYS if key in row), PROBLEM_KEYS[0])
        found = {"problem": text_of(line, key), "answer": _answer(line)}
    return replace(line, row={**row, **found})


def _answer(line: Line) -> str:
    row = line.row
    key = next((key for key in ANSWER_KEYS if key in row), None)
    if key is None and "solution" in row:
        solution = text_of(line, "solution")
        if "\\boxed" not in solution:
            raise line.error(
                "solution", "no \\boxed{} in it and no key answer, so there is nothing to compare"
            )
        return solution
    key = key or ANSWER_KEYS[0]
    value = row.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        # A column with gaps turns whole numbers into floats.
        return str(int(value)) if float(value).is_integer() else repr(value)
    text = text_of(line, key)
    if key == "answer" and FINAL in text:
        # GSM8K writes thousands with commas, which elsewhere separate the members of a list.
        return text.rpartition(FINAL)[2].strip().replace(",", "")
    return text


def _verl(line: Line) -> dict[str, Any]:
    gold = line.row["reward_model"].get("ground_truth")
    if not isinstance(gold, str | int | float) or not str(gold).strip():
        raise line.error("reward_model.ground_truth", f"expected an answer, got {gold!r:.60}")
    prompt = line.row.get("prompt")
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt:
        prompt = prompt[-1].get("content")
    if not isinstance(prompt, str) or not prompt.strip():
        raise line.error("prompt", "expected a string or a list of messages")
    if DAPO_HEAD in prompt:
        prompt = prompt.partition(DAPO_HEAD)[2].partition(DAPO_TAIL)[0].strip()
    extra = line.row.get("extra_info")
    index = extra.get("index") if isinstance(extra, Mapping) else None
    named = {"ID": index} if isinstance(index, str | int) else {}
    return {"problem": prompt, "answer": str(gold), **named}
