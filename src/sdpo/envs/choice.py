"""Multiple-choice questions answered with a letter in `<answer>` tags (SciKnowEval).

A row has `prompt` (the question with its options, one a line, `A: ...`), `answer` (a letter), and
may have `id` or `idx`, `system`, `split`; other keys are ignored. The system message is kept
unchanged. `choice_rows.py` reads published sets whose options stand in columns of their own.

Feedback says what is wrong with the form of an answer, or that the chosen option is wrong. It never
names the right one: that would teach the policy to copy a letter without a reason. The paper gives
no feedback in this setting; `teacher.context.feedback = "never"` reproduces that.

The paper's judge is more lenient about repeated and unclosed blocks and refuses small letters;
`env.grading = "paper"` judges as it does, for numbers that compare with its tables.

The prompt asks for a `<reasoning>` block, which is not judged; `env/has_reasoning` counts it.
"""

from __future__ import annotations

import re
from typing import assert_never

from sdpo.chat import strip_thinking
from sdpo.config import schema
from sdpo.envs.choice_rows import own_row
from sdpo.envs.rows import RowsEnv
from sdpo.envs.table import Line, id_of, messages_of, text_of
from sdpo.envs.text import TRUNCATED, safe
from sdpo.envs.verdicts import accepted, failed, naming
from sdpo.records import Task, Verdict

_OPTION = re.compile(r"^[ \t]*(?:[-*][ \t]+)?\**\(?([A-Z])\**[:.)]\**[ \t]*(?=\S)", re.MULTILINE)
"""`A: x`, `(A) x`, `- A. x`, `**A)** x`."""
_TAG = re.compile(r"<(/?)(answer|reasoning)>", re.IGNORECASE)

# Feedback goes into the teacher's prompt, where a literal tag could be taken for an answer.
NO_ANSWER = (
    "Incorrect Format: There is no answer. Put the letter of your option between an opening and a "
    "closing answer tag, after the reasoning."
)
NOT_CLOSED = "Incorrect Format: The answer tag is opened but not closed."
SEVERAL = "Incorrect Format: There are {count} answers. Give exactly one."
NO_LETTER = (
    "Incorrect Format: The answer reads {answer!r}. Give only the letter of one option: {options}."
)
WRONG = "Wrong Answer: Option {letter} is not correct."


