"""Mathematics with a final answer in `\\boxed{}`, compared by math-verify (extra `math`).

A row has `problem` and `answer` (LaTeX, plain text or a number), and may have `id` or `idx`,
`system`, `split`; other keys are ignored. `math_rows.py` reads published sets. A problem that does
not ask for a box gets one line that does.

The last box of an answer counts. Numbers are the same within a relative error, however small they
are (`math_values.py`); units are compared where both sides give one that is known; a chain such as
`41 = 42` is wrong. Parsing and comparing formulas can take forever
(`9^{9^{9^9}}`), and math-verify's own time limit works only in the main thread. So worker processes
do it, and are killed when the time is up.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sdpo.chat import strip_thinking
from sdpo.config import schema
from sdpo.envs.math_forms import doubt_about, is_zero
from sdpo.envs.math_rows import own_row
from sdpo.envs.rows import RowsEnv
from sdpo.envs.table import Line, id_of, messages_of
from sdpo.envs.text import TRUNCATED, safe
from sdpo.envs.verdicts import accepted, failed, naming
from sdpo.envs.workers import WorkerPool, require_workers
from sdpo.errors import ConfigError
from sdpo.machine import usable_cores
from sdpo.records import Task, Verdict

ZERO = "0.0"
INSTRUCTION = "Put your final answer within \\boxed{}."
WORKER = Path(__file__).with_name("math_worker.py")
TIME_LIMIT_S = 10.0
"""For one answer. Honest ones take milliseconds; on a busy machine, more."""
MAX_ANSWER_CHARS = 2000
"""A longer answer is not parsed."""

NO_BOX = "Incorrect Format: There is no \\boxed{...}. Put your final answer in one."
NOT_CLOSED = "Incorrect Format: The last \\boxed{ is not closed."
EMPTY = "Incorrect Format: The last \\boxed{} is empty."
UNREADABLE = "Incorrect Format: The boxed answer cannot be read as mathematics: {answer}"
TOO_SLOW = "Time Limit Exceeded: The boxed answer cannot be evaluated in time: {answer}"
WRONG = "Wrong Answer: {answer} is not correct."


class Math(RowsEnv):
    """The mathematics problems in a file.

    Example:
        with contextlib.closing(Math(schema.MathEnvConfig(tasks="problems.jsonl"))) as env:
            env.judge(env.load("train")[0], rollout)
    """

    def __init__(self, config: schema.MathEnvConfig, *, time_limit_s: float = TIME_LIMIT_S) -> None:
        super().__init__(config)
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError("env.type = 'math' needs math-verify: pip install 'sdpo[math]'")
        require_workers("math")
        self._time_limit_s = time_limit_s
        self._workers = WorkerPool(WORKER)

    def parse(self, line: Line) -> Task:
        """The task of one row."""
        line = own_row(line)
        problem, answer = line.row["problem"], line.row["answer"]
        boxed, _ = last_box(answer)
        prompt = problem if "\\boxed" in problem else f"{problem}\n\n{INSTRUCTION}"
        return Task(
            id=id_of(line, problem),
            messages=messages_of(line, prompt),
            reference=(boxed or answer).strip(),
        )

    @property
    def judges_at_once(self) -> int:
        """As many as there are cores."""
        return usable_cores()

    def judge_text(self, task: Task, text: str, *, is_truncated: bool) -> Verdict:
        """The verdict on one answer."""
        boxed, problem = last_box(strip_thinking(text))
        if boxed is None or not boxed.strip():
            if is_truncated:
                return failed("truncated", TRUNCATED)
            return failed("incorrect_format", problem or EMPTY)
        answer = boxed.strip()
        shown = safe(answer)
        match self._compare(task, answer):
            case "right":
                return naming(accepted(), answer)
            case "wrong":
                return naming(failed("wrong_answer", WRONG.format(answer=shown)), answer)
            case "unreadable":
                return failed("incorrect_format", UNREADABLE.format(answer=shown))
            case _:
                return failed("time_limit", TOO_SLOW.format(answer=shown))

    def reference_answer(self, task: Task) -> str:
        """The reference in a box."""
        return f"\\boxed{{{task.reference}}}"

    def trivial_answer(self, task: Task) -> str:
        """A box with a number that is the answer to nothing."""
        return "\\boxed{-8675309.125}"

    def doubt(self, task: Task) -> str | None:
        """Whether the reference is not one value, or a zero passes for it."""
        found = doubt_about(task.reference)
        if found is None and not is_zero(task.reference):
            if self._compare(task, ZERO) == "right":
                return "0 is accepted, although the reference is not written as a zero"
            # Compared with itself it would be the same text, whatever it is.
            if self._asked("1", task.reference) == "unreadable":
                return "the reference cannot be read as mathematics; only the same text is right"
        return found

    def close(self) -> None:
        """End the worker processes; a later verdict starts new ones."""
        self._workers.close()

    def _compare(self, task: Task, answer: str) -> str:
        # Answers in words ("Tuesday") are not formulas and compare as strings.
        if "".join(answer.split()) == "".join(task.reference.split()):
            return "right"
        return self._asked(task.reference, answer)

    def _asked(self, reference: str, answer: str) -> str:
        """What the algebra says about an answer."""
        if len(answer) > MAX_ANSWER_CHARS:
            return "unreadable"
        return self._workers.ask([reference, answer], self._time_limit_s) or "too_slow"


def last_box(text: str) -> tuple[str | None, str | None]:
    """The content of the last `\\boxed{...}` in `text`, braces balanced, or else what is wrong."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None, NO_BOX
    rest = text[start + len("\\boxed") :].lstrip()
    if not rest.startswith("{"):
        return None, NO_BOX
    depth, place = 0, 0
    while place < len(rest):
        if rest[place] == "\\":
            place += 1  # An escaped brace belongs to a set, not to a group.
        elif rest[place] in "{}":
            depth += 1 if rest[place] == "{" else -1
            if depth == 0:
                return rest[1:place], None
        place += 1
    return None, NOT_CLOSED
