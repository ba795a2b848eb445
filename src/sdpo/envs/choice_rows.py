"""Rows of published multiple-choice sets to a prompt with lettered options and a letter.

| rows | options | right one |
|---|---|---|
| ours, the paper's | in the `prompt` | `answer`, a letter |
| GPQA | `Correct Answer`, `Incorrect Answer 1` to `3`, in a seeded order | the first |
| ARC, SciKnowEval | `choices.text` with `choices.label` | `answerKey` |
| MMLU, MMLU-Pro | `choices` or `options`, a list | `answer`: number, letter or text |

The prompt made of such a row is laid out like those of the paper's SciKnowEval, under its system
message.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdpo.envs.table import Line, id_of, kind_of, text_of
from sdpo.seeds import derive

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
REQUEST = "Please reason step by step."
SYSTEM = (
    "Given a question and options, please select the right answer. Respond in the following format:"
    "\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>\n\nFor the answer, only output the "
    "letter corresponding to the correct option, and nothing else. Do not restate the answer text. "
    'For example, if the answer is "A", just output:\n<answer>\nA\n</answer>'
)
GPQA_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def own_row(line: Line) -> Line:
    """`line` with `prompt` (options in it), `answer` (a letter) and `system`, whoever's row it is.
    Raises `TaskError` naming the key that is wrong."""
    row = line.row
    if "Correct Answer" in row:
        question = text_of(line, "Question")
        right = text_of(line, "Correct Answer").strip()
        options = [right, *(text_of(line, key).strip() for key in GPQA_WRONG)]
        rng = random.Random(derive(0, "order of options", id_of(line, question)))
        rng.shuffle(options)
        return _laid_out(line, question, options, options.index(right))
    key = "choices" if "choices" in row else "options"
    if key not in row or "prompt" in row:
        return line
    question = text_of(line, "question")
    texts, labels = _options(line, key)
    gold = "answerKey" if "answerKey" in row else "answer"
    return _laid_out(line, question, texts, _index(line, gold, texts, labels))


def _options(line: Line, key: str) -> tuple[list[str], list[str]]:
    value = line.row[key]
    texts = value.get("text") if isinstance(value, Mapping) else value
    is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not is_list or not all(isinstance(text, str) for text in texts):
        raise line.error(key, f"expected a list of strings, got {kind_of(value)}")
    if not 2 <= len(texts) <= len(LETTERS):
        raise line.error(key, f"expected 2 to {len(LETTERS)} options, got {len(texts)}")
    labels = value.get("label") if isinstance(value, Mapping) else None
    return list(texts), list(labels) if labels else list(LETTERS[: len(texts)])


def _index(line: Line, key: str, texts: Sequence[str], labels: Sequence[str]) -> int:
    """Place of the right option, which a number from 0, a label or its text names."""
    gold: Any = line.row.get(key)
    if isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < len(texts):
        return gold
    if isinstance(gold, str):
        for names in (labels, [label.lower() for label in labels], texts):
            if gold.strip() in names:
                return list(names).index(gold.strip())
        if gold.strip().isdecimal() and int(gold) < len(texts):
            return int(gold)  # CSV has only strings.
    raise line.error(key, f"{gold!r:.60} names none of the {len(texts)} options")


def _laid_out(line: Line, question: str, options: Sequence[str], right: int) -> Line:
    listed = "\n".join(
        f"{letter}: {' '.join(text.split())}"
        for letter, text in zip(LETTERS, options, strict=False)
    )
    row = {
        **line.row,
        "prompt": f"{question.strip()}\n\n{listed}\n{REQUEST}",
        "answer": LETTERS[right],
        "system": line.row.get("system") or SYSTEM,
    }
    return replace(line, row=row)