class Choice(RowsEnv):
    """The multiple-choice questions in a file.

    Example:
        env = Choice(schema.ChoiceEnvConfig(tasks="sciknoweval_physics_train.json"))
        env.load("train")[0].reference   # {"answer": "B", "options": "ABCD"}
    """

    def __init__(self, config: schema.ChoiceEnvConfig) -> None:
        super().__init__(config)
        self._grading = config.grading

    def parse(self, line: Line) -> Task:
        """The task of one row; its answer must be the letter of an option in the prompt."""
        line = own_row(line)
        prompt = text_of(line, "prompt")
        answer = text_of(line, "answer").strip()
        answer = answer.upper() if len(answer) == 1 else answer
        options = _options(prompt)
        if len(options) < 2:
            raise line.error("prompt", "no options; write each on a line of its own, `A: ...`")
        if answer not in tuple(options):
            raise line.error("answer", f"{answer!r:.60} is not one of {', '.join(options)}")
        return Task(
            id=id_of(line, prompt),
            messages=messages_of(line, prompt),
            reference={"answer": answer, "options": options},
        )

    def judge_text(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """The verdict on one answer: a single letter, with nothing beside it."""
        match self._grading:
            case "strict":
                return self._strict(task, text, is_truncated=is_truncated)
            case "paper":
                return self._as_the_paper(task, text, is_truncated=is_truncated)
            case _:
                assert_never(self._grading)

    def _as_the_paper(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """What stands between the last opening tag (or the beginning) and the next closing one (or
        the end) is the answer."""
        answer = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
        has_reasoning = float(_answers(strip_thinking(text))[2])
        if answer == task.reference["answer"]:
            return naming(accepted(has_reasoning=has_reasoning), answer)
        if answer in tuple(task.reference["options"]):
            said = WRONG.format(letter=answer)
            return naming(failed("wrong_answer", said, has_reasoning=has_reasoning), answer)
        found = self._strict(task, text, is_truncated=is_truncated)
        if found.info["category"] in ("incorrect_format", "truncated"):
            return found
        options = ", ".join(task.reference["options"])
        feedback = NO_LETTER.format(answer=safe(answer), options=options)
        return failed("incorrect_format", feedback, has_reasoning=has_reasoning)

    def _strict(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        text = strip_thinking(text)
        answers, is_open, has_block = _answers(text)
        has_reasoning = float(has_block)
        if len(answers) != 1:
            if answers:
                feedback = SEVERAL.format(count=len(answers))
            elif is_truncated:
                return failed("truncated", TRUNCATED, has_reasoning=has_reasoning)
            else:
                feedback = NOT_CLOSED if is_open else NO_ANSWER
            return failed("incorrect_format", feedback, has_reasoning=has_reasoning)
        letter = answers[0].strip().upper()
        options = task.reference["options"]
        if letter not in tuple(options):
            feedback = NO_LETTER.format(answer=safe(answers[0].strip()), options=", ".join(options))
            return failed("incorrect_format", feedback, has_reasoning=has_reasoning)
        if letter != task.reference["answer"]:
            said = WRONG.format(letter=letter)
            return naming(failed("wrong_answer", said, has_reasoning=has_reasoning), letter)
        return naming(accepted(has_reasoning=has_reasoning), letter)

    def doubt(self, task: Task) -> str | None:
        """Whether two options have the same text, so that only one letter of them is right."""
        texts = option_texts(task.messages[-1]["content"])
        for letter, text in texts.items():
            for other, same in texts.items():
                if letter < other and text == same:
                    right = task.reference["answer"] in (letter, other)
                    which = "of which one is right" if right else "neither of them right"
                    return f"options {letter} and {other} are the same, {which}"
        return None

    def reference_answer(self, task: Task) -> str:
        """The right letter, tagged."""
        return _tagged(task.reference["answer"])

    def trivial_answer(self, task: Task) -> str:
        """A wrong letter, tagged."""
        options = task.reference["options"]
        return _tagged(next(letter for letter in options if letter != task.reference["answer"]))


def _options(prompt: str) -> str:
    """Letters of the options, `ABCD`: the last lines that begin with A, B, C, ... in order."""
    letters = ""
    for letter in _OPTION.findall(prompt):
        if letter == "A":
            letters = "A"  # The question itself may have lettered lines before the options.
        elif letters and ord(letter) == ord(letters[-1]) + 1:
            letters += letter
    return letters


def option_texts(prompt: str) -> dict[str, str]:
    """Letter to text of each option, a line each."""
    lines = prompt.split("\n")
    letters = _options(prompt)
    found: dict[str, str] = {}
    for line in reversed(lines):
        match = _OPTION.match(line)
        if match and match[1] in letters and match[1] not in found:
            found[match[1]] = " ".join(line[match.end() :].split())
    return dict(sorted(found.items()))


def _answers(text: str) -> tuple[list[str], bool, bool]:
    """(contents of the answer blocks, whether one stays open, whether there is a reasoning block).

    An answer tag inside the reasoning is a mention, not an answer; reasoning that is never closed
    hides nothing. One pass over the tags, because a lazy pattern takes quadratic time on a text
    full of opening tags.
    """
    tags = [(match[2].lower(), bool(match[1]), match) for match in _TAG.finditer(text)]
    last_close = max(
        (i for i, (n, closes, _) in enumerate(tags) if n == "reasoning" and closes), default=-1
    )
    answers: list[str] = []
    opened: re.Match[str] | None = None
    is_reasoning = has_reasoning = False
    for place, (name, closes, match) in enumerate(tags):
        if name == "reasoning":
            has_reasoning |= is_reasoning and closes
            is_reasoning = not closes and place < last_close
        elif not is_reasoning and closes and opened is not None:
            answers.append(text[opened.end() : match.start()])
            opened = None
        elif not is_reasoning and not closes and opened is None:
            opened = match
    return answers, opened is not None, has_reasoning


def _tagged(letter: str) -> str:
    return f"<reasoning>\nSee above.\n</reasoning>\n<answer>\n{letter}\n</answer>"
